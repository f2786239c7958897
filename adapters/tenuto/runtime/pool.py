"""Several activations in one invocation, one after the other, none of which writes anything.

Owns which of them are run, and which are handed back to be asked for alone. Does not own what one does (`activation`),
nor which lanes come together (`tenuto_control.dispatcher.pools`).

Nothing of a pooled invocation is durable: whatever ends it leaves every lane as it was. An activation that turns out to
need the lease has run in vain up to there, as a speculation does that is overtaken.
"""

from __future__ import annotations

from collections.abc import Callable

from tenuto.protocol.limits import POOLED_BYTES_MAX, POOLED_MS_MAX
from tenuto.protocol.messages import Activation, Outcomes, Pooled, Rejected, Speculated
from tenuto.runtime.beside import Run, outcome_bytes


async def run_pooled(request: Pooled, run: Run, now_ms: Callable[[], int]) -> Outcomes:
    """The outcomes, in the order of the activations; None for each that is to be asked for alone."""
    until_ms, size = now_ms() + POOLED_MS_MAX, 0
    outcomes: list[Speculated | Rejected | None] = []
    for activation in request.activations:
        outcome: Speculated | Rejected | None = None
        if activation.mode == "speculate" and now_ms() < until_ms and size <= POOLED_BYTES_MAX:
            outcome = await _outcome(activation, run)
            size += 0 if outcome is None else outcome_bytes(outcome)
        # The first one has room in any case. Of another one that has none, nothing has happened.
        outcomes.append(outcome if size <= POOLED_BYTES_MAX or not outcomes else None)
    return Outcomes(tuple(outcomes))


async def _outcome(activation: Activation, run: Run) -> Speculated | Rejected | None:
    try:
        outcome = await run(activation)
    except Exception:  # noqa: BLE001 - whatever it is, it is met again where the activation runs alone
        return None
    return outcome if isinstance(outcome, Speculated | Rejected) else None
