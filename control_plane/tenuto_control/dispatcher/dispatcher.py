"""The dispatcher: all parts of one control plane process, behind the face that loops and ingress see.

Owns what each request and each wake-up leads to, and how everything comes to rest. Does not own the parts: the lanes at
work (`lanes`), calls (`calls`), results (`results`), timers in memory (`wheel`), deliveries (`delivery`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import assert_never

from msgspec.structs import replace

from tenuto.lane.head import UnreadableHeadError, head_key, parse_head
from tenuto.lane.timers import GuardTimer, SendTimer, SleepTimer, Timer, parse_timer
from tenuto.lane.writes import Item
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.limits import VALUE_BYTES_MAX
from tenuto.protocol.records import CallSource, Event, PublishOut, Result
from tenuto_control.core.metrics import Metrics
from tenuto_control.dispatcher.activations import Activations
from tenuto_control.dispatcher.calls import Calls
from tenuto_control.dispatcher.delivery import fits
from tenuto_control.dispatcher.lanes import Lanes
from tenuto_control.dispatcher.parts import Wiring, parts_of
from tenuto_control.dispatcher.results import Results
from tenuto_control.dispatcher.room import Held
from tenuto_control.ports import Answer, Errand, OverloadedError, Resolution, Resting, TooLargeError, TopicPartition

HALT_GRACE_S = 1.0

SETTLE_LOOK_S = 0.01
"""How often to look whether lanes have come to rest: their ends are many, and no one event tells of all."""


class Dispatcher:
    """Runs lanes (`ports.Interruptible`), and hears of what its own deliveries have put (`delivery.Hints`)."""

    def __init__(self, wiring: Wiring) -> None:
        self._table = wiring.table
        self._clock = wiring.clock
        self._limits = wiring.limits
        self._parts = parts = parts_of(wiring, self, self._due)
        self._wheel = parts.wheel
        self._background = parts.background
        self._lanes = Lanes(parts)
        self._results = Results(wiring.table, parts, self._lanes)
        self._calls = Calls(parts, self._lanes, self._results)

    @property
    def metrics(self) -> Metrics:
        """See `Interruptible.metrics`."""
        return self._parts.metrics

    # --- lifecycle --------------------------------------------------------------------------------------------------

    async def settle(self, deadline_ms: int, linger_ms: int = 0) -> None:
        """See `Interruptible.settle`."""
        while (now_ms := self._clock.now_ms()) < deadline_ms:
            linger_until = min(deadline_ms, now_ms + linger_ms)
            if not (
                self._background.tasks or self._lanes.busy_before(linger_until) or self._wheel.due_before(linger_until)
            ):
                return
            await asyncio.sleep(SETTLE_LOOK_S)

    @property
    def at_work(self) -> Collection[Lane]:
        """See `Interruptible.at_work`."""
        return self._lanes.at_work

    def resting(self) -> Mapping[Lane, Resting]:
        """See `Interruptible.resting`."""
        return self._lanes.resting()

    def fires_before(self, time_ms: int) -> bool:
        """See `Interruptible.fires_before`."""
        return bool(self._wheel.due_before(time_ms))

    async def drop(self, lane: Lane) -> None:
        """See `Interruptible.drop`."""
        await self._lanes.drop(lane)

    async def entrust(self) -> None:
        """See `Interruptible.entrust`."""
        await self._lanes.entrust()

    def token(self) -> str:
        """See `Interruptible.token`."""
        return self._parts.token()

    async def schedule(self, errand: Errand, at_ms: int, name: str, owner: str | None = None) -> None:
        """See `Interruptible.schedule`."""
        await self._wheel.schedule(errand, at_ms, name, owner)

    async def halt(self, until_ms: int) -> list[Errand]:
        """See `Interruptible.halt`.

        Requests to the outside scheduler get a moment to end: they are short, and what wakes the lanes later.
        """
        await self._background.ended(HALT_GRACE_S)
        errands = [Errand(lane) for lane in self._lanes.busy_before(until_ms)]
        errands += [_errand_of(timer) for timer in self._wheel.due_before(until_ms)]
        await self.kill()
        return list(dict.fromkeys(errands))

    async def stop(self) -> None:
        """Let what runs end within the drain timeout, then stop everything. Nothing durable depends on it."""
        deadline = self._clock.now_ms() + self._limits.drain_timeout_ms
        # Sleeps suspend from now on, for others to end.
        with self._parts.naps.closed():
            # What runs are invocations: they end on their own, and there is no one event for the end of all.
            while self._clock.now_ms() < deadline:
                if not self._lanes.running:
                    break
                await asyncio.sleep(SETTLE_LOOK_S)
            await self.kill()

    async def kill(self) -> None:
        """Stop everything where it is, as a crash would."""
        self._wheel.clear()
        tasks = (*self._lanes.halt(), *self._background.halt(), *self._parts.capacity.halt())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()
        self._calls.clear()
        self._parts.names.begin_anew()

    # --- Kafka ------------------------------------------------------------------------------------------------------

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        """See `Execution.deliver`."""
        self._parts.metrics.count("EventsIn")
        self._lanes.deliver(event, released)

    async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
        """See `Execution.withdraw`."""
        deadline = self._clock.now_ms() + timeout_ms
        with self._parts.naps.closed():
            while self._lanes.withdraw(partitions):
                if self._clock.now_ms() >= deadline:
                    break
                await asyncio.sleep(SETTLE_LOOK_S)
        self._lanes.cut(partitions)

    def relieve(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Execution.relieve`."""
        self._lanes.relieve(partitions)

    async def set_aside(self, record: PublishOut, identity: Sequence[str], reason: str) -> None:
        """See `Execution.set_aside`."""
        await self._parts.delivery.letters.keep_record(record, identity, reason)

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def call(self, event: Event, wait_ms: int) -> Answer:
        """See `Execution.call`."""
        return await self._calls.answer(event, wait_ms)

    async def call_shared(self, event: Event) -> Result:
        """See `Execution.call_shared`."""
        lane = event.invocation.lane
        try:
            head = parse_head(await self._table.get(head_key(lane)))
        except UnreadableHeadError as e:
            raise OverloadedError("the record of this key cannot be read at present; try again later") from e
        return await Activations(lane, self._parts).shared(head, event)

    async def send(self, event: Event, delay_ms: int) -> None:
        """See `Execution.send`."""
        if isinstance(event.source, CallSource):
            event = replace(event, source=replace(event.source, one_way=True))
        if not fits(event):
            raise TooLargeError(f"a message may hold {VALUE_BYTES_MAX:,} bytes, headers included")
        held = self._calls.hold(event)
        accepting = self._accept(event, max(0, delay_ms), held)
        await self._background.in_time(accepting, self._limits.accept_ms_max)

    async def _accept(self, event: Event, delay_ms: int, held: Held) -> None:
        """Accept a message. It is held until that is done, which may be after its sender has gone."""
        try:
            await self._parts.acceptance.accept(event, delay_ms)
        finally:
            held.release()

    async def result(self, invocation: str, wait_ms: int) -> Answer:
        """See `Execution.result`."""
        return await self._results.of(InvocationId.parse(invocation), wait_ms)

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        """See `Execution.resolve`."""
        return await self._parts.delivery.resolve(awakeable, result)

    # --- timers -----------------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """See `Waking.active`."""
        return self._lanes.active

    def arm(self, timer: Timer) -> None:
        """See `Waking.arm`."""
        self._wheel.arm(timer)

    async def deliver_delayed(self, timer: SendTimer) -> None:
        """See `Waking.deliver_delayed`."""
        await self._parts.acceptance.deliver_delayed(timer)

    async def woken(self, errand: Errand) -> None:
        """See `Interruptible.woken`."""
        item = None if errand.timer is None else await self._table.get(errand.timer)
        match None if item is None else _timer_of(item):
            case SendTimer() as due if due.due_ms > self._clock.now_ms():
                self.arm(due)
            case SendTimer() as due:
                await self.deliver_delayed(due)
            case _:
                self.look(errand.lane)

    # --- hints ------------------------------------------------------------------------------------------------------

    def look(self, lane: Lane) -> None:
        """See `Hints.look`."""
        self._lanes.look(lane)

    def told(self, invocation: str, result: Result) -> None:
        """See `Hints.told`."""
        self._results.told(invocation, result)

    def remind(self, timer: SendTimer) -> None:
        """See `Hints.remind`."""
        self._wheel.remind(timer)

    def retry(self, lane: Lane) -> None:
        """See `Hints.retry`."""
        self._lanes.retry(lane)

    def _due(self, timer: Timer) -> None:
        """The time of a timer has come."""
        match timer:
            case SendTimer():
                self._background.spawn(self.deliver_delayed(timer))
            case SleepTimer():
                self._lanes.wake(timer.lane)
            case GuardTimer():
                self._lanes.look(timer.lane)
            case _:
                assert_never(timer)


def _timer_of(item: Item) -> Timer | None:
    """The timer in an item; None when it is none, which is the sweep's to set aside."""
    try:
        return parse_timer(item)
    except ValueError:
        return None


def _errand_of(timer: Timer) -> Errand:
    return Errand(timer.lane, timer.key if isinstance(timer, SendTimer) else None)
