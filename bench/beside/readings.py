"""What the handlers' notes say: when each event ended, and how late each sleep did.

Owns reading the file of `notes` while it grows. A handler that is replayed notes its way again, so of each kind the
first note of an event counts; it ends once, and a second end is counted as a repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.beside.notes import ENDED, SLEEPS, WOKE

SLEEP_S = 1.0


@dataclass(slots=True)
class Readings:
    """The notes of one file so far, by the events' numbers. Times are seconds since the epoch."""

    path: Path
    sent: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    repeats: int = 0
    _sleeps: dict[int, float] = field(default_factory=dict)
    _woke: dict[int, float] = field(default_factory=dict)
    _place: int = 0

    def read_on(self) -> None:
        """Take in what was added since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._place += whole
        for line in data[:whole].decode().splitlines():
            self._take(*line.split(" "))

    def _take(self, kind: str, number: str, sent: str, now: str) -> None:
        event = int(number)
        if kind == SLEEPS:
            self._sleeps.setdefault(event, float(now))
        elif kind == WOKE:
            self._woke.setdefault(event, float(now))
        elif kind == ENDED:
            self.repeats += event in self.ended
            self.sent.setdefault(event, float(sent))
            self.ended.setdefault(event, float(now))

    def done(self, numbers: range) -> int:
        """How many of these events have ended."""
        return sum(number in self.ended for number in numbers)

    def per_s(self, numbers: range) -> float:
        """Events a second, from when the first was sent to the last end.

        From the first end on, what is begun before it would not count: with sleeps that may be half of all work.
        """
        since_s = min(self.sent[number] for number in numbers)
        return len(numbers) / max(max(self.ended[number] for number in numbers) - since_s, 1e-3)

    def latencies_ms(self, numbers: range) -> list[float]:
        """From when each was sent to its end."""
        return [1000 * (self.ended[number] - self.sent[number]) for number in numbers]

    def lateness_ms(self, numbers: range) -> list[float]:
        """How long after one second each sleep ended; both moments are the handler's own."""
        return [
            1000 * (self._woke[number] - self._sleeps[number] - SLEEP_S) for number in numbers if number in self._woke
        ]
