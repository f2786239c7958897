"""How long work waits for a lane that nobody uses, and a caller for a result that is there.

Owns the time bounds of liveness: work may wait for what runs before it on its lane, for a sleep or an answer its lane
waits for, and for `bound_ms` besides. Does not own what must happen at all (`oracles`). The bound is for scenarios
without faults: after a crash, a lease or a guard decides when somebody comes by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tenuto.protocol.ids import InvocationId
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event
from tests.simulation.loop import SimulatedLoop

LAW = "hand-over"


@dataclass(slots=True)
class _Waiting:
    """What waits for one lane, each with the time it came; and since when nobody has used the lane (None: it is used).

    Records are known by source and offset, calls by their nonce.
    """

    records: dict[tuple[str, int], int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    free_since_ms: int | None = 0


@dataclass(slots=True)
class Gaps:
    """Watches the lanes of one world. Times are true time in ms; without a bound, nothing is too long."""

    loop: SimulatedLoop
    bound_ms: int | None
    report: Callable[[str, str], None]
    _lanes: dict[str, _Waiting] = field(default_factory=dict)
    _committed: dict[str, int] = field(default_factory=dict)
    _unanswered: set[str] = field(default_factory=set)

    def produced(self, pk: str, source: str, offset: int) -> None:
        """A record for a lane is in Kafka."""
        self._lane(pk).records[source, offset] = self.loop.now_ms()

    def asked(self, event: Event) -> None:
        """A caller has sent a call."""
        lane, nonce = InvocationId.parse(event.id)
        self._lane(lane.pk).calls[nonce] = self.loop.now_ms()
        self._unanswered.add(nonce)

    def answered(self, invocation: str) -> None:
        """A caller has its result."""
        nonce = InvocationId.parse(invocation).nonce
        if nonce in self._unanswered and nonce in self._committed:
            self._unanswered.discard(nonce)
            self._gap(self._committed[nonce], f"call {nonce} was committed, its caller waited")

    def wrote(self, pk: str, was: Head, now: Head) -> None:
        """A head has changed."""
        waiting, now_ms = self._lane(pk), self.loop.now_ms()
        if now.ver != was.ver or (was.run is not None and was.run.suspended and now.slots != was.slots):
            self._ends(pk, waiting)
        for nonce in now.fin.keys() & waiting.calls.keys():
            del waiting.calls[nonce]
            self._committed[nonce] = now_ms
        for source, offset in list(waiting.records):
            if offset < now.watermarks.get(source, 0):
                del waiting.records[source, offset]
        if now.run is None:
            waiting.free_since_ms = now_ms
        elif not now.run.suspended:
            waiting.free_since_ms = None
        else:
            waiting.free_since_ms = now.run.wake_ms

    def _ends(self, pk: str, waiting: _Waiting) -> None:
        """Somebody has taken up a lane, or finished something on it."""
        arrivals = [*waiting.records.values(), *waiting.calls.values()]
        if waiting.free_since_ms is not None and arrivals:
            self._gap(max(waiting.free_since_ms, min(arrivals)), f"{pk}: nobody used it while {len(arrivals)} waited")

    def _gap(self, since_ms: int, text: str) -> None:
        gap_ms = self.loop.now_ms() - since_ms
        if self.bound_ms is not None and gap_ms > self.bound_ms:
            self.report(LAW, f"{text} for {gap_ms} ms")

    def _lane(self, pk: str) -> _Waiting:
        return self._lanes.setdefault(pk, _Waiting())
