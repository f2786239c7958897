"""The work of one lane in this process: what waits for its turn, and finished events whose offsets are still held.

Owns their order, and what each of them is told by a new head. Does not own when any of them runs (`lane_worker`).
Methods that take `running` are given the work of the current activation, which stays in the queue while it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Final

from tenuto.lane.transitions import outgoing_results
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event, KafkaSource, Result
from tenuto_control.core.lane_facts import EMPTY, Turn
from tenuto_control.core.lane_policy import finished, passed
from tenuto_control.core.paces import UNKNOWN, Pace
from tenuto_control.dispatcher.delivery import fits
from tenuto_control.dispatcher.work import CallWork, Elsewhere, KafkaWork, Work
from tenuto_control.ports import TopicPartition

RESULT_LOOK_MS = 2_000
"""How often a result is looked for that the head says nothing of."""

RUN_BETWEEN = 2
"""`ver` rises by so much, at least, while a run ends that is at work, and after it a call that was handed over."""

MOVED_MAX = 20
"""Of the events that were handed over at once, so many of the last are remembered."""

RESULTS_AT_ONCE = 16
"""Results that are looked for at once, when those before them were all there."""


class LaneQueue:
    """Work in the order of its arrival. Its length and its elements are those of what waits."""

    __slots__ = ("_ahead", "_calls", "_cut_off", "_handed", "_held", "_moved", "_works")

    def __init__(self) -> None:
        # A list: most queues hold one work, for which a deque sets aside room for sixty, and none holds many thousands.
        self._works: list[Work] = []
        self._calls = 0  # How many of them are calls.
        # Finished events, each with what the outbox held when it was; None before that is known.
        self._held: dict[KafkaWork, frozenset[str] | None] = {}
        self._cut_off = False
        # Calls that are in the inbox, and whose callers wait here, by their id.
        self._handed: dict[str, CallWork] = {}
        # Events that are in the inbox, as far as this process knows, by their id.
        self._moved: dict[str, Event] = {}
        self._ahead = 1  # So many of them are looked for that the head does not name.

    def __len__(self) -> int:
        """How many works wait."""
        return len(self._works)

    def __iter__(self) -> Iterator[Work]:
        """What waits, first come first."""
        return iter(self._works)

    def __contains__(self, work: object) -> bool:
        """Whether this work waits."""
        return work in self._works

    @property
    def waiting(self) -> int:
        """How many works wait, those included that were handed over."""
        return len(self._works) + len(self._handed)

    @property
    def begins_with_call(self) -> bool:
        """Whether a call comes first."""
        return bool(self._works) and isinstance(self._works[0], CallWork)

    @property
    def forgettable(self) -> bool:
        """Whether it is empty, and knows of nothing in the inbox."""
        return self.empty and not self._moved and self._ahead == 1

    @property
    def empty(self) -> bool:
        """Whether nothing waits, and nothing is held."""
        return not (self._works or self._handed or self._held)

    @property
    def holds(self) -> bool:
        """Whether the offset of a finished event is still held."""
        return bool(self._held)

    @property
    def held(self) -> list[KafkaWork]:
        """The finished events whose offsets are still held."""
        return list(self._held)

    def turn(self, now_ms: int, head: Head | None = None, *, clock_differs: bool = False, pace: Pace = UNKNOWN) -> Turn:
        """What the lane's memory learns of the queue beside this head. `clock_differs` and `pace` are as in `Turn`."""
        works, handed, off, holds = self._works, len(self._handed), clock_differs, bool(self._held)
        run = None if head is None or head.run is None else head.run.event.id
        behind, begun = self._behind(head, run) if handed or self._moved else (0, False)
        next_ms = self._next_ms(behind)
        if not works:
            return Turn(now_ms, None, 0, 0, False, False, handed, off, holds, behind, begun, next_ms, pace)
        calls, records = self._calls > 0, self._calls < len(works)
        first = works[0]
        begun = begun or first.event.id == run
        first_ms, count = first.since_ms, len(works)
        return Turn(
            now_ms, first.event, count, first_ms, calls, records, handed, off, holds, behind, begun, next_ms, pace
        )

    def _next_ms(self, behind: int) -> int | None:
        """When the call came that is next on its lane, as far as this process knows."""
        for call in self._handed.values():
            return None if call.after else call.since_ms
        first = self._works[0] if self._works else None
        return first.since_ms if isinstance(first, CallWork) and not behind else None

    def _behind(self, head: Head | None, run: str | None) -> tuple[int, bool]:
        """How many works were handed over that have not begun, as far as this head tells; whether this run is one."""
        if head is not None:
            self._moved = {i: event for i, event in self._moved.items() if not passed(head, event)}
        begun = run is not None and (run in self._handed or run in self._moved)
        return len(self._handed) + len(self._moved) - begun, begun

    # --- coming and going ---------------------------------------------------------------------------------------------

    def add(self, work: Work, running: Collection[Work]) -> None:
        """Queue work.

        An event that is here already, from before a rebalance, only gets its new release: run twice in one batch it
        would take effect twice.
        """
        twin = self._twin(work.event, running) if self._cut_off else None
        if isinstance(twin, KafkaWork) and isinstance(work, KafkaWork):
            twin.renew(work)
        else:
            self._works.append(work)
            self._calls += isinstance(work, CallWork)

    def _twin(self, event: Event, running: Collection[Work]) -> Work | None:
        return next((w for w in (*running, *self._works, *self._held) if w.event.id == event.id), None)

    def remove(self, work: Work) -> None:
        """Take out this work, which waits."""
        self._works.remove(work)
        self._calls -= isinstance(work, CallWork)

    def _leave(self, work: Work) -> None:
        """Take out this work, unless it has gone meanwhile."""
        if work in self._works:
            self.remove(work)

    def pop(self) -> Work:
        """Take out the first."""
        work = self._works.pop(0)
        self._calls -= isinstance(work, CallWork)
        return work

    def of_kafka(self) -> list[KafkaWork]:
        """Queued Kafka events, in order."""
        return [w for w in self._works if isinstance(w, KafkaWork)]

    def call(self, event_id: str, running: Collection[Work]) -> CallWork | None:
        """A queued or running call with this id."""
        works = (*running, *self._works, *self._handed.values())
        return next((w for w in works if isinstance(w, CallWork) and w.event.id == event_id), None)

    def without_callers(self) -> list[CallWork]:
        """Take out the calls whose callers have gone, or have their answers; tell the others where to look."""
        gone = [w for w in self._works if isinstance(w, CallWork) and w.over]
        for work in gone:
            self.remove(work)
            work.finish(Elsewhere())
        return gone

    # --- handed over --------------------------------------------------------------------------------------------------

    def movable(self) -> list[Work]:
        """What can wait in the inbox, in order: events, and calls that fit there and that somebody still waits for."""
        return [w for w in self._works if isinstance(w, KafkaWork) or (fits(w.event) and not w.over)]

    def let_go_of(self, works: Sequence[KafkaWork]) -> None:
        """These events are in the inbox."""
        # All at once: taken out one by one, each would move up all that are behind it.
        if self._works[: len(works)] == works:
            del self._works[: len(works)]
        else:
            gone = set(works)
            self._works = [work for work in self._works if work not in gone]
        for work in works:
            work.release()

    def hand_over(
        self,
        works: Collection[Work],
        now_ms: int,
        head: Head | None,
        over: Collection[str] = (),
        *,
        after: bool = False,
    ) -> None:
        """These works are in the inbox, which has left this head, or `over`. Offsets go; callers wait on.

        `after`: others waited there before.
        """
        records = [work for work in works if isinstance(work, KafkaWork)]
        after = after or bool(records or self._handed or self._moved)
        self.let_go_of(records)
        self._moved |= {work.event.id: work.event for work in records[-MOVED_MAX:]}
        for work in works:
            if isinstance(work, CallWork):
                self._leave(work)
                work.looked_ms = now_ms
                work.after = after
                after = True
                work.behind_ver = _behind_ver(work, head)
                work.named = work.event.id in over
                self._handed[work.event.id] = work

    def let_go(self, work: CallWork) -> bool:
        """The caller of a call stops waiting. True when the call was handed over, and is durable."""
        handed = self._handed.pop(work.event.id, None) is not None
        if handed:
            work.finish(Elsewhere())
        return handed

    def to_look_for(self, head: Head, now_ms: int) -> list[CallWork]:
        """Calls that may have their results, now that this head has been read.

        Handed ones that nobody waits for any more, as a client that has gone does not, are forgotten.
        """
        for work in [w for w in self._handed.values() if w.over or w.wanted_until_ms < now_ms]:
            self.let_go(work)
        idle, run = is_idle(head), None if head.run is None else head.run.event.id
        # A queued call that was tried here may have been ended by another process, and the next run have begun.
        tried = [w for w in self._works if isinstance(w, CallWork) and w.attempted and w.event.id != run]
        tried = [w for w in tried if w.looked_ver != head.ver and not w.over]
        moved = [w for w in self._handed.values() if idle or w.looked_ver != head.ver]
        ended = [w for w in (*tried, *moved) if idle or w.named or w.event.nonce in head.fin]
        if ended:
            return ended
        # A head forgets what it has finished, soon when much is done. Calls leave an inbox in the order in which they
        # came there: who is first in line is looked for, then twice as many as had their results before.
        first = [w for w in islice(self._handed.values(), self._ahead) if w.looked_ver != head.ver]
        # One that was behind a run has ended after that, at the earliest; and now another run may have begun.
        least = RUN_BETWEEN + (run is not None)
        first = [w for w in first if w.behind_ver is None or head.ver - w.behind_ver >= least]
        first = [w for w in first if w.event.id != run]
        return [w for w in (*tried, *first) if w.looked_ms <= now_ms - RESULT_LOOK_MS]

    def looked_for(self, works: Sequence[CallWork], results: Sequence[Result | None], head: Head, now_ms: int) -> None:
        """Results, or None, were found for these calls after this head had been read."""
        self._ahead = 1 if None in results else min(2 * self._ahead, RESULTS_AT_ONCE)
        for work, result in zip(works, results, strict=True):
            work.looked_ms, work.looked_ver, work.behind_ver = now_ms, head.ver, _behind_ver(work, head)
            if result is not None:
                work.finish(result)
                self._leave(work)
            elif is_idle(head) and work.event.id in self._handed:
                # It is not here, or has been run since: whoever asks looks everywhere.
                work.finish(Elsewhere())
        self._handed = {i: work for i, work in self._handed.items() if not work.answer.done()}

    # --- partitions ---------------------------------------------------------------------------------------------------

    def withdraw(self, partitions: set[TopicPartition], running: Collection[Work]) -> bool:
        """Forget the events of partitions. True when some of them are being worked on right now."""
        busy = [w for w in (*running, *self._held) if _of(w, partitions)]
        for work in [w for w in self._works if _of(w, partitions)]:
            if work not in busy:
                self.remove(work)
                if isinstance(work, KafkaWork):
                    work.withdrawn = True
        return bool(busy)

    def cut(self, partitions: set[TopicPartition], running: Collection[Work]) -> None:
        """Nothing of these partitions is released any more."""
        for work in (*running, *self._works, *self._held):
            if isinstance(work, KafkaWork) and _of(work, partitions):
                work.withdrawn = True
                self._cut_off = True

    def waits_since(self, since_ms: int, partitions: set[TopicPartition], running: Collection[Work]) -> bool:
        """Whether events of these partitions have waited since a time or for longer."""
        waiting = (w for w in self._works if w not in running and _of(w, partitions))
        return any(isinstance(w, KafkaWork) and w.since_ms <= since_ms for w in waiting)

    # --- what a head says ---------------------------------------------------------------------------------------------

    def finish(self, work: Work) -> None:
        """This work is finished: an event's offset is held until what it sent has left the outbox."""
        self._leave(work)
        if isinstance(work, KafkaWork):
            self._held[work] = None

    def answer(self, head: Head, now_ms: int) -> frozenset[str]:
        """Give queued calls the results that a head holds or confirms. Returns the nonces of these calls."""
        calls = [w for w in self._works if isinstance(w, CallWork)]
        if not calls and not self._handed:
            return EMPTY
        nonces: set[str] = set()
        results = outgoing_results(head)
        for work in calls:
            known = results.get(work.event.id)
            if known is None and work.tentative is not None:
                known = work.tentative if finished(head, work.event, now_ms) else None
            if known is not None:
                nonces.add(work.event.nonce)
                work.finish(known)
                self.remove(work)
        for event_id in self._handed.keys() & results.keys():
            self._handed.pop(event_id).finish(results[event_id])
        for work in self._handed.values():
            # The next head may not name it any more.
            work.named = work.named or work.event.nonce in head.fin
        return frozenset(nonces)

    def release(self, head: Head) -> None:
        """Release events whose effects are committed, once everything they sent has left the outbox.

        Delivered is not enough. An entry that stays, because its process ends there, is delivered again with the lane's
        next event, and that may come when the receiver's tombstone is gone: the message would run twice. Until it is
        trimmed, the offset leads somebody back to it.
        """
        if not self._held:
            return
        waiting = head.out.keys()
        self._held = {work: frozenset(waiting) if sent is None else sent for work, sent in self._held.items()}
        for work in [work for work, sent in self._held.items() if sent is not None and not sent & waiting]:
            del self._held[work]
            work.release()

    def entrust(self, works: Collection[KafkaWork]) -> None:
        """Release these finished events: a timer leads back to what they sent."""
        for work in works:
            if work in self._held:
                del self._held[work]
                work.release()


class _NoWork(LaneQueue):
    """The queue of all lanes that have no work: nothing ever gets into it."""

    __slots__ = ()

    def add(self, work: Work, running: Collection[Work]) -> None:  # noqa: ARG002 - for any work
        """See `LaneQueue.add`."""
        raise AssertionError("a lane's first work has a queue made for it")

    def finish(self, work: Work) -> None:  # noqa: ARG002 - for any work
        """See `LaneQueue.finish`."""
        raise AssertionError("what a lane finishes was in its own queue")


NO_WORK: Final = _NoWork()
"""Most lanes that rest have no work, and a queue of their own would be 260 bytes."""


def _behind_ver(call: CallWork, head: Head | None) -> int | None:
    """The `ver` of a head in which the run of another is at work, for a call behind it; None when there is none."""
    behind = head is not None and head.run is not None and head.run.event.id != call.event.id
    return head.ver if head is not None and behind else None


def is_idle(head: Head) -> bool:
    """Whether nothing is in progress on a lane, and nothing waits there."""
    return head.run is None and head.pend is None and not head.out


def _of(work: Work, partitions: set[TopicPartition]) -> bool:
    source = work.event.source
    return isinstance(source, KafkaSource) and TopicPartition(source.topic, source.partition) in partitions
