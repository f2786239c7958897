"""Every write of the lane on plain items: what it requires, what it changes, and what never happens.

Owns the reading of PROTOCOL's table. Does not own DynamoDB's expressions (`tests/contract`) nor sequences of writes
(`tests/simulation`).
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields

from tenuto.lane.head import RUN_ATTRIBUTES, pack_took, parse_head
from tenuto.lane.items import segment_name, segment_put
from tenuto.lane.naps import Nap, nap
from tenuto.lane.timers import GuardTimer
from tenuto.lane.transitions import (
    Effects,
    Progress,
    WakeCondition,
    checkpoint,
    claim,
    clear_pend,
    effects_of,
    final_commit,
    inbox_key,
    inbox_put,
    mark_pend,
    result_put,
    slots_put,
    spec_commit,
    suspend,
    takeover,
    tombstone,
    trim_head,
)
from tenuto.lane.writes import Applied, Clause, Item, Update, Write, apply, holds
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce, out_sequence
from tenuto.protocol.messages import Head, Trim
from tenuto.protocol.records import (
    CallSource,
    Event,
    KafkaSource,
    MessageSource,
    Source,
    Success,
    pack,
    unpack_event,
    unpack_out,
    unpack_result,
)
from tests.lane.samples import (
    ANSWER,
    CALL,
    EVENT,
    KAFKA,
    LANE,
    MESSAGE,
    OFFSET,
    OUT,
    RUN,
    applied,
    idle,
    owned,
    refused,
    suspended,
)

OWN = "process"
MARK = KAFKA.watermark
EFFECTS = effects_of([EVENT], {"name": b'"Eve"', "old": None}, {0: OUT}, now_ms=5_000)
TRIM = Trim(out=("000000000001.000000",), fin=("m1",), stray=("j.1.0",))


def head(item: Item | None) -> Head:
    return parse_head(item)


def spec(item: Item | None, *, drain: bool = False, clears: bool = False, trim: Trim = TRIM) -> Update:
    return spec_commit(LANE, head(item), EFFECTS, "new", drain=drain, clears=clears, trim=trim)


def claimed(item: Item | None, *, drain: bool = False) -> Update:
    return claim(LANE, head(item), Effects(), RUN, "new", drain=drain, trim=TRIM)


def progressed() -> Progress:
    return Progress({"1": ANSWER}, {0: OUT}, rolled=("0",), segments=("J#1",))


def waits(*slots: str, wake_ms: int | None = 9) -> Update:
    state = {"name": b'"Eve"', "old": None}
    base = {"name": b'"Ann"', "old": b"1"}
    return suspend(
        LANE, 4, RUN, Progress({"1": ANSWER}, {0: OUT}), state, base, WakeCondition(slots, wake_ms, 2, "why"), OWN
    )


def answered() -> Update:
    return slots_put(LANE, head(suspended()), {"0a": ANSWER}, "a2")


def commits(item: Item) -> Update:
    return final_commit(LANE, head(item), EFFECTS, "new", OWN, trim=TRIM)


# Each head write, with an item it applies to: rising ones raise `ver`, the others leave it alone.
RISING: dict[str, tuple[Update, Item]] = {
    "1 spec commit": (spec(idle()), idle()),
    "1 spec commit of a drain that clears": (spec(idle(pend="p"), drain=True, clears=True), idle(pend="p")),
    "2 claim": (claimed(idle()), idle()),
    "6 takeover": (takeover(LANE, head(suspended()), "h2", 20_000, {"0a": ANSWER}, "new"), suspended()),
    "6 takeover of a running run": (takeover(LANE, head(owned()), "h2", 20_000, {}, "new"), owned()),
    "7 final commit": (commits(owned()), owned()),
}
LEVEL: dict[str, tuple[Update, Item]] = {
    "3 checkpoint": (checkpoint(LANE, 4, RUN, progressed(), OWN), owned()),
    "5 suspend": (waits("0a"), owned()),
    "8 slot put": (answered(), suspended()),
    "11 mark": (mark_pend(LANE, "p2"), owned()),
    "12 clear": (clear_pend(LANE, head(idle(pend="p")), TRIM), idle(pend="p")),
    "14, 15 trim": (trim_head(LANE, TRIM), idle()),
}
HEAD_WRITES = {**RISING, **LEVEL}

# For each labelled clause: a write that carries it, and an item on which this clause alone does not hold. Some of these
# items no writer leaves behind: their clauses are defences, implied by `ver`.
REFUSING: dict[str, tuple[Update, Item]] = {
    "spec.ver": (spec(idle()), idle(ver=4)),
    "spec.idle": (spec(idle()), idle(rid="x")),
    "spec.watermark": (spec(idle()), idle({f"w.{MARK}": OFFSET + 1})),
    "spec.pend": (spec(idle()), idle(pend="p")),
    "spec.clear": (spec(idle(pend="p"), drain=True, clears=True), idle(pend="later")),
    "claim.ver": (claimed(idle()), idle(ver=4)),
    "claim.idle": (claimed(idle()), idle(rid="x")),
    "claim.watermark": (claimed(idle()), idle({f"w.{MARK}": OFFSET + 1})),
    "claim.pend": (claimed(idle()), idle(pend="p")),
    "checkpoint.ver": (checkpoint(LANE, 4, RUN, progressed(), OWN), owned(ver=5)),
    "checkpoint.own": (checkpoint(LANE, 4, RUN, progressed(), OWN), owned({"own": "twin"})),
    "suspend.ver": (waits("0a"), owned(ver=5)),
    "suspend.own": (waits("0a"), owned({"own": "twin"})),
    "suspend.awake": (waits("0a"), owned({"awaits": []})),
    "suspend.ans": (waits("0a"), owned({"j.4.0a": ANSWER, "ans": "a1"})),
    "takeover.ver": (takeover(LANE, head(owned()), "h2", 1, {}, "new"), owned(ver=5)),
    "takeover.awake": (takeover(LANE, head(owned()), "h2", 1, {}, "new"), suspended()),
    "takeover.run": (takeover(LANE, head(owned()), "h2", 1, {}, "new"), owned(rid="x")),
    "commit.ver": (commits(owned()), owned(ver=5)),
    "commit.own": (commits(owned()), owned({"own": "twin"})),
    "slot.run": (answered(), suspended(rid="x")),
    "slot.free": (answered(), suspended({"j.4.0a": ANSWER})),
    "slot.ans": (answered(), suspended({"ans": "a0"})),
    "clear.ver": (clear_pend(LANE, head(idle(pend="p"))), idle(pend="p", ver=4)),
    "clear.pend": (clear_pend(LANE, head(idle(pend="p"))), idle(pend="later")),
    "clear.idle": (clear_pend(LANE, head(idle(pend="p"))), idle(pend="p", rid="x")),
}


def labelled(clauses: tuple[Clause, ...]) -> set[str]:
    return {clause.label for clause in clauses}


# --- laws of every write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEAD_WRITES)
def test_it_applies_where_its_clauses_hold(name: str) -> None:
    write, item = HEAD_WRITES[name]
    applied(write, item)


@pytest.mark.parametrize("name", RISING)
def test_version_rises_by_one_with_a_token(name: str) -> None:
    write, item = RISING[name]
    after = head(applied(write, item))
    assert after.ver == head(item).ver + 1
    assert after.tok == "new"


@pytest.mark.parametrize("name", LEVEL)
def test_version_and_token_are_left_alone(name: str) -> None:
    write, _ = LEVEL[name]
    assert {"ver", "tok"}.isdisjoint({*write.sets, *write.removes})


@pytest.mark.parametrize("name", HEAD_WRITES)
def test_no_attribute_is_named_twice(name: str) -> None:
    """DynamoDB refuses expressions with overlapping paths."""
    write, _ = HEAD_WRITES[name]
    assert len(write.removes) == len(set(write.removes))
    assert set(write.sets).isdisjoint(write.removes)


@pytest.mark.parametrize("name", HEAD_WRITES)
def test_the_key_is_never_changed(name: str) -> None:
    write, item = HEAD_WRITES[name]
    assert {"pk", "sk"}.isdisjoint({*write.sets, *write.removes})
    after = applied(write, item)
    assert (after["pk"], after["sk"]) == (LANE.pk, "H")


@pytest.mark.parametrize("label", REFUSING)
def test_each_clause_refuses_alone(label: str) -> None:
    write, item = REFUSING[label]
    assert {c.label for c in write.conditions if not holds(c, item)} == {label}
    refused(write, item)
    without = with_fields(write, conditions=tuple(c for c in write.conditions if c.label != label))
    assert isinstance(apply(without, item), Applied)


def test_every_clause_has_its_refusal() -> None:
    assert set().union(*(labelled(write.conditions) for write, _ in HEAD_WRITES.values())) == REFUSING.keys()


# --- 1, 2: from an idle lane -----------------------------------------------------------------------------------------


def test_a_fresh_lane_takes_its_first_commit_once() -> None:
    write = spec(None)
    left = applied(write, None)
    assert head(left).ver == 1
    refused(write, left)


def test_a_commit_changes_state_watermark_and_outbox_together() -> None:
    before = idle({"s.old": b"1", f"w.{MARK}": OFFSET, "o.000000000001.000000": b"", "f.m1": 1, "j.1.0": b""})
    after = head(applied(spec_commit(LANE, Head(ver=3), EFFECTS, "t", drain=False, trim=TRIM), before))
    assert after.state == {"name": b'"Eve"'}
    assert after.watermarks == {MARK: OFFSET + 1}
    assert after.out == {"000000000004.000000": OUT}
    assert after.fin == {}
    assert after.stray == ()


def test_finished_messages_and_calls_are_remembered_by_id() -> None:
    effects = effects_of([MESSAGE, CALL], {}, {}, now_ms=5_000)
    after = head(applied(spec_commit(LANE, Head(ver=3), effects, "t", drain=False), idle()))
    assert after.fin == {MESSAGE.nonce: 5_000, CALL.nonce: 5_000}
    assert after.watermarks == {}


@given(st.permutations([3, 9, 4, 20]))
def test_a_watermark_is_past_the_highest_offset_and_guards_the_lowest(offsets: list[int]) -> None:
    events = [
        Event(str(InvocationId(LANE, kafka_nonce("0", "users", 0, o))), "update", KafkaSource("0", "users", 0, o, 0))
        for o in offsets
    ]
    effects = effects_of(events, {}, {}, now_ms=0)
    assert effects.watermarks == {MARK: 21}
    assert effects.first == {MARK: 3}


def test_gaps_of_a_compacted_topic_are_no_obstacle() -> None:
    applied(spec(idle()), idle({f"w.{MARK}": OFFSET - 5}))
    applied(spec(idle()), idle({f"w.{MARK}": OFFSET}))


def test_a_drain_passes_the_mark_and_clears_only_the_one_it_saw() -> None:
    marked = idle(pend="p")
    assert head(applied(spec(marked, drain=True), marked)).pend == "p"
    assert head(applied(spec(marked, drain=True, clears=True), marked)).pend is None


def test_a_lane_of_one_invocation_expires() -> None:
    effects = effects_of([EVENT], {}, {}, now_ms=5_000, expires=True)
    after = applied(spec_commit(LANE, Head(), effects, "t", drain=False), None)
    assert isinstance(after["ttl"], int)
    assert after["ttl"] > 5


def test_a_claim_stores_the_run_with_the_effects_before_it() -> None:
    before = effects_of([MESSAGE], {"name": b'"Eve"'}, {0: OUT}, now_ms=5_000)
    after = head(applied(claim(LANE, head(idle()), before, RUN, "t", drain=False), idle()))
    assert after.run == RUN
    assert after.state == {"name": b'"Eve"'}
    assert after.out == {"000000000004.000000": OUT}
    assert after.fin == {MESSAGE.nonce: 5_000}
    assert after.watermarks == {}, "the claimed event itself is not finished"


def test_a_claim_is_guarded_by_the_lowest_offset_of_its_batch() -> None:
    earlier = effects_of([with_fields(EVENT, source=with_fields(KAFKA, offset=OFFSET - 2))], {}, {}, now_ms=0)
    write = claim(LANE, head(idle()), earlier, RUN, "t", drain=False)
    applied(write, idle({f"w.{MARK}": OFFSET - 2}))
    refused(write, idle({f"w.{MARK}": OFFSET - 1}))


# --- 3, 5, 7: by the owner -------------------------------------------------------------------------------------------


def test_a_checkpoint_touches_only_its_own_slots() -> None:
    before = owned({"j.4.0": b"0", "j.4.5a": ANSWER})
    after = head(applied(checkpoint(LANE, 4, RUN, progressed(), OWN), before))
    assert after.slots == {"1": ANSWER, "5a": ANSWER}, "slot 0 has rolled, an answer from outside stays"
    assert after.segments == ("J#1",)
    assert after.out == {"000000000004.000000": OUT}


def test_an_empty_progress_is_nothing_to_write() -> None:
    assert not Progress()
    assert progressed()


def test_a_suspension_publishes_state_and_keeps_what_was_first_seen() -> None:
    after = head(applied(waits("0a"), owned({"s.old": b"1"})))
    assert after.state == {"name": b'"Eve"'}
    assert after.base == {"name": b'"Ann"', "old": b"1"}
    assert after.run is not None
    assert after.run.suspended
    assert (after.run.awaits, after.run.wake_ms, after.run.failures, after.run.error) == (("0a",), 9, 2, "why")


def test_a_suspension_repeated_after_a_lost_response_is_refused_and_changes_nothing() -> None:
    once = applied(waits("0a"), owned())
    refused(waits("0a"), once)
    shipped = applied(trim_head(LANE, Trim(out=(out_sequence(4, 0),))), applied(answered(), once))
    refused(waits("0a"), shipped)
    assert head(shipped).out == {}, "what the first has sent does not come back"


def test_a_later_suspension_forgets_the_time_and_the_error_of_the_one_before() -> None:
    write = suspend(LANE, 4, RUN, Progress(), {}, {}, WakeCondition(("0a",), None), OWN)
    after = head(applied(write, owned(wake=7, err="old"))).run
    assert after is not None
    assert (after.wake_ms, after.error) == (None, None)


def test_a_final_commit_leaves_nothing_of_the_run() -> None:
    left: Item = {"awaits": ["1a"], "fails": 1, "err": "e", "wake": 3, "seg": ["J#1"], "b.name": b"x", "j.4.0": ANSWER}
    before = owned() | left
    after = applied(commits(before), before)
    assert head(after).run is None
    assert {n for n in after if n[:2] in {"b.", "j."}} == set()
    assert {"awaits", "fails", "err", "wake", "seg", "holder", "lease", "att", "run", "rid"}.isdisjoint(after)
    assert head(after).watermarks == {MARK: OFFSET + 1}
    assert head(after).out == {"000000000004.000000": OUT}, "positions count from the claim, as in its checkpoints"


@pytest.mark.parametrize("left", [{"fails": 0, "wake": 3}, {"awaits": ["1a"]}, {"took": pack_took([1])}, {"err": "e"}])
def test_a_final_commit_takes_away_what_its_owner_has_seen_of_any_run(left: Item) -> None:
    before = owned({"ans": "mark", **left}) | {"att": 2}
    assert set(applied(commits(before), before)).isdisjoint(RUN_ATTRIBUTES)


def test_a_final_commit_names_no_more_than_its_run_can_have() -> None:
    """Every name costs the table time: a run that never waited nor failed never has more."""
    assert set(commits(owned()).removes) & set(RUN_ATTRIBUTES) == {"rid", "run", "att", "holder", "lease", "own", "ans"}


def test_a_nap_after_a_failure_forgets_it() -> None:
    sleep = Nap(9, "h2", 20_000, {})
    before = owned(fails=2, err="e")
    run = head(before).run
    assert run is not None
    after = head(applied(nap(LANE, 4, run, Progress(), {}, {}, sleep, "t", OWN), before)).run
    assert after is not None
    assert (after.failures, after.error, after.attempt, after.napping) == (0, None, 2, True)


def test_what_a_final_commit_did_not_know_of_is_stray_afterwards() -> None:
    write = commits(owned())
    after = head(applied(write, owned({"j.4.9a": ANSWER})))
    assert after.stray == ("j.4.9a",)
    assert head(applied(trim_head(LANE, Trim(stray=after.stray)), idle({"j.4.9a": ANSWER}))).stray == ()


# --- 6, 8 to 15 ------------------------------------------------------------------------------------------------------


def test_a_takeover_begins_the_next_attempt_and_fills_due_slots() -> None:
    before = suspended(wake=9)
    after = head(applied(takeover(LANE, head(before), "h2", 20_000, {"0": ANSWER}, "t"), before))
    assert after.run == with_fields(RUN, attempt=2, holder="h2", lease_ms=20_000)
    assert after.slots == {"0": ANSWER}


def test_the_former_owner_is_fenced_by_a_takeover() -> None:
    after = applied(takeover(LANE, head(owned()), "h2", 20_000, {}, "t"), owned())
    for write in (checkpoint(LANE, 4, RUN, progressed(), OWN), waits("0a"), commits(owned())):
        refused(write, after)


def test_a_slot_is_filled_once_and_survives_a_checkpoint() -> None:
    put = answered()
    once = applied(put, suspended())
    refused(put, once)
    assert head(applied(checkpoint(LANE, 4, RUN, progressed(), OWN), once)).slots["0a"] == ANSWER


def test_a_slot_of_a_run_that_is_over_is_not_filled() -> None:
    refused(answered(), idle())
    refused(answered(), None)


@pytest.mark.parametrize("event", [EVENT, MESSAGE, CALL])
def test_an_inbox_refuses_what_it_holds_alive_or_buried(event: Event) -> None:
    put = inbox_put(LANE, event)
    live = applied(put, None)
    packed = live["ev"]
    assert isinstance(packed, bytes)
    assert unpack_event(packed) == event
    refused(put, live)
    buried = applied(tombstone(LANE, event, 5_000), live)
    assert "ev" not in buried
    assert isinstance(buried["ttl"], int)
    refused(put, buried)


def test_a_mark_is_the_last_one_made() -> None:
    assert head(applied(mark_pend(LANE, "p2"), idle(pend="p1"))).pend == "p2"
    assert head(applied(mark_pend(LANE, "p1"), None)).pend == "p1"


def test_nonsense_is_refused_before_it_is_written() -> None:
    with pytest.raises(ValueError, match="no mark"):
        clear_pend(LANE, Head())
    with pytest.raises(ValueError, match="only a run"):
        takeover(LANE, Head(), "h", 0, {}, "t")
    with pytest.raises(ValueError, match="needs the run"):
        final_commit(LANE, Head(), Effects(), "t", OWN)


def test_a_result_can_be_put_again() -> None:
    put = result_put(EVENT.id, Success(b"1"), 5_000)
    once = applied(put, None)
    assert applied(put, once) == once
    packed = once["res"]
    assert isinstance(packed, bytes)
    assert unpack_result(packed) == Success(b"1")


def test_segments_of_two_attempts_have_two_names() -> None:
    assert segment_name(RUN, 4, 0, OWN) != segment_name(RUN, 5, 0, OWN)
    assert segment_name(RUN, 4, 0, OWN) != segment_name(RUN, 4, 0, "twin")
    assert applied(segment_put(LANE, segment_name(RUN, 4, 0, OWN), {"0": ANSWER}), None)["0"] == ANSWER


# --- keys ------------------------------------------------------------------------------------------------------------

tricky = st.text(alphabet="a/#%|.I0H\x1f", max_size=6)
sources = st.one_of(
    st.builds(
        KafkaSource,
        st.just("0"),
        st.sampled_from(["a", "a-1"]),
        st.integers(0, 20),
        st.integers(0, 10**12),
        st.just(0),
    ),
    st.builds(MessageSource, st.builds(lambda a, b: Lane(a, b).pk, tricky, tricky), st.sampled_from(["1.0", "1.1"])),
    st.just(CallSource()),
)


@given(tricky, tricky, tricky, tricky)
def test_lanes_have_keys_of_their_own(service: str, key: str, other_service: str, other_key: str) -> None:
    one, other = Lane(service, key), Lane(other_service, other_key)
    assert (one.pk == other.pk) == (one == other)
    assert Lane.from_pk(one.pk) == one


def test_an_event_parses_its_id_once_and_stores_nothing_of_that() -> None:
    event, untouched = (Event(EVENT.id, "update", KAFKA) for _ in range(2))
    assert event.invocation == InvocationId(LANE, EVENT.nonce)
    assert event.invocation is event.invocation
    assert (event, pack(event)) == (untouched, pack(untouched))
    assert with_fields(event, id=MESSAGE.id).invocation == MESSAGE.invocation


@given(sources, sources)
def test_events_wait_in_places_of_their_own(one: Source, other: Source) -> None:
    first, second = (inbox_key(LANE, Event(EVENT.id, "update", source)) for source in (one, other))
    assert (first == second) == (one == other)


@given(st.integers(0, 10**18), st.integers(0, 10**18))
def test_spilled_events_wait_in_order_of_offset(low: int, high: int) -> None:
    places = [inbox_key(LANE, with_fields(EVENT, source=with_fields(KAFKA, offset=o))).sk for o in (low, high)]
    assert (places[0] < places[1]) == (low < high)


def test_writes_leave_their_arguments_alone() -> None:
    item = owned()
    before = dict(item)
    writes: list[Write] = [write for write, _ in HEAD_WRITES.values()]
    for write in writes:
        apply(write, item)
    assert item == before


def test_an_outbox_entry_comes_back() -> None:
    after = applied(spec(idle()), idle())
    packed = after["o.000000000004.000000"]
    assert isinstance(packed, bytes)
    assert unpack_out(packed) == OUT


def test_the_longest_lane_fits_into_every_key() -> None:
    lane = Lane("s" * 200, "/" * 600)
    assert len(lane.pk) == 2_001
    event = with_fields(EVENT, source=MessageSource(lane.pk, out_sequence(1, 1)))
    timer = GuardTimer(lane, "n" * 25, 1, "holder." + "h" * 60)
    for key in (inbox_key(lane, event), timer.key):
        assert len(key.sk.encode()) <= 1_024
