"""One attempt at one invocation: its handler runs, is told of completions one at a time, and waits.

Owns driving the handler to its end, telling it of the next completion, and turning "nothing can go on here" into a wait
or a suspension. Does not own the commands (`commands`), the steps (`step_tasks`), the handler's event loop
(`handler_loop`), nor the writes (`lease`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenuto.errors import JournalMismatchError, TenutoError
from tenuto.lane.naps import Nap
from tenuto.lane.transitions import WakeCondition
from tenuto.protocol.ids import command_of_awakeable
from tenuto.protocol.limits import (
    ANSWER_PUTS_MAX,
    AWAKEABLE_LOOK_MS_MAX,
    AWAKEABLE_LOOK_MS_MIN,
    DEADLINE_MARGIN_MS,
    HOLD_SLEEP_MS_MAX,
    NAP_SLEEPS_MAX,
)
from tenuto.protocol.records import Event, pack
from tenuto.runtime import steps
from tenuto.runtime.commands import Commands
from tenuto.runtime.ending import Ending, Unwind
from tenuto.runtime.environment import Environment
from tenuto.runtime.futures import SleepFuture
from tenuto.runtime.handler_loop import HandlerLoop
from tenuto.runtime.lease import Lease
from tenuto.runtime.outstanding import Outstanding
from tenuto.runtime.state import StateView
from tenuto.runtime.step_tasks import StepTasks

T = TypeVar("T")


class Attempt:
    """One attempt. A new one is made for each; lease, journal and state are shared by them."""

    def __init__(self, event: Event, lease: Lease, state: StateView, env: Environment) -> None:
        start_ms = lease.run.start_ms if lease.owning else env.now_ms()
        self.journal = lease.journal
        self.ending = Ending()
        self._outstanding = Outstanding(self.journal, env.now_ms, start_ms)
        self.commands = Commands(event, lease, state, env, self._outstanding, self.ending)
        self._steps = StepTasks(event, lease, env, self._outstanding, self.ending)
        self._event = event
        self._lease = lease
        self._state = state
        self._env = env
        self._told = 0
        self._look_ms = AWAKEABLE_LOOK_MS_MIN

    # --- what a line of log says ------------------------------------------------------------------------------------

    @property
    def replaying(self) -> bool:
        """See `Logged.replaying`."""
        return self.journal.replaying

    def log_fields(self) -> dict[str, str | int]:
        """See `Logged.log_fields`."""
        return self._lease.log_fields(self._event)

    # --- driving the handler ----------------------------------------------------------------------------------------

    async def drive(self, handler: Callable[[], Awaitable[T]]) -> T:
        """Run a handler to its end. Raises what it raises, and Unwind when the attempt is over before."""
        loop = HandlerLoop(self.commands, self._env.now_ms())  # type: ignore[abstract]  # what is abstract refuses
        self.commands.loop = loop
        main = loop.create_task(_main(handler), name=self._event.handler)
        try:
            while True:
                loop.run()
                if main.done() or not self.ending.open:
                    break
                if not self._tell_next():
                    await self._more()
            if self.ending.open and (len(self._outstanding) or len(self._steps) or loop.has_others(main)):
                await self._leave(loop)
        except Unwind:
            pass
        except TenutoError as e:
            self.ending.fail(e)
        finally:
            self.ending.returned = True
            # Also when all is done: what a task of an attempt that is over has raised is not reported.
            if not (main.done() and self.ending.open) or loop.has_others(main):
                loop.unwind(Unwind)
            loop.end()
        await self._steps.settle()
        if not self.ending.open or not main.done():
            raise Unwind
        return main.result()

    async def _leave(self, loop: HandlerLoop) -> None:
        """The handler has ended: cancel tasks that it did not await, and leave steps that nobody waits for any more."""
        self.ending.returned = True
        left = loop.cancel_rest()
        if left:
            loop.run()
            steps.log.warning(
                "%s/%s ended while its tasks were running, which are cancelled: %s. Await them before you return",
                *(self._lease.lane.service, self._event.handler, ", ".join(left)),
                extra=self.log_fields(),
            )
        # A step that was never awaited runs all the same: the handler asked for it.
        await self._steps.start()
        self._steps.leave_lost()

    def _tell_next(self) -> bool:
        """Tell the handler of one completion, if there is one."""
        for name in self._lease.hear():
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
            self.ending.fail(JournalMismatchError(index, "its completion next", "has not come to it"))
            raise Unwind from None
        self.journal.tell(index, outstanding)
        self._told += 1
        self._look_ms = AWAKEABLE_LOOK_MS_MIN
        future.complete(result, self._told)
        if isinstance(future, SleepFuture) and future.handle is not None:
            self.commands.timer_ends(future.handle)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def _more(self) -> None:
        """Nothing has completed that the handler does not know of: start what it asked for, then wait, or suspend."""
        if not self._outstanding.anybody_waits():
            self.ending.fail(
                TenutoError(
                    "the handler waits for something that nothing will bring about: no command it has issued is "
                    "awaited. Await durable futures, or tasks that do"
                )
            )
            return
        if await self._steps.start():
            return
        nearest = self._outstanding.nearest_ms()
        if len(self._steps) and not self._must_leave():
            await self._wait_for_steps(nearest)
        elif nearest is not None and self._can_hold_sleep(nearest):
            await self._hold_sleep(nearest)
        else:
            await self._suspend(nearest)

    def _must_leave(self) -> bool:
        """Whether the function's time is nearly over, and all that runs are steps which nobody waits for."""
        return self._env.remaining_ms() <= DEADLINE_MARGIN_MS and self._steps.all_lost

    async def _wait_for_steps(self, nearest: int | None) -> None:
        """Wait for a step to end, for the end of an awaited sleep, or to look for answers again."""
        now_ms = self._env.now_ms()
        pauses = [] if nearest is None else [max(0, nearest - now_ms)]
        looks = self._lease.owning and self._outstanding.asks()
        if looks:
            pauses.append(self._look_ms)
        if self._steps.all_lost:
            pauses.append(max(0, self._env.remaining_ms() - DEADLINE_MARGIN_MS))
        ended = await self._steps.one_ends(min(pauses) if pauses else None)
        if looks and not ended and self.ending.open and self._env.now_ms() - now_ms >= self._look_ms:
            self._look_ms = min(2 * self._look_ms, AWAKEABLE_LOOK_MS_MAX)
            await self.ending.durably(self._lease.look())

    def _can_hold_sleep(self, wake_ms: int) -> bool:
        """Whether to wait for the end of a sleep in this function rather than to suspend."""
        left_ms = wake_ms - self._env.now_ms()
        if left_ms > min(self._env.hold_ms, self._env.remaining_ms() - DEADLINE_MARGIN_MS):
            return False
        # What arrives from outside is seen by a suspension's condition, not by a function that waits.
        return left_ms <= HOLD_SLEEP_MS_MAX or not self._outstanding.asks()

    async def _hold_sleep(self, wake_ms: int) -> None:
        """Wait for the end of a sleep. A long one is made durable first: after a crash it does not start over."""
        if wake_ms - self._env.now_ms() > HOLD_SLEEP_MS_MAX:
            here = not len(self._steps)
            await self.ending.durably(self._lease.claim(self._outstanding.start_ms, here=here))
            self._outstanding.note_ends()
            await self.ending.durably(self._lease.flush(here=here))
            if not self._can_hold_sleep(wake_ms):
                return  # The writes took long: what is left of this function is too little.
        await asyncio.sleep(max(0, wake_ms - self._env.now_ms()) / 1000)

    async def _suspend(self, wake_ms: int | None) -> None:
        here = not len(self._steps)
        await self.ending.durably(self._lease.claim(self._outstanding.start_ms, here=here))
        self._outstanding.note_ends()
        wakes = WakeCondition(tuple(f.slot for f in self._outstanding.awaited()), wake_ms)
        changed, initial = dict(self._state.changed), self._state.initial_of_changed()
        out = dict(self.journal.out)
        nap = self._nap(wake_ms)
        if nap is not None:
            await self.ending.durably(self._lease.nap(changed, initial, nap, out))
            self.ending.suspend()
            return
        if await self.ending.durably(self._lease.suspend(changed, initial, wakes, out, here=here)):
            self.ending.suspend()

    def _nap(self, wake_ms: int | None) -> Nap | None:
        """How to sleep with the lane left to the control plane; None when it is to be let go."""
        leave = self._env.nap
        if leave is None or wake_ms is None or wake_ms - self._env.now_ms() > leave.most_ms:
            return None
        if len(self._steps) or self._outstanding.asks():
            return None
        slept = self._outstanding.slept_by(wake_ms)
        if len(slept) > NAP_SLEEPS_MAX:
            return None
        return Nap(wake_ms, leave.holder, wake_ms + leave.lease_ms, {name: pack(slot) for name, slot in slept.items()})

    async def pause(self, failures: int, error: str, wake_ms: int) -> None:
        """Suspend until a later attempt may start. Raises FencedError."""
        # Messages of a failed attempt are not sent: the next attempt decides again.
        self.journal.out.clear()
        for _ in range(ANSWER_PUTS_MAX):
            # Refused when an answer has come in between, which the next attempt will hear of.
            if await self._lease.suspend({}, {}, WakeCondition((), wake_ms, failures, error)):
                break
        self.ending.suspend()


async def _main(handler: Callable[[], Awaitable[T]]) -> T:
    return await handler()
