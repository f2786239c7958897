"""A table whose payloads are encrypted on this side: what DynamoDB and its backups hold cannot be read there.

Owns what of an item is encrypted, and how. Does not own the data keys (`data_keys`), nor sending requests.

Encrypted are all binary attributes, which are all that user code or callers hand in: inputs, headers, state, journal,
results, messages; and the text of the last error. In the clear stay keys, names of states and steps' places, offsets
and times, by which the table works. An encrypted value is stored as a list, [number of its data key, nonce and
ciphertext], which no value in the clear is: so a table that holds values from before encryption was asked for stays
readable, and each is encrypted when it is next written.

The cipher is AES-256-GCM with random nonces. Each partition of the table has its own key, derived from the data
key by HKDF-SHA-256: a key may be used for 2^32 random nonces at most (NIST SP 800-38D, section 8.3), which all the
values of a busy table together would reach, and those of a partition do not. Sort key and attribute name are
authenticated, so that a value which was moved elsewhere does not open.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, assert_never

from msgspec.structs import replace

from tenuto.lane.head import HEAD_SK
from tenuto.lane.writes import Answer, Applied, Delete, Foreign, Item, Key, Put, Refused, Update, Value, Write
from tenuto.store.data_keys import DataKey, DataKeys, NoSuchKeyError
from tenuto.store.expressions import marshal
from tenuto.store.port import Page, Table, UnopenedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TEXTS: Final = frozenset({"err"})
"""Attributes that hold text which may quote a payload."""

NONCE_BYTES: Final = 12
DERIVED_BYTES: Final = 32
CIPHERS_MAX: Final = 4_096
"""Partitions whose derived key is kept; one costs about 10 microseconds to derive."""


class EncryptedTable:
    """A `Table` in front of another one. Raises what that one does, and UnopenedError for an item that does not open.

    In a page, and in a head, what does not open is a Foreign: one value must not hide those beside it.
    """

    def __init__(self, table: Table, keys: DataKeys) -> None:
        self._table = table
        self._keys = keys
        self._ciphers: OrderedDict[tuple[int, str], AESGCM] = OrderedDict()

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        match write:
            case Delete():
                return await self._table.write(write)
            case Put(key, attributes):
                answer = await self._table.write(replace(write, attributes=await self._encrypted(key, attributes)))
                if isinstance(answer, Applied):
                    return Applied({"pk": key.pk, "sk": key.sk, **attributes})
            case Update(key, sets):
                answer = await self._table.write(replace(write, sets=await self._encrypted(key, sets)))
            case _:
                assert_never(write)
        match answer:
            case Applied(item):
                return Applied(item and await self._opened_alone(item))
            case Refused(item):
                return Refused(item and await self._opened_alone(item))
            case _:
                assert_never(answer)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        item = await self._table.get(key)
        return None if item is None else await self._opened_alone(item)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        items = await self._table.get_all(keys)
        return [None if item is None else await self._opened_or_kept(item) for item in items]

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        page = await self._table.query(pk, low, high, limit=limit, after=after)
        return Page([await self._opened_or_kept(item) for item in page.items], page.last)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        sealed = [replace(put, attributes=await self._encrypted(put.key, put.attributes)) for put in puts]
        await self._table.put_all(sealed)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        await self._table.delete_all(deletes)

    async def _encrypted(self, key: Key, attributes: Mapping[str, Value]) -> dict[str, Value]:
        payloads = {name: clear for name, value in attributes.items() if (clear := _payload(name, value)) is not None}
        changed = dict(attributes)
        if not payloads:
            return changed
        data_key = await self._keys.current()
        cipher = self._cipher(data_key, key.pk)
        for name, clear in payloads.items():
            nonce = os.urandom(NONCE_BYTES)
            changed[name] = [data_key.number, nonce + cipher.encrypt(nonce, clear, _place(key.sk, name))]
        return changed

    async def _opened_alone(self, item: Item) -> Item:
        """The same as `_opened`, but for a head, of which each attribute is judged by itself."""
        return await (self._opened_or_kept(item) if item["sk"] == HEAD_SK else self._opened(item))

    async def _opened_or_kept(self, item: Item) -> Item:
        """The same as `_opened`, where one value that does not open must not hide those beside it."""
        try:
            return await self._opened(item)
        except UnopenedError:
            opened = dict(item)
            for name, value in item.items():
                if _is_sealed(value):
                    try:
                        one = await self._opened({"pk": item["pk"], "sk": item["sk"], name: value})
                        opened[name] = one[name]
                    except UnopenedError as e:
                        opened[name] = Foreign(marshal(value), str(e))
            return opened

    async def _opened(self, item: Item) -> Item:
        pk, sk = str(item["pk"]), str(item["sk"])
        opened = dict(item)
        for name, value in item.items():
            match value:
                case [int() as number, bytes() as sealed]:
                    cipher = self._cipher(await self._key(number), pk)
                    clear = _open(cipher, sealed, Key(pk, sk), name)
                    opened[name] = clear.decode(errors="replace") if name in TEXTS else clear
                case _:
                    pass
        return opened

    async def _key(self, number: int) -> DataKey:
        try:
            return await self._keys.numbered(number)
        except NoSuchKeyError as e:
            raise UnopenedError(str(e)) from e

    def _cipher(self, data_key: DataKey, pk: str) -> AESGCM:
        """The cipher of a partition under a data key."""
        at = (data_key.number, pk)
        cipher = self._ciphers.get(at)
        if cipher is None:
            cipher = self._ciphers[at] = _derived(data_key, pk)
            if len(self._ciphers) > CIPHERS_MAX:
                self._ciphers.popitem(last=False)
        else:
            self._ciphers.move_to_end(at)
        return cipher


def _payload(name: str, value: Value) -> bytes | None:
    """What of an attribute is encrypted; None when it stays in the clear."""
    if isinstance(value, str) and name in TEXTS:
        return value.encode()
    return value if isinstance(value, bytes) else None


def _is_sealed(value: Value) -> bool:
    """Whether a value looks like an encrypted one."""
    match value:
        case [int(), bytes()]:
            return True
        case _:
            return False


def _place(sk: str, name: str) -> bytes:
    """What is authenticated besides the value. The length tells where the sort key ends."""
    return f"{len(sk)}|{sk}|{name}".encode()


def _derived(data_key: DataKey, pk: str) -> AESGCM:
    # Imported here: a function that writes nothing, or nothing encrypted, does not pay for it.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"tenuto partition\0" + pk.encode()
    return AESGCM(HKDF(SHA256(), DERIVED_BYTES, salt=None, info=info).derive(data_key.secret))


def _open(cipher: AESGCM, sealed: bytes, key: Key, name: str) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _place(key.sk, name))
    except (InvalidTag, ValueError) as e:
        raise UnopenedError(
            f"attribute {name!r} of item {key.pk} {key.sk} does not open under its data key: it was altered, or moved "
            "here from another item"
        ) from e
