"""Every write a lane takes, numbered as in the protocol's table.

Owns conditions and effects, as data; each clause has a label by which mutation tests remove it. Does not own the order
of writes (function runtime and dispatcher), the writes of timers (`timers`) and of naps, nor any I/O.

Rules that hold for the whole file: `ver` rises with 1, 2, 6 and 7 (as it does in `naps` and `joins`) and with nothing
else; `tok` is written with `ver` and only ever lets a writer recognise its own write; a clause marked *defence* is
implied by others and kept against a mistake in those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct, structs

from tenuto.lane.head import (
    ANS,
    BASE,
    FIN,
    OUT,
    OWN,
    STATE,
    TOOK,
    WATERMARK,
    head_key,
    pack_run,
    pack_took,
    run_attributes,
    slot_attribute,
)
from tenuto.lane.tombstones import DONE, TTL, is_tombstone, tombstone_at
from tenuto.lane.writes import Absent, AbsentOrAtMost, AbsentOrEquals, Clause, Equals, Item, Key, Put, Update, Value
from tenuto.protocol.ids import Lane, digest, offset_position, out_sequence
from tenuto.protocol.limits import (
    AWAITS_MAX,
    LANE_TTL_S,
    NONCE_BYTES_MAX,
    PARTS_MAX,
    RESULT_TTL_S,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import ClaimedRun, Head, Trim
from tenuto.protocol.records import (
    CallSource,
    Event,
    KafkaSource,
    MessageSource,
    Out,
    Result,
    ResultOut,
    event_bytes,
    pack,
    pack_events,
    unpack_event,
    unpack_events,
    unpack_result,
)

NO_TRIM = Trim()
NO_SLOTS: Mapping[str, bytes] = MappingProxyType({})


class Effects(Struct, frozen=True):
    """What finished events change: state (None clears a name), outbox (by position), watermarks and finished ids.

    `first` holds the lowest offset consumed of each source: the lane must not have passed it yet.
    """

    state: Mapping[str, bytes | None] = {}
    out: Mapping[int, Out] = {}
    watermarks: Mapping[str, int] = {}
    first: Mapping[str, int] = {}
    finished: tuple[str, ...] = ()
    now_ms: int = 0
    expires: bool = False

    def __bool__(self) -> bool:
        """Whether any event has finished. One that has, has moved a watermark or is among the finished ids."""
        return bool(self.watermarks or self.finished)


def effects_of(
    events: Sequence[Event],
    state: Mapping[str, bytes | None],
    out: Mapping[int, Out],
    now_ms: int,
    *,
    expires: bool = False,
) -> Effects:
    """The effects of `events` having finished, in this order. `expires`: the lane belongs to one invocation only."""
    watermarks: dict[str, int] = {}
    first: dict[str, int] = {}
    finished: list[str] = []
    for event in events:
        match event.source:
            case KafkaSource() as source:
                name = source.watermark
                watermarks[name] = max(watermarks.get(name, 0), source.offset + 1)
                first[name] = min(first.get(name, source.offset), source.offset)
            case MessageSource() | CallSource():
                finished.append(event.nonce)
    return Effects(dict(state), dict(out), watermarks, first, tuple(finished), now_ms, expires)


# --- 1, 2: from an idle lane ---------------------------------------------------------------------------------------


def spec_commit(
    lane: Lane,
    head: Head,
    effects: Effects,
    tok: str,
    *,
    drain: bool,
    clears: bool = False,
    trim: Trim = NO_TRIM,
) -> Update:
    """1. Everything a speculated batch did, in one write.

    `clears` joins write 12 to the commit of a drained batch that was all the inbox held: the mark goes if it is still
    the one that was seen before the query.
    """
    sets, removes = _effects(effects, head.ver + 1)
    sets |= {"ver": head.ver + 1, "tok": tok}
    removes += _trimmed(trim, effects)
    conditions = _from_idle("spec", head, effects, drain=drain)
    if clears and head.pend is not None:
        removes.append("pend")
        conditions = (*conditions, Equals("spec.clear", "pend", head.pend))
    return Update(head_key(lane), sets, tuple(removes), conditions)


def claim(
    lane: Lane,
    head: Head,
    before: Effects,
    run: ClaimedRun,
    tok: str,
    *,
    drain: bool,
    trim: Trim = NO_TRIM,
    slots: Mapping[str, bytes] = NO_SLOTS,
    quiet: bool = False,
) -> Update:
    """2. Take the lease for `run`, together with the effects of the events before it in its batch.

    `slots` are what its journal already holds. A lane that expires at its end does not expire while a run is in it.
    `quiet` is as in `checkpoint`.
    """
    sets, removes = _effects(structs.replace(before, expires=False), head.ver + 1)
    sets |= {slot_attribute(run.ver, s): data for s, data in slots.items()}
    removes.append("ttl")
    sets |= {
        "ver": head.ver + 1,
        "tok": tok,
        "rid": run.event.nonce,
        "run": pack_run(run),
        "att": run.attempt,
        "holder": run.holder,
        "lease": run.lease_ms,
    }
    removes += _trimmed(trim, before)
    source = run.event.source
    if isinstance(source, KafkaSource):
        first = {source.watermark: source.offset, **before.first}
        before = Effects(first=first)
    return Update(head_key(lane), sets, tuple(removes), _from_idle("claim", head, before, drain=drain), quiet)


def _from_idle(name: str, head: Head, effects: Effects, *, drain: bool) -> tuple[Clause, ...]:
    clauses: list[Clause] = [_ver(f"{name}.ver", head.ver), Absent(f"{name}.idle", "rid")]  # idle: defence
    clauses += [AbsentOrAtMost(f"{name}.watermark", WATERMARK + n, at) for n, at in effects.first.items()]  # defence
    if not drain:
        clauses.append(Absent(f"{name}.pend", "pend"))
    return tuple(clauses)


# --- 3, 5, 7: by the owner of the run ------------------------------------------------------------------------------

ANY_ANSWER = "*"
"""In a list of awaited slots: any result that was put after the one with this mark."""


class Progress(Struct, frozen=True):
    """What an attempt makes durable of its journal: new slots, outgoing entries (index → entry), rolled segments.

    `rolled` slots leave the head for a segment item that was put before, `apart` ones never enter it; `segments` is
    the list with the names of these items. `took` are all awakeables whose results are in segments by then.
    """

    slots: Mapping[str, bytes] = {}
    out: Mapping[int, Out] = {}
    rolled: tuple[str, ...] = ()
    segments: tuple[str, ...] | None = None
    apart: Mapping[str, bytes] = {}
    took: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.slots or self.out or self.rolled or self.apart)


def checkpoint(
    lane: Lane,
    ver: int,
    run: ClaimedRun,
    progress: Progress,
    own: str,
    then: str | None = None,
    *,
    quiet: bool = False,
) -> Update:
    """3. Journal slots, one attribute each: rewriting the journal whole would erase what others put into it.

    `own` names the process that writes. An invocation that was delivered twice has a twin, which holds the same `ver`:
    the first of the two to write shuts the other out, until the next takeover. `then` is its name from here on: with
    another name, what it has sent before is refused, should it come this late. `quiet`: the answer need not contain the
    resulting head.
    """
    sets, removes = _progress(run, progress)
    sets[OWN] = then or own
    return Update(head_key(lane), sets, removes, _owned("checkpoint", ver, own), quiet)


class WakeCondition(Struct, frozen=True):
    """What a suspended invocation waits for: any of the slots, or the time. `error` says why when it is a retry.

    `seen` is the mark of the last result of an awakeable that the attempt has seen.
    """

    slots: tuple[str, ...]
    wake_ms: int | None
    failures: int = 0
    error: str | None = None
    seen: str | None = None


def suspend(
    lane: Lane,
    ver: int,
    run: ClaimedRun,
    progress: Progress,
    state: Mapping[str, bytes | None],
    base: Mapping[str, bytes | None],
    wakes: WakeCondition,
    own: str,
    then: str | None = None,
) -> Update:
    """5. Release the function and keep the lane.

    Refused when a result of an awakeable has come that the attempt has not seen, whichever it waits for: so it may wait
    for any number of them. Refused, too, when the run is suspended already: by an earlier try of this write whose
    response was lost, which stands, regardless of later answers.

    `base` goes as values: a copy from the item would, after a lost response, take published state for first-seen state.
    `own` and `then` are as in `checkpoint`.
    """
    sets, drop = let_go(run, progress, state, base)
    sets[OWN] = then or own
    sets["awaits"] = [
        *wakes.slots[:AWAITS_MAX],
        *([ANY_ANSWER + (wakes.seen or "")] if len(wakes.slots) > AWAITS_MAX else []),
    ]
    sets["fails"] = wakes.failures
    for attribute, value in (("wake", wakes.wake_ms), ("err", wakes.error)):
        if value is None:
            drop.append(attribute)
        else:
            sets[attribute] = value
    clauses = (*_owned("suspend", ver, own), Absent("suspend.awake", "awaits"), _answered("suspend.ans", wakes.seen))
    return Update(head_key(lane), sets, tuple(drop), clauses)


def let_go(
    run: ClaimedRun, progress: Progress, state: Mapping[str, bytes | None], base: Mapping[str, bytes | None]
) -> tuple[dict[str, Value], list[str]]:
    """What a write sets and removes for a run whose function ends before it: journal, messages and state."""
    sets, removes = _progress(run, progress)
    gone = _state(state, sets)
    sets |= {BASE + name: value for name, value in base.items()}
    return sets, [*removes, *gone]


def _answered(label: str, seen: str | None) -> Clause:
    """No result of an awakeable has been put since the one whose mark was seen."""
    return Absent(label, ANS) if seen is None else Equals(label, ANS, seen)


def final_commit(lane: Lane, head: Head, effects: Effects, tok: str, own: str, *, trim: Trim = NO_TRIM) -> Update:
    """7. The end of a claimed run. `head` is the owner's view: its ver, run, slots and base."""
    run = head.run
    if run is None:
        raise ValueError("a final commit needs the run it ends")
    sets, removes = _effects(effects, run.ver)
    sets |= {"ver": head.ver + 1, "tok": tok}
    over = [slot_attribute(run.ver, slot) for slot in head.slots]
    bases = [BASE + name for name in head.base]
    drop = (*removes, *run_attributes(head), *over, *bases, *_trimmed(trim, effects))
    return Update(head_key(lane), sets, drop, _owned("commit", head.ver, own))


def _owned(name: str, ver: int, own: str) -> tuple[Clause, ...]:
    return Equals(f"{name}.ver", "ver", ver), AbsentOrEquals(f"{name}.own", OWN, own)


def _progress(run: ClaimedRun, progress: Progress) -> tuple[dict[str, Value], tuple[str, ...]]:
    sets: dict[str, Value] = {slot_attribute(run.ver, s): data for s, data in progress.slots.items()}
    sets |= {OUT + out_sequence(run.ver, i): pack(entry) for i, entry in progress.out.items()}
    if progress.segments is not None:
        sets["seg"] = list(progress.segments)
    if progress.took:
        sets[TOOK] = pack_took(progress.took)
    return sets, tuple(slot_attribute(run.ver, s) for s in progress.rolled)


# --- 6: by a dispatcher --------------------------------------------------------------------------------------------


def takeover(
    lane: Lane,
    head: Head,
    holder: str,
    lease_ms: int,
    due: Mapping[str, bytes],
    tok: str,
    failures: int | None = None,
) -> Update:
    """6. Resume a suspended run, or take over one whose function has ended.

    `due` fills slots of ended sleeps. `failures` is the new count when the function is known to have failed. A run that
    was seen running and has been suspended since, under the same `ver`, is left asleep: taken over for nothing, it
    would have no timer until its attempt suspends it again. So is one that naps meanwhile, which has another lease.
    """
    run = head.run
    if run is None:
        raise ValueError("only a run can be taken over")
    sets: dict[str, Value] = {slot_attribute(run.ver, s): data for s, data in due.items()}
    sets |= {"ver": head.ver + 1, "tok": tok, "att": run.attempt + 1, "holder": holder, "lease": lease_ms}
    if failures is not None:
        sets["fails"] = failures
    clauses: list[Clause] = [
        _ver("takeover.ver", head.ver),
        Equals("takeover.run", "rid", run.event.nonce),
    ]
    if not run.suspended:
        clauses.append(Absent("takeover.awake", "awaits"))
    return Update(head_key(lane), sets, ("awaits", "wake", OWN), tuple(clauses))


# --- 8 to 12, 14, 15: around the head ------------------------------------------------------------------------------


def slots_put(lane: Lane, head: Head, slots: Mapping[str, bytes], mark: str) -> Update:
    """8. Results for the head's run, after a guard; `mark` is unique.

    Refused when another result has come since this head was read: what the head can hold was judged without it. That
    also distinguishes a slot that moved to a segment, and is free in the head again, from one that was never filled.
    """
    run = head.run
    if run is None:
        raise ValueError("only a run waits for a result")
    sets: dict[str, Value] = {slot_attribute(run.ver, slot): data for slot, data in slots.items()}
    free = tuple(Absent("slot.free", attribute) for attribute in sets)
    clauses = (Equals("slot.run", "rid", run.event.nonce), *free, _answered("slot.ans", head.ans))
    return Update(head_key(lane), {**sets, ANS: mark}, (), clauses)


def inbox_put(lane: Lane, event: Event, more: Sequence[Event] = (), at_ms: int = 0) -> Put:
    """9. Durable acceptance of an event by a lane that cannot take it now; its key is its duplicate guard.

    An input that is too large for an item is in parts, which are put before; the item holds how many there are. `more`
    are events of the same Kafka source that come next on this lane: one item holds them all, so that a process that
    drains the lane sees all of them or none, and `last` is the offset of the last one. `at_ms` says when a call was
    put, which its place does not.
    """
    parts = len(part_puts(lane, event))
    if parts:
        kept: dict[str, Value] = {"ev": pack(structs.replace(event, input=None)), "parts": parts}
    else:
        kept = {"ev": pack(event)}
    if isinstance(event.source, CallSource):
        kept["at"] = at_ms
    if more:
        kept |= {"more": pack_events(more), "last": _offset(more[-1])}
    return Put(inbox_key(lane, event), kept, (Absent("inbox.absent", "pk"),))


def inbox_events(item: Item) -> tuple[Event, ...]:
    """The events of an inbox item, in their order; none for a tombstone. Raises msgspec.DecodeError."""
    event, more = item.get("ev"), item.get("more")
    if not isinstance(event, bytes):
        return ()
    return (unpack_event(event), *(unpack_events(more) if isinstance(more, bytes) else ()))


def last_offset(item: Item) -> int:
    """Up to which offset of their Kafka source an inbox item holds events."""
    last = item.get("last")
    return last if isinstance(last, int) else int(str(item["sk"]).rpartition("#")[2])


def _offset(event: Event) -> int:
    if not isinstance(event.source, KafkaSource):
        raise TypeError("only events from Kafka have an offset")
    return event.source.offset


def part_puts(lane: Lane, event: Event, at_ms: int = 0) -> tuple[Put, ...]:
    """Before 9: the parts of an input that is too large for an inbox item beside its headers; none for any other.

    `at_ms` says when they were put: without their event, which is put next, they are forgotten a day later.
    """
    data = event.input or b""
    if event_bytes(event) <= VALUE_BYTES_MAX or not data:
        return ()
    starts = range(0, len(data), VALUE_BYTES_MAX)
    return tuple(
        Put(part_key(lane, event, n), {"input": data[at : at + VALUE_BYTES_MAX], "at": at_ms})
        for n, at in enumerate(starts)
    )


def part_key(lane: Lane, event: Event, number: int) -> Key:
    """Where a part of an inbox item's input is."""
    return Key(lane.pk, f"P#{digest(inbox_key(lane, event).sk)}#{number:03d}")


def inbox_again(lane: Lane, event: Event, ttl: int) -> Update:
    """9, in the place of a tombstone that has outlived the result of its invocation; `ttl` is the tombstone's."""
    sets: dict[str, Value] = {"ev": pack(event)}
    return Update(inbox_key(lane, event), sets, (DONE, TTL), (Equals("inbox.over", TTL, ttl),))


def tombstone(lane: Lane, event: Event, now_ms: int) -> Put:
    """14. What stays of a drained message, so that a late duplicate is refused."""
    return tombstone_at(inbox_key(lane, event), now_ms)


def inbox_key(lane: Lane, event: Event) -> Key:
    """Where an event waits: ordered within its source."""
    match event.source:
        case KafkaSource() as source:
            return Key(lane.pk, f"I#k|{source.watermark}#{offset_position(source.offset)}")
        case MessageSource(sender, sequence):
            # A digest, because a sort key holds half of what the sender's partition key may.
            return Key(lane.pk, f"I#m|{digest(sender)}#{sequence}")
        case CallSource():
            return Key(lane.pk, f"I#c#{event.nonce}")


INBOX_LOW, INBOX_HIGH = "I#", "I$"
"""Bounds of an inbox query."""


def inbox_aside(item: Item) -> Put:
    """Keep an inbox item that cannot be read beside the inbox, as it is: `U#` takes the place of `I#` in its name."""
    attributes = {name: value for name, value in item.items() if name not in ("pk", "sk")}
    return Put(Key(str(item["pk"]), f"U{str(item['sk'])[1:]}"), attributes)


def inbox_gone(item: Item, now_ms: int) -> Put:
    """After `inbox_aside`: what stays in its place, so that a late duplicate is refused."""
    return tombstone_at(Key(str(item["pk"]), str(item["sk"])), now_ms)


def check_inbox_events(lane: Lane, item: Item) -> tuple[Event, ...]:
    """The events of an inbox item, none for a tombstone. Raises ValueError unless the item is what `inbox_put` puts.

    An event elsewhere than at its place would get its tombstone at its place, and run repeatedly. Of many events,
    only the first is checked by itself: the others are when they are taken up (`check_waiting`).
    """
    if is_tombstone(item):
        return ()
    events = inbox_events(item)
    if not events:
        raise ValueError("it holds no event")
    check_waiting(lane, events[0])
    parts = item.get("parts", 0)
    if not isinstance(parts, int) or not 0 <= parts <= PARTS_MAX:
        raise ValueError(f"its input is said to be in other than 0 to {PARTS_MAX} parts")
    if inbox_key(lane, events[0]).sk != item["sk"]:
        raise ValueError("its place is not that of its event")
    origins = {_origin(event) for event in events}
    if len(origins) > 1 or (None in origins and len(events) > 1):
        raise ValueError("its events are not of one Kafka source")
    if None not in origins and last_offset(item) != _offset(events[-1]):
        raise ValueError("its last event is not the one that it names")
    return events


def check_waiting(lane: Lane, event: Event) -> None:
    """Raises ValueError when an event is not of this lane, or its id is none: it would run nowhere."""
    if event.invocation.lane != lane or len(event.nonce.encode(errors="replace")) > NONCE_BYTES_MAX:
        raise ValueError("it holds an event of another key")


def _origin(event: Event) -> tuple[str, str, int] | None:
    """The Kafka source of an event; None for an event of another kind."""
    source = event.source
    return (source.epoch, source.topic, source.partition) if isinstance(source, KafkaSource) else None


def mark_pend(lane: Lane, token: str) -> Update:
    """11. Say that the inbox holds something; the token is unique, so that only a mark that was seen is cleared."""
    return Update(head_key(lane), {"pend": token})


def clear_pend(lane: Lane, head: Head, trim: Trim = NO_TRIM) -> Update:
    """12. The inbox was found empty by a query made after this head was read."""
    if head.pend is None:
        raise ValueError("there is no mark to clear")
    clauses = (
        _ver("clear.ver", head.ver),  # defence
        Equals("clear.pend", "pend", head.pend),
        Absent("clear.idle", "rid"),
    )
    return Update(head_key(lane), {}, ("pend", *_trimmed(trim)), clauses)


def trim_head(lane: Lane, trim: Trim, over_ms: int | None = None) -> Update:
    """14, 15. Forget shipped entries and finished ids, when no other write of the head is at hand.

    `over_ms` is given when that leaves nothing of a lane that belonged to one invocation: it may expire from then on.
    """
    sets: dict[str, Value] = {} if over_ms is None else {"ttl": over_ms // 1000 + LANE_TTL_S}
    return Update(head_key(lane), sets, _trimmed(trim))


def result_put(invocation: str, result: Result, at_ms: int) -> Update:
    """15. The result of an invocation, kept from `at_ms` on; repeated writes carry the same result.

    An update, so that the item still says when a delayed message with this id was due.
    """
    ttl = at_ms // 1000 + RESULT_TTL_S
    return Update(result_key(invocation), {"res": pack(result), "ttl": ttl})


def result_expected(invocation: str, due_ms: int) -> Put:
    """The acceptance of a delayed message, before its timer: from here on its id stands for this one execution.

    A process that finds the item without a result waits for the message instead of running anything.
    """
    ttl = due_ms // 1000 + RESULT_TTL_S
    return Put(result_key(invocation), {"begins": due_ms, "ttl": ttl}, (Absent("result.absent", "pk"),))


def stored_result(item: Item | None) -> Result | None:
    """The result in a result item; None while there is none, as before a delayed message has run."""
    packed = item.get("res") if item is not None else None
    return unpack_result(packed) if isinstance(packed, bytes) else None


def outgoing_results(head: Head) -> dict[str, Result]:
    """The results that wait in a head's outbox, by invocation: committed, and on their way to their items."""
    return {out.invocation: out.result for out in head.out.values() if isinstance(out, ResultOut)}


def result_key(invocation: str) -> Key:
    """Where the result of an invocation is."""
    return Key(f"R#{invocation}", "R")


# --- shared parts --------------------------------------------------------------------------------------------------


def _ver(label: str, seen: int) -> Clause:
    return Equals(label, "ver", seen) if seen else Absent(label, "ver")


def _effects(effects: Effects, ver: int) -> tuple[dict[str, Value], list[str]]:
    sets: dict[str, Value] = {}
    removes = _state(effects.state, sets)
    sets |= {WATERMARK + name: at for name, at in effects.watermarks.items()}
    sets |= {OUT + out_sequence(ver, i): pack(entry) for i, entry in effects.out.items()}
    sets |= {FIN + nonce: effects.now_ms for nonce in effects.finished}
    if effects.expires and not effects.out:
        # What waits in an outbox must not expire: the trim that finds it empty sets the time to live.
        sets["ttl"] = effects.now_ms // 1000 + LANE_TTL_S
    return sets, removes


def _state(state: Mapping[str, bytes | None], sets: dict[str, Value]) -> list[str]:
    sets.update({STATE + name: value for name, value in state.items() if value is not None})
    return [STATE + name for name, value in state.items() if value is None]


def _trimmed(trim: Trim, effects: Effects | None = None) -> tuple[str, ...]:
    # An id may finish again, once the result of its first invocation is no longer kept; no write both sets and removes.
    finished = () if effects is None else effects.finished
    sets = () if effects is None else tuple(WATERMARK + name for name in effects.watermarks)
    stray = (name for name in trim.stray if name not in sets)
    return (*(OUT + s for s in trim.out), *(FIN + n for n in trim.fin if n not in finished), *stray)
