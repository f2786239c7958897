"""The request that activations of several lanes share, and their outcomes in its answer.

Owns both. Does not own who shares it (`pools`, `capacity`), nor what an outcome means (`activations`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.protocol.limits import PAYLOAD_BYTES_MAX
from tenuto.protocol.messages import PROTOCOL_VERSION, decode_outcomes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.pools import ALONE, Told
from tenuto_control.limits import ANSWER_BYTES_MAX, ANSWER_MEMBERS_MAX, REQUEST_COPIES
from tenuto_control.ports import AnswerHolder, FunctionThrottledError, InvokeError, Target


async def ask_together(
    services: Parts, target: Target, room: AnswerHolder, activations: Sequence[bytes]
) -> Sequence[Told]:
    """Ask for encoded activations at once. Whatever fails as a whole has done nothing: each is asked for alone then."""
    alone = [ALONE] * len(activations)
    payload = b'{"type":"pooled","activations":[%b],"version":%d}' % (b",".join(activations), PROTOCOL_VERSION)
    if len(payload) > PAYLOAD_BYTES_MAX:
        return alone
    async with services.capacity.room(target, REQUEST_COPIES * len(payload)):
        try:
            answer = await services.invoker.invoke(target.function, payload, room)
        except FunctionThrottledError as e:
            return [e] * len(activations)
        except InvokeError:
            return alone
    await room.hold(len(answer))
    if len(answer) > ANSWER_BYTES_MAX or answer.count(b",") > ANSWER_MEMBERS_MAX:
        return alone
    try:
        outcomes = decode_outcomes(answer).outcomes
    except Exception:  # noqa: BLE001 - whatever an answer makes of its reader
        return alone
    if len(outcomes) != len(activations):
        return alone
    return [ALONE if outcome is None else outcome for outcome in outcomes]
