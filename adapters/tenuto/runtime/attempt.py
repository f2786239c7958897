"""One attempt at one invocation: its commands, and which of them completes next.

Owns issuing commands, telling their completions to the handler one at a time, and turning "nothing can go on here" into
a suspension. Does not own the handler's event loop (`handler_loop`), how steps are tried (`steps`), the writes
(`lease`), the journal's rules (`tenuto.machine`) or the face that handlers see (`tenuto.context`).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tenuto.errors import JournalMismatchError, StateTooLargeError, Suspension, TenutoError
from tenuto.lane.transitions import Effects, Wait
from tenuto.machine.journal import Awakeable, Command, Journal, Now, Run, Send, Sleep, due_name
from tenuto.protocol.ids import (
    AwakeableId,
    InvocationId,
    Lane,
    awakeable_slot,
    awakeable_token,
    command_of_awakeable,
    message_nonce,
)
from tenuto.protocol.limits import (
    ANSWER_PUTS_MAX,
    AWAKEABLE_BYTES_MAX,
    AWAKEABLE_LOOK_MS_MAX,
    AWAKEABLE_LOOK_MS_MIN,
    DEADLINE_MARGIN_MS,
    HOLD_RETRY_MS_MAX,
    HOLD_SLEEP_MS_MAX,
    OUT_PER_WRITE_MAX,
    OUT_WAITING_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.records import (
    DueSlot,
    Entry,
    Event,
    NowSlot,
    PublishOut,
    ResolveOut,
    Result,
    RunSlot,
    SendOut,
    answer_bytes,
    pack,
)
from tenuto.runtime import steps
from tenuto.runtime.environment import Environment
from tenuto.runtime.futures import AwakeableFuture, DurableFuture, RunFuture, SleepFuture
from tenuto.runtime.handler_loop import HandlerLoop
from tenuto.runtime.lease import Lease
from tenuto.runtime.outstanding import Outstanding
from tenuto.runtime.state import StateView
from tenuto.runtime.steps import RunLimits
from tenuto.serde import Serde

T = TypeVar("T")
F = TypeVar("F", bound=DurableFuture[Any])

UNWOUND_MAX: Final = 100
"""How often a handler whose attempt is over is told so before it is left behind."""

LEFT_BEHIND: Final = -1
"""The index of a command whose handler is left behind."""

COMMAND_FRAMES_MAX: Final = 3
"""Lines of the handler's own code that a mismatch names."""

_NOT_THE_HANDLERS: Final = (str(Path(__file__).parents[1]), str(Path(asyncio.__file__).parent))


class Unwind(Suspension):
    """Ends a handler's coroutine because its attempt is over: suspended, fenced or failed."""


class OutOfTimeError(Exception):
    """The function's deadline is near: the invocation goes on in the next function, at once."""


class Attempt:
    """The commands of one attempt. A new one is made for each attempt; lease, journal and state are shared by them."""

    def __init__(
        self, event: Event, lease: Lease, state: StateView, before: Callable[[], Effects], env: Environment
    ) -> None:
        self.event = event
        self.lease = lease
        # Not the lease's, which goes on to other invocations: a step that was left behind must not reach theirs.
        self.journal: Journal = lease.journal
        self.env = env
        self.start_ms = lease.run.start_ms if lease.owning else env.now_ms()
        self._outstanding = Outstanding(self.journal, env.now_ms, self.start_ms)
        self.suspended = False
        self.broken: BaseException | None = None
        self.loop: HandlerLoop | None = None
        self._state = state
        self._before = before
        self._running: dict[asyncio.Task[None], RunFuture[Any]] = {}
        self._ended: asyncio.Future[None] | None = None
        self._timers: dict[asyncio.TimerHandle, int] = {}
        self._unnoted: list[SleepFuture] = []
        self._unwound = 0
        self.timed_out = False
        self._told = 0
        self._look_ms = AWAKEABLE_LOOK_MS_MIN
        self._sent_bytes = 0
        self._over = False

    # --- what handlers are told without a command -------------------------------------------------------------------

    @property
    def state(self) -> StateView:
        """The state as this attempt sees it. Raises TenutoError in a step, and after the handler's end."""
        self.require_handler("state (ctx.get, ctx.set, ctx.clear)")
        return self._state

    @functools.cached_property
    def _random(self) -> steps.DurableRandom:
        return steps.DurableRandom(self.event.id, self.require_handler)

    @property
    def random(self) -> random.Random:
        """The invocation's random numbers. Seeding takes as long as a small handler, so only who asks pays for it."""
        self.require_handler("random numbers")
        return self._random

    @property
    def replaying(self) -> bool:
        """See `Logged.replaying`."""
        return self.journal.replaying

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

    def require_handler(self, what: str) -> None:
        """Raise TenutoError where a replay could not repeat `what`: in a step, or when the handler is over."""
        if self.loop is None:
            return  # A shared handler, which is never replayed.
        if asyncio._get_running_loop() is not self.loop:  # noqa: SLF001 - documented as fast, and as None in a thread
            raise TenutoError(
                f"{what}: not inside a step. What a step does is not replayed, only its result is kept: use the "
                "context in the handler's own code, around ctx.run, and pass values into the step and out of it"
            )
        if self._over:
            raise TenutoError(f"{what}: the handler has ended. Await its tasks before you return")

    # --- commands ---------------------------------------------------------------------------------------------------

    def run(self, name: str, call: Callable[[], Any], serde: Serde[T], limits: RunLimits) -> RunFuture[T]:
        """Execute a step once; from then on its journaled result is used."""
        future: RunFuture[T] = RunFuture(self, self._issue(Run(name), f"ctx.run({name!r})"), serde)
        step = functools.partial(self._execute, future, name, call, serde, limits)
        future.start = functools.partial(self._spawn, step, contextvars.copy_context())
        return self._expect(future)

    def sleep(self, duration_ms: int, what: str = "ctx.sleep") -> SleepFuture:
        """Wait at least this long, across crashes."""
        index = self._issue(Sleep(), what)
        due = self.journal.slot(due_name(index))
        due_ms = due.wake_ms if isinstance(due, DueSlot) else self.env.now_ms() + duration_ms
        future = SleepFuture(self, index, due_ms)
        self._unnoted.append(future)
        return self._expect(future)

    def timer(self, handle: asyncio.TimerHandle, delay_ms: int) -> None:
        """See `Timers.timer`."""
        future = self.sleep(delay_ms, "a timer of asyncio")
        future.handle, self._timers[handle] = handle, future.index

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """See `Timers.timer_cancelled`."""
        index = self._timers.pop(handle, None)
        if index is not None:
            self._outstanding.discard(index)

    def awakeable(self, serde: Serde[T]) -> tuple[str, AwakeableFuture[T]]:
        """An id to give away, and the future that whoever resolves it completes."""
        index = self._issue(Awakeable(), "ctx.awakeable")
        slot = awakeable_slot(index)
        name = AwakeableId(self.invocation, slot, awakeable_token(self.lease.run_secret(), slot))
        return str(name), self._expect(AwakeableFuture(self, index, serde))

    def now_ms(self) -> int:
        """The time when this was first asked here, milliseconds since the epoch."""
        if self.loop is None:
            return self.env.now_ms()  # A shared handler, which is never replayed.
        name = str(self._issue(Now(), "ctx.time"))
        slot = self.journal.slot(name)
        if isinstance(slot, NowSlot):
            return slot.at_ms
        now_ms = self.env.now_ms()
        self.journal.finish(name, NowSlot(now_ms))
        return now_ms

    def send(self, lane: Lane | None, service: str, handler: str, data: bytes | None, delay_ms: int) -> str:
        """A message for another lane (None: a fresh lane of an unkeyed service). Returns the new invocation's id."""
        target = f"{service}/{handler}"
        index = self._issue(Send(target), f"a send to {target}")
        nonce = message_nonce(self.event.id, index)
        receiver = InvocationId(lane or Lane(service, nonce), nonce)
        due_ms = self.env.now_ms() + delay_ms if delay_ms > 0 else None
        key = receiver.lane.key
        self._post(index, target, SendOut(service, key, str(receiver), handler, data, (), due_ms))
        return str(receiver)

    def publish(self, entry: PublishOut) -> None:
        """A record for a Kafka topic."""
        target = f"topic {entry.topic}"
        self._post(self._issue(Send(target), "ctx.publish"), target, entry)

    def resolve(self, awakeable: str, result: Result) -> None:
        """The result of somebody's awakeable. Raises StateTooLargeError."""
        size = answer_bytes(result)
        if size > AWAKEABLE_BYTES_MAX:
            raise StateTooLargeError("the result of an awakeable", size, AWAKEABLE_BYTES_MAX)
        index = self._issue(Send("awakeable"), "ctx.resolve_awakeable")
        self._post(index, "awakeable", ResolveOut(awakeable, result))

    async def gather(self, futures: Sequence[DurableFuture[Any]]) -> list[Any]:
        """Wait for all; values in order. Raises the first failure in order, once all are done."""
        for future in futures:
            while not future.done():
                waiting = self.waiting()
                future.join(waiting)
                await waiting
        return [f.value() for f in futures]

    async def select(self, futures: Sequence[DurableFuture[Any]]) -> int:
        """Wait for the first to complete: its place. Later attempts get the same answer."""
        if not futures:
            raise ValueError("select needs at least one future")
        while not any(f.done() for f in futures):
            waiting = self.waiting()
            for future in futures:
                future.join(waiting)
            await waiting
        done = [place for place, future in enumerate(futures) if future.done()]
        return min(done, key=lambda place: futures[place].told_at)

    def waiting(self) -> asyncio.Future[None]:
        """See `Waiter.waiting`."""
        if self._goes_on():
            self.require_handler("awaiting a durable future")
        assert self.loop is not None
        return self.loop.create_future()

    def told_ms(self) -> int:
        """See `Timers.told_ms`."""
        return self._outstanding.told_ms

    # --- driving the handler ----------------------------------------------------------------------------------------

    async def drive(self, handler: Callable[[], Awaitable[T]]) -> T:
        """Run a handler to its end. Raises what it raises, and Unwind when the attempt is over before."""
        self.loop = loop = HandlerLoop(self, self.env.now_ms())  # type: ignore[abstract]  # what is abstract refuses
        main = loop.create_task(_main(handler), name=self.event.handler)
        try:
            while True:
                loop.run()
                if main.done() or not self._open:
                    break
                if not self._tell_next():
                    await self._more()
            if self._open and (len(self._outstanding) or self._running or loop.has_others(main)):
                self._leave(loop)
        except Unwind:
            pass
        except TenutoError as e:
            self._break(e)
        finally:
            self._over = True
            # Also when all is done: what a task of an attempt that is over has raised is not reported.
            if not (main.done() and self._open) or loop.has_others(main):
                loop.unwind(Unwind)
        if self._running:
            await self._settle()
        if not self._open or not main.done():
            raise Unwind
        return main.result()

    @property
    def _open(self) -> bool:
        return not self.suspended and self.broken is None

    def _leave(self, loop: HandlerLoop) -> None:
        """The handler has ended: cancel tasks that it did not await, and leave steps that nobody waits for any more."""
        self._over = True
        left = loop.cancel_rest()
        if left:
            loop.run()
            steps.log.warning(
                "%s/%s ended while its tasks were running, which are cancelled: %s. Await them before you return",
                *(self.lease.lane.service, self.event.handler, ", ".join(left)),
                extra=self.log_fields(),
            )
        # A step that was never awaited runs all the same: the handler asked for it.
        self._start_steps()
        for task, future in list(self._running.items()):
            if future.lost and not task.done():
                future.left = True
                # One that has not come to its own code ends by itself, with the write that it waits for.
                if future.calls:
                    del self._running[task]
                    self.env.abandon(task)

    async def _settle(self) -> None:
        """Wait for steps that run, so that none outlives its attempt but those which were left on purpose."""
        while self._running:
            await self._step_ends(None)

    def _tell_next(self) -> bool:
        """Tell the handler of one completion, if there is one."""
        for name in self.lease.hear():
            index = command_of_awakeable(name)
            if index is not None:
                self._outstanding.look(index)
        index = self.journal.next_told if len(self._outstanding) > 1 else None
        if index is None:
            index = self._outstanding.first()
        if index is None:
            return False
        self._tell(index)
        return True

    def _tell(self, index: int) -> None:
        outstanding = len(self._outstanding)
        try:
            future, result = self._outstanding.take(index)
        except KeyError:
            # The journal has it as what the handler was told next, and this handler has not come to it.
            self._break(JournalMismatchError(index, "its completion next", "has not come to it"))
            raise Unwind from None
        self.journal.tell(index, outstanding)
        self._told += 1
        self._look_ms = AWAKEABLE_LOOK_MS_MIN
        future.complete(result, self._told)
        if isinstance(future, SleepFuture) and future.handle is not None and self.loop is not None:
            self._timers.pop(future.handle, None)
            self.timed_out = True
            self.loop.call_soon(future.handle._run)  # noqa: SLF001 - how every event loop runs a handle

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def _more(self) -> None:
        """Nothing has completed that the handler does not know of: start what it asked for, then wait, or suspend."""
        if not self._outstanding.anybody_waits():
            self._break(
                TenutoError(
                    "the handler waits for something that nothing will bring about: no command it has issued is "
                    "awaited. Await durable futures, or tasks that do"
                )
            )
            return
        self._start_steps()
        nearest = self._outstanding.nearest_ms()
        if self._running and not self._must_leave():
            await self._wait_for_steps(nearest)
        elif nearest is not None and self._can_hold_sleep(nearest):
            await self._hold_sleep(nearest)
        else:
            await self._suspend(nearest)

    def _start_steps(self) -> None:
        for future in self._outstanding.to_start():
            assert future.start is not None
            task = future.start()
            self._running[task] = future
            task.add_done_callback(self._step_ended)

    def _must_leave(self) -> bool:
        """Whether the function's time is nearly over, and all that runs are steps which nobody waits for."""
        return self.env.remaining_ms() <= DEADLINE_MARGIN_MS and all(f.lost for f in self._running.values())

    async def _wait_for_steps(self, nearest: int | None) -> None:
        """Wait for a step to end, for the end of an awaited sleep, or to look for answers again."""
        now_ms = self.env.now_ms()
        pauses = [] if nearest is None else [max(0, nearest - now_ms)]
        looks = self.lease.owning and self._outstanding.asks()
        if looks:
            pauses.append(self._look_ms)
        if all(f.lost for f in self._running.values()):
            pauses.append(max(0, self.env.remaining_ms() - DEADLINE_MARGIN_MS))
        ended = await self._step_ends(min(pauses) if pauses else None)
        if looks and not ended and self._open and self.env.now_ms() - now_ms >= self._look_ms:
            self._look_ms = min(2 * self._look_ms, AWAKEABLE_LOOK_MS_MAX)
            await self._durably(self.lease.look())

    async def _step_ends(self, pause_ms: int | None) -> bool:
        """Wait for the end of a running step, so long at the most. Whether one has ended."""
        loop = asyncio.get_running_loop()
        ended = self._ended = loop.create_future()
        timer = None if pause_ms is None else loop.call_later(pause_ms / 1_000, _end, ended)
        running = len(self._running)
        try:
            await ended
        finally:
            self._ended = None
            if timer is not None:
                timer.cancel()
        return len(self._running) < running

    def _step_ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if self._ended is not None:
            _end(self._ended)

    def _can_hold_sleep(self, wake_ms: int) -> bool:
        """Whether to wait for the end of a sleep in this function rather than to suspend."""
        left_ms = wake_ms - self.env.now_ms()
        if left_ms > min(self.env.hold_ms, self.env.remaining_ms() - DEADLINE_MARGIN_MS):
            return False
        # What arrives from outside is seen by a suspension's condition, not by a function that waits.
        return left_ms <= HOLD_SLEEP_MS_MAX or not self._outstanding.asks()

    async def _hold_sleep(self, wake_ms: int) -> None:
        """Wait for the end of a sleep. A long one is made durable first: after a crash it does not begin anew."""
        if wake_ms - self.env.now_ms() > HOLD_SLEEP_MS_MAX:
            await self._claim()
            self._note_ends()
            await self._durably(self.lease.flush())
            if not self._can_hold_sleep(wake_ms):
                return  # The writes took long: what is left of this function is too little.
        await asyncio.sleep(max(0, wake_ms - self.env.now_ms()) / 1000)

    def _note_ends(self) -> None:
        """Have the ends of sleeps journaled with the next write."""
        journal = self.journal
        for future in self._unnoted:
            due = due_name(future.index)
            if not future.done() and journal.slot(due) is None:
                journal.finish(due, DueSlot(future.due_ms))
        self._unnoted.clear()

    async def _suspend(self, wake_ms: int | None) -> None:
        await self._claim()
        self._note_ends()
        journal = self.journal
        base = self._state.base(self.lease.head.base)
        wait = Wait(tuple(f.slot for f in self._outstanding.awaited()), wake_ms)
        out = dict(journal.out)
        if await self._durably(self.lease.suspend(self._state.changed, base, wait, out)):
            self.suspended = True

    async def pause(self, failures: int, error: str, wake_ms: int) -> None:
        """Suspend until a later attempt may start. Raises FencedError."""
        # Messages of a failed attempt are not sent: the next attempt decides again.
        self.journal.out.clear()
        for _ in range(ANSWER_PUTS_MAX):
            # Refused when an answer has come in between, which the next attempt will hear of.
            if await self.env.writes.run(self.lease.suspend({}, {}, Wait((), wake_ms, failures, error))):
                break
        self.suspended = True

    # --- steps ------------------------------------------------------------------------------------------------------

    def _spawn(self, step: Callable[[], Coroutine[Any, Any, None]], context: contextvars.Context) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(step(), context=context)

    async def _execute(
        self, future: RunFuture[T], name: str, call: Callable[[], Any], serde: Serde[T], limits: RunLimits
    ) -> None:
        try:
            await self._own()
            if future.left:
                return
            future.calls = True
            result = await steps.tried(self, future.index, name, call, serde, limits)
            self._store(future, RunSlot(name, result, max(0, self.env.now_ms() - self.start_ms)))
        except BaseException as e:
            if future.left and isinstance(e, asyncio.CancelledError):
                raise
            if future.lost and isinstance(e, Exception) and not steps.ends_attempt(e):
                steps.log.warning("step %r, which nobody waits for, failed", name, exc_info=e, extra=self.log_fields())
                self._outstanding.start_again(future)
            else:
                self._break(e)

    def _store(self, future: RunFuture[Any], slot: RunSlot) -> None:
        if future.left:
            return
        self.journal.finish(future.slot, slot)
        self._outstanding.look(future.index)
        self.env.writes.post(self.lease.flush_soon)

    async def _own(self) -> None:
        """Hold the lease, with everything that has finished stored, before anything happens outside."""
        await self._claim()
        journal = self.journal
        if not self.lease.durable or len(journal.out) > OUT_PER_WRITE_MAX:
            self._note_ends()
            out = dict(journal.out) if len(journal.out) > OUT_PER_WRITE_MAX else {}
            await self._durably(self.lease.flush(out))
            journal.sent(out)
        # The writes may have taken long: past the lease another attempt may be at work, and repeat this step.
        if self.env.remaining_ms() <= DEADLINE_MARGIN_MS:
            raise OutOfTimeError

    async def _claim(self) -> None:
        """Hold the lease. Raises Unwind when it cannot be had."""
        if not self.lease.owning:
            self.lease.run_secret()
            await self._durably(self.lease.claim(self.event, self._before(), self.start_ms))

    def can_hold(self, wait_ms: int) -> bool:
        """Whether a pause is short enough to stay inside the function."""
        return wait_ms <= min(HOLD_RETRY_MS_MAX, self.env.remaining_ms() - DEADLINE_MARGIN_MS)

    # --- shared -----------------------------------------------------------------------------------------------------

    async def _durably(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await self.env.writes.run(work)
        except Exception as e:
            self._break(e)
            raise Unwind from e

    def _break(self, error: BaseException) -> None:
        """The attempt fails with this, unless it has failed already."""
        self.broken = self.broken or error

    def _issue(self, command: Command, what: str) -> int:
        if not self._goes_on():
            return LEFT_BEHIND
        self.require_handler(what)
        try:
            return self.journal.issue(command)
        except Exception as e:
            if isinstance(e, JournalMismatchError):
                e.add_note(_issued_at())
            self._break(e)
            raise Unwind from e

    def _expect(self, future: F) -> F:
        self._outstanding.add(future)
        return future

    def _post(self, index: int, target: str, entry: Entry) -> None:
        size = len(pack(entry))
        if size > VALUE_BYTES_MAX:
            raise StateTooLargeError(f"what is sent to {target}", size, VALUE_BYTES_MAX)
        journal = self.journal
        # Each entry is weighed once: when the sum is near the bound there are few enough to count them anew.
        self._sent_bytes += size
        if self._sent_bytes > OUT_WAITING_BYTES_MAX:
            self._sent_bytes = size + sum(len(pack(waiting)) for _, _, waiting in journal.out.values())
            if self._sent_bytes > OUT_WAITING_BYTES_MAX:
                raise StateTooLargeError(
                    "what is sent without a durable step between", self._sent_bytes, OUT_WAITING_BYTES_MAX
                )
        journal.send(index, target, entry)

    def _goes_on(self) -> bool:
        """Whether this attempt goes on. Raises Unwind when it does not.

        A handler may swallow that and try again. Then it is not told any more: whatever it awaits next never comes, and
        so it is left behind.
        """
        if self._open:
            return True
        self._unwound += 1
        if self._unwound <= UNWOUND_MAX:
            raise Unwind
        return False


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _main(handler: Callable[[], Awaitable[T]]) -> T:
    return await handler()


def _issued_at() -> str:
    """The lines of the handler's own code that led to the command which is being issued."""
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_NOT_THE_HANDLERS)]
    return "issued at:\n" + "".join(traceback.format_list(frames[-COMMAND_FRAMES_MAX:])).rstrip()
