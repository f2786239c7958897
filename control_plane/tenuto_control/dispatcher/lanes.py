"""The lanes at work in this process, and what is remembered of idle ones.

Owns which lanes have a worker, from the first thing there is to do until it is idle. Does not own what a lane does
(`lane_worker`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from tenuto.lane.timers import SleepTimer
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event
from tenuto_control.core.lane_memory import UNREAD, Known, LaneMemory
from tenuto_control.core.lane_policy import left_alone
from tenuto_control.dispatcher.lane_worker import LaneWorker
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.work import KafkaWork
from tenuto_control.ports import Resting, TopicPartition


class Lanes:
    """The lanes of one process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._workers: dict[Lane, LaneWorker] = {}
        self._known: OrderedDict[Lane, LaneMemory] = OrderedDict()

    # --- work -------------------------------------------------------------------------------------------------------

    def worker(self, lane: Lane) -> LaneWorker:
        """The worker of a lane, which begins to work unless it does already."""
        return self._worker(lane, None)

    def find(self, lane: Lane) -> LaneWorker | None:
        """The worker of a lane that is at work."""
        return self._workers.get(lane)

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        """Queue a Kafka event."""
        lane, nonce = event.invocation
        # A lane of its own for every event: nothing can have happened there but this event itself.
        fresh = lane.key == nonce and lane not in self._known
        self._worker(lane, Head() if fresh else None).add(KafkaWork(event, released, self._parts.clock.now_ms()))

    def wake(self, lane: Lane) -> None:
        """A wake-up for a lane: a hint, checked against its head."""
        self.worker(lane).nudge()

    def look(self, lane: Lane) -> None:
        """Something was put into a lane's inbox or slots."""
        self.worker(lane).nudge(look=True)

    def retry(self, lane: Lane) -> None:
        """What its last attempt failed for seems to be over: the next one need not wait out its pause."""
        self.worker(lane).retry()

    # --- partitions -------------------------------------------------------------------------------------------------

    def withdraw(self, partitions: Collection[TopicPartition]) -> bool:
        """Forget the queued events of partitions. True while some of them are being worked on."""
        gone = set(partitions)
        return bool([worker for worker in self._workers.values() if worker.withdraw(gone)])

    def cut(self, partitions: Collection[TopicPartition]) -> None:
        """Whatever still runs of these partitions releases nothing any more."""
        gone = set(partitions)
        for worker in self._workers.values():
            worker.cut(gone)

    def relieve(self, partitions: Collection[TopicPartition]) -> None:
        """Make room in these partitions, where events of theirs have waited for long."""
        pressed = set(partitions)
        for worker in self._workers.values():
            worker.relieve(pressed)

    # --- rest -------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether an activation or an unfinished release is under way in any of them."""
        return any(worker.running for worker in self._workers.values())

    def busy_before(self, time_ms: int) -> list[Lane]:
        """The lanes that have something to do before a time."""
        return [lane for lane, worker in self._workers.items() if worker.busy_before(time_ms)]

    @property
    def active(self) -> int:
        """How many lanes are doing something: those not counted that only wait."""
        return sum(not worker.rests for worker in self._workers.values())

    @property
    def at_work(self) -> Collection[Lane]:
        """The lanes that are not idle."""
        return self._workers.keys()

    def resting(self) -> dict[Lane, Resting]:
        """The lanes that only wait."""
        return {lane: rest for lane, worker in self._workers.items() if (rest := worker.resting) is not None}

    async def drop(self, lane: Lane) -> None:
        """Stop a lane where it is, as a crash would."""
        worker = self._workers.pop(lane, None)
        if worker is not None and worker.task is not None:
            worker.task.cancel()
            await asyncio.gather(worker.task, return_exceptions=True)

    async def entrust(self) -> None:
        """Release every event that is finished but for what it sent; timers lead back to that."""
        for worker in list(self._workers.values()):
            await worker.entrust()

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The tasks of all workers."""
        return tuple(worker.task for worker in self._workers.values() if worker.task is not None)

    def clear(self) -> None:
        """Forget the workers, whose tasks have been cancelled."""
        self._workers.clear()

    def _worker(self, lane: Lane, head: Head | None) -> LaneWorker:
        worker = self._workers.get(lane)
        if worker is None:
            known = self._known.pop(lane, None) or LaneMemory(UNREAD if head is None else Known(head))
            worker = LaneWorker(lane, self._parts, known, self._idle)
            self._workers[lane] = worker
            worker.start()
        return worker

    def _idle(self, worker: LaneWorker, wake_ms: int | None) -> None:
        """A worker has nothing left to do."""
        lane, head = worker.lane, worker.head
        del self._workers[lane]
        known = worker.known()
        wanted = head is not None and (head.run is not None or self._parts.keyed(lane.service))
        if wanted or left_alone(known):
            self._known[lane] = known
            while len(self._known) > self._parts.limits.lane_cache_max:
                self._known.popitem(last=False)
        if wake_ms is not None and head is not None and head.run is not None:
            self._parts.wheel.remind(SleepTimer(lane, head.run.event.nonce, wake_ms, f"local.{head.ver}"))
