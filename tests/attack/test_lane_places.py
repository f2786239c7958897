"""Places for lanes at work and room for their heads: bounds in number and bytes, fairness, and books that balance.

Owns the two parts alone, with lanes that nobody runs. Does not own what a whole dispatcher takes (`test_memory`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.messages import ClaimedRun, Head, ServiceManifest
from tenuto.protocol.records import (
    CallSource,
    Event,
    Failed,
    Failure,
    KafkaSource,
    MessageSource,
    PublishOut,
    ResultOut,
)
from tenuto.service import Services
from tenuto_control.core.lane_memory import Known, LaneMemory
from tenuto_control.core.sightings import Sighting
from tenuto_control.dispatcher.capacity import BEGUN_IN_A_ROW_MAX
from tenuto_control.dispatcher.heads import REST_BYTES, Heads, head_bytes, weight_of
from tenuto_control.dispatcher.lane_places import (
    CONTINUING_SHARE,
    FUNCTION_LANES_MIN,
    HEAD_COPIES,
    LANES_PER_KEY,
    UNKNOWN_HEAD_BYTES,
    WORKING_BYTES,
    Kind,
    LanePlaces,
)
from tenuto_control.dispatcher.lane_queue import NO_WORK
from tenuto_control.dispatcher.lane_rests import Rests
from tenuto_control.limits import MIB, Limits
from tenuto_control.ports import Target
from tests.attack.examples import examples
from tests.attack.test_memory import Allocated, traced, virtually
from tests.attack.test_memory import lane as lane_of
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

# --- places -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Asking:
    """A lane that notes when it was started."""

    service: str
    name: str
    order: list[str]
    needed: bool = True

    def start(self) -> bool:
        if self.needed:
            self.order.append(self.name)
        return self.needed


@dataclass(slots=True)
class Catalogue:
    """Services named after their functions, each of which may run so many invocations."""

    concurrency: int = 100

    def find(self, service: str) -> Target | None:
        if service == "nobody's":
            return None
        return Target(service, ServiceManifest(service, keyed=True, handlers=()), 1_000, self.concurrency)

    def listed(self) -> list[ServiceManifest]:
        return []


def entered(places: LanePlaces, order: list[str], service: str, count: int, kind: Kind = Kind.RECORD) -> list[Asking]:
    lanes = [Asking(service, f"{service} {n}", order) for n in range(count)]
    for lane in lanes:
        places.enter(lane, kind)
    return lanes


@pytest.mark.parametrize(("concurrency", "most"), [(1, FUNCTION_LANES_MIN), (50, LANES_PER_KEY * 50)])
def test_a_function_has_so_many_lanes_at_work_and_another_one_begins_at_once(concurrency: int, most: int) -> None:
    order: list[str] = []
    places = LanePlaces(Limits(lanes_at_work_bytes_max=1 << 40), Catalogue(concurrency))
    slow = entered(places, order, "slow", 2_000)
    most -= most // CONTINUING_SHARE
    assert places.at_work == most
    assert places.backlog == 2_000 - most
    entered(places, order, "quick", 3)
    assert order[-3:] == ["quick 0", "quick 1", "quick 2"]
    for lane in slow[:10]:
        places.leave(lane, 100)
    assert places.at_work == most + 3


def test_lanes_that_begin_leave_places_to_those_that_continue() -> None:
    order: list[str] = []
    places = LanePlaces(Limits(lanes_at_work_bytes_max=1 << 40), Catalogue(concurrency=1))
    beginning = entered(places, order, "s", 200)
    kept = FUNCTION_LANES_MIN // CONTINUING_SHARE
    assert places.at_work == FUNCTION_LANES_MIN - kept
    order.clear()
    woken = entered(places, order, "s", 2 * kept, Kind.BEGUN)
    assert order == [lane.name for lane in woken[:kept]]
    # One that has ended its run may begin something only in a place for that, and is to leave this one otherwise.
    assert places.may_begin(beginning[0])
    assert not places.may_begin(woken[0])
    places.leave(beginning[0], 100)
    assert order[-1] == woken[kept].name, "the place went to one that continues"
    assert places.may_begin(woken[0])
    assert not places.may_begin(woken[1])
    places.leave(woken[1], 100)
    places.enter(woken[1], Kind.RECORD)
    for _ in range(1_000):
        if not places.at_work:
            break
        places.leave(cast("Any", next(iter(places._held))), 100)
    assert Counter(order)[woken[1].name] == 2, "it was started once more"
    assert len(order) == 200 - (FUNCTION_LANES_MIN - kept) + 2 * kept + 1
    assert (places.bytes, places.backlog, places.at_work) == (0, 0, 0)


def test_functions_take_turns_when_the_process_is_full() -> None:
    order: list[str] = []
    places = LanePlaces(Limits(lanes_at_work_max=18), Catalogue(), functions=2)
    for service in ("a", "b", "nobody's"):
        entered(places, order, service, 100)
    # Half is for who comes first, and the other half is kept in equal parts.
    assert Counter(name.split()[0] for name in order) == {"a": 12, "b": 3, "nobody's": 3}
    for _ in range(60):
        places.leave(next(iter(places._held)), 100)
    assert all(count >= 10 for count in Counter(name.split()[0] for name in order[18:]).values())


def test_lanes_that_never_end_leave_places_and_memory_for_other_functions() -> None:
    """Whatever their heads are taken to weigh, and however many functions hang."""
    for hanging in (1, 2, 5, 20):
        order: list[str] = []
        places = LanePlaces(Limits(), Catalogue(1_000), hanging + 1)
        for n in range(hanging):
            entered(places, order, f"hangs{n}", 3_000)
        entered(places, order, "quick", 20)
        assert "quick 0" in order
        for _ in range(100):
            ended = [lane for lane in places._held if lane.service == "quick"]
            if not ended:
                break
            places.leave(ended[0], 100)
        assert sum(name.startswith("quick") for name in order) == 20


def test_what_goes_on_comes_first_and_calls_and_records_take_turns() -> None:
    order: list[str] = []
    places = LanePlaces(Limits(lanes_at_work_max=1), Catalogue())
    (holder,) = entered(places, order, "s", 1)
    for kind in (Kind.RECORD, Kind.CALL, Kind.BEGUN):
        for _ in range(2 * BEGUN_IN_A_ROW_MAX + 1):
            places.enter(Asking("s", kind.name.lower(), order), kind)
    order.clear()
    for _ in range(3 * (2 * BEGUN_IN_A_ROW_MAX + 1)):
        (held,) = places._held
        places.leave(cast("Any", held), 10)
    assert holder not in places._held
    in_a_row = ["begun"] * BEGUN_IN_A_ROW_MAX
    expected = [*in_a_row, "call", *in_a_row, "record", "begun", "call", "record", "call", "record"]
    assert order[: len(expected)] == expected


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.booleans(), st.integers(0, 400_000)), max_size=60))
@settings(max_examples=examples(100), deadline=None)
def test_no_place_is_lost_and_the_bytes_are_kept_to(asked: list[tuple[Kind, bool, int]]) -> None:
    order: list[str] = []
    limits = Limits(lanes_at_work_bytes_max=2_000_000, lanes_at_work_max=20)
    places = LanePlaces(limits, Catalogue())
    waiting = dict[Asking, int]()
    for n, (kind, needed, size) in enumerate(asked):
        lane = Asking("s", str(n), order, needed)
        waiting[lane] = size
        places.enter(lane, kind)
    while places.at_work:
        assert places.at_work <= limits.lanes_at_work_max
        assert places.bytes <= limits.lanes_at_work_bytes_max or places.at_work == 1
        lane = cast("Asking", next(iter(places._held)))
        places.leave(lane, waiting[lane])
    assert sorted(order, key=int) == [str(n) for n, (_, needed, _) in enumerate(asked) if needed]
    assert (places.bytes, places.backlog) == (0, 0)


def test_large_heads_make_room_for_fewer_lanes() -> None:
    for size in (100, 100_000, 400_000):
        places = LanePlaces(Limits(), Catalogue())
        lanes = iter(entered(places, [], "s", 5_000))
        for _ in range(1_000):
            places.leave(next(lanes), size)
        cost = WORKING_BYTES + HEAD_COPIES * size
        share = LANES_PER_KEY * 100
        room = min(Limits().lanes_at_work_bytes_max * 3 // 4 // cost, share - share // CONTINUING_SHARE)
        assert abs(places.at_work - room) <= room // 4 + 1
    # Before anything is known, they may be large.
    places = LanePlaces(Limits(), Catalogue())
    entered(places, [], "s", 5_000)
    unknown = WORKING_BYTES + HEAD_COPIES * UNKNOWN_HEAD_BYTES
    assert places.at_work == Limits().lanes_at_work_bytes_max * 3 // 4 // unknown


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 1_000, 100_000, 399_000])
@pytest.mark.parametrize("place", ["state", "slots", "base", "out", "run", "fin", "many"])
def test_a_head_weighs_what_it_holds(size: int, place: str) -> None:
    # Threads that other tests have left allocate as well: at one time or another they do not.
    head, held = min((made(size, place) for _ in range(3)), key=lambda one: one[1])
    assert head_bytes(head) + REST_BYTES >= held
    assert head_bytes(head) <= 4 * held + REST_BYTES


def made(size: int, place: str) -> tuple[Head, int]:
    """A head with so many bytes in one place, and what was allocated for it."""
    with traced():
        allocated = Allocated()
        data = bytes(size + 1)
        event = Event("inv", "h", CallSource(), data)
        head = {
            "state": lambda: Head(state={"s": data}),
            "slots": lambda: Head(slots={"s": data}),
            "base": lambda: Head(base={"s": data, "none": None}),
            "out": lambda: Head(out={"s": PublishOut("t", data, headers=(("h", data[:9]),))}),
            "run": lambda: Head(run=_run(event)),
            "fin": lambda: Head(fin={f"{n}": 1 << 40 for n in range(size // 100)}),
            "many": lambda: Head(state={f"{n}": bytes(100) for n in range(size // 100)}),
        }[place]()
        return head, allocated.bytes


def _run(event: Event) -> ClaimedRun:
    return ClaimedRun(event, ver=1, start_ms=1, first_out=1, attempt=1, holder="h", lease_ms=1)


def test_what_is_nested_deep_is_weighed_all_the_same() -> None:
    nested: dict[str, Any] = {}
    for _ in range(5_000):
        nested = {"n": nested}
    out = ResultOut("inv", Failed(Failure("no", 500, nested)))
    assert weight_of(LaneMemory(Known(Head(out={"1": out})))) > REST_BYTES


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=5)
BYTES = st.binary(max_size=5)
SOURCES = st.one_of(
    st.builds(KafkaSource, TEXTS, TEXTS, st.integers(0, 3), st.integers(0, 1 << 40), st.just(0)),
    st.builds(MessageSource, TEXTS, TEXTS),
    st.builds(CallSource),
)
EVENTS = st.builds(Event, TEXTS, TEXTS, SOURCES, st.none() | BYTES, st.tuples(st.tuples(TEXTS, BYTES)))
RUNS = st.builds(
    ClaimedRun,
    *(EVENTS, st.integers(0, 9), st.integers(0), st.integers(0, 9), st.integers(0, 9), TEXTS, st.integers(0)),
    awaits=st.none() | st.tuples(TEXTS),
    wake_ms=st.none() | st.integers(0, 1 << 50),
    error=st.none() | TEXTS,
)
HEADS = st.builds(
    Head,
    ver=st.integers(0, 1 << 60),
    tok=st.none() | TEXTS,
    state=st.dictionaries(TEXTS, BYTES, max_size=2),
    base=st.dictionaries(TEXTS, st.none() | BYTES, max_size=2),
    watermarks=st.dictionaries(TEXTS, st.integers(0, 1 << 60), max_size=2),
    fin=st.dictionaries(TEXTS, st.integers(0, 1 << 50), max_size=2),
    run=st.none() | RUNS,
    slots=st.dictionaries(TEXTS, BYTES, max_size=2),
    took=st.tuples(st.integers(0, 9)),
    tried=st.none() | st.tuples(TEXTS, st.integers(0, 9)),
    former=st.dictionaries(TEXTS, st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2),
    out=st.just({}) | st.just({"1": ResultOut("inv", Failed(Failure("no", 500, {"a": "b"})))}),
)


@given(
    st.builds(
        LaneMemory,
        st.builds(Known, HEADS),
        shipped=st.frozensets(TEXTS, max_size=2),
        finished=st.frozensets(TEXTS, max_size=2),
        sighting=st.builds(
            Sighting,
            st.integers(0, 1 << 50),
            st.integers(0, 1 << 50),
            st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
        ),
        overtaken_ms=st.none() | st.integers(0, 1 << 50),
    )
)
@settings(max_examples=examples(50), deadline=None)
def test_an_idle_lane_is_remembered_as_it_was(memory: LaneMemory) -> None:
    """Whatever the table holds: lone surrogates and numbers of 38 digits cannot be encoded."""
    heads = Heads(4, 1_000_000)
    heads.keep(lane_of(1), memory)
    assert heads.take(lane_of(1)) == memory
    assert heads.bytes == 0
    assert memory.frugal() == memory


def test_what_the_heads_of_resting_lanes_share_is_never_changed() -> None:
    head = LaneMemory(Known(Head())).frugal().head
    assert head is not None
    for shared in (head.state, head.base, head.watermarks, head.out, head.fin, head.slots, head.former):
        with pytest.raises(TypeError, match="not changed in place"):
            shared["name"] = cast("Any", 1)
    assert msgspec.msgpack.encode(head) == msgspec.msgpack.encode(Head())
    work = cast("Any", None)
    with pytest.raises(AssertionError):
        NO_WORK.add(work, ())
    with pytest.raises(AssertionError):
        NO_WORK.finish(work)


# --- rests ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sleeper:
    """Notes when it is woken."""

    name: int
    woken: list[tuple[int, int]]
    began_s: float = 0.0

    def awake(self) -> None:
        self.woken.append((self.name, round((asyncio.get_running_loop().time() - self.began_s) * 1000)))


@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 2_000), st.booleans()), max_size=200))
@settings(max_examples=examples(60), deadline=None)
def test_each_rest_ends_once_and_when_it_is_over(rests: list[tuple[int, int, bool]]) -> None:
    """Each rest begins at its time, lasts so long, and may be ended halfway."""
    woken: list[tuple[int, int]] = []

    async def scenario() -> None:
        alarms, loop = Rests(), asyncio.get_running_loop()

        async def rest(n: int, begin_ms: int, length_ms: int, early: bool) -> None:
            await asyncio.sleep(begin_ms / 1000)
            ending = alarms.begin(Sleeper(n, woken, loop.time()), length_ms / 1000)
            if early:
                await asyncio.sleep(length_ms / 2000)
                alarms.end(ending)
                alarms.end(ending)

        await asyncio.gather(*(rest(n, *one) for n, one in enumerate(rests)))
        await asyncio.sleep(10)
        assert len(alarms) == 0
        assert len(alarms._endings) == 0
        assert alarms._alarm is None

    run_virtual(scenario())
    due = {n: length for n, (_, length, early) in enumerate(rests) if not early}
    told = [(n, ms) for n, ms in woken if n in due]
    assert sorted(n for n, _ in told) == sorted(due)
    assert all(abs(ms - due[n]) <= 1 for n, ms in told)
    assert all(rests[n][1] <= 1 for n, _ in woken if n not in due)


@virtually
async def test_rests_that_end_early_take_no_room_and_hold_no_lane() -> None:
    alarms = Rests()
    woken: list[tuple[int, int]] = []
    first = alarms.begin(Sleeper(-1, woken), 900)
    for n in range(5_000):
        alarms.end(alarms.begin(Sleeper(n, woken), 800 - n / 100))
        assert len(alarms) == 1
        assert len(alarms._endings) < 200
    alarms.begin(Sleeper(-2, woken), 901)
    alarms.clear()
    alarms.end(first)
    await asyncio.sleep(2_000)
    assert woken == []
    assert alarms._alarm is None


@given(
    st.lists(st.tuples(st.sampled_from(["keep", "take", "hold", "release"]), st.integers(0, 5), st.integers(0, 3_000)))
)
@settings(max_examples=examples(150), deadline=None)
def test_heads_are_kept_within_their_bytes_and_the_books_balance(steps: list[tuple[str, int, int]]) -> None:
    heads = Heads(4, 12_000)
    for what, n, size in steps:
        kept = LaneMemory(Known(Head(state={"s": bytes(size)})))
        if what == "keep" and lane_of(n) not in heads._resting:
            heads.take(lane_of(n))
            heads.keep(lane_of(n), kept)
        elif what == "take":
            heads.take(lane_of(n))
        elif what == "hold" and lane_of(n) not in heads._resting:
            heads.take(lane_of(n))
            heads.hold(lane_of(n), weight_of(kept))
        elif what == "release":
            heads.release(lane_of(n))
        assert len(heads) <= 4
        assert heads.bytes <= 12_000
        assert heads.bytes == sum(weight for _, weight in heads._idle.values()) + sum(heads._resting.values())


@virtually
async def test_large_heads_of_idle_keys_push_out_the_oldest_and_are_read_again() -> None:
    shop = VirtualObject("shop")

    @shop.handler()
    async def load(ctx: ObjectContext) -> None:
        ctx.set("n", (await ctx.get("n", int) or 0) + 1)
        ctx.set("load", "x" * 50_000)

    meter = Meter(Services([shop]), Limits(lane_cache_bytes_max=MIB))
    for _ in range(2):
        for n in range(100):
            meter.deliver(load, f"key-{n}")
        await meter.quiet()
    known = meter.dispatcher._lanes._known
    assert 15 <= len(known) <= 20
    assert known.bytes <= MIB
    assert all(meter.head("shop", f"key-{n}").state["n"] == b"2" for n in range(100))
