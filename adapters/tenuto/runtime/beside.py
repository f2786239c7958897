"""Several activations in one invocation, side by side on the function's event loop, each of which may write.

Owns that one which fails leaves the others alone, and how much the answer tells. Does not own what an activation does
(`activation`), nor which lanes come together (`tenuto_control.dispatcher.pools`).

To the table each lane is what it is alone: it has a head, a holder, conditions and an end of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tenuto.protocol.failures import describe, printable
from tenuto.protocol.limits import BESIDE_BYTES_MAX
from tenuto.protocol.messages import (
    Activation,
    Broken,
    Committed,
    Fenced,
    Outcome,
    Outcomes,
    Pooled,
    Speculated,
    Suspended,
)
from tenuto.protocol.records import Success, pack
from tenuto.protocol.texts import shown

log = logging.getLogger("tenuto.function")

Run: TypeAlias = Callable[[Activation], Awaitable[Outcome]]
"""Runs one activation, in an environment that it shares."""


async def run_beside(request: Pooled, run: Run) -> Outcomes:
    """The outcomes, in the order of the activations; None for each that has done nothing, and is to be asked for again.

    The head of a lane says what an outcome would that has no room.
    """
    works = (_outcome(activation, run) for activation in request.activations)
    # Whatever ends one of them, none goes on when this is over: it would run in an invocation that is not its own.
    ended = await asyncio.gather(*works, return_exceptions=True)
    size, outcomes = 0, []
    for one in ended:
        if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError):
            raise one
        # Cancelled by code of a step, which shares this event loop.
        outcome = Broken(describe(one)) if isinstance(one, BaseException) else one
        size += outcome_bytes(outcome)
        outcomes.append(outcome if size <= BESIDE_BYTES_MAX else _without_room(outcome))
    return Outcomes(tuple(outcomes))


async def _outcome(activation: Activation, run: Run) -> Outcome | Broken:
    try:
        return await run(activation)
    except Exception as e:  # noqa: BLE001 - it fails this activation, as it would an invocation of its own
        error = e
    log.error("%s/%s: %s", activation.service, activation.key, shown(describe(error)), exc_info=printable(error))
    return Broken(describe(error))


def _without_room(outcome: Outcome | Broken) -> Outcome | Broken | None:
    match outcome:
        case Speculated():
            return None
        case Committed() | Suspended():
            return Fenced("its outcome has no room in an answer that others share")
        case _:
            return outcome


def outcome_bytes(outcome: Outcome | Broken) -> int:
    """How large an outcome is, roughly: results, state, journal and messages make all of its size."""
    match outcome:
        case Speculated(results, state, out):
            size = sum(len(value or b"") for value in state.values()) + sum(len(pack(entry)) for entry in out)
        case Committed(results, head) | Suspended(results, head):
            size = sum(map(len, head.state.values())) + sum(map(len, head.slots.values()))
            size += sum(len(value or b"") for value in head.base.values())
            size += sum(len(pack(entry)) for entry in head.out.values())
            if head.run is not None:
                size += len(head.run.event.input or b"")
        case _:
            return 0
    for ended in results:
        if isinstance(ended.result, Success):
            size += len(ended.result.value or b"")
    return size
