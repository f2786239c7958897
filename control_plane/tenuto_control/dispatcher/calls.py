"""Calls whose callers wait in this process, and what becomes of one whose caller stops waiting.

Owns a call's way from its lane's queue to its answer, its handing over when it takes longer than its wait, and how many
calls and messages are held here together. Does not own running a call (`lanes`), nor finding a result that others bring
(`results`).
"""

from __future__ import annotations

from typing import assert_never

from tenuto.lane.head import UnreadableHeadError, head_key, parse_head
from tenuto.protocol.limits import GUARD_MARGIN_MS, VALUE_BYTES_MAX
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event, Failed, Success, event_bytes
from tenuto_control.dispatcher.delivery import fits
from tenuto_control.dispatcher.lane_worker import LaneWorker
from tenuto_control.dispatcher.lanes import Lanes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.results import Results
from tenuto_control.dispatcher.room import Held, Room
from tenuto_control.dispatcher.work import CallWork, Elsewhere
from tenuto_control.ports import Answer, OverloadedError, Pending, TooLargeError, UndecidedError, Unknown
from tenuto_control.waiting import settled

COMMIT_LOOK_S = 0.02
"""How often a call whose caller stops waiting looks whether a commit in progress has been answered."""


class Calls:
    """The calls of one process."""

    def __init__(self, parts: Parts, lanes: Lanes, results: Results) -> None:
        self._parts = parts
        self._lanes = lanes
        self._results = results
        self._room = self._empty_room()

    def _empty_room(self) -> Room:
        limits = self._parts.limits
        return Room(limits.calls_max, limits.calls_bytes_max, self._parts.functions)

    def hold(self, event: Event) -> Held:
        """Room for an event, until it is released. Raises OverloadedError."""
        held = self._room.held(self._parts.function(event.invocation.lane.service))
        try:
            held.enter()
            held.add(event_bytes(event))
        except OverloadedError:
            held.release()
            raise
        return held

    def clear(self) -> None:
        """Everything has been stopped."""
        self._room = self._empty_room()

    async def answer(self, event: Event, wait_ms: int) -> Answer:
        """See `Execution.call`. Raises OverloadedError when too many calls wait, for the key or in all."""
        clock, limits, background = self._parts.clock, self._parts.limits, self._parts.background
        until_ms = clock.now_ms() + wait_ms
        while True:
            worker, work = self._queued(event)
            work.wanted_until_ms = max(work.wanted_until_ms, until_ms)
            await settled(work.answer, (until_ms - clock.now_ms()) / 1000)
            if not work.answer.done():
                # Not cut off when its time is over: half accepted, the call would wait for a chance visit.
                await background.in_time(self._hand_over(worker, work), limits.hand_over_ms_max)
                if not _has_result(work):
                    return Pending()
            match work.answer.result():
                case Success() | Failed() as result:
                    return result
                case Elsewhere(due_ms):
                    if due_ms is not None:
                        await background.in_time(self._parts.acceptance.join(event, due_ms), limits.accept_ms_max)
                    found = await self._results.of(event.invocation, max(0, until_ms - clock.now_ms()))
                    if not isinstance(found, Unknown):
                        return found
                    # Whoever was to make it durable has not, and tells its own caller so.
                case unforeseen:
                    assert_never(unforeseen)

    def _queued(self, event: Event) -> tuple[LaneWorker, CallWork]:
        """The work of a call in this process, queued now unless it is there already."""
        lane = event.invocation.lane
        worker = self._lanes.find(lane)
        work = None if worker is None else worker.call_in_queue(event.id)
        if worker is None or work is None:
            if worker is not None and worker.waiting >= self._parts.limits.lane_calls_max:
                raise OverloadedError(f"{worker.waiting} calls and events wait for this key already; try again later")
            # Held until the work is over, not until its caller has gone: its function may run for much longer.
            held = self.hold(event)
            worker = self._lanes.worker(lane)
            work = CallWork(event, self._parts.clock.now_ms())
            work.answer.add_done_callback(lambda _: held.release())
            worker.add(work)
            self._parts.metrics.count("EventsIn")
        return worker, work

    async def _hand_over(self, worker: LaneWorker, work: CallWork) -> None:
        """The caller stops waiting: make the call durable, so that its id can be given out.

        A run that was claimed is durable already, and its end stores a result. Any other attempt is not, so an inbox
        item stands in for it; a commit that comes meanwhile stores the result, and the item is found to be done.
        """
        if worker.let_go(work):
            return
        work.keep = True
        event = work.to_keep()
        try:
            try:
                head = parse_head(await self._parts.writer.table.get(head_key(worker.lane)))
            except UnreadableHeadError:
                # An item asks for no head. If the call has begun, it is found to be done once it is.
                head = Head()
            if head.run is not None and head.run.event.id == event.id:
                return
            if worker.is_running(work) and await self._stand_in(worker, work, event):
                return
            if not fits(event):
                raise TooLargeError(f"a call that takes longer than its wait may hold {VALUE_BYTES_MAX:,} bytes")
            await self._parts.acceptance.accept(event)
        finally:
            if work in worker.queue and not worker.is_running(work):
                worker.queue.remove(work)
                # Other callers with the same idempotency key look for the result elsewhere.
                work.finish(Elsewhere())

    async def _stand_in(self, worker: LaneWorker, work: CallWork, event: Event) -> bool:
        """Make a call durable whose attempt runs. False when the attempt ended meanwhile, and left the call undone."""
        if not fits(event):
            raise UndecidedError(
                f"the call takes longer than its wait, and only an input of up to {VALUE_BYTES_MAX:,} bytes can be "
                "kept for longer: whether it takes effect is unknown"
            )
        target = self._parts.targets.find(worker.lane.service)
        guard_ms = (0 if target is None else target.timeout_ms) + GUARD_MARGIN_MS
        await self._parts.delivery.accept_running(worker.lane, event, guard_ms)
        while work.unkept and not work.answer.done():
            await settled(work.answer, COMMIT_LOOK_S)
        return worker.is_running(work) or _has_result(work)


def _has_result(work: CallWork) -> bool:
    return work.answer.done() and isinstance(work.answer.result(), Success | Failed)
