"""How far this machine's clock is from the table's, as answers of the table tell it.

Owns what one dated answer says, how several are put together, and what follows for leases. Does not own reading dates
(`drivers.table_clock`), nor the decision that depends on it (`lane_policy`).

A lease is a time that one machine writes down and another compares with its own clock, so all that matters is how far
clocks are from each other. Each is compared with the table's, the one that all of them meet. An answer is dated to the
second, so a single one only bounds the difference; several, together, bound it to about the time of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

DATE_MS: Final = 1_000
"""What a date leaves open: it is cut to the second."""

DRIFT_MS: Final = 5_000
"""Two clocks that are left alone drift apart by a millisecond in this time at most (200 parts per million)."""


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """This clock is ahead of the table's by `low_ms` at least and `high_ms` at most; negative: behind it.

    `at_ms` is when that was found, by this clock.
    """

    low_ms: int
    high_ms: int
    at_ms: int

    @property
    def offset_ms(self) -> int:
        """By how much this clock is ahead, as well as that is known."""
        return (self.low_ms + self.high_ms) // 2

    @property
    def within_ms(self) -> int:
        """How far the truth may be from `offset_ms`."""
        return (self.high_ms - self.low_ms + 1) // 2

    @property
    def certain_ms(self) -> int:
        """By how much the two clocks differ at least, to whichever side."""
        return max(self.low_ms, -self.high_ms, 0)

    def differs(self, margin_ms: int) -> bool:
        """Whether the two clocks certainly differ by more than a margin."""
        return self.certain_ms > margin_ms


class TableClock(Protocol):
    """The port: what is known of the table's clock."""

    @property
    def check(self) -> ClockCheck | None:
        """How this clock compares with the table's; None before the first answer that tells."""
        ...


class UncheckedClock:
    """The table clock of a process whose table tells no time (the TableClock port)."""

    check: ClockCheck | None = None


def reading(asked_ms: int, answered_ms: int, dated_ms: int) -> ClockCheck | None:
    """What one answer says, by this clock asked for and received at these times; None when the clock was set between.

    The answer was dated at some time between the two, and up to a second after what its date says.
    """
    if answered_ms < asked_ms:
        return None
    return ClockCheck(asked_ms - dated_ms - DATE_MS, answered_ms - dated_ms, answered_ms)


def joined(known: ClockCheck | None, told: ClockCheck) -> ClockCheck:
    """What is known after one more answer. One that contradicts the others counts alone: a clock was set."""
    if known is None:
        return told
    drift_ms = 1 + max(0, told.at_ms - known.at_ms) // DRIFT_MS
    low_ms = max(known.low_ms - drift_ms, told.low_ms)
    high_ms = min(known.high_ms + drift_ms, told.high_ms)
    return told if low_ms > high_ms else ClockCheck(low_ms, high_ms, told.at_ms)


def differs(check: ClockCheck | None, margin_ms: int) -> bool:
    """Whether a clock is known to differ from the table's by more than a margin."""
    return check is not None and check.differs(margin_ms)


def lease_from_ms(check: ClockCheck | None, now_ms: int, margin_ms: int) -> int:
    """When a lease that is written now begins: now, but by the table's clock where this one is certainly behind.

    Others would find it over at once. One that is ahead only makes others wait.
    """
    behind = check is not None and check.high_ms < -margin_ms
    return now_ms - check.low_ms if check is not None and behind else now_ms


def passed_ms(check: ClockCheck | None, now_ms: int) -> int:
    """A time that has certainly come by the table's clock, for what may only be done when enough of it has passed.

    What others have dated looks older than it is to a clock that is ahead. One that is behind only waits longer.
    """
    return now_ms if check is None else now_ms - max(0, check.high_ms)


def certain_ms(check: ClockCheck | None, now_ms: int) -> int:
    """The time by this clock, without what it is certainly ahead of the table's."""
    return now_ms if check is None else now_ms - max(0, check.low_ms)
