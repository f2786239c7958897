"""The dispatcher: all lanes of one control plane process.

Owns the set of lanes at work, the memory of idle ones, local wake-ups, and the face that loops and ingress see
(`ports.Execution`). Does not own what a lane does (`lane_worker`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar, assert_never

from msgspec.structs import replace

from tenuto.hosts import event_scheduler
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import Timer, inbox_key, parse_timer, result_key, timer_delete
from tenuto.lane.writes import Key
from tenuto.protocol.ids import InvocationId, Lane, digest
from tenuto.protocol.limits import GUARD_MARGIN_MS, VALUE_BYTES_MAX
from tenuto.protocol.messages import Head
from tenuto.protocol.records import (
    CallSource,
    Event,
    Failed,
    PublishOut,
    ResolveOut,
    Result,
    ResultOut,
    SendOut,
    Success,
    unpack_out,
    unpack_result,
)
from tenuto.store.port import Table
from tenuto_control.core import log_fields
from tenuto_control.core.metrics import Metrics, Uncounted
from tenuto_control.core.traces import Tracer, Untraced
from tenuto_control.dispatcher.acceptance import Acceptance
from tenuto_control.dispatcher.activations import Activations
from tenuto_control.dispatcher.capacity import Capacity
from tenuto_control.dispatcher.delivery import HTTP_SENDER, Delivery, fits, message
from tenuto_control.dispatcher.lane_worker import Known, LaneWorker, Rest
from tenuto_control.dispatcher.outages import Outages, WatchedTable
from tenuto_control.dispatcher.services import Services
from tenuto_control.dispatcher.work import CallWork, Elsewhere, KafkaWork
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    Answer,
    Clock,
    FunctionInvoker,
    OverloadedError,
    Pending,
    RecordSink,
    Resolution,
    SchedulerUnavailableError,
    Targets,
    TooLargeError,
    TopicPartition,
    UndecidedError,
    Unknown,
    WakeScheduler,
)

log = logging.getLogger("tenuto.dispatcher")

T = TypeVar("T")

HALT_GRACE_S = 1.0
COMMIT_LOOK_S = 0.02
"""How often a call whose caller stops waiting looks whether a commit under way has been answered."""

SETTLE_LOOK_S = 0.01
"""How often to look whether lanes have come to rest: their ends are many, and no one event tells of all."""


class Errand(NamedTuple):
    """Why to be woken: for a lane, or for the delayed message whose timer is named."""

    lane: Lane
    timer: Key | None = None


class Dispatcher:
    """Runs lanes. `process` is a name that no other process has, and that this one never had before."""

    def __init__(
        self,
        table: Table,
        invoker: FunctionInvoker,
        sink: RecordSink,
        targets: Targets,
        scheduler: WakeScheduler,
        clock: Clock,
        rng: random.Random,
        limits: Limits,
        process: str,
        table_name: str,
        metrics: Metrics | None = None,
        *,
        encrypted: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self.metrics = metrics or Uncounted()
        self.outages = Outages()
        self._table = watched = WatchedTable(table, self.outages, self.metrics)
        self._clock = clock
        self._limits = limits
        self._targets = targets
        self._workers: dict[Lane, LaneWorker] = {}
        self._known: OrderedDict[Lane, Known] = OrderedDict()
        self._waiters: dict[str, set[asyncio.Future[Result]]] = {}
        self._timers: dict[Key, tuple[Timer, asyncio.TimerHandle]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._tokens = 0
        self._process = process
        writer = Writer(watched, limits, self.metrics)
        delivery = Delivery(writer, sink, clock, limits, self._token, self.look, self._told, self._remind, self.metrics)
        self._acceptance = Acceptance(writer, delivery, clock)
        capacity = Capacity(limits.invoke_concurrency_max)
        self._services = Services(
            writer,
            delivery,
            invoker,
            capacity,
            targets,
            scheduler,
            clock,
            rng,
            limits,
            self._token,
            self._forget,
            table_name,
            encrypted,
            self.metrics,
            tracer or Untraced(),
        )

    @property
    def table(self) -> Table:
        """The table, as whoever shares its outages sees it."""
        return self._table

    # --- lifecycle --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Be ready for work."""

    async def settle(self, deadline_ms: int, linger_ms: int = 0) -> None:
        """Wait until nothing is under way, or for a deadline.

        A lane that rests (a pause, another's lease) and an armed timer are waited for if that is over in `linger_ms`.
        """
        loop = asyncio.get_running_loop()
        while (now_ms := self._clock.now_ms()) < deadline_ms:
            linger_until = min(deadline_ms, now_ms + linger_ms)
            near_s = loop.time() + (linger_until - now_ms) / 1000
            if not (
                self._background
                or any(worker.busy_before(linger_until) for worker in self._workers.values())
                or any(handle.when() <= near_s for _, handle in self._timers.values())
            ):
                return
            await asyncio.sleep(SETTLE_LOOK_S)

    @property
    def at_work(self) -> Collection[Lane]:
        """The lanes that are not idle."""
        return self._workers.keys()

    def resting(self) -> dict[Lane, Rest]:
        """The lanes that only wait."""
        return {lane: rest for lane, worker in self._workers.items() if (rest := worker.rest) is not None}

    def fires_before(self, time_ms: int) -> bool:
        """Whether an armed timer is due before a time."""
        at_s = asyncio.get_running_loop().time() + (time_ms - self._clock.now_ms()) / 1000
        return any(handle.when() <= at_s for _, handle in self._timers.values())

    async def drop(self, lane: Lane) -> None:
        """Stop a lane where it is, as a crash would: somebody else looks after it."""
        worker = self._workers.pop(lane, None)
        if worker is not None and worker.task is not None:
            worker.task.cancel()
            await asyncio.gather(worker.task, return_exceptions=True)

    async def entrust(self) -> None:
        """Release every event that is finished but for what it sent; timers lead back to that."""
        for worker in list(self._workers.values()):
            await worker.entrust()

    def token(self) -> str:
        """A name that nobody else uses."""
        return self._token()

    async def halt(self, until_ms: int) -> list[Errand]:
        """Stop everything where it is, as a crash would. Returns what would have been done before a time.

        Requests to the outside scheduler get a moment to end: they are short, and what wakes the lanes later.
        """
        if self._background:
            await asyncio.wait(list(self._background), timeout=HALT_GRACE_S)
        errands = [Errand(worker.lane) for worker in self._workers.values() if worker.busy_before(until_ms)]
        near_s = asyncio.get_running_loop().time() + (until_ms - self._clock.now_ms()) / 1000
        for key, (timer, handle) in self._timers.items():
            if handle.when() <= near_s:
                errands.append(Errand(timer.lane, key if timer.kind == "send" else None))
        await self._stop_tasks()
        return list(dict.fromkeys(errands))

    async def stop(self) -> None:
        """Let what runs end within the drain timeout, then stop everything. Nothing durable depends on it."""
        deadline = self._clock.now_ms() + self._limits.drain_timeout_ms
        # What runs are invocations: they end on their own, and there is no one event for the end of all.
        while self._clock.now_ms() < deadline:
            if not any(w.running for w in self._workers.values()):
                break
            await asyncio.sleep(SETTLE_LOOK_S)
        await self._stop_tasks()

    async def _stop_tasks(self) -> None:
        for _, handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        tasks = [w.task for w in self._workers.values() if w.task is not None] + list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()

    # --- Kafka ------------------------------------------------------------------------------------------------------

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        """See `Execution.deliver`."""
        lane, nonce = InvocationId.parse(event.id)
        # A lane of its own for every event: nothing can have happened there but this event itself.
        fresh = lane.key == nonce and lane not in self._known
        self.metrics.count("EventsIn")
        self._worker(lane, Head() if fresh else None).add(KafkaWork(event, released, self._clock.now_ms()))

    async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
        """See `Execution.withdraw`."""
        gone = set(partitions)
        deadline = self._clock.now_ms() + timeout_ms
        while [w for w in self._workers.values() if w.withdraw(gone)]:
            if self._clock.now_ms() >= deadline:
                break
            await asyncio.sleep(0.01)
        for worker in self._workers.values():
            worker.cut(gone)

    def relieve(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Execution.relieve`."""
        pressed = set(partitions)
        for worker in self._workers.values():
            worker.relieve(pressed)

    async def set_aside(self, record: PublishOut, identity: Sequence[str], reason: str) -> None:
        """See `Execution.set_aside`."""
        await self._services.delivery.letters.keep_record(record, identity, reason)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, event: Event, wait_ms: int) -> Answer:
        """See `Execution.call`. Raises OverloadedError when too many calls wait for the key."""
        until_ms = self._clock.now_ms() + wait_ms
        while True:
            worker, work = self._queued(event)
            await asyncio.wait([work.answer], timeout=max(0, until_ms - self._clock.now_ms()) / 1000)
            if not work.answer.done():
                # Not cut off when its time is over: half accepted, the call would wait for a chance visit.
                await self._in_time(self._hand_over(worker, work), self._limits.hand_over_ms_max)
                if not _has_result(work):
                    return Pending()
            match work.answer.result():
                case Success() | Failed() as result:
                    return result
                case Elsewhere(due_ms):
                    if due_ms is not None:
                        await self._in_time(self._acceptance.join(event, due_ms), self._limits.accept_ms_max)
                    found = await self.result(event.id, max(0, until_ms - self._clock.now_ms()))
                    if not isinstance(found, Unknown):
                        return found
                    # Whoever was to make it durable has not, and tells its own caller so.
                case unforeseen:
                    assert_never(unforeseen)

    def _queued(self, event: Event) -> tuple[LaneWorker, CallWork]:
        """The work of a call in this process, queued now unless it is there already."""
        worker = self._worker(InvocationId.parse(event.id).lane, None)
        work = worker.call_in_queue(event.id)
        if work is None:
            if len(worker.queue) >= self._limits.lane_calls_max:
                raise OverloadedError(
                    f"{len(worker.queue)} calls and events wait for this key already; try again later"
                )
            work = CallWork(event)
            worker.add(work)
            self.metrics.count("EventsIn")
        return worker, work

    async def _hand_over(self, worker: LaneWorker, work: CallWork) -> None:
        """The caller stops waiting: make the call durable, so that its id can be given out.

        A run that was claimed is durable already, and its end stores a result. Any other attempt is not, so an inbox
        item stands in for it; a commit that comes meanwhile stores the result, and the item is found to be done.
        """
        work.keep = True
        event = work.event
        event = Event(event.id, event.handler, CallSource(keep_result=True), event.input, event.headers)
        try:
            head = await self._head(worker.lane)
            if head.run is not None and head.run.event.id == event.id:
                return
            if worker.is_running(work) and await self._stand_in(worker, work, event):
                return
            if not fits(event):
                raise TooLargeError(f"a call that takes longer than its wait may hold {VALUE_BYTES_MAX:,} bytes")
            await self._acceptance.accept(event)
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
        target = self._targets.find(worker.lane.service)
        guard_ms = (0 if target is None else target.timeout_ms) + GUARD_MARGIN_MS
        await self._services.delivery.accept_running(worker.lane, event, guard_ms)
        while work.unkept and not work.answer.done():
            await asyncio.wait([work.answer], timeout=COMMIT_LOOK_S)
        return worker.is_running(work) or _has_result(work)

    async def _in_time(self, work: Coroutine[Any, Any, T], timeout_ms: int) -> T:
        """Wait for something that goes on when the time is over. Raises UndecidedError then, and what the work does."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        # Whoever waits may have gone by then.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait([task], timeout=timeout_ms / 1000)
        if not done:
            raise UndecidedError("the table did not answer in time; whether the request takes effect is unknown")
        return task.result()

    async def call_shared(self, event: Event) -> Result:
        """See `Execution.call_shared`."""
        lane = InvocationId.parse(event.id).lane
        return await Activations(lane, self._services).shared(await self._head(lane), event)

    async def send(self, event: Event, delay_ms: int) -> None:
        """See `Execution.send`."""
        if isinstance(event.source, CallSource):
            event = replace(event, source=replace(event.source, one_way=True))
        if not fits(event):
            raise TooLargeError(f"a message may hold {VALUE_BYTES_MAX:,} bytes, headers included")
        await self._in_time(self._acceptance.accept(event, max(0, delay_ms)), self._limits.accept_ms_max)

    async def result(self, invocation: str, wait_ms: int) -> Answer:
        """See `Execution.result`."""
        lane = InvocationId.parse(invocation).lane
        deadline = self._clock.now_ms() + wait_ms
        pause_ms = self._limits.result_poll_initial_ms
        told: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(invocation, set()).add(told)
        try:
            while True:
                answer = await self._stored(lane, invocation)
                left_ms = deadline - self._clock.now_ms()
                if not isinstance(answer, Pending) or left_ms <= 0:
                    return answer
                done, _ = await asyncio.wait([told], timeout=min(pause_ms, left_ms) / 1000)
                if done:
                    return told.result()
                pause_ms = min(pause_ms * 2, self._limits.result_poll_max_ms)
        finally:
            waiting = self._waiters[invocation]
            waiting.discard(told)
            if not waiting:
                del self._waiters[invocation]

    async def _stored(self, lane: Lane, invocation: str) -> Answer:
        """What storage knows of an invocation."""
        found = await self._looked_up(lane, invocation)
        # Its item was buried between two reads, or its result is no longer kept: a second look tells.
        return await self._looked_up(lane, invocation) or Unknown() if found is None else found

    async def _looked_up(self, lane: Lane, invocation: str) -> Answer | None:
        """The head first, then the result item, then the inbox. None when that has a tombstone alone."""
        head = await self._head(lane)
        for out in head.out.values():
            if isinstance(out, ResultOut) and out.invocation == invocation:
                return out.result
        item = await self._table.get(result_key(invocation))
        packed = item.get("res") if item else None
        if isinstance(packed, bytes):
            return unpack_result(packed)
        if head.run is not None and head.run.event.id == invocation:
            return Pending()
        worker = self._workers.get(lane)
        if worker is not None and worker.call_in_queue(invocation) is not None:
            return Pending()
        if item is not None:
            # Its message waits for its time.
            return Pending()
        waits = await self._table.get(inbox_key(lane, Event(invocation, "", CallSource())))
        if waits is None:
            return Unknown()
        return Pending() if "ev" in waits else None

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        """See `Execution.resolve`."""
        return await self._services.delivery.resolve(awakeable, result)

    # --- waking -----------------------------------------------------------------------------------------------------

    def wake(self, lane: Lane) -> None:
        """A wake-up for a lane: a hint, checked against its head."""
        self._worker(lane, None).nudge()

    def look(self, lane: Lane) -> None:
        """Something was put into a lane's inbox or slots."""
        self._worker(lane, None).nudge(look=True)

    def arm(self, timer: Timer) -> None:
        """Fire a timer here when it is due, if that is soon; the sweep finds it in any case."""
        delay_ms = timer.due_ms - self._clock.now_ms()
        if delay_ms > self._limits.wheel_horizon_ms or timer.key in self._timers:
            return
        loop = asyncio.get_running_loop()
        self._timers[timer.key] = timer, loop.call_later(max(0, delay_ms) / 1000, self._due, timer)

    def _due(self, timer: Timer) -> None:
        self._timers.pop(timer.key, None)
        if timer.kind == "send":
            self._spawn(self.deliver_delayed(timer))
        elif timer.kind == "sleep":
            self.wake(timer.lane)
        else:
            self.look(timer.lane)

    async def deliver_delayed(self, timer: Timer) -> None:
        """Move a delayed message to its receiver's inbox, then forget its timer."""
        if timer.message is None:
            raise ValueError("a send timer carries its message")
        sender, sequence = timer.sender or HTTP_SENDER, timer.sequence or ""
        match unpack_out(timer.message):
            case SendOut() as entry:
                await self._acceptance.deliver(message(sender, sequence, entry))
            case ResolveOut() as entry:
                await self._services.delivery.answer(sender, sequence, entry)
            case entry:
                raise TypeError(f"a send timer carries a message, not {type(entry).__name__}")
        await self._services.writer.write(timer_delete(timer))

    async def woken(self, errand: Errand) -> None:
        """A wake-up from outside."""
        item = None if errand.timer is None else await self._table.get(errand.timer)
        if item is None:
            self.look(errand.lane)
            return
        due = parse_timer(item)
        if due.due_ms > self._clock.now_ms():
            self.arm(due)
        else:
            await self.deliver_delayed(due)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _worker(self, lane: Lane, head: Head | None) -> LaneWorker:
        worker = self._workers.get(lane)
        if worker is None:
            known = self._known.pop(lane, None) or Known(head)
            worker = LaneWorker(lane, self._services, known, self._idle)
            self._workers[lane] = worker
            worker.start()
        return worker

    def _idle(self, worker: LaneWorker, wake_ms: int | None) -> None:
        """A worker has nothing left to do."""
        del self._workers[worker.lane]
        head = worker.head
        if head is not None and (head.run is not None or self._services.keyed(worker.lane.service)):
            self._known[worker.lane] = worker.known()
            while len(self._known) > self._limits.lane_cache_max:
                self._known.popitem(last=False)
        if wake_ms is not None and head is not None and head.run is not None:
            self._remind(Timer(worker.lane, "sleep", head.run.event.nonce, wake_ms, f"local.{head.ver}"))

    def _remind(self, timer: Timer) -> None:
        """Fire a timer when it is due: here if this process lives until then, and from outside if that is far off."""
        self.arm(timer)
        if timer.due_ms - self._clock.now_ms() >= self._limits.scheduler_threshold_ms:
            self._spawn(self._schedule(timer))

    async def _schedule(self, timer: Timer) -> None:
        # The outside is only precise to a minute. Woken early, this process waits for the rest.
        errand = Errand(timer.lane, timer.key if timer.kind == "send" else None)
        await self.schedule(errand, timer.due_ms - self._limits.scheduler_lead_ms, _schedule_name(timer))

    async def schedule(self, errand: Errand, at_ms: int, name: str, owner: str | None = None) -> None:
        """Have somebody woken from outside at a time. It may fail: a timer item is behind every lane."""
        payload = event_scheduler.wake_up(errand.lane, errand.timer, owner)
        try:
            await self._services.scheduler.schedule(name, at_ms, payload)
        except SchedulerUnavailableError as e:
            fields = log_fields.of_lane(errand.lane)
            log.warning("%s: a wake-up could not be scheduled outside: %s", errand.lane.pk, e, extra=fields)

    def _forget(self, timer: Timer) -> None:
        """A sleep is over before its time: its wake-up from outside, if there is one, need not come any more."""
        if timer.due_ms - self._clock.now_ms() >= self._limits.scheduler_threshold_ms:
            self._spawn(self._unschedule(timer))

    async def _unschedule(self, timer: Timer) -> None:
        try:
            await self._services.scheduler.cancel(_schedule_name(timer))
        except SchedulerUnavailableError as e:
            # It will fire, and find nothing to do.
            fields = log_fields.of_lane(timer.lane)
            log.info("%s: a wake-up could not be cancelled outside: %s", timer.lane.pk, e, extra=fields)

    async def _head(self, lane: Lane) -> Head:
        return parse_head(await self._table.get(head_key(lane)))

    def _told(self, invocation: str, result: Result) -> None:
        for future in self._waiters.get(invocation, ()):
            if not future.done():
                future.set_result(result)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._quietly(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        # A task that is cancelled before it begins never comes to its work, which would complain about that.
        task.add_done_callback(lambda _: work.close())

    @staticmethod
    async def _quietly(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("a background task failed; the sweep repeats what it was for")

    def _token(self) -> str:
        self._tokens += 1
        return f"{self._process}.{self._tokens}"


def _has_result(work: CallWork) -> bool:
    return work.answer.done() and isinstance(work.answer.result(), Success | Failed)


def _schedule_name(timer: Timer) -> str:
    """Equal for the same wake-up in every process: a sleep is known by its lane and end, a message by its timer."""
    return digest(timer.key.pk, timer.key.sk) if timer.kind == "send" else digest(timer.lane.pk, str(timer.due_ms))
