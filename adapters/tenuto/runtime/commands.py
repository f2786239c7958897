"""What a handler asks for: its commands, numbered in the order of asking, and what it is told without one.

Owns issuing: each command gets its number in the journal, a future, and a place among the outstanding ones. Does not
own their completion, nor running anything (`attempt`, `step_tasks`), the journal's rules (`tenuto.machine`) or the face
that handlers see (`tenuto.context`).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tenuto.errors import JournalMismatchError, StateTooLargeError, TenutoError
from tenuto.machine.journal import (
    AwakeableCommand,
    Command,
    NowCommand,
    RunCommand,
    SendCommand,
    SleepCommand,
    due_name,
)
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, awakeable_slot, awakeable_token, message_nonce
from tenuto.protocol.limits import AWAKEABLE_BYTES_MAX, OUT_WAITING_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.records import (
    DueSlot,
    Entry,
    Event,
    NowSlot,
    PublishOut,
    ResolveOut,
    Result,
    SendOut,
    answer_bytes,
    pack,
)
from tenuto.runtime.ending import Ending, Unwind
from tenuto.runtime.environment import Environment
from tenuto.runtime.futures import AwakeableFuture, DurableFuture, RunFuture, SleepFuture
from tenuto.runtime.handler_loop import HandlerLoop
from tenuto.runtime.lease import Lease
from tenuto.runtime.outstanding import Outstanding
from tenuto.runtime.state import StateView
from tenuto.runtime.steps import DurableRandom, RunLimits, Step
from tenuto.serde import Serde

T = TypeVar("T")
F = TypeVar("F", bound=DurableFuture[Any])

LEFT_BEHIND: Final = -1
"""The index of a command whose handler is left behind."""

COMMAND_FRAMES_MAX: Final = 3
"""Lines of the handler's own code that a mismatch names."""

_NOT_THE_HANDLERS: Final = (str(Path(__file__).parents[1]), str(Path(asyncio.__file__).parent))


class Commands:
    """The commands of one attempt. `loop` is the handler's, None for a shared handler, which is never replayed."""

    def __init__(
        self,
        event: Event,
        lease: Lease,
        state: StateView,
        env: Environment,
        outstanding: Outstanding,
        ending: Ending,
    ) -> None:
        self.event = event
        self.lane = lease.lane
        self.start_ms = outstanding.start_ms
        self.loop: HandlerLoop | None = None
        self.timed_out = False
        self._lease = lease
        self._journal = lease.journal
        self._state = state
        self._env = env
        self._outstanding = outstanding
        self._ending = ending
        self._timers: dict[asyncio.TimerHandle, int] = {}
        self._sent_bytes = 0

    # --- what handlers are told without a command -------------------------------------------------------------------

    @property
    def state(self) -> StateView:
        """The state as this attempt sees it. Raises TenutoError in a step, and after the handler's end."""
        self.require_handler("state (ctx.get, ctx.set, ctx.clear)")
        return self._state

    @functools.cached_property
    def _random(self) -> DurableRandom:
        return DurableRandom(self.event.id, self.require_handler)

    @property
    def random(self) -> random.Random:
        """The invocation's random numbers. Seeding takes as long as a small handler, so only who asks pays for it."""
        self.require_handler("random numbers")
        return self._random

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
        if self._ending.returned:
            raise TenutoError(f"{what}: the handler has ended. Await its tasks before you return")

    # --- commands ---------------------------------------------------------------------------------------------------

    def run(self, name: str, call: Callable[[], Any], serde: Serde[T], limits: RunLimits) -> RunFuture[T]:
        """Execute a step once; from then on its journaled result is used."""
        index = self._issue(RunCommand(name), f"ctx.run({name!r})")
        step = Step(index, name, call, serde, limits, contextvars.copy_context())
        return self._expect(RunFuture(self, step))

    def sleep(self, duration_ms: int, what: str = "ctx.sleep") -> SleepFuture:
        """Wait at least this long, across crashes."""
        index = self._issue(SleepCommand(), what)
        due = self._journal.slot(due_name(index))
        due_ms = due.wake_ms if isinstance(due, DueSlot) else self._env.now_ms() + duration_ms
        return self._expect(SleepFuture(self, index, due_ms))

    def timer(self, handle: asyncio.TimerHandle, delay_ms: int) -> None:
        """See `Timers.timer`."""
        future = self.sleep(delay_ms, "a timer of asyncio")
        future.handle, self._timers[handle] = handle, future.index

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """See `Timers.timer_cancelled`."""
        index = self._timers.pop(handle, None)
        if index is not None:
            self._outstanding.discard(index)

    def timer_ends(self, handle: asyncio.TimerHandle) -> None:
        """The sleep behind a timer is over: run what waits for it."""
        self._timers.pop(handle, None)
        self.timed_out = True
        if self.loop is not None:
            self.loop.call_soon(handle._run)  # noqa: SLF001 - how every event loop runs a handle

    def awakeable(self, serde: Serde[T]) -> tuple[str, AwakeableFuture[T]]:
        """An id to give away, and the future that whoever resolves it completes."""
        index = self._issue(AwakeableCommand(), "ctx.awakeable")
        slot = awakeable_slot(index)
        name = AwakeableId(self.invocation, slot, awakeable_token(self._lease.run_secret(), slot))
        return str(name), self._expect(AwakeableFuture(self, index, serde))

    def now_ms(self) -> int:
        """The time when this was first asked here, milliseconds since the epoch."""
        if self.loop is None:
            return self._env.now_ms()  # A shared handler, which is never replayed.
        name = str(self._issue(NowCommand(), "ctx.time"))
        slot = self._journal.slot(name)
        if isinstance(slot, NowSlot):
            return slot.at_ms
        now_ms = self._env.now_ms()
        self._journal.finish(name, NowSlot(now_ms))
        return now_ms

    def send(self, lane: Lane | None, service: str, handler: str, data: bytes | None, delay_ms: int) -> str:
        """A message for another lane (None: a fresh lane of an unkeyed service). Returns the new invocation's id."""
        target = f"{service}/{handler}"
        index = self._issue(SendCommand(target), f"a send to {target}")
        nonce = message_nonce(self.event.id, index)
        receiver = InvocationId(lane or Lane(service, nonce), nonce)
        due_ms = self._env.now_ms() + delay_ms if delay_ms > 0 else None
        key = receiver.lane.key
        self._post(index, target, SendOut(service, key, str(receiver), handler, data, (), due_ms))
        return str(receiver)

    def publish(self, entry: PublishOut) -> None:
        """A record for a Kafka topic."""
        target = f"topic {entry.topic}"
        self._post(self._issue(SendCommand(target), "ctx.publish"), target, entry)

    def resolve(self, awakeable: str, result: Result) -> None:
        """The result of somebody's awakeable. Raises StateTooLargeError."""
        size = answer_bytes(result)
        if size > AWAKEABLE_BYTES_MAX:
            raise StateTooLargeError("the result of an awakeable", size, AWAKEABLE_BYTES_MAX)
        index = self._issue(SendCommand("awakeable"), "ctx.resolve_awakeable")
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
        if self._ending.goes_on():
            self.require_handler("awaiting a durable future")
        assert self.loop is not None
        return self.loop.create_future()

    def told_ms(self) -> int:
        """See `Timers.told_ms`."""
        return self._outstanding.told_ms

    # --- issuing ----------------------------------------------------------------------------------------------------

    def _issue(self, command: Command, what: str) -> int:
        if not self._ending.goes_on():
            return LEFT_BEHIND
        self.require_handler(what)
        try:
            return self._journal.issue(command)
        except Exception as e:
            if isinstance(e, JournalMismatchError):
                e.add_note(_issued_at())
            self._ending.fail(e)
            raise Unwind from e

    def _expect(self, future: F) -> F:
        self._outstanding.add(future)
        return future

    def _post(self, index: int, target: str, entry: Entry) -> None:
        size = len(pack(entry))
        if size > VALUE_BYTES_MAX:
            raise StateTooLargeError(f"what is sent to {target}", size, VALUE_BYTES_MAX)
        journal = self._journal
        # Each entry is weighed once: when the sum is near the bound there are few enough to count them again.
        self._sent_bytes += size
        if self._sent_bytes > OUT_WAITING_BYTES_MAX:
            self._sent_bytes = size + sum(len(pack(waiting)) for _, _, waiting in journal.out.values())
            if self._sent_bytes > OUT_WAITING_BYTES_MAX:
                raise StateTooLargeError(
                    "what is sent without a durable step between", self._sent_bytes, OUT_WAITING_BYTES_MAX
                )
        journal.send(index, target, entry)


def _issued_at() -> str:
    """The lines of the handler's own code that led to the command which is being issued."""
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_NOT_THE_HANDLERS)]
    return "issued at:\n" + "".join(traceback.format_list(frames[-COMMAND_FRAMES_MAX:])).rstrip()
