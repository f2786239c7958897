"""One invocation inside one activation: its attempts, and what commands do.

Owns issuing commands, waiting for them, and turning "nothing can go on here" into a suspension. Does not own the writes
(`lease`), the journal's rules (`tenuto.machine`) or the face that handlers see (`tenuto.context`).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from msgspec import structs

from tenuto import logs, tracing
from tenuto.errors import (
    RetryableError,
    StateTooLargeError,
    Suspension,
    TenutoError,
    TerminalError,
    UnserialisableError,
)
from tenuto.lane.transitions import Effects, Wait
from tenuto.machine.journal import Awakeable, Run, Select, Send, Sleep, due_name, tried_name
from tenuto.protocol.backoff import pause_ms
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, digest, message_nonce
from tenuto.protocol.limits import (
    AWAITS_MAX,
    AWAKEABLE_BYTES_MAX,
    DEADLINE_MARGIN_MS,
    HOLD_RETRY_MS_MAX,
    HOLD_SLEEP_MS_MAX,
    OUT_PER_WRITE_MAX,
    OUT_WAITING_MAX,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import (
    AwakeableSlot,
    DueSlot,
    Event,
    Failed,
    Failure,
    Out,
    PublishOut,
    ResolveOut,
    Result,
    RunSlot,
    SelectedSlot,
    SendOut,
    SleptSlot,
    Success,
    TriedSlot,
    pack,
)
from tenuto.runtime.environment import Environment
from tenuto.runtime.futures import AwakeableFuture, DurableFuture, RunFuture, SleepFuture
from tenuto.runtime.lease import Lease
from tenuto.runtime.state import StateView
from tenuto.serde import Serde

T = TypeVar("T")

step_key: contextvars.ContextVar[str] = contextvars.ContextVar("tenuto_step_key")
"""The idempotency key of the step that is running in this context."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How often a failing step is tried before it gives up; None leaves it to the invocation's policy."""

    policy: RetryPolicy | None = None
    max_duration_ms: int | None = None


class Unwind(Suspension):
    """Ends a handler's coroutine because its attempt is over: suspended, fenced or failed."""


class StepWaitsError(RetryableError):
    """A step with limits of its own has to wait longer than the function can: the invocation's policy has no say."""


class OutOfTimeError(Exception):
    """The function's deadline is near: the invocation goes on in the next function, at once."""


class Attempt:
    """The commands of one attempt. A new one is made for each attempt; lease, journal and state are shared by them."""

    def __init__(
        self, event: Event, lease: Lease, state: StateView, before: Callable[[], Effects], env: Environment
    ) -> None:
        self.event = event
        self.lease = lease
        self.state = state
        self.env = env
        self.start_ms = lease.run.start_ms if lease.owning else env.now_ms()
        self.suspended = False
        self.broken: BaseException | None = None
        self._before = before
        self._tasks: dict[asyncio.Task[None], RunFuture[Any]] = {}
        self._owner = asyncio.current_task()

    @functools.cached_property
    def random(self) -> random.Random:
        """The invocation's random numbers. Seeding takes as long as a small handler, so only who asks pays for it."""
        return random.Random(self.event.id)

    @property
    def replaying(self) -> bool:
        """See `Logged.replaying`."""
        return self.lease.journal.replaying

    def log_fields(self) -> dict[str, str | int]:
        """See `Logged.log_fields`."""
        lane = self.lease.lane
        return {
            "invocation_id": self.event.id,
            "service": lane.service,
            "key": lane.key,
            "handler": self.event.handler,
            "attempt": self.lease.attempt,
        }

    @property
    def invocation(self) -> InvocationId:
        """The id of the invocation."""
        return InvocationId.parse(self.event.id)

    # --- commands ---------------------------------------------------------------------------------------------------

    def run(self, name: str, call: Callable[[], Any], serde: Serde[T], limits: RunLimits) -> RunFuture[T]:
        """Execute a step once; from then on its journaled result is used."""
        index = self._issue(Run(name))
        future: RunFuture[T] = RunFuture(self, index, serde)
        self._read_slot(future)
        if not future.done():
            future.task = asyncio.ensure_future(self._execute(future, name, call, serde, limits))
            self._tasks[future.task] = future
        return future

    def sleep(self, duration_ms: int) -> SleepFuture:
        """Wait at least this long, across crashes."""
        index = self._issue(Sleep())
        due = self.lease.journal.slot(due_name(index))
        due_ms = due.wake_ms if isinstance(due, DueSlot) else self.env.now_ms() + duration_ms
        future = SleepFuture(self, index, due_ms)
        self._read_slot(future)
        return future

    def awakeable(self, serde: Serde[T]) -> tuple[str, AwakeableFuture[T]]:
        """An id to give away, and the future that whoever resolves it completes."""
        index = self._issue(Awakeable())
        future: AwakeableFuture[T] = AwakeableFuture(self, index, serde)
        self._read_slot(future)
        return str(AwakeableId(self.invocation, future.slot)), future

    def send(self, lane: Lane | None, service: str, handler: str, data: bytes | None, delay_ms: int) -> str:
        """A message for another lane (None: a fresh lane of an unkeyed service). Returns the new invocation's id."""
        target = f"{service}/{handler}"
        index = self._issue(Send(target))
        nonce = message_nonce(self.event.id, index)
        receiver = InvocationId(lane or Lane(service, nonce), nonce)
        due_ms = self.env.now_ms() + delay_ms if delay_ms > 0 else None
        key = receiver.lane.key
        self._post(index, target, SendOut(service, key, str(receiver), handler, data, (), due_ms))
        return str(receiver)

    def publish(self, entry: PublishOut) -> None:
        """A record for a Kafka topic."""
        target = f"topic {entry.topic}"
        self._post(self._issue(Send(target)), target, entry)

    def resolve(self, awakeable: str, result: Result) -> None:
        """The result of somebody's awakeable. Raises StateTooLargeError."""
        size = len(pack(AwakeableSlot(result)))
        if size > AWAKEABLE_BYTES_MAX:
            raise StateTooLargeError("the result of an awakeable", size, AWAKEABLE_BYTES_MAX)
        index = self._issue(Send("awakeable"))
        self._post(index, "awakeable", ResolveOut(awakeable, result))

    async def gather(self, futures: Sequence[DurableFuture[Any]]) -> list[Any]:
        """Wait for all; values in order. Raises the first failure in order, once all are done."""
        while waiting := [f for f in futures if not f.done()]:
            await self._wait_any(waiting)
        return [f.value() for f in futures]

    async def select(self, futures: Sequence[DurableFuture[Any]]) -> int:
        """Wait for the first to complete and journal which it was; later attempts get the same answer."""
        if not futures:
            raise ValueError("select needs at least one future")
        index = self._issue(Select())
        slot = self.lease.journal.slot(str(index))
        if isinstance(slot, SelectedSlot):
            while not futures[slot.winner].done():
                await self._wait_any([futures[slot.winner]])
            return slot.winner
        while not any(f.done() for f in futures):
            await self._wait_any(futures)
        winner = next(i for i, f in enumerate(futures) if f.done())
        self._finish(str(index), SelectedSlot(winner))
        return winner

    async def wait_for(self, future: DurableFuture[T]) -> T:
        """See `Waiter.wait_for`."""
        while not future.done():
            await self._wait_any([future])
        return future.value()

    async def settle(self) -> None:
        """Wait for steps that nobody awaited, so that none outlives its attempt."""
        while self._tasks:
            await asyncio.wait(self._tasks)
            self._collect()

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def _wait_any(self, futures: Sequence[DurableFuture[Any]]) -> None:
        self._check_open()
        for future in futures:
            self._read_slot(future)
        if any(f.done() for f in futures) or self._end_sleeps(futures):
            return
        steps = [t for t, f in self._tasks.items() if f in futures]
        nearest = min((f.due_ms for f in futures if isinstance(f, SleepFuture)), default=None)
        left_ms = None if nearest is None else max(0, nearest - self.env.now_ms())
        if steps:
            timeout = None if left_ms is None else left_ms / 1000
            await asyncio.wait(steps, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            self._collect()
            self._check_open()
        elif nearest is not None and self._can_hold_sleep(futures, nearest):
            await self._hold_sleep(futures, nearest)
        else:
            await self._suspend(futures, nearest)

    def _can_hold_sleep(self, futures: Sequence[DurableFuture[Any]], wake_ms: int) -> bool:
        """Whether to wait for the end of a sleep in this function rather than to suspend."""
        left_ms = wake_ms - self.env.now_ms()
        if left_ms > min(self.env.hold_ms, self.env.remaining_ms() - DEADLINE_MARGIN_MS):
            return False
        # What arrives from outside is seen by a suspension's condition, not by a function that waits.
        return left_ms <= HOLD_SLEEP_MS_MAX or all(isinstance(f, SleepFuture) for f in futures)

    async def _hold_sleep(self, futures: Sequence[DurableFuture[Any]], wake_ms: int) -> None:
        """Wait for the end of a sleep. A long one is made durable first: after a crash it does not begin anew."""
        if wake_ms - self.env.now_ms() > HOLD_SLEEP_MS_MAX:
            if not self.lease.owning:
                await self._durably(self.lease.claim(self.event, self._before(), self.start_ms))
            self._note_ends(futures)
            await self._durably(self.lease.flush())
            if not self._can_hold_sleep(futures, wake_ms):
                return  # The writes took long: what is left of this function is too little.
        await asyncio.sleep(max(0, wake_ms - self.env.now_ms()) / 1000)

    def _note_ends(self, futures: Sequence[DurableFuture[Any]]) -> None:
        with self.lease.guard:
            journal = self.lease.journal
            for future in futures:
                due = due_name(future.index)
                if isinstance(future, SleepFuture) and journal.slot(due) is None:
                    journal.finish(due, DueSlot(future.due_ms))

    def _end_sleeps(self, futures: Sequence[DurableFuture[Any]]) -> bool:
        now = self.env.now_ms()
        over = [f for f in futures if isinstance(f, SleepFuture) and f.due_ms <= now]
        for future in over:
            self._finish(str(future.index), SleptSlot())
            future.result = Success()
        return bool(over)

    async def _suspend(self, futures: Sequence[DurableFuture[Any]], wake_ms: int | None) -> None:
        # Sleeps first, in the order of their ends: a condition has room for so many slots.
        futures = sorted(futures, key=lambda f: f.due_ms if isinstance(f, SleepFuture) else 0)[:AWAITS_MAX]
        # A step that nobody awaits yet has to end first: its result belongs into the suspending write.
        await self.settle()
        self._check_open()
        if not self.lease.owning:
            await self._durably(self.lease.claim(self.event, self._before(), self.start_ms))
        self._note_ends(futures)
        if await self._durably(self._suspend_write(Wait(tuple(f.slot for f in futures), wake_ms))):
            self.suspended = True
            raise Unwind

    async def _suspend_write(self, wait: Wait) -> bool:
        base = self.state.base(self.lease.head.base)
        return await self.lease.suspend(self.state.changed, base, wait)

    async def pause(self, failures: int, error: str, wake_ms: int) -> None:
        """Suspend until a later attempt may start. Raises FencedError."""
        # Messages of a failed attempt are not sent: the next attempt decides again.
        with self.lease.guard:
            self.lease.journal.out.clear()
        wait = Wait((), wake_ms, failures, error[:1000])
        await self.env.writes.run(self.lease.suspend({}, {}, wait))
        self.suspended = True

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _execute(
        self, future: RunFuture[T], name: str, call: Callable[[], Any], serde: Serde[T], limits: RunLimits
    ) -> None:
        try:
            await self._own()
            if self.lease.journal.fresh or len(self.lease.journal.out) > OUT_PER_WRITE_MAX:
                await self.env.writes.run(self.lease.flush())
                # The flush may have taken long: past the lease another attempt may be at work, and repeat this step.
                self._check_time()
            step_key.set(digest(self.event.id, str(future.index)))
            logs.in_step.set(True)
            with tracing.step(self.env.trace, name) as traced:
                result = await self._tried(future.index, name, call, serde, limits)
                if isinstance(result, Failed):
                    traced.failed = TerminalError.__name__
            self._finish(str(future.index), RunSlot(name, result))
            future.result = result
            self.env.writes.post(self.lease.flush_soon)
        except BaseException as e:  # noqa: BLE001 - kept for the handler's task, which ends the attempt with it
            self.broken = self.broken or e

    async def _tried(
        self, index: int, name: str, call: Callable[[], Any], serde: Serde[T], limits: RunLimits
    ) -> Result:
        before = self.lease.journal.tried(index)
        tries = before.tries if before else 0
        since_ms = before.since_ms if before else self.env.now_ms()
        while True:
            try:
                value = await call() if inspect.iscoroutinefunction(call) else await self.env.thread(call)
                if inspect.isawaitable(value):
                    value = await value
                return Success(_fitting(serde.serialize(value), name))
            except (UnserialisableError, StateTooLargeError):
                # The step did its work, and no further try would bring a result that can be kept.
                raise
            except TerminalError as e:
                return Failed(Failure(str(e), e.status_code, e.metadata))
            except Exception as e:
                tries += 1
                if limits.policy is None:
                    raise
                wait_ms = self._next_try(limits.policy, tries, since_ms, e, limits.max_duration_ms)
                if wait_ms is None:
                    return Failed(Failure(f"run {name!r} failed {tries} times: {describe(e)}", 500))
                if not self.can_hold(wait_ms):
                    self._finish(tried_name(index, tries), TriedSlot(name, tries, since_ms))
                    raise StepWaitsError(describe(e), timedelta(milliseconds=wait_ms)) from e
                await asyncio.sleep(wait_ms / 1000)

    def _next_try(
        self, policy: RetryPolicy, tries: int, since_ms: int, error: Exception, max_duration_ms: int | None
    ) -> int | None:
        if policy.max_attempts is not None and tries >= policy.max_attempts:
            return None
        if max_duration_ms is not None and self.env.now_ms() - since_ms >= max_duration_ms:
            return None
        if isinstance(error, RetryableError) and error.retry_after is not None:
            return round(error.retry_after.total_seconds() * 1000)
        return pause_ms(policy, tries, self.env.jitter())

    def can_hold(self, wait_ms: int) -> bool:
        """Whether a pause is short enough to stay inside the function."""
        return wait_ms <= min(HOLD_RETRY_MS_MAX, self.env.remaining_ms() - DEADLINE_MARGIN_MS)

    # --- shared -----------------------------------------------------------------------------------------------------

    async def _own(self) -> None:
        if not self.lease.owning:
            await self.env.writes.run(self.lease.claim(self.event, self._before(), self.start_ms))
        self._check_time()

    def _check_time(self) -> None:
        if self.env.remaining_ms() <= DEADLINE_MARGIN_MS:
            raise OutOfTimeError

    async def _durably(self, work: Any) -> Any:
        try:
            return await self.env.writes.run(work)
        except Exception as e:
            self.broken = self.broken or e
            raise Unwind from e

    def _issue(self, command: Run | Sleep | Awakeable | Send | Select) -> int:
        self._check_open()
        if asyncio.current_task() is not self._owner:
            raise TenutoError(
                "commands come from the handler's own task: start steps with ctx.run and combine them with gather or "
                "select instead of asyncio tasks, whose order a replay could not repeat"
            )
        try:
            return self.lease.journal.issue(command)
        except Exception as e:
            self.broken = e
            raise Unwind from e

    def _post(self, index: int, target: str, entry: Out) -> None:
        with self.lease.guard:
            journal = self.lease.journal
            if len(journal.out) >= OUT_WAITING_MAX:
                raise TerminalError(f"more than {OUT_WAITING_MAX} messages without a durable step between them", 413)
            journal.send(index, target, entry)

    def _read_slot(self, future: DurableFuture[Any]) -> None:
        slot = self.lease.journal.slot(future.slot)
        match slot:
            case AwakeableSlot(Failed(failure)):
                # Whoever rejected it has written the text.
                future.result = Failed(structs.replace(failure, foreign=True))
            case RunSlot(_, result) | AwakeableSlot(result):
                future.result = result
            case SleptSlot():
                future.result = Success()
            case _:
                return

    def _finish(self, name: str, slot: RunSlot | SleptSlot | SelectedSlot | TriedSlot) -> None:
        with self.lease.guard:
            self.lease.journal.finish(name, slot)

    def _collect(self) -> None:
        for task in [t for t in self._tasks if t.done()]:
            del self._tasks[task]

    def _check_open(self) -> None:
        if self.suspended or self.broken is not None:
            raise Unwind


def _fitting(data: bytes, name: str) -> bytes:
    if len(data) > VALUE_BYTES_MAX:
        raise StateTooLargeError(f"the result of run {name!r}", len(data), VALUE_BYTES_MAX)
    return data


def describe(error: BaseException) -> str:
    """One line about an error: its type and message."""
    text = str(error).strip().replace("\n", " ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
