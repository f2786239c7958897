"""One request to a function and its answer within bounds, for one activation or for those of several lanes.

Owns what is asked, what an answer may take, and why there is none. Does not own who shares a request (`pools`,
`capacity`), nor what an outcome means (`activations`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.protocol.limits import PAYLOAD_BYTES_MAX
from tenuto.protocol.messages import PROTOCOL_VERSION, Broken, Outcome, decode_outcomes
from tenuto_control.core.flights import Flight
from tenuto_control.core.verdicts import (
    Crashed,
    EndedUnheard,
    Missing,
    NoOutcome,
    Oversized,
    Throttled,
    Unbegun,
    Unreachable,
)
from tenuto_control.dispatcher.heads import head_bytes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.pools import ALONE, Alone, Forsaken, InvolvedError, Told, Unheard
from tenuto_control.limits import ANSWER_BYTES_MAX, ANSWER_MEMBERS_MAX, REQUEST_COPIES
from tenuto_control.ports import (
    AnswerHolder,
    FunctionBrokenError,
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    InvokeError,
    PayloadTooLargeError,
    Target,
)


def request_bytes(flight: Flight) -> int:
    """What goes to the function, roughly, before it is encoded: where it is too much at once, it is not to be made."""
    size = head_bytes(flight.head)
    for event in flight.events:
        size += len(event.input or b"")
        for name, value in event.headers:
            size += len(name) + len(value)
    return size


async def ask(services: Parts, target: Target, payload: bytes, room: AnswerHolder) -> bytes | InvokeError:
    """The answer to an encoded request, held in `room`, or why there is none that can be read."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        text = f"the request would take {len(payload):,} bytes; a function is given at most {PAYLOAD_BYTES_MAX:,}"
        return PayloadTooLargeError(text)
    try:
        answer = await services.invoker.invoke(target.function, payload, room)
    except InvokeError as e:
        return e
    await room.hold(len(answer))
    if len(answer) > ANSWER_BYTES_MAX:
        text = f"{target.function} answered {len(answer):,} bytes; at most {ANSWER_BYTES_MAX:,} are possible"
        return FunctionFailedError(text)
    if answer.count(b",") > ANSWER_MEMBERS_MAX:
        text = f"{target.function} answered more than {ANSWER_MEMBERS_MAX:,} values; no outcome has so many"
        return FunctionFailedError(text)
    return answer


async def ask_together(
    services: Parts, target: Target, room: AnswerHolder, activations: Sequence[bytes], *, beside: bool = False
) -> Sequence[Told]:
    """Ask for encoded activations at once.

    Where nothing has been done by them, each is asked for alone then. What fails as a whole has done nothing, unless
    lanes were worked on `beside` each other.
    """
    members, kind = b",".join(activations), b"true" if beside else b"false"
    payload = b'{"type":"pooled","activations":[%b],"beside":%b,"version":%d}' % (members, kind, PROTOCOL_VERSION)
    async with services.capacity.room(target, REQUEST_COPIES * len(payload)):
        answer = await ask(services, target, payload, room)
    if isinstance(answer, InvokeError):
        return [_involved(answer, beside=beside)] * len(activations)
    try:
        outcomes = decode_outcomes(answer).outcomes
    except Exception as e:  # noqa: BLE001 - whatever an answer makes of its reader
        return [_involved(FunctionFailedError(type(e).__name__), beside=beside)] * len(activations)
    if len(outcomes) != len(activations):
        other = FunctionFailedError(f"{target.function} answered {len(outcomes)} outcomes to {len(activations)}")
        return [_involved(other, beside=beside)] * len(activations)
    return [_told(outcome) for outcome in outcomes]


def _involved(error: InvokeError, *, beside: bool) -> Told:
    """What the failure of a whole invocation means to each of its lanes."""
    match error:
        case FunctionThrottledError():
            return error
        case FunctionFailedError() if beside:
            return InvolvedError(str(error))
        case PayloadTooLargeError():
            return ALONE
        case _:
            return error if beside else ALONE


def _told(outcome: Outcome | Broken | None) -> Told:
    match outcome:
        case None:
            return ALONE
        case Broken(reason):
            return FunctionFailedError(reason)
        case _:
            return outcome


def no_outcome(error: InvokeError | Alone | Forsaken | Unheard) -> NoOutcome:
    """Why an invocation has no outcome, as far as it makes a difference."""
    match error:
        case Alone():
            return Unbegun()
        case Unheard() | Forsaken():
            return EndedUnheard()
        case InvolvedError():
            return Crashed(str(error), involved=True)
        case PayloadTooLargeError():
            return Oversized(str(error))
        case FunctionThrottledError():
            return Throttled()
        case FunctionUnreachableError():
            return Unreachable(str(error))
        case FunctionMissingError():
            return Missing(str(error), told=isinstance(error, FunctionBrokenError))
        case _:
            return Crashed(str(error))
