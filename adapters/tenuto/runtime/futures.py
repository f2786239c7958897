"""Durable futures: what a command returns, and what a handler awaits.

Owns the kinds of futures, when each is done and who waits for it. Does not own when a command completes (`attempt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

from tenuto import checks
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
    """The outcome of a command, such as `ctx.run` or `ctx.sleep`.

    Await it, once or repeatedly, or pass it to `ctx.gather` or `ctx.select`. Awaiting raises TerminalError if the
    command failed with one. Cancelling a task that awaits it, for example by `asyncio.timeout`, does not cancel the
    command, which can be awaited again.
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

    @property
    def call(self) -> str:
        """The call that made it, for messages."""
        return "ctx.sleep(...)"

    @property
    def awaited_as(self) -> str:
        """What stands behind `await` to wait for it, for messages."""
        return self.call

    def __bool__(self) -> NoReturn:  # noqa: PLE0304 - by this hint type checkers report the condition
        """Refuse to be a condition: without its `await`, every future would be true."""
        checks.wrong_type(
            f"{self.call} returns a durable future, which is neither true nor false: write "
            f'"await {self.awaited_as}" for its value, or "is not None" to see whether there is a future'
        )

    def done(self) -> bool:
        """Return whether the outcome is known to the handler."""
        return self.result is not None

    @property
    def awaited(self) -> bool:
        """Whether a task is awaiting the outcome now."""
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
        """Return the outcome. Raises TerminalError for a failure, and RuntimeError if the command is not done."""
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
            "a durable future is not an asyncio future: use ctx.select or ctx.gather, or make a task of it for "
            "asyncio.wait with asyncio.ensure_future(future)"
        )


class RunFuture(DurableFuture[T]):
    """The outcome of a step.

    `calls`: its own code runs. `left`: the handler has ended without it, and its outcome is no longer needed.
    """

    left = False
    calls = False

    def __init__(self, waiter: Waiter, step: Step[T]) -> None:
        super().__init__(waiter, step.index, step.serde)
        self.step = step

    @property
    def call(self) -> str:
        """See `DurableFuture.call`."""
        return f"ctx.run({checks.shown(self.step.name)}, ...)"

    @property
    def lost(self) -> bool:
        """Whether it was awaited and no task awaits it any more, so that its outcome is not needed for now."""
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
    """The value of an awakeable. With `reads_bytes`, an empty answer is None; otherwise it is a JSON null."""

    reads_bytes = False

    @property
    def call(self) -> str:
        """See `DurableFuture.call`."""
        return "ctx.awakeable()"

    @property
    def awaited_as(self) -> str:
        """The call returns an id, too, so that it cannot be awaited itself."""
        return "future"

    def value(self) -> T:
        """Return the value. Raises TerminalError for a rejection, or a value that does not fit the type hint."""
        if isinstance(self.result, Success) and self.result.value is None and not self.reads_bytes:
            self.result = Success(b"null")
        return super().value()

    @staticmethod
    def slot_of(index: int) -> str:
        """A separate name, so that a guessed id can complete nothing but awakeables."""
        return awakeable_slot(index)
