"""What an outcome has to be before anything of it is believed or committed.

Owns that check: functions are deployed by others, and one that answers nonsense must not stop its own lane, let alone
another's. What is checked here is what the control plane goes by, and what it hands to others. Whether a function has
really written what it says it has, only the table tells. Does not own decoding (`tenuto.protocol.messages`), nor what
follows a refusal (`verdicts`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final, assert_never

from tenuto.errors import status_of
from tenuto.lane.dead_letters import REASON_BYTES_MAX, buries
from tenuto.lane.head import BASE, JOURNAL, STATE, TRIED
from tenuto.protocol.ids import MAX_KEY_BYTES, AwakeableId, InvocationId, Lane, check_key
from tenuto.protocol.limits import (
    AWAITS_MAX,
    AWAKEABLE_BYTES_MAX,
    EVENT_HEADERS_BYTES_MAX,
    NONCE_BYTES_MAX,
    PARTS_MAX,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import (
    ClaimedRun,
    Committed,
    EventResult,
    Fenced,
    Head,
    Late,
    Manifest,
    Outcome,
    Rejected,
    Speculated,
    Stopped,
    Suspended,
)
from tenuto.protocol.modes import Resume, Shared
from tenuto.protocol.records import (
    BundleOut,
    BuriedOut,
    Entry,
    Event,
    Failed,
    KafkaSource,
    Out,
    PublishOut,
    ResolveOut,
    Result,
    ResultOut,
    SendOut,
    UnreadableOut,
    answer_bytes,
    headers_bytes,
    unpack_slot,
)
from tenuto.protocol.texts import problem_of_name
from tenuto_control.core.flights import Flight
from tenuto_control.core.manifests import name_is_possible

STORED_NAME_BYTES_MAX: Final = 2_048
"""Far above what a function lets a handler use; DynamoDB takes names of attributes up to 64 KB."""

ITEM_NAME_BYTES_MAX: Final = 1_024
"""Longest name of an item within its lane (Amazon DynamoDB quotas: sort keys)."""

HEAD_BYTES_MAX: Final = 409_600
"""What the values in a head may weigh: it is one item (Amazon DynamoDB quotas)."""

TIME_MS_MAX: Final = 10**14
"""Latest time that anything may name, in milliseconds since the epoch. Names of timers have 15 digits."""

VER_MAX: Final = 10**12
"""A fencing token beyond any that a lane can reach: positions in an outbox have 12 digits for it."""

COUNT_MAX: Final = 2**31
"""Above every count of attempts, failures or writes."""

OFFSET_MAX: Final = 2**63
"""One more than the last offset that a partition of Kafka can have."""

_UNREADABLE_ID: Final = "its invocation id cannot be read"
_IMPOSSIBLE_ID: Final = "its invocation id cannot be one"
_SEQUENCE: Final = re.compile(r"[0-9]{12}\.[0-9]{6}")


def outcome_problem(outcome: Outcome, flight: Flight) -> str | None:
    """Why an outcome cannot be that of an activation; None when it can.

    The text names places, and quotes nothing of what the function sent.
    """
    match outcome:
        case Speculated():
            return _speculated_problem(outcome, flight)
        case Committed() | Suspended():
            return _ended_problem(outcome, flight)
        case Late():
            unbegun = isinstance(flight.mode, Resume) and not flight.mode.late
            return None if unbegun else "it hands back what was not to be handed back"
        case Fenced() | Rejected():
            return None
        case Manifest():
            return "it is a manifest, which nobody asked for"
        case _:
            assert_never(outcome)


# --- what is not committed yet ---------------------------------------------------------------------------------------


def _speculated_problem(outcome: Speculated, flight: Flight) -> str | None:
    """Of an outcome whose effects the control plane is to commit."""
    if isinstance(flight.mode, Resume):
        return "it speculates about a run that it owns"
    events, results = flight.events, outcome.results
    problem = _results_problem(results, events)
    if problem is not None:
        return problem
    if outcome.stopped is not None:
        if not _is_next(outcome.stopped, results, events):
            return "it stopped at another event than the next"
    elif not results:
        return "it neither ended an event nor says which one failed"
    if not results and (outcome.state or outcome.out):
        return "it has effects of no event"
    if isinstance(flight.mode, Shared) and (outcome.state or outcome.out):
        return "it has effects of a handler that only reads"
    for name in outcome.state:
        if not 0 < len((STATE + name).encode(errors="replace")) - len(STATE) <= STORED_NAME_BYTES_MAX:
            return "the name of a state is empty or too long"
    ended = events[: len(results)]
    for number, entry in enumerate(outcome.out):
        problem = _new_entry_problem(entry, ended)
        if problem is not None:
            return f"outgoing entry {number}: {problem}"
    return None


def _is_next(stopped: Stopped, results: Sequence[EventResult], events: Sequence[Event]) -> bool:
    """Whether what failed is the event behind those that ended."""
    return len(results) < len(events) and stopped.event_id == events[len(results)].id


def _results_problem(results: Sequence[EventResult], events: Sequence[Event]) -> str | None:
    if len(results) > len(events):
        return "it has more results than it was given events"
    for result, event in zip(results, events, strict=False):
        if result.event_id != event.id:
            return "its results are not those of the events it was given, in their order"
        # Spelled out: this is the way of every event.
        if type(result.result) is Failed:
            problem = _result_problem(result.result)
            if problem is not None:
                return problem
    return None


def _result_problem(result: Result) -> str | None:
    if isinstance(result, Failed) and status_of(result.failure.status_code) is None:
        return "the status of a failure is none from 400 to 599"
    return None


def _new_entry_problem(entry: Out, ended: Sequence[Event]) -> str | None:
    """Of an entry that a function without a lease wants sent. Of items beside the head it has none."""
    match entry:
        case ResultOut():
            if not _is_one_of(entry.invocation, ended):
                return "it is the result of an event that did not end"
        case BuriedOut():
            if not _is_one_of(entry.event.id, ended):
                return "it is the dead letter of an event that did not end"
            if entry.value_item is not None or entry.parts:
                return "its payload is in an item that was never put"
        case PublishOut():
            if entry.value_item is not None:
                return "its value is in an item that was never put"
            if entry.dead and not any(_buries(entry, event) for event in ended):
                return "it is the dead letter of an event that did not end"
        case BundleOut():
            return "a bundle is no outgoing entry of its own"
        case UnreadableOut():
            return "it stands for one that cannot be read"
        case SendOut() | ResolveOut():
            pass
        case _:
            assert_never(entry)
    return entry_problem(entry)


def _is_one_of(invocation: str, events: Collection[Event]) -> bool:
    return any(invocation == event.id for event in events)


def _buries(entry: PublishOut, event: Event) -> bool:
    """Whether a record is the dead letter of an event, on its way to the topic that is meant for it."""
    source = event.source
    return isinstance(source, KafkaSource) and source.dead_letter == entry.topic and buries(entry, event.id)


# --- what a lane may send --------------------------------------------------------------------------------------------


def entry_problem(entry: Entry) -> str | None:
    """Why what is to be sent can never be delivered, or would harm who it is for; None when it can be.

    Whose result or dead letter it is has to be known to be right.
    """
    match entry:
        case SendOut():
            return _send_problem(entry)
        case PublishOut():
            # What no topic takes is set aside when it is delivered, and delays nothing.
            return None
        case ResultOut():
            return _result_problem(entry.result)
        case ResolveOut():
            return _answer_problem(entry)
        case BuriedOut():
            return _letter_problem(entry)
        case _:
            assert_never(entry)


def _send_problem(entry: SendOut) -> str | None:
    # Parsed once here: this is the way of every message.
    try:
        lane, nonce = InvocationId.parse(entry.event_id)
    except ValueError:
        return _UNREADABLE_ID
    if lane != entry.lane:
        return "its invocation id names another lane than the one it is for"
    problem = _lane_problem(lane)
    if problem is not None:
        return problem
    if problem_of_name(nonce, NONCE_BYTES_MAX) is not None:
        return _IMPOSSIBLE_ID
    if not (name_is_possible(entry.service) and name_is_possible(entry.handler)):
        return "no service or handler can have the name that it is for"
    if entry.due_ms is not None and not 0 <= entry.due_ms <= TIME_MS_MAX:
        return "the time that it is due at cannot be"
    headers = headers_bytes(entry.headers)
    if headers > EVENT_HEADERS_BYTES_MAX:
        return f"the headers of a message may weigh {EVENT_HEADERS_BYTES_MAX:,} bytes"
    if len(entry.input or b"") + headers > VALUE_BYTES_MAX:
        # An inbox item is one item, and so is a timer. Only what came from Kafka waits in parts.
        return f"a message may hold {VALUE_BYTES_MAX:,} bytes, headers included"
    return None


def _own_problem(text: str, lane: Lane) -> str | None:
    """Why an id cannot be that of an invocation of this lane."""
    try:
        invocation = InvocationId.parse(text)
    except ValueError:
        return _UNREADABLE_ID
    return _foreign_problem(invocation, lane)


def _foreign_problem(invocation: InvocationId, lane: Lane) -> str | None:
    if invocation.lane != lane:
        return "its invocation id names another lane"
    return None if problem_of_name(invocation.nonce, NONCE_BYTES_MAX) is None else _IMPOSSIBLE_ID


def _lane_problem(lane: Lane) -> str | None:
    try:
        check_key(*lane)
    except ValueError:
        return f"the key of its lane cannot be: 1 to {MAX_KEY_BYTES} bytes without control characters are possible"
    return None


def _answer_problem(entry: ResolveOut) -> str | None:
    try:
        name = AwakeableId.parse(entry.awakeable)
    except ValueError:
        # Nobody waits for that, and it is dropped when it is delivered.
        return None
    if answer_bytes(entry.result) > AWAKEABLE_BYTES_MAX:
        return f"an awakeable may be resolved with {AWAKEABLE_BYTES_MAX:,} bytes"
    return _lane_problem(name.invocation.lane) or _result_problem(entry.result)


def _letter_problem(entry: BuriedOut) -> str | None:
    if len(entry.reason.encode(errors="replace")) > REASON_BYTES_MAX:
        return f"the reason of a dead letter has more than {REASON_BYTES_MAX:,} bytes"
    if status_of(entry.status_code) is None:
        return "the status of a dead letter is none from 400 to 599"
    if not (0 <= entry.at_ms <= TIME_MS_MAX and 0 <= entry.first_ms <= TIME_MS_MAX):
        return "the times of a dead letter cannot be"
    if not (0 <= entry.attempts <= COUNT_MAX and 0 <= entry.parts <= PARTS_MAX and 0 <= entry.size <= COUNT_MAX):
        return "the numbers of a dead letter cannot be"
    return None


# --- what a function says it has written -----------------------------------------------------------------------------


def _ended_problem(outcome: Committed | Suspended, flight: Flight) -> str | None:
    """Of an outcome whose effects are in the table, as far as the function says so."""
    if isinstance(flight.mode, Shared):
        return "it owned a lane for a handler that only reads"
    results, events, head = outcome.results, flight.events, outcome.head
    problem = _results_problem(results, events)
    if problem is not None:
        return problem
    if not 0 <= outcome.writes <= COUNT_MAX:
        return "the number of its writes cannot be"
    if not all(_has_ended(head, event) for event in events[: len(results)]):
        return "its head does not have the ends that it tells of"
    progress = _progress_problem(outcome, flight)
    if progress is not None:
        return progress
    problem = _head_problem(head, flight.lane)
    return None if problem is None else f"its head: {problem}"


def _has_ended(head: Head, event: Event) -> bool:
    source = event.source
    if isinstance(source, KafkaSource):
        return source.offset < head.watermarks.get(source.watermark, 0)
    return event.nonce in head.fin


def _progress_problem(outcome: Committed | Suspended, flight: Flight) -> str | None:
    """Whether a head is one that a commit or a suspension of this flight can leave."""
    results, events, head = outcome.results, flight.events, outcome.head
    if isinstance(outcome, Committed):
        if not results:
            return "it committed, and ended no event"
        if outcome.stopped is not None and (head.run is not None or not _is_next(outcome.stopped, results, events)):
            return "it stopped at another event than the next, or at one that it owned"
        return None if head.ver > flight.head.ver else "it committed, and its head is an older one"
    if head.run is None or not (head.run.suspended or head.run.napping):
        return "it suspended, and nothing waits in its head"
    if len(results) >= len(events) or head.run.event.id != events[len(results)].id:
        return "it suspended another event than the next"
    # A claim raises the token, and so does the end of a run, but a suspension alone does not.
    least = flight.head.ver if isinstance(flight.mode, Resume) and not results else flight.head.ver + 1
    if head.run.napping:
        least += 1
        leave, lease_ms = flight.nap, head.run.lease_ms - (head.run.wake_ms or 0)
        if leave is None or (head.run.holder, lease_ms) != (leave.holder, leave.lease_ms):
            return "it naps without leave"
    return None if head.ver >= least else "it suspended, and its head is an older one"


def _head_problem(head: Head, lane: Lane) -> str | None:
    if not 0 < head.ver < VER_MAX:
        return "its token cannot be"
    weight = sum(map(len, head.state.values())) + sum(map(len, head.slots.values()))
    if weight + sum(len(value or b"") for value in head.base.values()) > HEAD_BYTES_MAX:
        return f"it weighs more than the {HEAD_BYTES_MAX:,} bytes of an item"
    texts = (head.tok, head.pend, head.ans, *head.segments, *head.state, *head.base, *head.slots, *head.fin)
    if any(text is not None and len(text) > STORED_NAME_BYTES_MAX for text in texts):
        return "a name in it is too long"
    if not all(0 <= offset <= OFFSET_MAX for offset in head.watermarks.values()):
        return "a watermark cannot be"
    if not all(0 <= at_ms <= TIME_MS_MAX for at_ms in head.fin.values()):
        return "the time of an end cannot be"
    if not all(name.startswith((BASE, JOURNAL)) or name == TRIED for name in head.stray):
        return "it would have removed what is not stray"
    if head.tried is not None and not 0 <= head.tried[1] <= COUNT_MAX:
        return "the number of failed attempts cannot be"
    for sequence, entry in head.out.items():
        if isinstance(entry, UnreadableOut):
            # What was there before it began, or another process has put there meanwhile, is not its fault.
            continue
        problem = kept_entry_problem(sequence, entry, lane)
        if problem is not None:
            return f"an outgoing entry: {problem}"
    return None if head.run is None else _run_problem(head, head.run, lane)


def kept_entry_problem(sequence: str, entry: Out, lane: Lane) -> str | None:
    """Of an entry that is in the outbox of a lane, or is said to be."""
    if _SEQUENCE.fullmatch(sequence) is None:
        return "its place cannot be"
    return kept_problem(entry, lane)


def kept_problem(entry: Out, lane: Lane) -> str | None:
    """Why an entry that a lane keeps for delivery can never be delivered, or is not its own to send."""
    match entry:
        case BundleOut():
            named = entry.item.startswith("O#") and len(entry.item) <= ITEM_NAME_BYTES_MAX
            return None if named else "its bundle is in no item for bundles"
        case UnreadableOut(reason):
            return f"it cannot be read: {reason}"
        case ResultOut():
            return _own_problem(entry.invocation, lane) or _result_problem(entry.result)
        case BuriedOut():
            return _own_problem(entry.event.id, lane) or entry_problem(entry)
        case SendOut() | PublishOut() | ResolveOut():
            return entry_problem(entry)
        case _:
            assert_never(entry)


def _run_problem(head: Head, run: ClaimedRun, lane: Lane) -> str | None:
    try:
        # The event keeps it, so that it is parsed once.
        problem = _foreign_problem(run.event.invocation, lane)
    except ValueError:
        problem = _UNREADABLE_ID
    if problem is not None:
        return f"its run: {problem}"
    times = (run.start_ms, run.lease_ms, run.wake_ms or 0)
    if not all(0 <= time_ms <= TIME_MS_MAX for time_ms in times):
        return "a time of its run cannot be"
    counts = (run.attempt, run.failures, run.first_out)
    if not all(0 <= count <= COUNT_MAX for count in counts) or not 0 < run.ver <= head.ver:
        return "a number of its run cannot be"
    if run.awaits is not None and len(run.awaits) > AWAITS_MAX + 1:
        return "its run waits for too much"
    for slot in run.awaits or ():
        data = head.slots.get(f"{slot}d")
        if data is not None and not _is_slot(data):
            return "what its run waits for cannot be read"
    return None


def _is_slot(data: bytes) -> bool:
    try:
        unpack_slot(data)
    except Exception:  # noqa: BLE001 - whatever foreign bytes make of their decoder
        return False
    return True
