"""What a control plane counts of itself: names, the port, and a tally between two reports.

Owns the vocabulary and the arithmetic. Does not own when something is counted, nor where reports go (`drivers.emf`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

CountName: TypeAlias = Literal[
    "EventsIn",
    "Committed",
    "SpeculationLost",
    "Retries",
    "Suspensions",
    "LateResumes",
    "TerminalErrors",
    "DeadLetters",
    "RecordsRefused",
    "ProduceRetries",
    "Writes",
    "WritesRefused",
    "UnreadableItems",
    "LoopRestarts",
    "HttpRefused",
    "HttpOverloaded",
    "HttpUnanswered",
    "HttpBroken",
]
"""Things that happened: events taken in and finished, speculations whose commit was refused, failed attempts,
suspensions, events and messages that their handler ended by a terminal error, dead letters in a topic or in the table,
records set aside in the table as their topic takes none of them, failed tries to produce to a topic that is not there,
write requests of dispatcher and functions, requests of the dispatcher that the table refused, items of the table that
were met and could not be read or treated, and loops of the process that ended with an error and were restarted.

Of requests over HTTP, those that were answered by an error of this side: refused as they were (4xx), for want of room
(503), since a part of the system did not answer in time (503, 504), or broken by a mistake of this project (500). An
error that a handler raised is its answer, and not among them."""

SampleName: TypeAlias = Literal[
    "Lag", "AgeMs", "WakeLatenessMs", "UnreadablePartitions", "FunctionsUnanswered", "ClockDifferenceMs"
]
"""Measured values: records not read yet, an event's age when it was finished, how late a sleep went on, partitions that
cannot be read at present, functions whose last answer to discovery does not count, by how much this machine's clock
differs from the table's at least."""

WRITES_PER_EVENT: Final = "WritesPerEvent"

SAMPLES_MAX = 100
"""Values of one metric in one report (CloudWatch embedded metric format: 100)."""


class Metrics(Protocol):
    """Where the parts of a control plane count."""

    def count(self, name: CountName, n: int = 1) -> None:
        """Something happened n times."""
        ...

    def sample(self, name: SampleName, value: float) -> None:
        """Something was measured."""
        ...


class Uncounted:
    """No-op metrics sink."""

    def count(self, name: CountName, n: int = 1) -> None:
        """See `Metrics.count`: nothing is kept."""

    def sample(self, name: SampleName, value: float) -> None:
        """See `Metrics.sample`: nothing is kept."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a report says: counts that are not zero, and samples. `writes_per_event` is None when none was finished."""

    counts: Mapping[str, int]
    samples: Mapping[str, Sequence[float]]
    writes_per_event: float | None

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.counts or self.samples)


@dataclass(slots=True)
class Tally:
    """Counts until it is asked (the Metrics port). Of many samples it keeps every second, fourth, … and the last."""

    _counts: Counter[str] = field(default_factory=Counter)
    _samples: dict[str, list[float]] = field(default_factory=dict)
    _strides: dict[str, tuple[int, int]] = field(default_factory=dict)

    def count(self, name: CountName, n: int = 1) -> None:
        """See `Metrics.count`."""
        self._counts[name] += n

    def sample(self, name: SampleName, value: float) -> None:
        """See `Metrics.sample`."""
        kept = self._samples.setdefault(name, [])
        stride, seen = self._strides.get(name, (1, 0))
        if seen % stride == 0:
            kept.append(value)
        else:
            # The last one always counts: a gauge that has fallen is seen to have fallen.
            kept[-1] = value
        if len(kept) > SAMPLES_MAX:
            del kept[1::2]
            stride *= 2
        self._strides[name] = stride, seen + 1

    def take(self) -> Summary:
        """What was counted since the last time, and start over."""
        counts = {name: n for name, n in self._counts.items() if n}
        events = counts.get("Committed", 0)
        per_event = self._counts["Writes"] / events if events else None
        summary = Summary(counts, dict(self._samples), per_event)
        self._counts, self._samples, self._strides = Counter(), {}, {}
        return summary
