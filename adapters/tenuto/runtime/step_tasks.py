"""The steps of one attempt: one at a time in the thread that drives the handler, or several beside it.

Owns when a step may begin (the lease is held, everything before it is stored), which steps run, and what becomes of
those that nobody waits for. Does not own where a step runs (`placement`), how it is tried (`steps`), nor when the
handler is told (`attempt`).
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from tenuto.machine.journal import tried_name
from tenuto.protocol.failures import printable
from tenuto.protocol.limits import DEADLINE_MARGIN_MS, OUT_PER_WRITE_MAX
from tenuto.protocol.records import Event, RunSlot
from tenuto.runtime import steps
from tenuto.runtime.at_once import task_at_once, within
from tenuto.runtime.ending import Ending, OutOfTimeError
from tenuto.runtime.environment import Environment
from tenuto.runtime.futures import RunFuture
from tenuto.runtime.lease import Lease
from tenuto.runtime.outstanding import Outstanding
from tenuto.runtime.placement import StepPlace, may_hold_thread, step_place


class StepTasks:
    """Steps that run."""

    def __init__(
        self,
        event: Event,
        lease: Lease,
        env: Environment,
        outstanding: Outstanding,
        ending: Ending,
    ) -> None:
        self._event = event
        self._lease = lease
        # Not the lease's, which goes on to other invocations: a step that was left behind must not reach theirs.
        self._journal = lease.journal
        self._env = env
        self._outstanding = outstanding
        self._ending = ending
        # None for one that runs in the task which drives the handler.
        self._running: dict[RunFuture[Any], asyncio.Task[None] | None] = {}
        self._ended: asyncio.Future[None] | None = None
        self._sending = asyncio.Lock()

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def all_lost(self) -> bool:
        """Whether nobody waits for any of those that run."""
        return all(future.lost for future in self._running)

    async def start(self) -> bool:
        """Begin every step that was asked for, but for those that interest nobody. Whether one has ended already."""
        starting = self._outstanding.to_start()
        if not starting:
            return False
        others, awaits_outside = len(self._running) + len(starting) - 1, self._outstanding.waits_outside()
        loop = asyncio.get_running_loop()
        for future in starting:
            is_async = inspect.iscoroutinefunction(future.step.call)
            beside = self._env.beside
            is_quick = beside is None or beside.quick.has(future.step.name)
            place = step_place(is_async=is_async, other_steps=others, awaits_outside=awaits_outside, is_quick=is_quick)
            if place is StepPlace.HERE:
                self._running[future] = None
                await self._execute(future, here=True)
                return True
            if may_hold_thread(other_steps=others, awaits_outside=awaits_outside):
                # Many an async step never waits, and needs no turn of the loop.
                self._running[future] = None
                task = task_at_once(self._execute(future, here=False), future.step.context)
                if task.done():
                    return True
                self._running[future] = task
            else:
                self._running[future] = loop.create_task(self._execute(future, here=False), context=future.step.context)
        return False

    def may_hold_thread(self) -> bool:
        """Whether a write may hold the thread that drives the handler, for the one step that runs or for none."""
        other_steps = max(0, len(self._running) - 1)
        return may_hold_thread(other_steps=other_steps, awaits_outside=self._outstanding.waits_outside())

    async def one_ends(self, pause_ms: int | None) -> bool:
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

    async def settle(self) -> None:
        """Wait for steps that run, so that none outlives its attempt but those which were left on purpose."""
        while self._running:
            await self.one_ends(None)

    def leave_lost(self) -> None:
        """Leave behind the steps that nobody waits for: their handler has ended."""
        for future, task in list(self._running.items()):
            if future.lost:
                future.left = True
                # One that has not come to its own code ends by itself, with the write that it waits for.
                if future.calls and task is not None:
                    del self._running[future]
                    self._env.abandon(task)

    def _log_fields(self) -> dict[str, str | int]:
        return self._lease.log_fields(self._event)

    # --- one step ---------------------------------------------------------------------------------------------------

    async def _execute(self, future: RunFuture[Any], *, here: bool) -> None:
        step = future.step
        try:
            await self._own()
            if future.left:
                return
            future.calls = True
            tried = steps.tried(
                step, self._journal.tried(step.index), self._event.id, self._env, self._log_fields, here=here
            )
            # A task of its own has been given the context already.
            result = await (within(step.context, tried) if here else tried)
            if not future.left:
                after_ms = max(0, self._env.now_ms() - self._outstanding.start_ms)
                self._journal.finish(future.slot, RunSlot(step.name, result, after_ms))
                self._outstanding.look(step.index)
                self._lease.flush_soon()
        except BaseException as e:
            # The end of this task, which no step has brought about.
            if isinstance(e, GeneratorExit) or (isinstance(e, asyncio.CancelledError) and (here or future.left)):
                raise
            if isinstance(e, steps.StepWaitsError):
                self._journal.finish(tried_name(step.index, e.tries.tries), e.tries)
            if future.lost and isinstance(e, Exception) and not steps.ends_attempt(e):
                fields = self._log_fields()
                text = "step %r, which nobody waits for, failed"
                steps.log.warning(text, step.name, exc_info=printable(e), extra=fields)
                self._outstanding.start_again(future)
            else:
                self._ending.fail(e)
        finally:
            # Here and not in a callback of the task: that would take another turn of the loop, for each step.
            self._running.pop(future, None)
            if self._ended is not None:
                _end(self._ended)

    async def _own(self) -> None:
        """Hold the lease, with everything that has finished stored, before anything happens outside."""
        lease, journal = self._lease, self._journal
        if not lease.owning:
            await self._ending.durably(lease.claim(self._outstanding.start_ms, here=self.may_hold_thread()))
        if len(journal.out) > OUT_PER_WRITE_MAX:
            await self._send()
        if not lease.durable:
            self._outstanding.note_ends()
            learns = self._outstanding.may_be_answered()
            await self._ending.durably(lease.flush(here=self.may_hold_thread(), learns=learns))
        # The writes may have taken long: past the lease another attempt may be at work, and repeat this step.
        if self._env.remaining_ms() <= DEADLINE_MARGIN_MS:
            raise OutOfTimeError

    async def _send(self) -> None:
        """Store waiting messages, together with what has finished: they are more than a later write should take."""
        journal = self._journal
        # Several steps may find the same messages waiting; the first sends them.
        async with self._sending:
            if len(journal.out) > OUT_PER_WRITE_MAX:
                self._outstanding.note_ends()
                out = dict(journal.out)
                await self._ending.durably(self._lease.flush(out, here=self.may_hold_thread()))
                journal.sent(out)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
