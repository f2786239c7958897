"""Outboxes that somebody else has written, or a newer version: what can be delivered is, and the key continues.

Owns entries of a head and of its bundles. The oracle is that of `test_unreadable_items`, whose world this is: nothing
but the entry is affected, and it is kept. Does not own answers of functions that claim such entries (`test_outcomes`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.dead_letters import Letter, item_of, letter_partitions, parse_letter
from tenuto.lane.head import head_key
from tenuto.lane.timers import GuardTimer, SendTimer, timer_put
from tenuto.lane.writes import Key, Put, Value
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, out_sequence
from tenuto.protocol.limits import AWAKEABLE_BYTES_MAX
from tenuto.protocol.records import (
    Bundle,
    BundleOut,
    BuriedOut,
    Entry,
    Event,
    Failed,
    Failure,
    MessageSource,
    Out,
    PublishOut,
    ResolveOut,
    ResultOut,
    SendOut,
    Success,
    UnreadableOut,
    pack,
)
from tenuto.service import Services
from tenuto_control.core.outcomes import kept_problem
from tenuto_control.dispatcher.delivery import BUNDLES_AT_ONCE
from tenuto_control.limits import Limits
from tests.attack.examples import examples
from tests.attack.test_unreadable_items import (
    DEEP,
    FOREIGN,
    LANE,
    ODD,
    World,
    _others_go_on,
    other_note,
    victim,
    victim_note,
)
from tests.support.virtual_time import EPOCH_MS, run_virtual

TOLD = Lane("other", "told")
GOOD = SendOut("other", "told", str(InvocationId(TOLD, "m7")), "note", b"1")
OWN = str(InvocationId(LANE, "c1"))
LONG = Lane("other", "k" * 3_000)
LETTER = BuriedOut(Event(OWN, "note", MessageSource("other/s", "1.0")), "why")

NEVER: dict[str, Out] = {
    "a key that no table takes": structs.replace(GOOD, key=LONG.key, event_id=str(InvocationId(LONG, "m1"))),
    "no id": structs.replace(GOOD, event_id="garbage"),
    "a delayed one without an id": structs.replace(GOOD, event_id="garbage", due_ms=EPOCH_MS * 2),
    "another lane's id": structs.replace(GOOD, event_id=OWN),
    "an id that is too long": structs.replace(GOOD, event_id=str(InvocationId(TOLD, "n" * 900))),
    "an id of two lines": structs.replace(GOOD, event_id=str(InvocationId(TOLD, "n\nm"))),
    "a handler that none can be": structs.replace(GOOD, handler=""),
    "a time that cannot be": structs.replace(GOOD, due_ms=-1),
    "a message for no inbox item": structs.replace(GOOD, input=bytes(350_001)),
    "a result of no invocation": ResultOut("x" * 3_000, Success(b"1")),
    "a result of another key": ResultOut(GOOD.event_id, Success(b"forged")),
    "a result of no status": ResultOut(OWN, Failed(Failure("no", 7))),
    "an answer that is too large": ResolveOut(
        str(AwakeableId(InvocationId(TOLD, "m7"), "a1", "0" * 32)), Success(bytes(AWAKEABLE_BYTES_MAX + 1))
    ),
    "a dead letter of another key": structs.replace(LETTER, event=structs.replace(LETTER.event, id=GOOD.event_id)),
    "a dead letter without an id": structs.replace(LETTER, event=structs.replace(LETTER.event, id="")),
    "a dead letter of many parts": structs.replace(LETTER, parts=10**9),
    "a bundle in the head": BundleOut("H"),
    "a bundle in the inbox": BundleOut("I#c#c1"),
}
"""Entries that no version delivers."""

NEWER = msgspec.msgpack.encode({"type": "newkind", "x": 1})
UNREADABLE: dict[str, Value] = {**ODD, "a newer kind": NEWER, "cut short": pack(GOOD)[:-3]}
"""What may be in the place of an entry, and is none that this version knows."""

INCOMPLETE: dict[str, Entry | BundleOut] = {
    "a bundle that is none": BundleOut("O#odd"),
    "a bundle of deep bytes": BundleOut("O#deep"),
    "a bundle of a number": BundleOut("O#number"),
    "a record with deep headers beside it": PublishOut("t2", None, value_item="V#odd"),
    "a record without its input": PublishOut("t2", None, value_item="V#foreign"),
    "a dead letter with deep headers beside it": structs.replace(LETTER, value_item="V#odd"),
}
"""Entries that are sound, and name an item that cannot be read."""

BESIDE: dict[str, dict[str, Value]] = {
    "O#odd": {"outs": FOREIGN},
    "O#deep": {"outs": DEEP},
    "O#number": {"outs": 7},
    "V#odd": {"input": b"1", "carried": DEEP},
    "V#foreign": {"input": FOREIGN},
}
"""Items beside the head that cannot be read."""


async def shipped(world: World, outbox: Mapping[str, Value], name: str = "", told: bytes = b"1") -> None:
    """A head with this outbox beside a good entry, which leaves; other keys continue, and what its items hold stays."""
    for sk, attributes in BESIDE.items():
        world.put(Put(Key(LANE.pk, sk), attributes))
    head: dict[str, Value] = {"ver": 1, **outbox, "o.000000000001.000009": pack(GOOD)}
    world.put(Put(head_key(LANE), head))
    world.table.apply(timer_put(GuardTimer(LANE, "m9", EPOCH_MS - 1_000, "guard")))
    async with world.plane() as meter:
        await _others_go_on(meter, number=1)
        assert meter.head("other", "told").state["noted"] == told, name
        first = meter._offset + 1
        for _ in range(3):
            meter.deliver(victim_note, "k", partition=1)
        await asyncio.sleep(60)
        assert set(range(first, first + 3)) <= set(meter.released), f"{name}: its partition goes on"
    for sk, attributes in BESIDE.items():
        items = (world.table.items.get((LANE.pk, name)) for name in (sk, f"U#{sk}"))
        assert any(attributes.items() <= item.items() for item in items if item is not None), f"{name}: {sk} is kept"


def set_aside(world: World) -> list[tuple[str, Value, Value]]:
    """Places, entries and reasons."""
    return [
        (sk, item["out"], item["why"])
        for (pk, sk), item in world.table.items.items()
        if pk == LANE.pk and sk.startswith("U#O#") and "out" in item
    ]


def noted(world: World) -> Value:
    return world.table.items[LANE.pk, "H"].get("s.noted")


def told_once(scenario: Coroutine[Any, Any, None], caplog: pytest.LogCaptureFixture) -> None:
    """Run it; one line says that the table holds what cannot be delivered."""
    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario)
    assert [record.name for record in caplog.records] == ["tenuto.table"]


@pytest.mark.parametrize("name", NEVER)
def test_an_entry_that_is_never_delivered_is_set_aside_and_its_key_continues(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        world = World()
        await shipped(world, {"o.000000000001.000001": pack(NEVER[name])})
        assert noted(world) == b"3"
        assert not [attribute for attribute in world.table.items[LANE.pk, "H"] if attribute.startswith("o.")]
        ((sk, kept, why),) = set_aside(world)
        assert (sk, kept) == ("U#O#000000000001.000001", pack(NEVER[name]))
        assert isinstance(why, str)
        assert why.isprintable()
        assert world.count() > 0

    told_once(scenario(), caplog)


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_entry_that_cannot_be_read_is_set_aside_as_it_is_and_its_key_continues(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        world = World()
        await shipped(world, {"o.000000000001.000001": UNREADABLE[name]}, name)
        assert noted(world) == b"3"
        ((sk, kept, why),) = set_aside(world)
        assert (sk, kept) == ("U#O#000000000001.000001", UNREADABLE[name])
        assert isinstance(why, str)
        assert world.count() > 0

    told_once(scenario(), caplog)


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_entry_whose_item_cannot_be_read_is_set_aside_with_it_and_its_key_continues(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        world, entry = World(), INCOMPLETE[name]
        await shipped(world, {"o.000000000001.000001": pack(entry)}, name)
        assert noted(world) == b"3"
        ((sk, kept, _),) = set_aside(world)
        assert (sk, kept) == ("U#O#000000000001.000001", pack(entry))
        item = entry.item if isinstance(entry, BundleOut) else item_of(entry)
        assert "why" in world.table.items[LANE.pk, f"U#{item}"]
        assert (LANE.pk, item) not in world.table.items
        assert world.count() > 0

    told_once(scenario(), caplog)


def test_of_a_bundle_what_can_be_read_leaves_and_the_rest_is_set_aside() -> None:
    async def scenario() -> None:
        world = World()
        inside = [(n, msgspec.Raw(pack(structs.replace(GOOD, event_id=_id(n))))) for n in range(3)]
        inside += [
            (7, msgspec.Raw(NEWER)),
            (8, msgspec.Raw(pack(BundleOut("O#odd")))),
            (9, msgspec.Raw(DEEP[:40] + b"\x01")),
        ]
        world.put(Put(Key(LANE.pk, "O#1"), {"outs": msgspec.msgpack.encode([inside])}))
        await shipped(world, {"o.000000000001.000001": pack(BundleOut("O#1"))}, told=b"4")
        assert noted(world) == b"3"
        places = [f"U#O#{out_sequence(1, n)}" for n in (7, 8, 9)]
        assert [(sk, kept) for sk, kept, _ in set_aside(world)] == [
            (place, bytes(raw)) for place, (_, raw) in zip(places, inside[3:], strict=True)
        ]
        assert (LANE.pk, "O#1") not in world.table.items

    run_virtual(scenario())


def test_a_mark_of_an_ended_event_counts_by_its_name_whatever_it_holds() -> None:
    async def scenario() -> None:
        world = World()
        await shipped(world, {f"f.m{n}": value for n, value in enumerate(ODD.values())} | {"tok": 7, "ans": b"x"})
        assert noted(world) == b"3"
        assert not set_aside(world)

    run_virtual(scenario())


# --- handlers that there are not --------------------------------------------------------------------------------------

GONE = structs.replace(GOOD, handler="gone")


def gone(world: World, name: str) -> Mapping[str, Value]:
    """Ways to send a message to a handler that there is not: the outbox that does, if one does."""
    if name == "at once":
        return {"o.000000000001.000001": pack(GONE)}
    if name == "delayed":
        return {"o.000000000001.000001": pack(structs.replace(GONE, due_ms=EPOCH_MS + 3_600_000))}
    if name == "in a bundle":
        world.put(Put(Key(LANE.pk, "O#1"), {"outs": pack(Bundle(((1, GONE),)))}))
        return {"o.000000000001.000001": pack(BundleOut("O#1"))}
    world.table.apply(timer_put(SendTimer(TOLD, "m7", EPOCH_MS - 1_000, "x", pack(GONE), LANE.pk, "1.1")))
    return {}


@pytest.mark.parametrize("name", ["at once", "delayed", "in a bundle", "a timer"])
def test_a_message_for_a_handler_that_there_is_not_becomes_a_dead_letter_and_no_key_waits_for_it(name: str) -> None:
    async def scenario() -> None:
        world = World()
        outbox = gone(world, name)
        world.put(Put(head_key(LANE), {"ver": 1, **outbox}))
        world.table.apply(timer_put(GuardTimer(LANE, "m9", EPOCH_MS - 1_000, "guard")))
        async with world.plane() as meter:
            meter.deliver(other_note, "told")
            await asyncio.sleep(5)
            assert meter.head("other", "told").state["noted"] == b"1", "its receiver continues"
            await asyncio.sleep(Limits().handler_patience_ms / 1_000 - 10)
            assert not letters(world)
            await asyncio.sleep(30)
            (letter,) = letters(world)
            assert (letter.lane, letter.handler, letter.invocation) == (TOLD.pk, "gone", GONE.event_id)
            meter.deliver(victim_note, "k")
            meter.deliver(other_note, "told")
            await asyncio.sleep(5)
            assert noted(world) == b"1"
            assert meter.head("other", "told").state["noted"] == b"2"
            await asyncio.sleep(900)
            assert not [sk for pk, sk in world.table.items if pk.startswith("T#")], "nothing is left to look after"
        assert len(letters(world)) == 1

    run_virtual(scenario())


@pytest.mark.parametrize("name", ["at once", "in a bundle", "a timer"])
def test_a_message_waits_for_a_handler_that_is_being_deployed(name: str) -> None:
    told = VirtualObject("other")
    told.handler("note")(other_note.function)

    @told.handler("gone")
    async def late(ctx: ObjectContext, n: int) -> None:
        ctx.set("late", n)

    async def scenario() -> None:
        world = World()
        outbox = gone(world, name)
        world.put(Put(head_key(LANE), {"ver": 1, **outbox}))
        world.table.apply(timer_put(GuardTimer(LANE, "m9", EPOCH_MS - 1_000, "guard")))
        async with world.plane() as meter:
            await asyncio.sleep(30)
            meter.services = Services([victim, told])
            await asyncio.sleep(15)
            assert meter.head("other", "told").state["late"] == b"1"
        assert not letters(world)

    run_virtual(scenario())


def letters(world: World) -> list[Letter]:
    partitions = set(letter_partitions())
    found = [parse_letter(item) for (pk, _), item in world.table.items.items() if pk in partitions]
    return [letter for letter in found if letter is not None]


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_so_it_is_with_what_a_bundle_holds() -> None:
    async def scenario() -> None:
        world = World()
        never = [entry for entry in NEVER.values() if not isinstance(entry, BundleOut | UnreadableOut)]
        # In several: an item has 400 KB.
        for n, entry in enumerate(never):
            bundle = Bundle(((10 + n, entry), (100 + n, structs.replace(GOOD, event_id=_id(n)))))
            world.put(Put(Key(LANE.pk, f"O#{n}"), {"outs": pack(bundle)}))
        outbox = {f"o.{out_sequence(1, 10 + n)}": pack(BundleOut(f"O#{n}")) for n in range(len(never))}
        more = BUNDLES_AT_ONCE + 3
        assert len(never) < more
        for n in range(len(never), more):
            outbox[f"o.{out_sequence(1, 10 + n)}"] = pack(BundleOut(f"O#{n}"))
        await shipped(world, outbox, told=b"%d" % (1 + len(never)))
        assert noted(world) == b"3"
        assert len(set_aside(world)) == len(never)
        assert not [sk for pk, sk in world.table.items if pk == LANE.pk and sk.startswith("O#") and sk not in BESIDE]

    run_virtual(scenario())


def _id(n: int) -> str:
    return str(InvocationId(TOLD, f"b{n}"))


# --- generated members ------------------------------------------------------------------------------------------------

TEXT = st.one_of(
    st.sampled_from(["", "other", "told", "note", "k", OWN, GOOD.event_id, "x" * 3_000]), st.text(max_size=9)
)
SMALL = st.one_of(st.none(), st.binary(max_size=9))
HEADERS = st.lists(st.tuples(TEXT, st.binary(max_size=9)), max_size=2).map(tuple)
NUMBER = st.one_of(st.sampled_from([-1, 0, 10**15, 2**62]), st.integers(-(2**40), 2**40))
RESULT = st.one_of(st.builds(Success, SMALL), st.builds(Failed, st.builds(Failure, TEXT, NUMBER)))
EVENT = st.builds(Event, TEXT, TEXT, st.builds(MessageSource, TEXT, TEXT), SMALL, HEADERS)
ENTRY = st.one_of(
    st.builds(SendOut, TEXT, TEXT, TEXT, TEXT, SMALL, HEADERS, st.one_of(st.none(), NUMBER), st.booleans()),
    st.builds(PublishOut, TEXT, SMALL, SMALL, HEADERS, st.booleans(), st.one_of(st.none(), TEXT)),
    st.builds(ResultOut, TEXT, RESULT),
    st.builds(ResolveOut, TEXT, RESULT),
    st.builds(BuriedOut, EVENT, TEXT, NUMBER, NUMBER, NUMBER, NUMBER, st.one_of(st.none(), TEXT), NUMBER, NUMBER),
    st.builds(BundleOut, TEXT),
)
SEQUENCE = st.one_of(st.just(out_sequence(1, 1)), st.text(min_size=1, max_size=80))


@given(st.lists(st.tuples(SEQUENCE, ENTRY), max_size=4))
@example([("x", PublishOut("t", b"1", dead=True))])
@settings(max_examples=examples(8), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_entries_a_head_holds_it_continues_without_them(entries: list[tuple[str, Out]]) -> None:
    async def scenario() -> None:
        world = World()
        await shipped(world, {f"o.{sequence}": pack(entry) for sequence, entry in entries})
        assert noted(world) == b"3"
        kept = {sk: entry for sk, entry, _ in set_aside(world)}
        for sequence, entry in dict(entries).items():
            if kept_problem(entry, LANE) is not None:
                assert kept.pop(f"U#O#{sequence}", None) in (pack(entry), None)

    try:
        for _, entry in entries:
            pack(entry)
    except (ValueError, OverflowError):
        return
    logging.disable(logging.CRITICAL)
    try:
        run_virtual(scenario())
    finally:
        logging.disable(logging.NOTSET)
