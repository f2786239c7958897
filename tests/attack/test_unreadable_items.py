"""Items that somebody else has put into the table, or changed there: nothing but the item is affected.

Owns the loops over them: the sweep, timers, heads, outboxes and inboxes, each with members of many kinds. The oracle is
the same for all: another key of another service goes on meanwhile, and so does the key itself where it can; the loops
run; the item is kept and counted. Does not own decoders (`test_decoders`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytest
from msgspec import structs

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.timers import (
    SWEEP_CURSOR,
    GuardTimer,
    SendTimer,
    SleepTimer,
    Timer,
    parse_timer,
    timer_bucket,
    timer_put,
)
from tenuto.lane.transitions import check_inbox_events, inbox_put, mark_pend
from tenuto.lane.writes import Answer, Foreign, Item, Key, Put, Value, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import PARTS_MAX, TIMER_BUCKET_MS
from tenuto.protocol.records import (
    CallSource,
    Event,
    KafkaSource,
    MessageSource,
    SendOut,
    Success,
    pack,
    pack_events,
)
from tenuto.service import Services
from tenuto.store.port import Page
from tenuto_control.core.metrics import Tally
from tenuto_control.limits import Limits
from tenuto_control.ports import OverloadedError, Resolution
from tests.costs.meter import CountingTable, Meter, meter_of
from tests.support.virtual_time import EPOCH_MS, run_virtual

NAP_S = 40
REQUEST_S = 0.005
HOSTILE_ITEMS = 10_000
IN_TIME_S = 30
"""How late a sleep may end whose process died: no later than by the wide walks."""
DEEP = b"\x91" * 100_000
LANE = Lane("victim", "k")
FOREIGN = Foreign({"BOOL": True}, "DynamoDB type BOOL")
ODD: dict[str, Value] = {
    "text": "odd",
    "empty": "",
    "number": 7,
    "negative": -7,
    "huge": 10**37,
    "junk": b"\xc1\xff\x00",
    "nothing": b"",
    "deep": b"\x82\xa4type\xa4send\xa1x" + DEEP,
    "deep list": DEEP,
    "list": [1, "a"],
    "map": {"a": b"b"},
    "null": None,
    "foreign": FOREIGN,
}
"""Values that an attribute may have instead of its own."""

victim = VirtualObject("victim")
other = VirtualObject("other")


@victim.handler("nap")
async def victim_nap(ctx: ObjectContext, n: int) -> None:
    """Sleep, so that a run, its journal and a timer are in the table meanwhile."""
    ctx.set("seen", n)
    await ctx.sleep(timedelta(seconds=NAP_S))
    ctx.set("woken", n)


@victim.handler("note")
async def victim_note(ctx: ObjectContext, n: int) -> None:
    """Count."""
    ctx.set("noted", (await ctx.get("noted", int) or 0) + 1)


@other.handler("nap")
async def other_nap(ctx: ObjectContext, n: int) -> None:
    """See `victim_nap`."""
    await ctx.sleep(timedelta(seconds=NAP_S))
    ctx.set("woken", n)


@other.handler("note")
async def other_note(ctx: ObjectContext, n: int) -> None:
    """See `victim_note`."""
    ctx.set("noted", (await ctx.get("noted", int) or 0) + 1)


@dataclass(slots=True)
class World:
    """A table, and the control planes that work on it one after the other."""

    table: CountingTable = field(default_factory=CountingTable)
    tally: Tally = field(default_factory=Tally)
    meters: list[Meter] = field(default_factory=list)

    @asynccontextmanager
    async def plane(self) -> AsyncIterator[Meter]:
        """A control plane, which is killed in the end."""
        services = Services([victim, other])
        number = len(self.meters) + 1
        meter = Meter(services, Limits(), self.table, metrics=self.tally, process=f"plane{number}")
        if self.meters:
            meter._offset = self.meters[-1]._offset
        self.meters.append(meter)
        sweeping = asyncio.create_task(meter.sweeper.run(), name="sweep")
        try:
            yield meter
            assert not sweeping.done(), "the loop goes on"
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            await meter.dispatcher.kill()

    def count(self) -> int:
        """Unreadable items that were met since the last count."""
        return self.tally.take().counts.get("UnreadableItems", 0)

    def put(self, put: Put, **changes: Value) -> Item:
        """Put an item that is changed on its way."""
        item: Item = {"pk": put.key.pk, "sk": put.key.sk, **put.attributes, **changes}
        self.table.items[put.key.pk, put.key.sk] = item
        return item

    def holds(self, **attributes: Value) -> bool:
        """Whether an item with these attributes is in the table, wherever it is."""
        return any(attributes.items() <= item.items() for item in self.table.items.values())


async def _others_go_on(meter: Meter, *, number: int) -> None:
    """A record of another key is handled and let go, and its sleep ends."""
    meter.deliver(other_nap, "nap", b"%d" % number, partition=0)
    meter.deliver(other_note, f"note{number}", b"1", partition=0)
    before = meter._offset
    await asyncio.sleep(5)
    assert before in meter.released
    assert meter.head("other", f"note{number}").state["noted"] == b"1"
    await asyncio.sleep(NAP_S + 10)
    assert meter.head("other", "nap").state["woken"] == b"%d" % number


# --- timers ----------------------------------------------------------------------------------------------------------


def _timers(now_ms: int) -> Iterator[tuple[str, Timer]]:
    entry = SendOut("victim", "k", str(InvocationId(LANE, "m1")), "note", b"1")
    for name, lane in (
        ("", LANE),
        ("long", Lane("victim", "k" * 3_000)),
        ("no key", Lane("", "")),
        ("lines", Lane("a\nb", "\x1b[2J")),
    ):
        yield f"sleep {name}", SleepTimer(lane, "c1", now_ms, "x1")
        yield f"guard {name}", GuardTimer(lane, "c1", now_ms, "x2", ver=3, since_ms=now_ms)
        yield f"send {name}", SendTimer(lane, "m1", now_ms, "x3", pack(entry), "other/s", "1.0")


def _messages() -> dict[str, bytes]:
    """What a timer may carry, that is no message for its lane."""
    good = SendOut("victim", "k", str(InvocationId(LANE, "m1")), "note", b"1")
    return {
        "no id": pack(structs.replace(good, event_id="garbage")),
        "another lane": pack(structs.replace(good, event_id=str(InvocationId(Lane("other", "x"), "m1")))),
        "an empty key": pack(structs.replace(good, event_id=str(InvocationId(Lane("victim", ""), "m1")))),
        "a long key": pack(structs.replace(good, event_id=str(InvocationId(Lane("victim", "k" * 3_000), "m1")))),
        "unknown handler": pack(structs.replace(good, handler="none")),
        "a newer kind": b"\x82\xa4type\xa7newkind\xa1x\x01",
        "deep": b"\x82\xa4type\xa4send\xa1x" + DEEP,
        "truncated": pack(good)[:-3],
    }


def _bad_timers(now_ms: int) -> Iterator[tuple[str, Put, dict[str, Value]]]:
    for name, timer in _timers(now_ms):
        put = timer_put(timer)
        yield name, put, {}
        for attribute in put.attributes:
            for odd, value in ODD.items():
                yield f"{name} {attribute} {odd}", put, {attribute: value}
    send = SendTimer(LANE, "m1", now_ms, "x4", b"", "other/s", "1.0")
    for name, message in _messages().items():
        yield f"message {name}", timer_put(send), {"msg": message}


@pytest.mark.parametrize("age_s", [-20, 1, 900, 3_000], ids=["soon", "just", "recent", "old"])
def test_no_timer_item_ends_a_sweep_or_costs_another_key(age_s: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        due_ms = EPOCH_MS - age_s * 1_000
        items = [world.put(put, **changes) for _, put, changes in _put_apart(_bad_timers(due_ms))]
        async with world.plane() as meter:
            await _others_go_on(meter, number=1)
            await asyncio.sleep(200)
            await _others_go_on(meter, number=2)
        assert world.count() > 0
        for item in items:
            if not _is_readable(item):
                assert world.holds(**_without_key(item)), item
        now = EPOCH_MS // TIMER_BUCKET_MS
        behind = [pk for pk, _ in world.table.items if pk.startswith("T#") and int(pk.split("#")[1]) < now - 15]
        assert behind == [], "old buckets become empty, so that no walk is kept from going on"

    with caplog.at_level(logging.CRITICAL, "tenuto"):
        run_virtual(scenario())


def _put_apart(bad: Iterator[tuple[str, Put, dict[str, Value]]]) -> Iterator[tuple[str, Put, dict[str, Value]]]:
    """Each in an item of its own: they are put by somebody who chooses names freely."""
    for number, (name, put, changes) in enumerate(bad):
        yield name, structs.replace(put, key=Key(put.key.pk, f"{put.key.sk}{number}")), changes


def _is_readable(item: Item) -> bool:
    try:
        parse_timer(item)
    except ValueError:
        return False
    return True


def test_items_with_names_of_any_kind_among_the_timers() -> None:
    async def scenario() -> None:
        world = World()
        bucket = timer_bucket(EPOCH_MS // TIMER_BUCKET_MS, 1)
        names = ["0", "9~", "0" * 1_000, "5#", "5##", "5#\n", "1#" + "é" * 500, "000000000000000#x"]
        for name in names:
            world.put(Put(Key(bucket, name), {"x": name}))
        async with world.plane() as meter:
            await _others_go_on(meter, number=1)
            await asyncio.sleep(60)
        assert all(world.holds(x=name) for name in names)
        assert not any(pk == bucket for pk, _ in world.table.items)

    run_virtual(scenario())


def test_many_timers_that_are_none_are_said_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        for number in range(2_000):
            world.put(Put(Key(timer_bucket(EPOCH_MS // TIMER_BUCKET_MS, 0), f"1#{number}"), {"x": "\x1b[2J\n" * 1_000}))
        async with world.plane() as meter:
            await _others_go_on(meter, number=1)
        assert world.count() >= 2_000

    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    lines = [record.getMessage() for record in caplog.records]
    assert 0 < len(lines) < 40
    assert all(line.isprintable() and len(line) < 2_000 for line in lines)


class SlowTable(CountingTable):
    """Each request takes its time, as a real table's does."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await asyncio.sleep(REQUEST_S)
        return await super().write(write)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        await asyncio.sleep(REQUEST_S)
        return await super().get(key)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        await asyncio.sleep(REQUEST_S)
        return await super().query(pk, low, high, limit=limit, after=after)


def _in_front_of(others: Key, number: int, world: World) -> None:
    """Items in partitions that a sweep looks at before it comes to another timer, or earlier in the same."""
    minute = int(others.pk.split("#")[1])
    at = structs.replace(others, pk=timer_bucket(minute, 0), sk=f"0{number:014d}#x")
    match number % 3:
        case 0:
            world.put(Put(at, {"x": "none"}))
        case 1:
            world.put(timer_put(GuardTimer(Lane("victim", f"bad{number}"), "c1", minute * TIMER_BUCKET_MS, "g")))
            head = head_key(Lane("victim", f"bad{number}"))
            world.put(Put(head, {"ver": "none"}))
        case _:
            message = pack(SendOut("victim", "k", "garbage", "note", b"1"))
            timer = SendTimer(LANE, f"m{number}", minute * TIMER_BUCKET_MS, f"s{number}", message, "other/s", "1.0")
            world.put(timer_put(timer))


def test_another_services_sleep_ends_in_time_behind_ten_thousand_items_that_cannot_be_read() -> None:
    async def scenario() -> None:
        world = World(SlowTable())
        async with world.plane() as meter:
            meter.deliver(other_nap, "nap", b"7")
            await meter.quiet()
        (sleep,) = [Key(pk, sk) for pk, sk in world.table.items if pk.startswith("T#")]
        due_ms = parse_timer(world.table.items[sleep.pk, sleep.sk]).due_ms
        for number in range(HOSTILE_ITEMS):
            _in_front_of(sleep, number, world)
        # A process that knows of the sleep from the table alone, and begins when it is due.
        await asyncio.sleep((due_ms - meter.clock.now_ms()) / 1_000)
        async with world.plane() as meter:
            for _ in range(IN_TIME_S):
                await asyncio.sleep(1)
                if meter.head("other", "nap").state.get("woken"):
                    break
            assert meter.head("other", "nap").state["woken"] == b"7"
        assert world.count() >= HOSTILE_ITEMS // 3, "those in front of it were met"

    run_virtual(scenario())


# --- heads -----------------------------------------------------------------------------------------------------------


def _bad_heads() -> Iterator[tuple[str, Callable[[Item], None]]]:
    """Ways to make a head of a suspended run unreadable."""
    for attribute in (
        "ver",
        "run",
        "s.seen",
        "w.0|t|0",
        "att",
        "holder",
        "lease",
        "awaits",
        "wake",
    ):
        for odd, value in ODD.items():
            yield f"{attribute} {odd}", partial(_changed, attribute, value)
    for attribute in ("b.x", "took", "ans", "seg", "fails"):
        for odd, value in ODD.items():
            yield f"{attribute} {odd}", partial(_changed, attribute, value)
    yield "truncated run", _truncated


def _changed(attribute: str, value: Value, item: Item) -> None:
    item[attribute] = value


def _truncated(item: Item) -> None:
    run = item["run"]
    assert isinstance(run, bytes)
    item["run"] = run[:-3]


BAD_HEADS = list(_bad_heads())


def test_heads_that_cannot_be_read_leave_their_keys_alone_and_cost_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        keys = [f"k{number}" for number in range(len(BAD_HEADS))]
        async with world.plane() as meter:
            for key in keys:
                meter.deliver(victim_nap, key)
            await meter.quiet()
        sound, spoilt = {}, {}
        for key, (_, spoil) in zip(keys, BAD_HEADS, strict=True):
            at = head_key(Lane("victim", key))
            sound[key] = dict(world.table.items[at.pk, at.sk])
            spoilt[key] = dict(sound[key])
            spoil(spoilt[key])
            if _can_be_read(spoilt[key]):
                # What an attribute may well hold, and would be taken for the truth.
                spoilt[key] = dict(sound.pop(key))
            world.table.items[at.pk, at.sk] = spoilt[key]
        assert len(sound) > 100
        async with world.plane() as meter:
            first = meter._offset + 1
            for key in keys * 3:
                meter.deliver(victim_note, key)
            await _others_go_on(meter, number=1)
            await asyncio.sleep(300)
            assert set(range(first, first + 3 * len(keys))) <= set(meter.released), "the partition goes on"
            assert meter.dispatcher.active == 0, "the keys are left alone"
            before = world.table.requests["get"]
            await asyncio.sleep(100)
            assert world.table.requests["get"] - before < 5 * len(keys), "and looked at once in a while"
            assert world.count() >= len(sound)
            for key, (name, _) in zip(keys, BAD_HEADS, strict=True):
                if key not in sound:
                    continue
                left = world.table.items[f"victim/{key}", "H"]
                assert _without_mark(left) == _without_mark(spoilt[key]), name
                # A newer version comes back, or an operator corrects it.
                sound[key] |= {"pend": left["pend"]} if "pend" in left else {}
                world.table.items[f"victim/{key}", "H"] = sound[key]
            await asyncio.sleep(900)
            for key, (name, _) in zip(keys, BAD_HEADS, strict=True):
                state = meter.head("victim", key).state
                assert (state.get("woken"), state.get("noted")) == (b"1", b"3"), name
            await _others_go_on(meter, number=2)

    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario())
    assert 0 < len(caplog.records) < 6 * len(BAD_HEADS)


def _can_be_read(item: Item) -> bool:
    try:
        parse_head(item)
    except ValueError:
        return False
    return True


def _without_mark(item: Item) -> Item:
    return {name: value for name, value in item.items() if name != "pend"}


def test_callers_of_a_key_whose_head_cannot_be_read_are_told() -> None:
    async def scenario() -> None:
        world = World()
        world.put(Put(head_key(LANE), {"ver": b"odd"}))
        async with world.plane() as meter:
            event = meter.event_of_call(victim_note, "k", "c1", keep=True)
            before_ms = meter.clock.now_ms()
            answer = await meter.dispatcher.call(event, 4_000)
            assert type(answer).__name__ == "Pending"
            assert meter.clock.now_ms() - before_ms < 6_000
            assert type(await meter.dispatcher.result(event.id, 1_000)).__name__ == "Pending"
            del world.table.items[LANE.pk, "H"]
            world.put(Put(head_key(LANE), {"pend": "again"}))
            await asyncio.sleep(600)
            assert meter.head("victim", "k").state["noted"] == b"1"

    run_virtual(scenario())


# --- inboxes ---------------------------------------------------------------------------------------------------------


def _bad_inbox_items(lane: Lane) -> Iterator[tuple[str, Item]]:
    """Items in the inbox of a lane that hold no event of it at its place."""
    kafka = KafkaSource("0", "t", 0, 5, 0)
    events = {
        "message": Event(str(InvocationId(lane, "m1")), "note", MessageSource("other/s", "000000000001.000001"), b"1"),
        "record": Event(str(InvocationId(lane, "k5")), "note", kafka, b"1"),
        "call": Event(str(InvocationId(lane, "c1")), "note", CallSource(), b"1"),
    }
    elsewhere = str(InvocationId(Lane("other", "x"), "m1"))

    def item(event: Event, **changes: Value) -> Item:
        put = inbox_put(lane, event)
        return {"pk": put.key.pk, "sk": put.key.sk, **put.attributes, **changes}

    for kind, event in events.items():
        for odd, value in ODD.items():
            yield f"{kind} {odd}", item(event, ev=value)
        garbage = structs.replace(event, id="garbage")
        yield f"{kind} without", {"pk": lane.pk, "sk": item(event)["sk"]}
        yield f"{kind} elsewhere", item(event) | {"sk": f"{item(event)['sk']!s}x"}
        yield f"{kind} truncated", item(event, ev=pack(event)[:-2])
        yield f"{kind} no id", item(event, ev=pack(garbage))
        yield f"{kind} empty id", item(event, ev=pack(structs.replace(event, id="")))
        foreign = structs.replace(event, id=elsewhere)
        yield f"{kind} of another key", item(event, ev=pack(foreign))
        yield f"{kind} newer source", item(event, ev=pack(event).replace(b"type", b"tipe"))
        yield f"{kind} more", item(event, more=b"\x91\x01", last=9)
        yield f"{kind} more of another", item(event, more=pack_events([garbage]), last=6)
        yield f"{kind} deep more", item(event, more=DEEP, last=9)
    record, call = events["record"], events["call"]
    yield "record with a last one that is none", item(record, last=10**12)
    yield "record whose parts are gone", item(record, parts=3)
    long = InvocationId(lane, "n" * 900)
    yield "call with a long name", item(call) | {"ev": pack(structs.replace(call, id=str(long)))}


def test_inbox_items_that_cannot_be_read_block_neither_their_keys_nor_the_sweep(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        world = World()
        count = len(list(_bad_inbox_items(LANE)))
        lanes = [Lane("victim", f"k{number}") for number in range(count)]
        bad = [list(_bad_inbox_items(lane))[number] for number, lane in enumerate(lanes)]
        for lane, (_, item) in zip(lanes, bad, strict=True):
            world.table.items[str(item["pk"]), str(item["sk"])] = dict(item)
            for number in (0, 2, 3):
                source = MessageSource("other/s", f"00000000000{number}.000001")
                world.table.apply(inbox_put(lane, Event(str(InvocationId(lane, f"m{number}x")), "note", source, b"1")))
            world.table.apply(mark_pend(lane, "mark"))
            world.table.apply(timer_put(GuardTimer(lane, "m9", EPOCH_MS - 1_000, "guard")))
        async with world.plane() as meter:
            await _others_go_on(meter, number=1)
            for lane, (name, _) in zip(lanes, bad, strict=True):
                assert meter.head("victim", lane.key).state.get("noted") == b"3", name
            first = meter._offset + 1
            for lane in lanes:
                meter.deliver(victim_note, lane.key, partition=1)
            await asyncio.sleep(20)
            assert set(range(first, first + count)) <= set(meter.released)
            assert world.count() >= count
            for lane, (name, item) in zip(lanes, bad, strict=True):
                assert meter.head("victim", lane.key).state["noted"] == b"4", name
                kept = world.table.items[str(item["pk"]), f"U{str(item['sk'])[1:]}"]
                assert _without_key(kept) == _without_key(item), name
            await asyncio.sleep(900)
            timers = [item for (pk, _), item in world.table.items.items() if pk.startswith("T#")]
            assert timers == [], "nothing is left to look after"

    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario())
    assert 0 < len(caplog.records) < 40


def _without_key(item: Item) -> Item:
    return {name: value for name, value in item.items() if name not in ("pk", "sk")}


def test_records_before_one_that_cannot_be_read_run_and_the_rest_is_kept() -> None:
    async def scenario() -> None:
        world = World()
        kafka = KafkaSource("0", "t", 0, 5, 0)
        first, second, third, fourth = (
            Event(str(InvocationId(LANE, f"k{offset}")), "note", structs.replace(kafka, offset=offset), b"1")
            for offset in range(5, 9)
        )
        put = inbox_put(LANE, first, [second, structs.replace(third, id="garbage"), fourth])
        bad = world.put(put)
        ninth = Event(str(InvocationId(LANE, "k9")), "note", structs.replace(kafka, offset=9), b"1")
        world.table.apply(inbox_put(LANE, ninth))
        world.table.apply(mark_pend(LANE, "mark"))
        world.table.apply(timer_put(GuardTimer(LANE, "m9", EPOCH_MS - 1_000, "guard")))
        async with world.plane() as meter:
            await _others_go_on(meter, number=1)
            assert meter.head("victim", "k").state["noted"] == b"3"
            assert _without_key(world.table.items[LANE.pk, f"U{put.key.sk[1:]}"]) == _without_key(bad)

    run_virtual(scenario())


# --- one key, another's record ---------------------------------------------------------------------------------------


def test_an_answer_for_a_key_whose_head_cannot_be_read_does_not_hold_up_its_sender() -> None:
    waiter = VirtualObject("waiter")
    sender = VirtualObject("sender")
    ids: list[str] = []

    @waiter.handler()
    async def waits(ctx: ObjectContext, _n: int) -> None:
        name, answer = ctx.awakeable(int)
        ids.append(name)
        ctx.set("answer", await answer)

    @sender.handler()
    async def answers(ctx: ObjectContext, n: int) -> None:
        if n == 1:
            ctx.resolve_awakeable(ids[0], 5)
        ctx.set("done", n)

    async def scenario() -> None:
        table = CountingTable()
        meter = Meter(Services([waiter, sender]), Limits(), table, metrics=Tally())
        sweeping = asyncio.create_task(meter.sweeper.run())
        meter.deliver(waits, "k")
        await meter.quiet()
        at = head_key(Lane("waiter", "k"))
        sound = dict(table.items[at.pk, at.sk])
        table.items[at.pk, at.sk] = sound | {"ver": "odd"}
        meter.deliver(answers, "k", b"1")
        meter.deliver(answers, "k", b"2")
        await asyncio.sleep(30)
        assert meter.head("sender", "k").state["done"] == b"2"
        assert await _resolution(meter, ids[0]) is None
        table.items[at.pk, at.sk] = sound
        await asyncio.sleep(600)
        assert meter.head("waiter", "k").state["answer"] == b"5"
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    run_virtual(scenario())


async def _resolution(meter: Meter, awakeable: str) -> Resolution | None:
    try:
        return await meter.dispatcher.resolve(awakeable, Success(b"6"))
    except OverloadedError:
        return None


# --- the cursor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cursor", ["ahead", 10**30, -5, "text"])
def test_a_cursor_that_is_ahead_of_time_is_brought_back(cursor: object) -> None:
    """A wrong clock has moved it, or somebody has: timers before it would never be looked for again."""
    box = VirtualObject("box")

    @box.handler()
    async def nap(ctx: ObjectContext, n: int) -> None:
        await ctx.sleep(timedelta(minutes=5))
        ctx.set("slept", n)

    async def scenario() -> None:
        meter = meter_of(box)
        minute = meter.clock.now_ms() // 60_000 + 119 if cursor == "ahead" else cursor
        meter.table.apply(Put(SWEEP_CURSOR, {"minute": cast("Any", minute)}))
        meter.deliver(nap, "k")
        await asyncio.sleep(2)
        await meter.dispatcher.kill()
        await asyncio.sleep(90 * 60)
        later = Meter(Services([box]), table=meter.table, process="later")
        sweeping = asyncio.create_task(later.sweeper.run())
        await asyncio.sleep(1_200)
        sweeping.cancel()
        assert meter.head("box", "k").state == {"slept": b"1"}
        await later.dispatcher.kill()

    run_virtual(scenario())


def test_an_inbox_item_of_more_parts_than_any_record_has_is_set_aside() -> None:
    lane = Lane("box", "k")
    nonce = kafka_nonce("0", "t", 0, 1)
    event = Event.of(InvocationId(lane, nonce), "touch", KafkaSource("0", "t", 0, 1, 0))
    for parts in (-1, PARTS_MAX + 1, 10**7):
        item: Item = {"pk": lane.pk, "sk": inbox_put(lane, event).key.sk, "ev": pack(event), "parts": parts}
        with pytest.raises(ValueError, match="parts"):
            check_inbox_events(lane, item)
