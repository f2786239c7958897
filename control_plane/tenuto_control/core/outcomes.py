"""What an outcome has to be before anything of it is committed.

Owns that check: functions are deployed by others, and one that answers nonsense must not stop its own lane, let alone
another's. Does not own decoding (`tenuto.protocol.messages`), nor what follows a refusal (`verdicts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.lane.head import STATE
from tenuto.protocol.ids import MAX_KEY_BYTES, InvocationId, check_key
from tenuto.protocol.messages import Speculated
from tenuto.protocol.records import BundleOut, BuriedOut, Event, Out, ResultOut, SendOut

STATE_NAME_BYTES_MAX = 2_048
"""Far above what a function lets a handler use; DynamoDB takes names of attributes up to 64 KB."""


def outcome_problem(outcome: Speculated, events: Sequence[Event]) -> str | None:
    """Why an outcome cannot be that of an activation with these events; None when it can.

    The text names places, and quotes nothing of what the function sent.
    """
    ids = [event.id for event in events]
    results = [result.event_id for result in outcome.results]
    if results != ids[: len(results)]:
        return "its results are not those of the events it was given, in their order"
    if outcome.stopped is not None and (len(results) >= len(ids) or outcome.stopped.event_id != ids[len(results)]):
        return "it stopped at another event than the next"
    if not results and outcome.stopped is None:
        return "it neither ended an event nor says which one failed"
    if not results and (outcome.state or outcome.out):
        return "it has effects of no event"
    for name in outcome.state:
        if not 0 < len((STATE + name).encode(errors="replace")) <= STATE_NAME_BYTES_MAX:
            return "the name of a state is too long"
    for number, entry in enumerate(outcome.out):
        problem = _entry_problem(entry, ids[: len(results)])
        if problem is not None:
            return f"outgoing entry {number}: {problem}"
    return None


def _entry_problem(entry: Out, ended: Sequence[str]) -> str | None:
    match entry:
        case SendOut():
            return _send_problem(entry)
        case ResultOut(invocation=invocation) if invocation not in ended:
            return "it is the result of an event that did not end"
        case BuriedOut(event=event) if event.id not in ended:
            return "it is the dead letter of an event that did not end"
        case BundleOut():
            return "a bundle is no outgoing entry of its own"
        case _:
            return None


def _send_problem(entry: SendOut) -> str | None:
    try:
        lane = InvocationId.parse(entry.event_id).lane
    except ValueError:
        return "its invocation id cannot be read"
    if lane != entry.lane:
        return "its invocation id names another lane than the one it is for"
    try:
        check_key(*lane)
    except ValueError:
        return f"the key of its lane cannot be: 1 to {MAX_KEY_BYTES} bytes without control characters are possible"
    return None
