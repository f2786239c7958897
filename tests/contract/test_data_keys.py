"""Data keys over KMS in memory and over KMS as moto plays it: made once, shared, rotated, and never exchanged.

Owns what both sides may rely on. Does not own what is encrypted under the keys (`test_encrypted`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import boto3
import pytest
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from tenuto.lane.writes import Update
from tenuto.store.data_keys import CURRENT_AGE_S, DATA_KEYS, BlockingKms, Kms, StoredDataKeys, Wrapping
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tests.contract.table_clients import use_environment
from tests.support.memory_kms import MemoryKms
from tests.support.moto import moto_server

REGION: Final = "us-east-1"
OpenKms = Callable[[], AbstractAsyncContextManager[Wrapping]]


@pytest.fixture(scope="module")
def moto_kms() -> Iterator[str]:
    """The endpoint of a moto server."""
    with moto_server() as endpoint_url:
        yield endpoint_url


@pytest.fixture(params=["memory", "moto"])
def open_kms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OpenKms:
    """How to reach a KMS key."""
    if request.param == "memory":
        return _open_memory
    endpoint: str = request.getfixturevalue("moto_kms")
    use_environment(monkeypatch, endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
    key_id: str = boto3.client("kms", region_name=REGION).create_key()["KeyMetadata"]["KeyId"]
    return lambda: _open_moto(key_id)


@asynccontextmanager
async def _open_memory() -> AsyncIterator[Wrapping]:
    yield MemoryKms()


@asynccontextmanager
async def _open_moto(key_id: str) -> AsyncIterator[Wrapping]:
    async with get_session().create_client("kms", region_name=REGION) as client:
        yield Kms(client, key_id)


def run(open_kms: OpenKms, scenario: Callable[[Wrapping], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_kms() as kms:
            await scenario(kms)

    asyncio.run(main())


def test_two_processes_share_the_first_data_key(open_kms: OpenKms) -> None:
    async def scenario(kms: Wrapping) -> None:
        table = MemoryTable()
        one, other = (StoredDataKeys(table, kms, makes=True) for _ in range(2))
        keys = await asyncio.gather(*(keys.current() for keys in (one, other) for _ in range(3)))
        assert len(set(keys)) == 1
        assert (keys[0].number, len(keys[0].secret)) == (1, 32)
        assert keys[0].secret not in table.items[DATA_KEYS.pk, DATA_KEYS.sk].values()

    run(open_kms, scenario)


def test_a_function_finds_the_key_and_makes_none(open_kms: OpenKms) -> None:
    async def scenario(kms: Wrapping) -> None:
        table = MemoryTable()
        function = StoredDataKeys(table, kms, makes=False)
        with pytest.raises(TableRefusedError, match="the control plane makes the first one"):
            await function.current()
        made = await StoredDataKeys(table, kms, makes=True).current()
        assert await function.current() == made
        assert await function.numbered(1) == made

    run(open_kms, scenario)


def test_a_rotation_is_taken_up_and_older_keys_stay(open_kms: OpenKms) -> None:
    async def scenario(kms: Wrapping) -> None:
        table, now_s = MemoryTable(), [0.0]
        keys = StoredDataKeys(table, kms, makes=True, clock_s=lambda: now_s[0])
        first = await keys.current()
        assert await StoredDataKeys(table, kms, makes=True).rotate() == 2
        assert await keys.current() == first
        # What another process encrypted under the new key opens at once.
        second = await keys.numbered(2)
        assert second.secret != first.secret
        now_s[0] += CURRENT_AGE_S + 1
        assert await keys.current() == second
        assert await StoredDataKeys(table, kms, makes=False).numbered(1) == first

    run(open_kms, scenario)


def test_a_wrapped_key_does_not_pass_for_another(open_kms: OpenKms) -> None:
    async def scenario(kms: Wrapping) -> None:
        table = MemoryTable()
        keys = StoredDataKeys(table, kms, makes=True)
        await keys.current()
        await keys.rotate()
        item = table.items[DATA_KEYS.pk, DATA_KEYS.sk]
        await table.write(Update(DATA_KEYS, {"k.1": item["k.2"], "k.2": item["k.1"]}))
        with pytest.raises(TableRefusedError, match="InvalidCiphertextException"):
            await StoredDataKeys(table, kms, makes=False).current()

    run(open_kms, scenario)


def test_an_unknown_number_is_refused(open_kms: OpenKms) -> None:
    async def scenario(kms: Wrapping) -> None:
        keys = StoredDataKeys(MemoryTable(), kms, makes=True)
        with pytest.raises(TableRefusedError, match="no data key 7"):
            await keys.numbered(7)

    run(open_kms, scenario)


def test_functions_unwrap_with_a_client_of_their_own(moto_kms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_environment(monkeypatch, moto_kms)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", moto_kms)
    stock = boto3.client("kms", region_name=REGION)
    key_id = stock.create_key()["KeyMetadata"]["KeyId"]

    async def main() -> None:
        table = MemoryTable()
        async with _open_moto(key_id) as kms:
            made = await StoredDataKeys(table, kms, makes=True).current()
        assert await StoredDataKeys(table, BlockingKms(), makes=False).current() == made
        await table.write(Update(DATA_KEYS, {"k.1": b"wrapped by nobody"}))
        with pytest.raises(TableRefusedError, match=r"^unwrapping a data key with KMS: InvalidCiphertextException"):
            await StoredDataKeys(table, BlockingKms(), makes=False).current()

    asyncio.run(main())


def test_a_key_that_is_known_outlives_kms() -> None:
    async def main() -> None:
        kms, now_s = MemoryKms(), [0.0]
        keys = StoredDataKeys(MemoryTable(), kms, makes=True, clock_s=lambda: now_s[0])
        kms.away = True
        with pytest.raises(TableUnavailableError):
            await keys.current()
        kms.away = False
        known = await keys.current()
        await keys.rotate()
        kms.away = True
        now_s[0] += CURRENT_AGE_S + 1
        assert await keys.current() == known
        assert kms.requests == {"generate": 2, "unwrap": 1}

    asyncio.run(main())


def test_of_two_rotations_at_once_one_is_refused() -> None:
    async def main() -> None:
        table, kms = MemoryTable(), MemoryKms()
        keys = StoredDataKeys(table, kms, makes=True)
        await keys.current()

        class Late(MemoryKms):
            async def generate(self, context: object) -> tuple[bytes, bytes]:
                await keys.rotate()
                return b"s" * 32, b"w"

        with pytest.raises(TableRefusedError, match="another process"):
            await StoredDataKeys(table, Late(), makes=True).rotate()
        assert (await StoredDataKeys(table, kms, makes=False).numbered(2)).number == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "status", "meaning"),
    [
        ("ThrottlingException", 400, TableUnavailableError),
        ("KMSInternalException", 500, TableUnavailableError),
        ("AccessDeniedException", 400, TableRefusedError),
        ("NotFoundException", 400, TableRefusedError),
    ],
)
def test_what_kms_says_becomes_what_the_table_port_says(code: str, status: int, meaning: type[Exception]) -> None:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}

    class Scripted:
        async def generate_data_key(self, **_: object) -> dict[str, object]:
            raise ClientError(answer, "GenerateDataKey")

        async def decrypt(self, **_: object) -> dict[str, object]:
            raise NotImplementedError

    with pytest.raises(meaning, match=rf"^a data key of KMS key alias/k: {code}: no$"):
        asyncio.run(StoredDataKeys(MemoryTable(), Kms(Scripted(), "alias/k"), makes=True).current())
