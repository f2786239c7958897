"""Outboxes that somebody else has written, or a newer version: what can be delivered is, and the key continues.

Owns entries of a head and of its bundles. The oracle is that of `test_unreadable_items`, whose world this is: nothing
but the entry is affected, and it is kept. Does not own answers of functions that claim such entries (`test_outcomes`).
"""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tenuto.lane.head import head_key
from tenuto.lane.timers import GuardTimer, timer_put
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
    pack,
    unpack_out,
)
from tenuto_control.core.outcomes import kept_problem
from tenuto_control.dispatcher.delivery import BUNDLES_AT_ONCE
from tests.attack.examples import examples
from tests.attack.test_unreadable_items import (
    DEEP,
    FOREIGN,
    LANE,
    World,
    _others_go_on,
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

LATER: dict[str, bytes] = {
    "a bundle that is none": pack(BundleOut("O#odd")),
    "a bundle of deep bytes": pack(BundleOut("O#deep")),
    "a record without its input": pack(PublishOut("t2", None, value_item="V#odd")),
}
"""Entries that cannot be read now."""

BESIDE: dict[str, dict[str, Value]] = {
    "O#odd": {"outs": FOREIGN},
    "O#deep": {"outs": DEEP},
    "V#odd": {"input": b"1", "carried": DEEP},
}


async def shipped(world: World, outbox: dict[str, bytes], name: str = "", told: bytes = b"1") -> None:
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
        assert attributes.items() <= world.table.items[LANE.pk, sk].items(), name


def set_aside(world: World) -> list[tuple[str, Out, Value]]:
    return [
        (sk, unpack_out(item["out"]), item["why"])
        for (pk, sk), item in world.table.items.items()
        if pk == LANE.pk and sk.startswith("U#O#") and isinstance(item["out"], bytes)
    ]


def noted(world: World) -> Value:
    return world.table.items[LANE.pk, "H"].get("s.noted")


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
        assert (sk, kept) == ("U#O#000000000001.000001", NEVER[name])
        assert isinstance(why, str)
        assert why.isprintable()
        assert world.count() > 0

    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario())
    assert [record.name for record in caplog.records] == ["tenuto.table"]


@pytest.mark.parametrize("name", LATER)
def test_an_entry_that_cannot_be_read_waits_and_keeps_no_other_from_leaving(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        world = World()
        await shipped(world, {"o.000000000001.000001": LATER[name]}, name)
        assert world.table.items[LANE.pk, "H"]["o.000000000001.000001"] == LATER[name], f"{name}: it is kept"

    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario())
    assert 0 < len(caplog.records) < 10, name


def test_so_it_is_with_what_a_bundle_holds() -> None:
    async def scenario() -> None:
        world = World()
        never: list[Entry] = [entry for entry in NEVER.values() if not isinstance(entry, BundleOut)]
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
                assert kept.pop(f"U#O#{sequence}", None) in (entry, None)

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
