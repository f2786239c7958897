"""What was set aside is listed, shown, put back and deleted: over the table in memory, and over DynamoDB's expressions.

Owns the office and the command over it. Does not own setting aside (`tests/attack/test_unreadable_items`, and
`test_outboxes` for what a key sends).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import OUT, head_key, parse_head
from tenuto.lane.items import bundle_put, entry_aside, item_aside
from tenuto.lane.transitions import inbox_aside, inbox_gone, inbox_put
from tenuto.lane.writes import Item, Key, Put, Update
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.records import (
    Bundle,
    BundleOut,
    CallSource,
    Event,
    MessageSource,
    Out,
    PublishOut,
    SendOut,
    pack,
)
from tenuto.service import Services
from tenuto.store.dynamodb import DynamoTable
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Table
from tenuto_cli.set_aside import act, main, parser
from tenuto_control.admin.set_aside import REPEAT_MS_MAX, SetAside, SetAsideError
from tenuto_local.table import create_table
from tests.contract.table_clients import client_for, fresh
from tests.costs.meter import CountingTable, Meter
from tests.support.moto import moto_server
from tests.support.virtual_time import EPOCH_MS, run_virtual

NAME = "lanes-set-aside"
PLACE, PLACE_2 = "000000000003.000001", "000000000003.000002"
PATIENT = {"connect_timeout": 30, "read_timeout": 30}
"""A simulator beside other tests takes longer than a request of the product may."""

Open = Callable[[], AbstractAsyncContextManager[Table]]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The endpoint of a moto server that has the table."""

    async def create(endpoint_url: str) -> None:
        async with client_for(endpoint_url, PATIENT) as client:
            await create_table(client, NAME)

    with moto_server() as endpoint_url:
        asyncio.run(create(endpoint_url))
        yield endpoint_url


@pytest.fixture(params=["memory", "moto"])
def open_table(request: pytest.FixtureRequest) -> Open:
    """How to open the table under test."""

    @asynccontextmanager
    async def memory() -> AsyncIterator[Table]:
        yield MemoryTable()

    if request.param == "memory":
        return memory
    endpoint_url: str = request.getfixturevalue("moto")

    @asynccontextmanager
    async def served() -> AsyncIterator[Table]:
        async with client_for(endpoint_url, PATIENT) as client:
            yield DynamoTable(client, NAME)

    return served


class Clock:
    def __init__(self) -> None:
        self.ms = EPOCH_MS

    def now_ms(self) -> int:
        return self.ms


class World:
    """One key of one table, and the office that looks after what was set aside beside it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.clock = Clock()
        self.lane = Lane("box", fresh().pk)
        tokens = iter(range(1_000))
        self.office = SetAside(table, self.clock, self.lane, lambda: f"t{next(tokens)}")

    def event(self, kind: str = "message", number: int = 1) -> Event:
        if kind == "call":
            return Event(str(InvocationId(self.lane, f"c{number}")), "note", CallSource(), b"1")
        source = MessageSource("other/x", f"000000000001.{number:06d}")
        return Event(str(InvocationId(self.lane, f"m{number}")), "note", source, b"1")

    async def aside(self, event: Event) -> str:
        """Set an inbox item aside, as a control plane does that cannot read it. Its name."""
        item: Item = {**inbox_put(self.lane, event).attributes}
        key = inbox_put(self.lane, event).key
        item |= {"pk": key.pk, "sk": key.sk}
        put = inbox_aside(item)
        await self.table.write(put)
        await self.table.write(inbox_gone(item, self.clock.now_ms()))
        return put.key.sk

    async def entry_aside(self, entry: Out, place: str = PLACE) -> str:
        put = entry_aside(self.lane, place, pack(entry), "a newer kind")
        await self.table.write(put)
        return put.key.sk

    async def item(self, sk: str) -> Item | None:
        return await self.table.get(Key(self.lane.pk, sk))

    async def names(self) -> list[str]:
        page, after = await self.office.page()
        assert after is None
        return [one.name for one in page]

    def send(self) -> SendOut:
        return SendOut("other", "k", str(InvocationId(Lane("other", "k"), "m7")), "note", b"1")


def play(open_table: Open, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_table() as table:
            await scenario(World(table))

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["message", "call"])
def test_an_inbox_item_goes_back_to_its_place_with_its_mark(open_table: Open, kind: str) -> None:
    async def scenario(world: World) -> None:
        event = world.event(kind)
        name = await world.aside(event)
        (listed,), _ = await world.office.page()
        assert (listed.name, listed.kind, listed.problem) == (name, kind, None)
        assert await world.office.restore(name) == "put back"
        back = inbox_put(world.lane, event)
        assert await world.item(back.key.sk) == {"pk": back.key.pk, "sk": back.key.sk, **back.attributes}
        head = parse_head(await world.table.get(head_key(world.lane)))
        assert head.pend is not None
        assert await world.names() == []
        with pytest.raises(SetAsideError, match="nothing of that name"):
            await world.office.restore(name)

    play(open_table, scenario)


def test_nothing_is_written_over(open_table: Open) -> None:
    async def scenario(world: World) -> None:
        event = world.event()
        name = await world.aside(event)
        place = inbox_put(world.lane, event).key
        await world.table.write(Put(place, {"ev": pack(world.event(number=5))}))
        with pytest.raises(SetAsideError, match="another item is in its place"):
            await world.office.restore(name)
        assert (await world.table.get(place) or {})["ev"] == pack(world.event(number=5))
        assert await world.names() == [name]
        entry = await world.entry_aside(world.send())
        await world.table.write(Update(head_key(world.lane), {OUT + PLACE: b"x"}))
        with pytest.raises(SetAsideError, match="its place in the outbox is taken"):
            await world.office.restore(entry)
        assert (await world.table.get(head_key(world.lane)) or {})[OUT + PLACE] == b"x"

    play(open_table, scenario)


def test_what_breaks_off_at_any_write_may_be_repeated_and_what_has_run_does_not_come_back(open_table: Open) -> None:
    """Between each two writes the process dies; the item may run before it is repeated, or not."""

    async def scenario(world: World) -> None:
        for number, (writes, runs) in enumerate([(1, False), (2, False), (2, True), (3, False), (3, True), (4, True)]):
            event = world.event(number=number + 1)
            name = await world.aside(event)
            place = inbox_put(world.lane, event).key
            failing = SetAside(Failing(world.table, writes), world.clock, world.lane, lambda: "t")
            with pytest.raises(ConnectionError):
                await failing.restore(name)
            assert await world.names() == [name]
            if runs:
                world.clock.ms += 1_000
                await world.table.write(inbox_gone({"pk": place.pk, "sk": place.sk}, world.clock.ms))
            said = await world.office.restore(name)
            assert said == ("put back" if writes == 1 else "it was put back before")
            assert ("ev" in (await world.table.get(place) or {})) != runs
            assert await world.names() == []

    play(open_table, scenario)


class Failing:
    """A table that takes so many writes, and then no more."""

    def __init__(self, table: Table, writes: int) -> None:
        self._table = table
        self._left = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    async def write(self, write: Any) -> Any:
        if self._left == 0:
            raise ConnectionError
        self._left -= 1
        return await self._table.write(write)


def test_what_was_begun_long_ago_is_not_put_back_blindly(open_table: Open) -> None:
    async def scenario(world: World) -> None:
        name = await world.aside(world.event())
        failing = SetAside(Failing(world.table, 1), world.clock, world.lane, lambda: "t")
        with pytest.raises(ConnectionError):
            await failing.restore(name)
        world.clock.ms += REPEAT_MS_MAX + 1
        with pytest.raises(SetAsideError, match="it may have run"):
            await world.office.restore(name)
        await world.office.delete(name)
        assert await world.names() == []

    play(open_table, scenario)


def test_entries_go_back_to_the_outbox_and_bundles_and_payloads_to_their_items(open_table: Open) -> None:
    async def scenario(world: World) -> None:
        bundle = bundle_put(world.lane, "O#000000000003#000001#x", Bundle(((2, world.send()),)))
        item: Item = {"pk": bundle.key.pk, "sk": bundle.key.sk, **bundle.attributes}
        await world.table.write(item_aside(item, "damaged"))
        payload: Item = {"pk": world.lane.pk, "sk": "V#m1#h", "input": b"1", "at": 5}
        await world.table.write(item_aside(payload, "damaged"))
        names = [await world.entry_aside(world.send()), await world.entry_aside(BundleOut(bundle.key.sk), PLACE_2)]
        for name in [f"U#{bundle.key.sk}", "U#V#m1#h", *names]:
            assert await world.office.restore(name) == "put back"
        assert await world.item(bundle.key.sk) == item
        assert await world.item("V#m1#h") == payload
        head = parse_head(await world.table.get(head_key(world.lane)))
        assert head.out == {PLACE: world.send(), PLACE_2: BundleOut(bundle.key.sk)}
        assert await world.names() == []

    play(open_table, scenario)


BAD: dict[str, Put] = {
    "an event of another key": Put(Key("?", "U#m|x#1"), {"ev": pack(Event("nonsense", "h", CallSource()))}),
    "no event": Put(Key("?", "U#c#c1"), {"ev": 5}),
    "bytes that are none": Put(Key("?", "U#k|x#1"), {"ev": b"\xc1"}),
    "an entry that is none": Put(Key("?", f"U#O#{PLACE}"), {"out": b"\xc1", "why": "w"}),
    "an entry of another type": Put(Key("?", f"U#O#{PLACE}"), {"out": "text", "why": "w"}),
    "an entry that leaves its key": Put(Key("?", f"U#O#{PLACE}"), {"out": pack(BundleOut("H")), "why": "w"}),
    "an entry whose place is gone": Put(Key("?", "U#O#aabbccddeeff"), {"out": pack(PublishOut("t", b"1"))}),
    "a letter that was in no outbox": Put(Key("?", "U#O#dead.1"), {"out": pack(PublishOut("t", b"1"))}),
    "a bundle of nothing": Put(Key("?", "U#O#1#2#3"), {"outs": 7, "why": "w"}),
    "a payload of another type": Put(Key("?", "U#V#1"), {"input": "text"}),
    "another key's head": Put(Key("?", "U#H"), {"ver": 99}),
    "a tombstone": Put(Key("?", "U#c#c2"), {"done": 1}),
    "of a kind that nobody knows": Put(Key("?", "U#Z#1"), {"ev": b"x"}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_this_version_cannot_read_stays_where_it_is(open_table: Open, name: str) -> None:
    async def scenario(world: World) -> None:
        bad = BAD[name]
        await world.table.write(Put(Key(world.lane.pk, bad.key.sk), bad.attributes))
        (listed,), _ = await world.office.page()
        assert listed.problem
        with pytest.raises(SetAsideError) as caught:
            await world.office.restore(bad.key.sk)
        assert str(caught.value) == listed.problem
        assert await world.names() == [bad.key.sk]
        assert await world.table.get(head_key(world.lane)) is None

    play(open_table, scenario)


def test_many_are_listed_in_pages(open_table: Open) -> None:
    async def scenario(world: World) -> None:
        for n in range(7):
            await world.aside(world.event(number=n))
        first, after = await world.office.page(limit=4)
        rest, end = await world.office.page(after, limit=4)
        assert [len(first), len(rest), end] == [4, 3, None]
        assert len({one.name for one in (*first, *rest)}) == 7

    play(open_table, scenario)


def test_what_is_put_back_runs_once_and_without_being_called() -> None:
    """The whole way: a control plane that can read it finds it by what putting it back has left."""
    box = VirtualObject("box")

    @box.handler()
    async def note(ctx: ObjectContext, n: int) -> None:
        ctx.set("n", (await ctx.get("n", int) or 0) + n)

    async def scenario() -> None:
        table = CountingTable()
        world, meter = World(table), Meter(Services([box]), table=table)
        world.office.clock = meter.clock
        world.lane = world.office.lane = Lane("box", "k")
        sweeping = asyncio.create_task(meter.sweeper.run())
        names = [await world.aside(world.event(number=1)), await world.aside(world.event("call", 2))]
        out = SendOut("box", "told", str(InvocationId(Lane("box", "told"), "m7")), "note", b"1")
        names.append(await world.entry_aside(out))
        await asyncio.sleep(60)
        assert meter.head("box", "k").state == {}
        for name in names:
            assert await world.office.restore(name) == "put back"
        await asyncio.sleep(60)
        assert meter.head("box", "k").state == {"n": b"2"}
        assert meter.head("box", "told").state == {"n": b"1"}
        assert meter.head("box", "k").out == {}
        await asyncio.sleep(600)
        assert meter.head("box", "k").state == {"n": b"2"}
        sweeping.cancel()
        await meter.dispatcher.kill()

    run_virtual(scenario())


# --- the command ------------------------------------------------------------------------------------------------------


def run(table: Table, lane: Lane, *arguments: str) -> int:
    options = parser().parse_args([arguments[0], lane.pk, *arguments[1:]])
    return asyncio.run(act(table, lane, options))


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    table = MemoryTable()
    world = World(table)
    assert run(table, world.lane, "list") == 0
    assert "nothing is set aside for this key" in capsys.readouterr().out
    name = asyncio.run(world.aside(world.event()))
    entry = asyncio.run(world.entry_aside(world.send()))
    table.apply(Put(Key(world.lane.pk, "U#m|\x1b[31m\n#1"), {"ev": b"\xc1", "why": "no\nsuch\x1b[0m"}))
    assert run(table, world.lane, "list") == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert len(told.splitlines()) == 4
    assert f"{name}  message" in told
    assert run(table, world.lane, "list", "--limit", "1") == 0
    assert "more items: --after" in capsys.readouterr().out
    assert run(table, world.lane, "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["items"][0]["name"] == entry
    assert listed["after"] is None
    assert run(table, world.lane, "show", name) == 0
    assert "base64" in capsys.readouterr().out
    assert run(table, world.lane, "show", name, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sk"] == name
    assert run(table, world.lane, "restore", "--all", "--json") == 1, "one cannot be read"
    done = {one["name"]: one.get("done") for one in json.loads(capsys.readouterr().out)["items"]}
    assert done == {entry: "put back", name: "put back", "U#m|\x1b[31m\n#1": None}
    assert run(table, world.lane, "delete", "U#m|\x1b[31m\n#1") == 0
    assert "deleted" in capsys.readouterr().out
    assert run(table, world.lane, "restore", "--all") == 0
    assert "nothing is set aside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["restore", "box/k"], "restore needs the NAME of an item"),
        (["delete", "box/k", "--all"], "delete needs the NAME of an item"),
        (["list", "box"], "is not a key: write SERVICE/KEY"),
        (["list", "box/k\x1b"], "is not a key"),
        (["list", "box/k", "U#1"], "list takes no NAME"),
        (["restore", "box/k", "U#1", "--all"], "NAME and --all exclude each other"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1
    assert "\x1b" not in told
