"""Durable futures: what a command returns, and what a handler awaits.

Owns the kinds of futures, when each is done and who waits for it. Does not own when a command completes (`attempt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

from tenuto.errors import BadInputError, TerminalError
from tenuto.protocol.ids import awakeable_slot
from tenuto.protocol.records import Failed, Result, Success
from tenuto.runtime.steps import Step
from tenuto.serde import Serde

T = TypeVar("T")


class Waiter(Protocol):
    """The commands of the attempt that a future belongs to."""

    def waiting(self) -> asyncio.Future[None]:
        """A future of the handler's loop, for something to wait on. Raises when the attempt is over."""
        ...


class DurableFuture(Generic[T]):
    """The outcome of a command. Await it, more than once if you like, or hand it to `gather` or `select`.

    Awaiting raises TerminalError when the command failed for good. A task that waits may be cancelled, by a timeout for
    instance; the command goes on, and may be awaited again.
    """

    def __init__(self, waiter: Waiter, index: int, serde: Serde[T] | None) -> None:
        self.waiter = waiter
        self.index = index
        self.slot = self.slot_of(index)
        self.result: Result | None = None
        self.told_at = 0
        self.was_awaited = False
        self._serde = serde
        self._waiting: list[asyncio.Future[None]] = []

    @staticmethod
    def slot_of(index: int) -> str:
        """The journal slot that holds the outcome of a command."""
        return str(index)

    def done(self) -> bool:
        """Whether the outcome is known to the handler."""
        return self.result is not None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the outcome right now."""
        for waiting in self._waiting:  # noqa: SIM110 - asked at every step; a generator would take twice as long
            if not waiting.done():
                return True
        return False

    def join(self, waiting: asyncio.Future[None]) -> None:
        """Have a future of the handler's loop end when the outcome is known."""
        self.was_awaited = True
        self._waiting = [other for other in self._waiting if not other.done()]
        self._waiting.append(waiting)

    def complete(self, result: Result, told_at: int) -> None:
        """The handler is told the outcome, as the `told_at`-th of all."""
        self.result = result
        self.told_at = told_at
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    def value(self) -> T:
        """The outcome. Raises TerminalError for a failure."""
        if self.result is None:
            raise RuntimeError("the command is not done: await it")
        if isinstance(self.result, Failed):
            failure = self.result.failure
            error = TerminalError(failure.message, failure.status_code, failure.metadata)
            error.foreign = failure.foreign
            raise error
        if self._serde is None or self.result.value is None:
            return cast("T", None)
        try:
            return self._serde.deserialize(self.result.value)
        except BadInputError as e:
            # Not this handler's input: it may catch it and decide, as with any command that failed for good.
            raise TerminalError(str(e), e.status_code) from None

    def __await__(self) -> Generator[Any, None, T]:
        while self.result is None:
            waiting = self.waiter.waiting()
            self.join(waiting)
            yield from waiting
        return self.value()

    def add_done_callback(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refuse what `asyncio.wait` does to a future."""
        raise TypeError(
            "a durable future is no asyncio future: use ctx.select or ctx.gather, or make a task of it for "
            "asyncio.wait with asyncio.ensure_future(future)"
        )


class RunFuture(DurableFuture[T]):
    """The outcome of a step.

    `calls`: its own code runs. `left`: the handler has ended without it, and its outcome interests nobody any more.
    """

    left = False
    calls = False

    def __init__(self, waiter: Waiter, step: Step[T]) -> None:
        super().__init__(waiter, step.index, step.serde)
        self.step = step

    @property
    def lost(self) -> bool:
        """Whether it was awaited, and whoever did so waits no more: its outcome interests nobody for now."""
        return self.was_awaited and not self.awaited and not self.done()


class SleepFuture(DurableFuture[None]):
    """The end of a sleep at `due_ms`. `handle` is what a timer of the handler's loop runs then."""

    handle: asyncio.TimerHandle | None = None

    def __init__(self, waiter: Waiter, index: int, due_ms: int) -> None:
        super().__init__(waiter, index, None)
        self.due_ms = due_ms

    @property
    def awaited(self) -> bool:
        """See `DurableFuture.awaited`; a timer always waits, until it is cancelled."""
        return self.handle is not None or super().awaited


class AwakeableFuture(DurableFuture[T]):
    """A result that someone else will provide. With `reads_bytes`, an empty answer is None; else it is JSON's null."""

    reads_bytes = False

    def value(self) -> T:
        """The answer. Raises TerminalError for a rejection, and for an answer that is not of the awakeable's type."""
        if isinstance(self.result, Success) and self.result.value is None and not self.reads_bytes:
            self.result = Success(b"null")
        return super().value()

    @staticmethod
    def slot_of(index: int) -> str:
        """A name of its own, so that whoever guesses ids can complete nothing but awakeables."""
        return awakeable_slot(index)
