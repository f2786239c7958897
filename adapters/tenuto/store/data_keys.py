"""The data keys that payloads are encrypted under: made and unwrapped by AWS KMS, kept wrapped in the table itself.

Owns the item that holds them, which of them is current, and how long they are remembered. Does not own what is
encrypted under them (`encrypted`), nor who may use the KMS key: IAM and the key's policy do.

One item holds all wrapped data keys of a table, so that a backup or a copy of the table is complete: whoever may
decrypt with the KMS key can read it. Only the control plane makes data keys; functions ask KMS to unwrap one, once in
the life of a process.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tenuto.lane.writes import Absent, Equals, Item, Key, Put, Refused, Update
from tenuto.store.aws_client import blocking_client, translated
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError

DATA_KEYS: Final = Key("K#", "data-keys")
"""Where the wrapped keys are. `now` is the number of the current one, `k.<number>` a wrapped key."""

NOW, WRAPPED = "now", "k."

CURRENT_AGE_S: Final = 300.0
"""How long a process takes the current key for current: after a rotation, it encrypts under the old one so long."""

CONTEXT: Final = "tenuto:data-key"
"""KMS's encryption context names the number, so that wrapped keys cannot be exchanged."""

SECRET_BYTES: Final = 32


class NoSuchKeyError(TableRefusedError):
    """A value names a data key that the table does not have. Values of other keys open."""


class MissingCryptographyError(Exception):
    """The library that encrypts is not installed."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key of 256 bits, and its number in the table."""

    number: int
    secret: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.number})"


class DataKeys(Protocol):
    """Where data keys come from.

    Both methods raise TableUnavailableError when KMS or the table does not answer, and TableRefusedError when asking
    again cannot help: no permission, a disabled KMS key, no such data key.
    """

    async def current(self) -> DataKey:
        """The key to encrypt under."""
        ...

    async def numbered(self, number: int) -> DataKey:
        """The key that something was encrypted under."""
        ...


class Wrapping(ABC):
    """KMS, or what takes its place: makes data keys, and unwraps them."""

    @abstractmethod
    async def generate(self, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """A new secret, and the same wrapped."""

    @abstractmethod
    async def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The secret in a wrapped key."""


class StoredDataKeys:
    """`DataKeys` in an item of a table, which is not the encrypted view of it.

    With `makes`, the first key is made when there is none.
    """

    def __init__(
        self, table: Table, wrapping: Wrapping, *, makes: bool, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = table
        self._wrapping = wrapping
        self._makes = makes
        self._clock_s = clock_s
        self._known: dict[int, DataKey] = {}
        self._now: int | None = None
        self._looked_s = 0.0
        self._busy = asyncio.Lock()

    async def current(self) -> DataKey:
        """See `DataKeys.current`."""
        if self._is_stale():
            async with self._busy:
                # Whoever was here first may have looked already.
                if self._is_stale():
                    await self._look()
        assert self._now is not None, "a look finds a current key or raises"
        return self._known[self._now]

    async def numbered(self, number: int) -> DataKey:
        """See `DataKeys.numbered`."""
        if number not in self._known:
            async with self._busy:
                if number not in self._known:
                    await self._learn(await self._item(), number)
        return self._known[number]

    async def rotate(self) -> int:
        """Make a new key the current one, and return its number. Older ones stay, for what is encrypted under them.

        Raises TableRefusedError when there is no key yet, or another process rotated at the same time.
        """
        item = await self._item()
        now = _number(item)
        _, wrapped = await self._wrapping.generate(_context(now + 1))
        sets: Item = {NOW: now + 1, f"{WRAPPED}{now + 1}": wrapped}
        answer = await self._table.write(Update(DATA_KEYS, sets, (), (Equals("keys.now", NOW, now),)))
        if isinstance(answer, Refused):
            raise TableRefusedError(f"data key {now + 1} was made by another process just now")
        return now + 1

    def _is_stale(self) -> bool:
        return self._now is None or self._clock_s() - self._looked_s > CURRENT_AGE_S

    async def _look(self) -> None:
        """Learn which key is current; one that is known stays so while nobody answers."""
        try:
            item = await self._item()
            number = _number(item)
            await self._learn(item, number)
        except TableUnavailableError:
            if self._now is None:
                raise
            return
        self._now, self._looked_s = number, self._clock_s()

    async def _learn(self, item: Item, number: int) -> None:
        wrapped = item.get(f"{WRAPPED}{number}")
        if not isinstance(wrapped, bytes):
            raise NoSuchKeyError(f"the table has no data key {number}, which some of it is encrypted under")
        if number not in self._known:
            secret = await self._wrapping.unwrap(wrapped, _context(number))
            self._known[number] = DataKey(number, secret)

    async def _item(self) -> Item:
        item = await self._table.get(DATA_KEYS)
        if item is not None:
            return item
        if not self._makes:
            raise TableRefusedError("the table has no data keys yet; the control plane makes the first one")
        _, wrapped = await self._wrapping.generate(_context(1))
        put = Put(DATA_KEYS, {NOW: 1, f"{WRAPPED}1": wrapped}, (Absent("keys.absent", "pk"),))
        # Of two processes that start at the same time, the second takes what the first one made.
        answer = await self._table.write(put)
        assert answer.item is not None, "it was put, or was there"
        return answer.item


def _context(number: int) -> dict[str, str]:
    return {CONTEXT: str(number)}


def _number(item: Item) -> int:
    number = item.get(NOW)
    if not isinstance(number, int):
        raise TableRefusedError(f"item {DATA_KEYS.pk} {DATA_KEYS.sk} does not say which data key is current")
    return number


class KmsClient(Protocol):
    """What of an aiobotocore client for KMS is used here."""

    async def generate_data_key(self, **arguments: Any) -> dict[str, Any]:
        """KMS's GenerateDataKey."""
        ...

    async def decrypt(self, **arguments: Any) -> dict[str, Any]:
        """KMS's Decrypt."""
        ...


class Kms(Wrapping):
    """AWS KMS over an aiobotocore client, with one key: its id, ARN or alias."""

    def __init__(self, client: KmsClient, key_id: str) -> None:
        self._client = client
        self._key_id = key_id

    async def generate(self, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """See `Wrapping.generate`."""
        try:
            answer = await self._client.generate_data_key(
                KeyId=self._key_id, NumberOfBytes=SECRET_BYTES, EncryptionContext=dict(context)
            )
        except Exception as error:
            raise translated(error, f"a data key of KMS key {self._key_id}") from error
        return answer["Plaintext"], answer["CiphertextBlob"]

    async def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """See `Wrapping.unwrap`."""
        try:
            answer = await self._client.decrypt(CiphertextBlob=wrapped, EncryptionContext=dict(context))
        except Exception as error:
            raise translated(error, f"unwrapping a data key with KMS key {self._key_id}") from error
        secret: bytes = answer["Plaintext"]
        return secret


class BlockingKms(Wrapping):
    """AWS KMS over botocore, for functions, which unwrap and never make keys. Its client is made at its first use."""

    async def generate(self, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """See `Wrapping.generate`. A function makes none."""
        raise AssertionError(f"a function makes no data keys: {context}")

    async def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """See `Wrapping.unwrap`."""
        _, client = blocking_client("kms")
        try:
            answer = client.decrypt(CiphertextBlob=wrapped, EncryptionContext=dict(context))
        except Exception as error:
            raise translated(error, "unwrapping a data key with KMS") from error
        finally:
            client.close()
        secret: bytes = answer["Plaintext"]
        return secret


def require_cryptography() -> None:
    """Raises MissingCryptographyError when payloads cannot be encrypted here."""
    if importlib.util.find_spec("cryptography") is None:
        raise MissingCryptographyError(
            "payload encryption needs the library cryptography: install tenuto[kms], or build with "
            "TENUTO_ENCRYPTION=true"
        )
