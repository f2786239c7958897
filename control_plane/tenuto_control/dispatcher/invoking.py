"""One request to a function and its answer within bounds, for one activation or for those of several lanes.

Owns what is asked and what an answer may take. Does not own who shares a request (`pools`, `capacity`), nor what an
outcome means (`activations`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.protocol.limits import PAYLOAD_BYTES_MAX
from tenuto.protocol.messages import PROTOCOL_VERSION, decode_outcomes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.pools import ALONE, Told
from tenuto_control.limits import ANSWER_BYTES_MAX, ANSWER_MEMBERS_MAX, REQUEST_COPIES
from tenuto_control.ports import (
    AnswerHolder,
    FunctionFailedError,
    FunctionThrottledError,
    InvokeError,
    PayloadTooLargeError,
    Target,
)


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
    services: Parts, target: Target, room: AnswerHolder, activations: Sequence[bytes]
) -> Sequence[Told]:
    """Ask for encoded activations at once. Whatever fails as a whole has done nothing: each is asked for alone then."""
    alone = [ALONE] * len(activations)
    payload = b'{"type":"pooled","activations":[%b],"version":%d}' % (b",".join(activations), PROTOCOL_VERSION)
    async with services.capacity.room(target, REQUEST_COPIES * len(payload)):
        answer = await ask(services, target, payload, room)
    if isinstance(answer, FunctionThrottledError):
        return [answer] * len(activations)
    if isinstance(answer, InvokeError):
        return alone
    try:
        outcomes = decode_outcomes(answer).outcomes
    except Exception:  # noqa: BLE001 - whatever an answer makes of its reader
        return alone
    if len(outcomes) != len(activations):
        return alone
    return [ALONE if outcome is None else outcome for outcome in outcomes]
