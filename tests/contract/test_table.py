"""One contract for every `Table`: the reference in memory, and the DynamoDB drivers over three servers.

Owns what a table promises to lanes. Does not own which writes lanes make.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dynamodb_json import json_util
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.lane.writes import (
    Absent,
    AbsentOrAtMost,
    AbsentOrEquals,
    Answer,
    Applied,
    Clause,
    Delete,
    Equals,
    Item,
    Key,
    Put,
    Refused,
    Update,
    Value,
    Write,
)
from tenuto.store.aws_client import CLIENT_OPTIONS, CLIENT_VARIABLE
from tenuto.store.data_keys import StoredDataKeys
from tenuto.store.dynamodb import BlockingDynamoTable, DynamoTable
from tenuto.store.encrypted import EncryptedTable
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Table, TableRefusedError
from tenuto.store.senders import open_loop_client
from tenuto_local.errors import ConfigurationError, PrerequisiteMissing
from tenuto_local.table import create_table
from tenuto_local.table_engine import NATIVE, REFERENCE, EngineKind
from tests.contract.table_clients import TABLE, client_for, fresh, use_environment, wire_for
from tests.support.memory_kms import MemoryKms
from tests.support.moto import moto_server

Open = Callable[[], AbstractAsyncContextManager[Table]]

CREATION_TIMEOUT_S = 30.0

MOTO_CANNOT = {
    "test_an_empty_update_leaves_a_bare_item": "moto fails on an update without an expression",
    "test_a_write_takes_place_only_if_every_clause_holds": "moto fails on comparing values of two types",
    "test_a_write_may_name_three_hundred_attributes": "moto's parser recurses once per attribute",
}


@pytest.fixture(scope="module")
def dynamodb_local() -> Iterator[str]:
    """The endpoint of a DynamoDB Local that has the table."""
    yield from served(REFERENCE)


@pytest.fixture(scope="module")
def dynoxide() -> Iterator[str]:
    """The endpoint of a dynoxide that has the table; skipped where the program cannot be had."""
    try:
        yield from served(NATIVE)
    except PrerequisiteMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["dynamodb_local", "dynoxide"])
def server(request: pytest.FixtureRequest) -> str:
    """The endpoint of each engine of the embedded stack."""
    endpoint_url: str = request.getfixturevalue(request.param)
    return endpoint_url


def served(engine: EngineKind) -> Iterator[str]:
    """Run an engine that has the table."""
    with tempfile.TemporaryDirectory(prefix="tenuto-contract-") as workdir:
        server = engine.make(Path(workdir))
        asyncio.run(server.start())
        try:
            asyncio.run(create_lanes(server.endpoint_url))
            yield server.endpoint_url
        finally:
            asyncio.run(server.stop())


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The endpoint of a moto server that has the table."""
    with moto_server() as endpoint_url:
        asyncio.run(create_lanes(endpoint_url))
        yield endpoint_url


async def create_lanes(endpoint_url: str) -> None:
    """Create the table of the suite."""
    # Loading a table engine takes longer than any request of the product may.
    async with client_for(endpoint_url, {**CLIENT_OPTIONS, "read_timeout": CREATION_TIMEOUT_S}) as client:
        await create_table(client, TABLE)


BLOCKING = {
    "blocking": ("wire", "dynamodb_local"),
    "dynoxide_blocking": ("wire", "dynoxide"),
    "botocore_blocking": ("botocore", "dynamodb_local"),
}
"""The driver of functions: by which client, and over which server it is tried."""

WIRE = {"wire": "dynamodb_local", "dynoxide_wire": "dynoxide", "moto_wire": "moto"}
"""The driver of the control plane by its own client, and which server it is tried over."""

BOTOCORE = ("dynamodb_local", "dynoxide", "moto")
"""The same by aiobotocore's client, over these servers."""


ON_LOOP = "function, on a loop"


@pytest.fixture(params=["memory", *BOTOCORE, *WIRE, *BLOCKING, ON_LOOP, "encrypted"])
def open_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Open:
    """How to open the table under test."""
    kind: str = request.param
    if kind.startswith("moto") and (reason := MOTO_CANNOT.get(request.node.originalname)):
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    if kind == "memory":
        return _open_memory
    if kind == "encrypted":
        endpoint_url: str = request.getfixturevalue("dynamodb_local")
        return lambda: open_encrypted(endpoint_url)
    if kind == ON_LOOP:
        use_environment(monkeypatch, request.getfixturevalue("dynamodb_local"))
        return open_on_loop
    if kind in BLOCKING:
        client, server = BLOCKING[kind]
        use_environment(monkeypatch, request.getfixturevalue(server))
        monkeypatch.setenv(CLIENT_VARIABLE, client)
        return open_blocking
    endpoint_url = request.getfixturevalue(WIRE.get(kind, kind))
    if kind in WIRE:
        return lambda: open_wire(endpoint_url)
    return lambda: open_async(endpoint_url)


@asynccontextmanager
async def open_wire(endpoint_url: str) -> AsyncIterator[Table]:
    """The driver of the control plane, over its own client."""
    async with wire_for(endpoint_url) as client:
        yield DynamoTable(client, TABLE)


@asynccontextmanager
async def open_on_loop() -> AsyncIterator[Table]:
    """As a function opens it that works on several keys at a time."""
    client = open_loop_client(2)
    assert client is not None
    try:
        yield DynamoTable(client, TABLE)
    finally:
        await client.close()


@asynccontextmanager
async def _open_memory() -> AsyncIterator[Table]:
    yield MemoryTable()


@asynccontextmanager
async def open_blocking() -> AsyncIterator[Table]:
    """The driver of functions, which finds its server in the environment."""
    table = BlockingDynamoTable(TABLE)
    try:
        yield table
    finally:
        table.close()


@asynccontextmanager
async def open_async(endpoint_url: str) -> AsyncIterator[Table]:
    """The driver of the control plane."""
    async with client_for(endpoint_url) as client:
        yield DynamoTable(client, TABLE)


@asynccontextmanager
async def open_encrypted(endpoint_url: str) -> AsyncIterator[Table]:
    """The driver of the control plane, with payloads encrypted in front of it."""
    async with client_for(endpoint_url) as client:
        table = DynamoTable(client, TABLE)
        yield EncryptedTable(table, StoredDataKeys(MemoryTable(), MemoryKms(), makes=True))


def run(open_table: Open, scenario: Callable[[Table], Awaitable[None]]) -> None:
    """Run a scenario on an open table."""

    async def main() -> None:
        async with open_table() as table:
            await scenario(table)

    asyncio.run(main())


# --- writes -------------------------------------------------------------------------------------------

VALUES: Item = {
    "text": "für",
    "empty": "",
    "number": -(10**38 - 1),
    "zero": 0,
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "nothing": None,
    "list": ["a", 1, [b"x"], None],
    "map": {"name": {"inner": 1}},
    "s.dotted-name #1": "reserved words and dots are plain names",
    "status": "a reserved word",
}


@pytest.mark.parametrize("how", ["update", "put"])
def test_every_value_comes_back_as_it_was(open_table: Open, how: str) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        stored = {"pk": key.pk, "sk": key.sk, **VALUES}
        write = Update(key, sets=VALUES) if how == "update" else Put(key, VALUES)
        assert await table.write(write) == Applied(stored)
        assert await table.get(key) == stored

    run(open_table, scenario)


def test_update_creates_changes_and_removes(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        at = {"pk": key.pk, "sk": key.sk}
        assert await table.write(Update(key, sets={"a": 1, "b": 2})) == Applied({**at, "a": 1, "b": 2})
        changed = await table.write(Update(key, sets={"a": 3}, removes=("b", "never", "b")))
        assert changed == Applied({**at, "a": 3})
        both = await table.write(Update(key, sets={"a": 4}, removes=("a",)))
        assert both == Applied({**at, "a": 4}), "what is set wins over what is removed"

    run(open_table, scenario)


def test_a_quiet_update_is_answered_with_no_item_unless_it_is_refused(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        item: Item = {"pk": key.pk, "sk": key.sk, "a": 1, "b": b"x"}
        assert await table.write(Update(key, sets={"a": 1, "b": b"x"}, quiet=True)) == Applied(None)
        assert await table.get(key) == item
        again = Update(key, sets={"a": 2}, conditions=(Absent("free", "a"),), quiet=True)
        assert await table.write(again) == Refused(item)
        assert await table.write(Update(key, removes=("b",), quiet=True)) == Applied(None)
        assert await table.get(key) == {"pk": key.pk, "sk": key.sk, "a": 1}

    run(open_table, scenario)


def test_an_empty_update_leaves_a_bare_item(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        assert await table.write(Update(key)) == Applied({"pk": key.pk, "sk": key.sk})
        await table.write(Update(key, sets={"a": 1}))
        assert await table.write(Update(key)) == Applied({"pk": key.pk, "sk": key.sk, "a": 1})

    run(open_table, scenario)


def test_a_put_replaces_the_whole_item(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        await table.write(Put(key, {"a": 1}))
        await table.write(Put(key, {"b": 2}))
        assert await table.get(key) == {"pk": key.pk, "sk": key.sk, "b": 2}

    run(open_table, scenario)


def test_a_delete_of_what_is_not_there_is_no_error(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        await table.write(Put(key, {"a": 1}))
        assert await table.write(Delete(key)) == Applied(None)
        assert await table.write(Delete(key)) == Applied(None)
        assert await table.get(key) is None

    run(open_table, scenario)


HELD = (
    Equals("c", "number", 7),
    Equals("c", "text", "x"),
    Absent("c", "never"),
    AbsentOrAtMost("c", "never", 0),
    AbsentOrAtMost("c", "number", 7),
    AbsentOrEquals("c", "never", "x"),
    AbsentOrEquals("c", "text", "x"),
)
BROKEN = (
    Equals("c", "number", 8),
    Equals("c", "number", "7"),
    Equals("c", "text", 7),
    Equals("c", "never", 0),
    Equals("c", "nothing", ""),
    Absent("c", "nothing"),
    Absent("c", "text"),
    AbsentOrAtMost("c", "number", 6),
    AbsentOrAtMost("c", "text", 7),
    AbsentOrAtMost("c", "nothing", 7),
    AbsentOrEquals("c", "text", "y"),
    AbsentOrEquals("c", "number", "7"),
    AbsentOrEquals("c", "nothing", "x"),
)


def test_a_write_takes_place_only_if_every_clause_holds(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        item: Item = {"pk": key.pk, "sk": key.sk, "number": 7, "text": "x", "nothing": None}
        await table.write(Put(key, {"number": 7, "text": "x", "nothing": None}))
        for broken in BROKEN:
            assert await table.write(Update(key, {"n": 1}, (), (*HELD, broken))) == Refused(item), broken
            assert await table.write(Put(key, {"n": 1}, (broken, *HELD))) == Refused(item), broken
        assert await table.get(key) == item
        assert await table.write(Update(key, {"n": 1}, (), HELD)) == Applied({**item, "n": 1})
        assert isinstance(await table.write(Put(key, {"number": 7, "text": "x"}, HELD)), Applied)

    run(open_table, scenario)


def test_a_refusal_without_an_item_says_so(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        clause = Equals("c", "ver", 1)
        assert await table.write(Update(key, sets={"a": 1}, conditions=(clause,))) == Refused(None)
        assert await table.write(Put(key, {"a": 1}, (clause,))) == Refused(None)
        assert await table.get(key) is None

    run(open_table, scenario)


def test_the_condition_may_name_what_the_update_changes(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        for ver in range(3):
            clause: Clause = Equals("ver", "ver", ver) if ver else Absent("ver", "ver")
            answer = await table.write(Update(key, sets={"ver": ver + 1}, conditions=(clause,)))
            assert answer == Applied({"pk": key.pk, "sk": key.sk, "ver": ver + 1})

    run(open_table, scenario)


def test_an_item_beyond_the_limit_is_refused(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        await table.write(Put(key, {"a": 1}))
        with pytest.raises(TableRefusedError):
            await table.write(Put(key, {"a": bytes(410_000)}))
        with pytest.raises(TableRefusedError):
            await table.write(Update(key, sets={"a": bytes(410_000)}))
        assert await table.get(key) == {"pk": key.pk, "sk": key.sk, "a": 1}

    run(open_table, scenario)


@pytest.mark.parametrize(("pk", "sk"), [("p" * 2_049, "s"), ("p", "s" * 1_025), ("é" * 1_025, "s"), ("", "s")])
def test_a_key_beyond_the_limits_is_refused(open_table: Open, pk: str, sk: str) -> None:
    async def scenario(table: Table) -> None:
        with pytest.raises(TableRefusedError):
            await table.write(Put(Key(pk, sk), {"a": 1}))

    run(open_table, scenario)


def test_the_longest_keys_are_taken(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = Key("p" * 2_048, "s" * 1_024)
        await table.write(Put(key, {"a": 1}))
        assert await table.get(key) == {"pk": key.pk, "sk": key.sk, "a": 1}

    run(open_table, scenario)


def test_a_write_may_name_three_hundred_attributes(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        names = {f"j.1.{n}": n for n in range(300)}
        answer = await table.write(Update(key, sets=names, conditions=(Absent("c", "j.1.299"),)))
        assert isinstance(answer, Applied)
        assert answer.item == {"pk": key.pk, "sk": key.sk, **names}
        assert await table.write(Update(key, removes=tuple(names))) == Applied({"pk": key.pk, "sk": key.sk})

    run(open_table, scenario)


# --- reads --------------------------------------------------------------------------------------------


async def _fill(table: Table, pk: str, names: list[str]) -> None:
    for name in names:
        await table.write(Put(Key(pk, name), {"n": name}))


def test_a_query_returns_the_range_in_order(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        pk = fresh().pk
        await _fill(table, pk, ["H", "I#b#2", "I#a#10", "I#a#09", "J#1", "I#ü", "I#\U0001f3b5"])
        page = await table.query(pk, "I#", "I#\U0010ffff")
        assert [item["sk"] for item in page.items] == ["I#a#09", "I#a#10", "I#b#2", "I#ü", "I#\U0001f3b5"]
        assert page.last is None
        assert [i["sk"] for i in (await table.query(pk, "I#a#10", "I#b#2")).items] == ["I#a#10", "I#b#2"]
        assert (await table.query(pk, "K", "Z")).items == []
        assert (await table.query(pk, "Z", "A")).items == []

    run(open_table, scenario)


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
def test_pages_join_to_the_whole(open_table: Open, limit: int) -> None:
    async def scenario(table: Table) -> None:
        pk = fresh().pk
        names = [f"I#{n}" for n in range(6)]
        await _fill(table, pk, names)
        seen: list[Value] = []
        after: str | None = None
        pages = 0
        for _ in range(7):
            pages += 1
            page = await table.query(pk, "I#", "I#~", limit=limit, after=after)
            seen += [item["sk"] for item in page.items]
            after = page.last
            if after is None:
                break
            assert len(page.items) == limit
        assert seen == names
        assert pages == -(-6 // limit), "no page is empty"

    run(open_table, scenario)


def test_going_on_needs_no_item_there_and_stays_in_range(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        pk = fresh().pk
        await _fill(table, pk, ["a", "c", "e"])

        async def names(after: str) -> list[Value]:
            return [item["sk"] for item in (await table.query(pk, "b", "f", after=after)).items]

        assert await names("0") == ["c", "e"]
        assert await names("b") == ["c", "e"]
        assert await names("c") == ["e"]
        assert await names("d") == ["e"]
        assert await names("f") == []
        assert await names("g") == []

    run(open_table, scenario)


def test_pages_join_across_the_megabyte_limit(server: str) -> None:
    async def scenario(table: Table) -> None:
        pk = fresh().pk
        for n in range(4):
            await table.write(Put(Key(pk, f"S#{n}"), {"large": bytes(390_000)}))
        first = await table.query(pk, "S#", "S#~")
        assert first.last is not None
        assert len(first.items) < 4
        second = await table.query(pk, "S#", "S#~", after=first.last)
        assert [i["sk"] for i in first.items + second.items] == ["S#0", "S#1", "S#2", "S#3"]
        assert second.last is None

    run(lambda: open_async(server), scenario)


def test_delete_all_takes_few_requests(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        pk = fresh().pk
        names = [f"I#{n:02}" for n in range(30)]
        await _fill(table, pk, ["H", *names])
        await table.delete_all([Delete(Key(pk, name)) for name in names])
        await table.delete_all([Delete(Key(pk, "I#00")), Delete(Key(pk, "I#00"))])
        await table.delete_all([])
        assert [i["sk"] for i in (await table.query(pk, "A", "Z")).items] == ["H"]

    run(open_table, scenario)


def test_many_items_are_read_in_few_requests(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        pk = fresh().pk
        keys = [Key(pk, f"I#{n:03}") for n in range(120)]
        await table.put_all([Put(key, {"n": n}) for n, key in enumerate(keys) if n % 2])
        asked = [*reversed(keys), keys[1]]
        found = await table.get_all(asked)
        assert [None if item is None else item["n"] for item in found] == [
            int(key.sk[2:]) if int(key.sk[2:]) % 2 else None for key in asked
        ]
        assert await table.get_all([]) == []

    run(open_table, scenario)


def test_put_all_puts_over_what_is_there_and_takes_no_conditions(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        await table.write(Put(key, {"a": 1, "b": b"gone"}))
        await table.put_all([Put(key, {"a": 2}), Put(key, {"a": 3, "c": b"new"})])
        assert await table.get(key) == {"pk": key.pk, "sk": key.sk, "a": 3, "c": b"new"}
        with pytest.raises(ValueError, match="by itself"):
            await table.put_all([Put(key, {"a": 4}, (Absent("c", "pk"),))])
        await table.put_all([])

    run(open_table, scenario)


def test_requests_are_counted_by_kind(open_table: Open) -> None:
    async def scenario(table: Table) -> None:
        key = fresh()
        await table.write(Update(key, sets={"a": 1}))
        await table.write(Update(key, sets={"a": 1}, conditions=(Absent("c", "a"),)))
        await table.write(Put(key, {"a": 1}))
        await table.write(Delete(key))
        await table.get(key)
        await table.query(key.pk, "A", "Z")
        await table.delete_all([Delete(Key(key.pk, str(n))) for n in range(26)])
        await table.put_all([Put(Key(key.pk, str(n)), {"a": 1}) for n in range(26)])
        await table.get_all([Key(key.pk, str(n)) for n in range(101)])
        batches = {"batch_delete": 2, "batch_put": 2, "batch_get": 2}
        counted = {"update": 2, "put": 1, "delete": 1, "get": 1, "query": 1, **batches}
        if isinstance(table, EncryptedTable):
            table = table._table
        assert getattr(table, "requests") == counted  # noqa: B009 - not part of the port

    run(open_table, scenario)


# --- every sequence of writes -------------------------------------------------------------------------------

ATTRIBUTES = st.sampled_from(["ver", "s.a", "w.x"])
ANY_VALUE: st.SearchStrategy[Value] = st.recursive(
    st.none()
    | st.integers(-(10**38) + 1, 10**38 - 1)
    | st.integers(0, 2)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3),
    max_leaves=5,
)
CLAUSES: st.SearchStrategy[tuple[Clause, ...]] = st.lists(
    st.builds(Equals, st.just("c"), ATTRIBUTES, st.integers(0, 2) | st.text(max_size=1))
    | st.builds(Absent, st.just("c"), ATTRIBUTES)
    | st.builds(AbsentOrEquals, st.just("c"), ATTRIBUTES, st.sampled_from(["", "text"]))
    | st.builds(AbsentOrAtMost, st.just("c"), ATTRIBUTES, st.integers(0, 2)),
    max_size=2,
).map(tuple)
SETS = st.dictionaries(ATTRIBUTES, ANY_VALUE, max_size=3)
REMOVES = st.lists(ATTRIBUTES, max_size=3).map(tuple)


def writes_to(key: Key) -> st.SearchStrategy[Write]:
    """Any write to a key."""
    at = st.just(key)
    return st.builds(Update, at, SETS, REMOVES, CLAUSES) | st.builds(Put, at, SETS, CLAUSES) | st.builds(Delete, at)


@pytest.fixture(scope="module")
def blocking_table(server: str) -> Iterator[BlockingDynamoTable]:
    """One blocking table for many event loops, which only it can serve."""
    with pytest.MonkeyPatch.context() as patch:
        use_environment(patch, server)
        table = BlockingDynamoTable(TABLE)
        yield table
        table.close()


@settings(max_examples=200, deadline=None, database=None)
@given(writes=st.lists(writes_to(Key("", "a")) | writes_to(Key("", "b")), max_size=8))
def test_memory_and_dynamodb_answer_alike(blocking_table: BlockingDynamoTable, writes: list[Write]) -> None:
    pk = fresh().pk  # The database is the same in every example; the partition is not.

    async def main() -> None:
        memory = MemoryTable()
        for drawn in writes:
            write = replace(drawn, key=Key(pk, drawn.key.sk))
            expected: Answer = await memory.write(write)
            assert await blocking_table.write(write) == expected, write
        assert await blocking_table.query(pk, "a", "z") == await memory.query(pk, "a", "z")

    asyncio.run(main())


# --- what only DynamoDB has ---------------------------------------------------------------------------


def test_a_missing_table_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_environment(monkeypatch, server)

    async def main() -> None:
        async with client_for(server) as client, wire_for(server) as wire:
            for table in (DynamoTable(client, "nowhere"), DynamoTable(wire, "nowhere"), BlockingDynamoTable("nowhere")):
                with pytest.raises(TableRefusedError, match=r"^get_item on table nowhere: ResourceNotFound"):
                    await table.get(fresh())

    asyncio.run(main())


def test_write_units_are_what_dynamodb_bills(server: str) -> None:
    async def main() -> None:
        async with client_for(server) as client:
            table = DynamoTable(client, TABLE, count_capacity=True)
            key = fresh()

            async def cost(act: Awaitable[Any]) -> float:
                before = table.write_units
                await act
                return table.write_units - before

            assert await cost(table.write(Update(key, sets={"a": 1}))) == 1
            assert await cost(table.write(Update(key, sets={"b": bytes(3000)}))) == 3
            assert await cost(table.write(Update(key, sets={"a": 2}))) == 3, "the whole item is billed"
            assert await cost(table.write(Update(key, {"a": 3}, (), (Absent("c", "a"),)))) == 3, "a refusal too"
            assert await cost(table.get(key)) == 0
            assert await cost(table.write(Delete(key))) == 3
            other = fresh()
            await table.write(Put(other, {"a": 1}))
            assert await cost(table.delete_all([Delete(other)])) == 1

    asyncio.run(main())


def test_items_are_stored_as_any_tool_reads_them(server: str) -> None:
    async def main() -> None:
        async with client_for(server) as client:
            key = fresh()
            attributes: Item = {
                "ver": 3,
                "s.name": "Ada",
                "awaits": ["a", "b"],
                "none": None,
                "map": {"n": 1},
            }
            await DynamoTable(client, TABLE).write(Put(key, attributes))
            wanted = {"pk": {"S": key.pk}, "sk": {"S": key.sk}}
            stored = (await client.get_item(TableName=TABLE, Key=wanted))["Item"]
            assert json_util.loads(json.dumps(stored)) == {"pk": key.pk, "sk": key.sk, **attributes}

    asyncio.run(main())


def test_creating_the_table_again_changes_nothing(server: str) -> None:
    twice = f"{TABLE}-twice"

    async def main() -> None:
        async with client_for(server) as client:
            await asyncio.gather(*(create_table(client, twice) for _ in range(3)))
            await create_table(client, twice)
            described = await client.describe_time_to_live(TableName=twice)
            expected = {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}
            assert described["TimeToLiveDescription"] == expected
            table = (await client.describe_table(TableName=twice))["Table"]
            assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"

    asyncio.run(main())


def test_a_table_of_other_make_is_not_taken(server: str) -> None:
    async def main() -> None:
        async with client_for(server) as client:
            await client.create_table(
                TableName=f"{TABLE}-other",
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
            with pytest.raises(ConfigurationError, match="other keys"):
                await create_table(client, f"{TABLE}-other")

    asyncio.run(main())
