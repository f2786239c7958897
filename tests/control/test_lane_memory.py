"""What a lane remembers: each transition, and laws over every history of facts.

Owns the memory. Does not own what is decided on it (`test_lane_policy`).
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict
from msgspec.structs import replace as with_fields

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.limits import FINISHED_TTL_MS
from tenuto.protocol.messages import ClaimedRun, Head, Trim
from tenuto.protocol.records import Event, KafkaSource, Out, PublishOut
from tenuto_control.core.lane_facts import (
    EMPTY,
    ActivationEnded,
    Buried,
    Delivered,
    Fact,
    FailedAttempt,
    HeadDropped,
    HeadSeen,
    InboxSeen,
    LookBegun,
    LookWanted,
    Nudged,
    Pressed,
    ProducedInVain,
    ReadBegun,
    SpillBegun,
    Succeeded,
    TableAway,
    TakeoverBegun,
    Troubled,
    Turn,
    Unserved,
)
from tenuto_control.core.lane_memory import (
    DRAIN_EVENTS_MAX,
    STALE,
    TRIMMED_MAX,
    UNREAD,
    VAIN_PAUSE_MS_MAX,
    HandlerPause,
    Holder,
    Known,
    LaneMemory,
    OutboxPause,
    TablePause,
    Trouble,
    named_by,
)
from tenuto_control.core.lane_policy import DrainInbox, ReadHead, Ship, Spill, Wait, decide
from tenuto_control.core.sightings import TOLD_MAX, TOLD_MS, Sighting
from tests.control.test_lane_policy import BOUNDS

NOW = 10_000_000
LANE = Lane("s", "k")
OUT: Out = PublishOut("t", None)


def record(offset: int) -> Event:
    return Event(str(InvocationId(LANE, f"k{offset}")), "h", KafkaSource("0", "t", 0, offset, 0))


RUN = ClaimedRun(event=record(5), ver=1, start_ms=0, first_out=0, attempt=1, holder="here.4", lease_ms=NOW + 1_000)
ASLEEP = with_fields(RUN, awaits=("0",), wake_ms=NOW + 9_000)
RUNNING = Head(ver=2, run=RUN)


def after(*facts: Fact, memory: LaneMemory | None = None) -> LaneMemory:
    """The memory after these facts, from nothing or from another one."""
    return reduce(LaneMemory.on, facts, memory or LaneMemory())


def failed(event: Event, until_ms: int = NOW + 50, *, harmless: bool = False, ended: bool = False) -> ActivationEnded:
    """An activation whose attempt at an event failed; `ended`: its invocation has certainly ended."""
    holders = frozenset({"here.4"}) if ended else frozenset[str]()
    return ActivationEnded(Head(), NOW, ended=holders, failed=FailedAttempt(event.id, until_ms, harmless))


# --- the head --------------------------------------------------------------------------------------------------------


def test_a_head_is_known_once_it_was_read() -> None:
    assert after(ReadBegun()).seen == UNREAD
    assert after(ReadBegun(), HeadSeen(RUNNING, NOW)).seen == Known(RUNNING)
    assert after(ReadBegun(), HeadSeen(RUNNING, NOW), HeadDropped()).seen == UNREAD


@pytest.mark.parametrize("answer", [HeadSeen(Head(), NOW), ActivationEnded(Head(), NOW)], ids=["read", "activation"])
def test_a_head_that_was_asked_for_before_a_nudge_is_not_believed(answer: Fact) -> None:
    memory = after(ReadBegun(), Nudged(look=True), answer)
    assert (memory.seen, memory.look) == (STALE, True)
    assert after(ReadBegun(), answer, memory=memory).seen == Known(Head())


def test_a_nudge_that_asks_for_nothing_changes_nothing() -> None:
    known = after(HeadSeen(Head(), NOW))
    assert after(Nudged(), memory=known) is known
    assert after(Nudged(look=True), memory=known).head is None


def test_an_activation_that_left_no_head_has_it_read() -> None:
    assert after(HeadSeen(Head(), NOW), ActivationEnded(None, NOW)).seen == UNREAD


def test_at_rest_the_head_and_what_its_next_write_may_remove_are_kept() -> None:
    head = Head(out={"1.0": OUT}, fin={"m1": NOW})
    memory = after(HeadSeen(head, NOW), Delivered(frozenset({"1.0"}), whole=True), Buried(frozenset({"m1"}), 1, 1))
    busy = after(Pressed(), LookWanted(), Unserved(NOW + 1), memory=memory)
    kept = after(HeadSeen(head, NOW), memory=busy).at_rest()
    sighting = Sighting(NOW, NOW, (0, 0))
    assert kept == LaneMemory(Known(head), frozenset({"1.0"}), frozenset({"m1"}), sighting=sighting)


# --- attempts --------------------------------------------------------------------------------------------------------


def test_failures_are_counted_for_one_event_in_a_row() -> None:
    first, second = record(1), record(2)
    memory = after(failed(first), failed(first))
    assert (memory.tries(Head(), first), memory.tries(Head(), second)) == (3, 1)
    memory = after(failed(second), memory=memory)
    assert (memory.tries(Head(), first), memory.tries(Head(), second)) == (1, 2)
    assert after(ActivationEnded(Head(), NOW), memory=memory).tries(Head(), second) == 1


def test_failures_that_the_head_counts_are_of_one_event_too() -> None:
    first, second = record(1), record(2)
    head = Head(tried=(first.nonce, 4))
    assert (LaneMemory().tries(head, first), LaneMemory().tries(head, second)) == (5, 1)
    # Of two counts, the higher one is the newer one: a failure is not always written down.
    assert after(failed(first), memory=LaneMemory()).tries(head, first) == 5
    fifth = ActivationEnded(None, NOW, failed=FailedAttempt(first.id, NOW, attempt=5))
    assert after(fifth).tries(head, first) == 6
    assert after(fifth, failed(first)).tries(head, first) == 7


def test_a_head_that_is_read_as_soon_as_work_comes_is_read_since() -> None:
    memory = after(HeadSeen(Head(), NOW))
    assert (memory.read_since(NOW), memory.read_since(NOW + 1)) == (True, False)


def test_a_harmless_failure_pauses_and_does_not_count() -> None:
    event = record(1)
    memory = after(failed(event), failed(event, NOW + 70, harmless=True))
    assert memory.tries(Head(), event) == 2
    assert memory.pause == HandlerPause(NOW + 70)
    assert after(failed(event, harmless=True)).failing is None


def test_a_success_ends_the_pause() -> None:
    assert after(failed(record(1)), ActivationEnded(Head(), NOW)).pause is None


def test_a_crash_counts_in_its_run_once_it_is_certain() -> None:
    crashed = after(failed(record(5), ended=True))
    assert crashed.crashes(RUN) == 1
    assert crashed.crashes(with_fields(RUN, failures=3)) == 4
    assert after(TakeoverBegun(), memory=crashed).crashes(RUN) is None
    # It may still run.
    assert after(failed(record(5))).crashes(RUN) is None
    # It did not run at all.
    assert after(failed(record(5), ended=True, harmless=True)).crashes(RUN) is None
    # The function died behind the end of that run: the next run has failed at nothing.
    assert after(HeadSeen(Head(ver=3), NOW), memory=crashed).crashes(RUN) is None
    assert after(HeadSeen(RUNNING, NOW), memory=crashed).crashes(RUN) == 1


def test_a_run_is_known_to_be_of_this_process_by_its_holder() -> None:
    memory = LaneMemory(ended=frozenset({"here.3"}))
    holders = {"here.3": Holder.ENDED, "here.4": Holder.OWN, "there.3": Holder.FOREIGN, "here.too.3": Holder.FOREIGN}
    assert {name: memory.holder(with_fields(RUN, holder=name), "here") for name in holders} == holders
    assert memory.holder(with_fields(RUN, holder="here.too.3"), "here.too") == Holder.OWN


def test_ended_holders_are_remembered_while_their_run_is_active() -> None:
    lost = ActivationEnded(None, NOW, ended=frozenset({"here.4"}))
    assert after(lost, HeadSeen(RUNNING, NOW)).ended == {"here.4"}
    assert after(lost, HeadSeen(Head(run=ASLEEP), NOW)).ended == set()
    assert after(lost, HeadSeen(Head(), NOW)).ended == set()
    assert after(ActivationEnded(RUNNING, NOW, ended=frozenset({"here.4"}))).ended == {"here.4"}


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_the_pause_of_an_outbox_doubles_up_to_a_bound_until_all_of_it_has_left() -> None:
    pauses = []
    memory = LaneMemory()
    for _ in range(8):
        memory = memory.on(ProducedInVain(NOW))
        pauses.append(memory.ship_again_ms - NOW)
    assert pauses == [200, 400, 800, 1_600, 3_200, *[VAIN_PAUSE_MS_MAX] * 3]
    assert memory.pause == OutboxPause(NOW + VAIN_PAUSE_MS_MAX)
    partly = memory.on(Delivered(frozenset({"1.0"}), whole=False))
    assert partly.vain_ships == 8
    assert partly.on(Delivered(frozenset(), whole=True)).vain_ships == 0


def test_only_an_outbox_has_a_time_to_be_shipped_at() -> None:
    assert LaneMemory(pause=HandlerPause(NOW)).ship_again_ms == 0
    assert LaneMemory(pause=TablePause(NOW)).ship_again_ms == 0
    assert LaneMemory(pause=HandlerPause(NOW)).paused_until_ms == NOW


def test_trouble_doubles_its_pause_up_to_a_bound_and_starts_over_from_the_head() -> None:
    memory = LaneMemory(Known(Head()))
    pauses = []
    for _ in range(6):
        memory = after(Troubled(Ship, NOW, 1_000, 20_000), memory=memory)
        pauses.append(memory.paused_until_ms - NOW)
        assert memory.seen == UNREAD
    assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 20_000]
    assert isinstance(memory.pause, TablePause)
    assert (memory.troubles, LaneMemory().troubles) == (6, 0)


def test_trouble_is_over_when_what_met_it_has_succeeded() -> None:
    memory = after(Troubled(Ship, NOW, 1_000, 20_000))
    assert memory.on(Succeeded(ReadHead)) is memory
    assert memory.on(Troubled(Spill, NOW, 1_000, 20_000)).trouble == Trouble(2, Spill)
    assert memory.on(Succeeded(Ship)).trouble is None


def test_a_table_that_is_away_is_no_trouble_of_the_lane() -> None:
    memory = after(HeadSeen(Head(), NOW), TableAway(NOW + 700))
    assert (memory.seen, memory.pause, memory.trouble) == (UNREAD, TablePause(NOW + 700), None)


def test_a_lane_that_no_function_serves_waits_and_reads() -> None:
    memory = after(HeadSeen(RUNNING, NOW), Unserved(NOW + 700))
    assert (memory.seen, memory.pause, memory.failing) == (UNREAD, HandlerPause(NOW + 700), None)


# --- events that wait ------------------------------------------------------------------------------------------------

WAITS = Turn(NOW, record(7), 1)
LATER = Turn(NOW + 300, record(7), 1)


@pytest.mark.parametrize(
    "why",
    [(HeadSeen(RUNNING, NOW),), (HeadSeen(Head(run=ASLEEP), NOW),), (failed(record(7)),), (ProducedInVain(NOW),)],
    ids=["taken", "suspended", "failing", "an outbox that stays"],
)
def test_a_wait_begins_when_a_lane_is_held_up_with_events(why: tuple[Fact, ...]) -> None:
    memory = after(*why)
    assert after(Turn(NOW), memory=memory) is memory
    memory = after(WAITS, memory=memory)
    assert memory.blocked_since_ms == NOW
    assert after(LATER, memory=memory).blocked_ms(LATER.now_ms) == 300
    # Each sweep drops the head, and may not begin the wait anew.
    assert after(Nudged(look=True), LATER, memory=memory).blocked_ms(LATER.now_ms) == 300
    # The events have gone.
    assert after(Turn(NOW + 300), memory=memory).blocked_since_ms is None


def test_a_wait_ends_with_what_it_is_for() -> None:
    taken = after(HeadSeen(RUNNING, NOW), WAITS)
    assert after(HeadSeen(Head(), NOW), LATER, memory=taken).blocked_since_ms is None
    failing = after(failed(record(7)), WAITS)
    assert after(ActivationEnded(Head(), NOW), LATER, memory=failing).blocked_since_ms is None


def test_a_lane_that_is_not_held_up_makes_nothing_wait() -> None:
    memory = after(HeadSeen(Head(), NOW))
    assert after(WAITS, memory=memory) is memory
    assert after(WAITS).blocked_since_ms is None


def test_a_lane_that_goes_from_one_run_to_the_next_is_not_held_up_since_the_first() -> None:
    waiting = Turn(NOW, record(7), 1, NOW)
    later = Turn(NOW + 900, record(7), 1, NOW)
    held_up = after(HeadSeen(RUNNING, NOW), waiting)
    assert held_up.blocked_since_ms == NOW
    again = after(ActivationEnded(RUNNING, NOW + 900), later, memory=held_up)
    assert again.blocked_since_ms == NOW, "the same run, at its next attempt"
    followed = Head(ver=3, run=with_fields(RUN, event=record(6)))
    moved = after(ActivationEnded(followed, NOW + 900), later, memory=held_up)
    assert moved.blocked_since_ms == NOW + 900


def test_pressure_lasts_until_a_spill_begins() -> None:
    assert after(Pressed(), HeadSeen(Head(), NOW), WAITS).pressed
    assert not after(Pressed(), SpillBegun()).pressed


def test_a_look_that_is_wanted_during_one_is_taken_after_it() -> None:
    assert not after(LookWanted(), LookBegun()).look
    assert after(LookWanted(), LookBegun(), Nudged(look=True)).look
    assert after(LookBegun(), LookWanted()).look


# --- what a write may remove -----------------------------------------------------------------------------------------


def test_the_next_write_removes_what_was_shipped_and_finished_and_what_is_stray() -> None:
    head = Head(out={"1.0": OUT, "2.0": OUT}, fin={"m1": NOW, "m2": NOW}, stray=("j.1.0",))
    memory = after(
        HeadSeen(head, NOW), Delivered(frozenset({"2.0", "9.0"}), whole=True), Buried(frozenset({"m2"}), 1, 1)
    )
    assert memory.trim(head) == Trim(("2.0",), ("m2",), ("j.1.0",))


def test_the_next_write_removes_a_bounded_number_of_each_kind() -> None:
    names = [f"{n}.0" for n in range(2 * TRIMMED_MAX)]
    head = Head(out=dict.fromkeys(names, OUT), fin=dict.fromkeys(names, NOW), stray=tuple(names))
    memory = LaneMemory(shipped=frozenset(names), finished=frozenset(names))
    first = tuple(names[:TRIMMED_MAX])
    assert memory.trim(head) == Trim(first, first, first)


def test_what_the_head_no_longer_holds_is_forgotten() -> None:
    memory = LaneMemory(shipped=frozenset({"1.0", "2.0"}), finished=frozenset({"m1", "m2"}))
    memory = memory.on(HeadSeen(Head(pend="p", out={"2.0": OUT}, fin={"m2": NOW}), NOW))
    assert memory.shipped == {"2.0"}
    assert memory.finished == {"m2"}


def test_an_old_finished_id_is_removable_when_nothing_waits_in_the_inbox() -> None:
    old = NOW - FINISHED_TTL_MS
    fin = {"c1": old - 1, "m1": old - 1, "m2": old}
    assert after(HeadSeen(Head(fin=fin), NOW)).finished == {"c1", "m1"}
    assert after(ActivationEnded(Head(fin=fin), NOW)).finished == {"c1", "m1"}
    assert after(HeadSeen(Head(fin=fin, pend="p"), NOW)).finished == set()


def test_ids_without_a_live_item_are_removable_but_those_of_calls_stay_for_a_while() -> None:
    old = NOW - FINISHED_TTL_MS
    head = Head(pend="p", fin={"m1": NOW, "m2": NOW, "c1": old, "c2": old - 1})
    assert after(InboxSeen(head, frozenset({"m2"}), NOW)).finished == {"m1", "c2"}


def test_calls_that_have_their_results_and_work_that_is_finished_need_no_id() -> None:
    head = Head(pend="p", fin={"m1": NOW, "m2": NOW})
    ended = ActivationEnded(head, NOW, finished=frozenset({"m1", "m9"}), answered=frozenset({"c1"}))
    assert after(ended).finished == {"m1", "c1"}
    assert after(HeadSeen(head, NOW, frozenset({"c1"}))).finished == {"c1"}


# --- laws ------------------------------------------------------------------------------------------------------------

times = st.integers(NOW - 20_000, NOW + 20_000)
nonces = st.frozensets(st.sampled_from(["m1", "m2", "c1"]))
entries = st.frozensets(st.sampled_from(["1.0", "2.0", "2.1"]))
kinds: st.SearchStrategy[type[object]] = st.sampled_from([Ship, DrainInbox])
heads = st.builds(
    Head,
    pend=st.none() | st.just("p"),
    out=st.dictionaries(st.sampled_from(["1.0", "2.0", "2.1"]), st.just(OUT)),
    fin=st.dictionaries(st.sampled_from(["m1", "m2", "c1"]), st.sampled_from([0, NOW])),
    run=st.none() | st.sampled_from([RUN, ASLEEP]),
)
attempts = st.builds(FailedAttempt, st.sampled_from([record(1).id, record(2).id]), times, st.booleans())
turns = st.builds(Turn, times) | st.builds(Turn, times, st.builds(record, st.integers(0, 9)), st.integers(1, 400))
facts: st.SearchStrategy[Fact] = st.one_of(
    turns,
    st.builds(Nudged, st.booleans()),
    st.builds(HeadSeen, heads, times, nonces),
    st.builds(
        ActivationEnded,
        st.none() | heads,
        times,
        nonces,
        st.frozensets(st.just("here.4")),
        st.none() | attempts,
    ),
    st.builds(Delivered, entries, st.booleans()),
    st.builds(InboxSeen, heads, nonces, times),
    st.builds(Buried, nonces, st.integers(0, 9)),
    st.builds(Unserved, times),
    st.builds(TableAway, times),
    st.builds(ProducedInVain, times),
    st.builds(Troubled, kinds, times, st.just(1_000), st.just(9_000)),
    st.builds(Succeeded, kinds),
    st.sampled_from([Pressed(), ReadBegun(), HeadDropped(), TakeoverBegun(), SpillBegun(), LookBegun(), LookWanted()]),
)
histories = st.lists(facts, max_size=12)


@given(histories)
def test_a_head_is_known_only_if_it_was_asked_for_after_the_last_nudge(history: list[Fact]) -> None:
    current = True
    for fact, memory in zip(history, states(history)[1:], strict=True):
        match fact:
            case Nudged(look=True):
                current = False
            case ReadBegun() | HeadDropped() | ActivationEnded(head=None) | Unserved() | TableAway() | Troubled():
                # Nothing is under way at the end of an action, and whatever is asked for from now on is current.
                current = True
            case _:
                pass
        assert current or memory.head is None


@given(histories)
def test_a_known_heads_outbox_holds_all_that_is_remembered_as_shipped(history: list[Fact]) -> None:
    """Anything else would be trimmed one day under a name that has come to stand for another entry."""
    delivered: set[str] = set()
    out: set[str] = set()
    for fact, memory in zip(history, states(history)[1:], strict=True):
        head = fact.head if isinstance(fact, HeadSeen | ActivationEnded) else None
        if isinstance(fact, Delivered):
            delivered |= fact.entries
        elif head is not None:
            delivered &= head.out.keys()
            out = set(head.out)
        assert memory.shipped == delivered
        assert set(memory.trim(Head(out=dict.fromkeys(out, OUT))).out) <= delivered & out


@given(histories, facts)
def test_a_fact_that_changes_nothing_gives_the_same_memory(history: list[Fact], fact: Fact) -> None:
    """Except where a set or a head is taken over, which costs more to compare than to keep."""
    before = states(history)[-1]
    kept = before.on(fact)
    if not isinstance(fact, HeadSeen | ActivationEnded | Delivered | InboxSeen | Buried | Unserved | TableAway):
        assert kept is before or kept != before or isinstance(fact, ProducedInVain)


@given(histories, turns)
def test_every_decision_is_one_that_its_history_allows(history: list[Fact], turn: Turn) -> None:
    memory = states([*history, turn])[-1]
    action = decide(memory, turn, BOUNDS)
    if memory.head is None:
        assert isinstance(action, ReadHead | Wait | Spill)
    if isinstance(action, Wait):
        assert action.until_ms > turn.now_ms
    if isinstance(action, Spill):
        assert turn.first is not None


@given(histories)
def test_a_pause_is_that_of_the_last_fact_that_has_one(history: list[Fact]) -> None:
    for fact, (before, memory) in zip(history, pairwise(states(history)), strict=True):
        match fact:
            case ActivationEnded(failed=None):
                assert memory.pause is None
            case ActivationEnded(failed=FailedAttempt(until_ms=until_ms)) | Unserved(until_ms):
                assert memory.pause == HandlerPause(until_ms)
            case ProducedInVain():
                assert isinstance(memory.pause, OutboxPause)
            case TableAway() | Troubled():
                assert isinstance(memory.pause, TablePause)
            case _:
                assert memory.pause == before.pause


def test_nothing_is_remembered_at_first() -> None:
    remembered = asdict(LaneMemory())
    assert remembered.pop("seen") == UNREAD
    assert remembered.pop("sighting") == Sighting()
    assert remembered.pop("drain_max") == DRAIN_EVENTS_MAX
    assert not any(remembered.values())


def states(history: list[Fact]) -> list[LaneMemory]:
    """The memory before, between and after these facts."""
    found = [LaneMemory()]
    for fact in history:
        found.append(found[-1].on(fact))
    return found


def test_a_head_is_unchanged_until_its_version_or_its_slots_change() -> None:
    memory = after(HeadSeen(Head(ver=1), NOW), HeadSeen(Head(ver=1, pend="p"), NOW + 5))
    assert (memory.sighting.read_ms, memory.sighting.changed_ms) == (NOW + 5, NOW)
    assert after(HeadSeen(Head(ver=2), NOW + 7), memory=memory).sighting.changed_ms == NOW + 7
    assert after(HeadSeen(Head(ver=1, slots={"0": b""}), NOW + 8), memory=memory).sighting.changed_ms == NOW + 8


def run_from(start_ms: int, ver: int) -> ClaimedRun:
    """A run that another process has begun."""
    return ClaimedRun(record(5), ver, start_ms, 0, 1, "there.1", NOW + 60_000)


def seen(*heads: tuple[int, Head]) -> Sighting:
    """What has been seen, by looks at these times."""
    return after(*(HeadSeen(head, NOW + at_ms) for at_ms, head in heads)).sighting


def test_runs_are_thought_to_last_as_long_as_the_first_and_longer_ones_by_and_by_or_twice_in_a_row() -> None:
    looks = [(n * 1_000 + 10, Head(ver=1 + 2 * n, run=run_from(NOW + n * 1_000, 1 + 2 * n))) for n in range(4)]
    assert [seen(*looks[: n + 1]).lasts_ms for n in range(4)] == [0, 1_000, 1_000, 1_000]
    short = (3_200, Head(ver=9, run=run_from(NOW + 3_100, 9)))
    assert seen(*looks, short).lasts_ms == 100
    long = (8_200, Head(ver=11, run=run_from(NOW + 8_100, 11)))
    assert seen(*looks, short, long).lasts_ms == 450
    longer = (13_200, Head(ver=13, run=run_from(NOW + 13_100, 13)))
    assert seen(*looks, short, long, longer).lasts_ms == 5_000


def test_runs_are_alike_when_the_last_two_have_lasted_about_as_long_as_each_other() -> None:
    looks = [(n * 1_000 + 10, Head(ver=1 + 2 * n, run=run_from(NOW + n * 1_000, 1 + 2 * n))) for n in range(3)]
    assert [seen(*looks[: n + 1]).alike for n in range(3)] == [False, False, True]
    short = (2_200, Head(ver=7, run=run_from(NOW + 2_100, 7)))
    assert not seen(*looks, short).alike
    assert seen(*looks, short, (2_300, Head(ver=9, run=run_from(NOW + 2_250, 9)))).alike


def test_a_run_has_begun_when_it_says_but_not_before_the_look_that_did_not_see_it() -> None:
    assert seen((0, Head(ver=1)), (100, Head(ver=2, run=run_from(NOW + 30, 2)))).began_ms == NOW + 30
    assert seen((0, Head(ver=1)), (100, Head(ver=2, run=run_from(NOW - 9_000, 2)))).began_ms == NOW
    assert seen((0, Head(ver=1)), (100, Head(ver=2, run=run_from(NOW + 9_000, 2)))).began_ms == NOW + 100
    begun, further = Head(ver=2, run=run_from(NOW, 2)), Head(ver=2, run=run_from(NOW, 2), slots={"0": b""})
    assert seen((0, Head(ver=1)), (100, begun), (200, further)).began_ms == NOW
    assert seen((0, begun), (100, Head(ver=3))).began_ms is None


def test_finished_ids_stay_for_a_while_where_others_hand_calls_over() -> None:
    ids = {f"c{n}": NOW - n for n in range(TOLD_MAX + 5)}
    memory = after(HeadSeen(Head(fin=ids), NOW), Buried(frozenset(ids), 1, 1))
    assert set(memory.trim(Head(fin=ids)).fin) <= set(ids)
    assert len(memory.trim(Head(fin=ids)).fin) == min(TRIMMED_MAX, len(ids))
    marked = after(HeadSeen(Head(ver=1, fin=ids, pend="p"), NOW), memory=memory)
    assert set(marked.trim(Head(fin=ids)).fin) == {f"c{n}" for n in range(TOLD_MAX, TOLD_MAX + 5)}
    later = after(HeadSeen(Head(ver=1, fin=ids), NOW + TOLD_MS), memory=marked)
    assert len(later.trim(Head(fin=ids)).fin) == min(TRIMMED_MAX, len(ids))


def test_calls_that_are_slow_together_are_run_by_fewer() -> None:
    assert after(Buried(EMPTY, 4, 4, calls_ms=400)).drain_max == 1
    assert after(Buried(EMPTY, 4, 4, calls_ms=100)).drain_max == 6
    assert after(Buried(EMPTY, 4, 4)).drain_max == DRAIN_EVENTS_MAX


def test_a_look_into_the_inbox_takes_up_what_the_last_one_ran() -> None:
    few = after(Buried(frozenset({"m1"}), 1, 50))
    assert few.drain_max == 1
    assert after(Buried(frozenset({"m1"}), 1, 1), memory=few).drain_max == 2
    assert after(Buried(frozenset(), 0, 9)).drain_max == 1


def test_names_are_told_by_their_process() -> None:
    assert named_by("cp-1", "cp-1.7.spec")
    assert not named_by("cp-1", "cp-11.7.spec")
    assert not named_by("cp-1", None)
