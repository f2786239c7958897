"""The lanes of this process that have something to do, and what is remembered of idle ones.

Owns which lanes have a worker, from the first thing there is to do until it is idle. Does not own what a lane does
(`lane_worker`), when it gets its place to do it (`lane_places`), nor how much may be remembered (`heads`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from tenuto.lane.timers import SleepTimer
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event
from tenuto_control.core.lane_bounds import Bounds
from tenuto_control.core.lane_memory import UNREAD, Known, LaneMemory
from tenuto_control.core.lane_policy import left_alone
from tenuto_control.dispatcher.heads import Heads, weight_of
from tenuto_control.dispatcher.lane_places import Kind, LanePlaces
from tenuto_control.dispatcher.lane_rests import Rests
from tenuto_control.dispatcher.lane_worker import LaneWorker
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.work import KafkaWork
from tenuto_control.ports import Resting, TopicPartition

log = logging.getLogger("tenuto.dispatcher")

UNREAD_LANE: Final = LaneMemory(UNREAD)

LANES_LOG_INTERVAL_MS: Final = 60_000
"""How often it is said that there are too many lanes."""


class Lanes:
    """The lanes of one process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        limits = parts.limits
        self._workers: dict[Lane, LaneWorker] = {}
        self._known = Heads(limits.lane_cache_max, limits.lane_cache_bytes_max)
        self._places = LanePlaces(limits, parts.targets, parts.functions)
        self._alarms = Rests()
        # Those that rest and hold no work of this process: what they are for is in the table, and a timer leads there.
        self._spare: dict[Lane, LaneWorker] = {}
        self._halted = False
        self._said_ms = 0
        self._bounds = self._bounds_now()

    # --- work -------------------------------------------------------------------------------------------------------

    def worker(self, lane: Lane) -> LaneWorker:
        """The worker of a lane, for a call: it begins to work, as soon as there is a place, once it is given some."""
        return self._worker(lane, None, Kind.CALL)

    def find(self, lane: Lane) -> LaneWorker | None:
        """The worker of a lane that is at work."""
        return self._workers.get(lane)

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        """Queue a Kafka event."""
        lane, nonce = event.invocation
        # A lane of its own for every event: nothing can have happened there but this event itself.
        fresh = lane.key == nonce and lane not in self._known
        worker = self._worker(lane, Head() if fresh else None, Kind.RECORD)
        worker.add(KafkaWork(event, released, self._parts.clock.now_ms()))

    def wake(self, lane: Lane) -> None:
        """A wake-up for a lane: a hint, checked against its head."""
        worker = self._hinted(lane)
        if worker is not None:
            worker.nudge()

    def look(self, lane: Lane) -> None:
        """Something was put into a lane's inbox or slots."""
        worker = self._hinted(lane)
        if worker is not None:
            worker.nudge(look=True)

    def retry(self, lane: Lane) -> None:
        """What its last attempt failed for seems to be over: the next one need not wait out its pause."""
        worker = self._hinted(lane)
        if worker is not None:
            worker.retry()

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
        """Whether an activation or an unfinished release is in progress in any of them."""
        return any(worker.running for worker in self._workers.values())

    def busy_before(self, time_ms: int) -> list[Lane]:
        """The lanes that have something to do before a time."""
        return [lane for lane, worker in self._workers.items() if worker.busy_before(time_ms)]

    @property
    def active(self) -> int:
        """How many lanes do something, or are about to: those not counted that rest, or wait with records alone."""
        return self._places.at_work + self._places.hinted

    @property
    def at_work(self) -> Collection[Lane]:
        """The lanes that are not idle."""
        return self._workers.keys()

    def resting(self) -> dict[Lane, Resting]:
        """The lanes that only wait."""
        return {lane: rest for lane, worker in self._workers.items() if (rest := worker.resting) is not None}

    async def drop(self, lane: Lane) -> None:
        """Stop a lane where it is, as a crash would."""
        worker = self._workers.get(lane)
        if worker is None:
            return
        task = self._removed(worker)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def entrust(self) -> None:
        """Release every event that is finished but for what it sent; timers lead back to that."""
        for worker in list(self._workers.values()):
            await worker.entrust()

    def halt(self) -> tuple[asyncio.Task[None], ...]:
        """Start nothing more until `clear`. Returns the tasks of what is in progress."""
        self._halted = True
        tasks = [worker.halt() for worker in self._workers.values()]
        return tuple(task for task in tasks if task is not None)

    def clear(self) -> None:
        """Forget the workers, whose tasks have been cancelled."""
        for worker in self._workers.values():
            worker.halt()
        self._workers.clear()
        self._alarms.clear()
        self._parts.naps.clear()
        self._spare.clear()
        self._places.clear()
        self._known.clear()
        self._halted = False

    # --- what workers tell (lane_worker.Owner) ------------------------------------------------------------------------

    @property
    def alarms(self) -> Rests:
        """See `Owner.alarms`."""
        return self._alarms

    def ready(self, worker: LaneWorker) -> None:
        """See `Owner.ready`."""
        if self._workers.get(worker.lane) is not worker:
            return
        self._spare.pop(worker.lane, None)
        self._enter(worker, Kind.BEGUN)

    def starts(self, worker: LaneWorker) -> None:
        """See `Owner.starts`."""
        self._known.release(worker.lane)

    def may_begin(self, worker: LaneWorker) -> bool:
        """See `Owner.may_begin`."""
        return self._places.may_begin(worker)

    def gives_way(self, worker: LaneWorker) -> None:
        """See `Owner.gives_way`."""
        if self._let_go(worker):
            self._enter(worker, Kind.CALL if worker.queue.begins_with_call else Kind.RECORD)

    def rests(self, worker: LaneWorker) -> None:
        """See `Owner.rests`."""
        if not self._let_go(worker):
            return
        if not worker.waiting and not worker.queue.holds and not worker.naps:
            self._spare[worker.lane] = worker
            if self._crowded:
                self._make_room()

    def idle(self, worker: LaneWorker, wake_ms: int | None) -> None:
        """See `Owner.idle`."""
        lane, head = worker.lane, worker.head
        if self._workers.get(lane) is not worker:
            return
        del self._workers[lane]
        self._parts.naps.end(lane)
        weight = 0
        memory = worker.memory.at_rest()
        wanted = head is not None and (head.run is not None or self._parts.keyed(lane.service))
        if wanted or left_alone(memory):
            weight = weight_of(memory)
            self._known.keep(lane, memory)
        self._leave(worker, weight)
        if wake_ms is not None and head is not None and head.run is not None:
            self._parts.wheel.remind(SleepTimer(lane, head.run.event.nonce, wake_ms, f"local.{head.ver}"))

    def unneeded(self, worker: LaneWorker) -> None:
        """See `Owner.unneeded`."""
        if self._workers.get(worker.lane) is worker:
            del self._workers[worker.lane]
            if worker.head is not None or left_alone(worker.memory):
                self._known.keep(worker.lane, worker.memory.at_rest())

    # --- places -------------------------------------------------------------------------------------------------------

    def _let_go(self, worker: LaneWorker) -> bool:
        """A worker has given its place back, for now. False when it was dropped meanwhile."""
        if self._workers.get(worker.lane) is not worker:
            worker.halt()
            return False
        weight = weight_of(worker.memory)
        self._leave(worker, None if worker.head is None else weight)
        if not self._known.hold(worker.lane, weight):
            worker.forget_head()
        return True

    def _worker(self, lane: Lane, head: Head | None, kind: Kind) -> LaneWorker:
        worker = self._workers.get(lane)
        if worker is None:
            self._make_room()
            known = self._known.take(lane) or (UNREAD_LANE if head is None else LaneMemory(Known(head)))
            if self._bounds.process != self._parts.process:
                self._bounds = self._bounds_now()
            worker = LaneWorker(lane, self._parts, known, self._bounds, self)
            self._workers[lane] = worker
            self._enter(worker, kind)
        return worker

    def _hinted(self, lane: Lane) -> LaneWorker | None:
        """The worker of a lane that a hint is about. None when there are too many lanes: the sweep comes by again.

        One function's lanes may be too many by themselves, so that others' are not refused for them.
        """
        if lane not in self._workers:
            crowds = self._places.crowds(lane.service, self._parts.limits.lanes_max)
            if crowds or not self._make_room():
                return None
        return self._worker(lane, None, Kind.BEGUN)

    @property
    def _crowded(self) -> bool:
        return len(self._workers) - self._places.backlog >= self._parts.limits.lanes_max

    def _make_room(self) -> bool:
        """Have room for one more lane. False when there is none, whatever could be left to the sweep was."""
        if not self._crowded:
            return True
        now_ms = self._parts.clock.now_ms()
        if now_ms - self._said_ms >= LANES_LOG_INTERVAL_MS:
            self._said_ms = now_ms
            text = "%d lanes have work or wait for a pause to end (lanes_max); some wait for the sweep instead"
            log.warning(text, len(self._workers))
        if not self._spare:
            return False
        self._removed(next(iter(self._spare.values())))
        return True

    def _removed(self, worker: LaneWorker) -> asyncio.Task[None] | None:
        """Take a worker out, wherever it is. Returns its task, which the caller ends."""
        task = worker.halt()
        del self._workers[worker.lane]
        self._parts.naps.end(worker.lane)
        self._spare.pop(worker.lane, None)
        self._known.release(worker.lane)
        self._leave(worker, None)
        return task

    def _enter(self, worker: LaneWorker, kind: Kind) -> None:
        if not self._halted:
            self._places.enter(worker, kind)

    def _leave(self, worker: LaneWorker, head_bytes: int | None) -> None:
        if not self._halted:
            self._places.leave(worker, head_bytes)

    def _bounds_now(self) -> Bounds:
        limits = self._parts.limits
        return Bounds(
            limits.spill_after_ms,
            limits.spill_records_max,
            limits.lease_margin_ms,
            limits.call_look_ms,
            limits.event_look_ms,
            limits.owner_ms,
            limits.keep_events_ms,
            self._parts.process,
        )
