"""Phases of an attempt, as a table.

Owns which event leads from which phase to which. Does not own what is done on the way.

    SPECULATING   nothing durable has happened; the whole attempt may be dropped
    OWNING        the lease is ours under a fencing token; every write is conditional on it
    SUSPENDED     the lane waits; this attempt has ended
    COMMITTED     the invocation has ended; the same function may go on with the lane's next event
    FENCED        another attempt owns the lane, or may; this one stops
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where an attempt stands."""

    SPECULATING = "speculating"
    OWNING = "owning"
    SUSPENDED = "suspended"
    COMMITTED = "committed"
    FENCED = "fenced"


class Step(Enum):
    """What happened to an attempt."""

    CLAIMED = "claimed"
    CHECKPOINTED = "checkpointed"
    SUSPENDED = "suspended"
    COMMITTED = "committed"
    CONTINUED = "continued"
    REFUSED = "refused"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.SPECULATING, Step.CLAIMED): Phase.OWNING,
    (Phase.SPECULATING, Step.REFUSED): Phase.FENCED,
    (Phase.OWNING, Step.CHECKPOINTED): Phase.OWNING,
    (Phase.OWNING, Step.SUSPENDED): Phase.SUSPENDED,
    (Phase.OWNING, Step.COMMITTED): Phase.COMMITTED,
    (Phase.OWNING, Step.REFUSED): Phase.FENCED,
    (Phase.SPECULATING, Step.COMMITTED): Phase.COMMITTED,
    (Phase.COMMITTED, Step.CONTINUED): Phase.SPECULATING,
    (Phase.FENCED, Step.REFUSED): Phase.FENCED,
}


class IllegalStepError(Exception):
    """A step that the table does not know: a mistake in tenuto, never in a handler."""


def advance(phase: Phase, step: Step) -> Phase:
    """The phase after a step. Raises IllegalStepError."""
    try:
        return TRANSITIONS[phase, step]
    except KeyError:
        raise IllegalStepError(f"an attempt that is {phase.value} cannot be {step.value}") from None
