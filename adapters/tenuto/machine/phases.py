"""Phases of an attempt, as a table.

Owns which event leads from which phase to which. Does not own what is done on the way.

    SPECULATING   nothing durable has happened; the whole attempt may be dropped
    OWNING        the lease is ours under a fencing token; every write is conditional on it
    SUSPENDED     the lane waits; this attempt has ended
    COMMITTED     the invocation has ended; the same function may continue with the lane's next event
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


class PhaseChange(Enum):
    """What happened to an attempt."""

    CLAIMED = "claimed"
    CHECKPOINTED = "checkpointed"
    SUSPENDED = "suspended"
    COMMITTED = "committed"
    CONTINUED = "continued"
    REFUSED = "refused"


TRANSITIONS: dict[tuple[Phase, PhaseChange], Phase] = {
    (Phase.SPECULATING, PhaseChange.CLAIMED): Phase.OWNING,
    (Phase.SPECULATING, PhaseChange.REFUSED): Phase.FENCED,
    (Phase.OWNING, PhaseChange.CHECKPOINTED): Phase.OWNING,
    (Phase.OWNING, PhaseChange.SUSPENDED): Phase.SUSPENDED,
    (Phase.OWNING, PhaseChange.COMMITTED): Phase.COMMITTED,
    (Phase.OWNING, PhaseChange.REFUSED): Phase.FENCED,
    (Phase.SPECULATING, PhaseChange.COMMITTED): Phase.COMMITTED,
    (Phase.COMMITTED, PhaseChange.CONTINUED): Phase.SPECULATING,
    (Phase.FENCED, PhaseChange.REFUSED): Phase.FENCED,
}


class IllegalChangeError(Exception):
    """A change that the table does not know: a mistake in tenuto, never in a handler."""


def advance(phase: Phase, change: PhaseChange) -> Phase:
    """The phase after a change. Raises IllegalChangeError."""
    try:
        return TRANSITIONS[phase, change]
    except KeyError:
        raise IllegalChangeError(f"an attempt that is {phase.value} cannot be {change.value}") from None
