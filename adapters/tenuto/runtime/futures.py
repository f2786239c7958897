"""Durable futures: what a command returns, and what a handler awaits.

Owns the kinds of futures and when each is done. Does not own how waiting is arranged (`attempt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Generic, Protocol, TypeVar, cast

from tenuto.errors import BadInputError, TerminalError
from tenuto.protocol.ids import awakeable_slot
from tenuto.protocol.records import Failed, Result, Success
from tenuto.serde import Serde

T = TypeVar("T")


class Waiter(Protocol):
    """The attempt a future belongs to."""

    async def wait_for(self, future: DurableFuture[T]) -> T:
        """Wait until the future is done and return its value, raise its failure, or suspend."""
        ...


class DurableFuture(Generic[T]):
    """The outcome of a command. Await it, or hand it to `gather` or `select`.

    Awaiting raises TerminalError when the command failed for good.
    """

    def __init__(self, waiter: Waiter, index: int, serde: Serde[T] | None) -> None:
        self.waiter = waiter
        self.index = index
        self.result: Result | None = None
        self._serde = serde

    @property
    def slot(self) -> str:
        """The journal slot that holds the outcome."""
        return str(self.index)

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self.result is not None

    def value(self) -> T:
        """The outcome. Raises TerminalError for a failure."""
        if self.result is None:
            raise RuntimeError("the command is not done: await it")
        if isinstance(self.result, Failed):
            failure = self.result.failure
            raise TerminalError(failure.message, failure.status_code, failure.metadata)
        if self._serde is None or self.result.value is None:
            return cast("T", None)
        try:
            return self._serde.deserialize(self.result.value)
        except BadInputError as e:
            # Not this handler's input: it may catch it and decide, as with any command that failed for good.
            raise TerminalError(str(e), e.status_code) from None

    def __await__(self) -> Generator[Any, None, T]:
        return self.waiter.wait_for(self).__await__()


class RunFuture(DurableFuture[T]):
    """The outcome of a step; `task` executes it unless the journal has it already."""

    task: asyncio.Task[None] | None = None


class SleepFuture(DurableFuture[None]):
    """The end of a sleep at `due_ms`."""

    def __init__(self, waiter: Waiter, index: int, due_ms: int) -> None:
        super().__init__(waiter, index, None)
        self.due_ms = due_ms


class AwakeableFuture(DurableFuture[T]):
    """A result that someone else will provide. With `reads_bytes`, an empty answer is None; else it is JSON's null."""

    reads_bytes = False

    def value(self) -> T:
        """The answer. Raises TerminalError for a rejection, and for an answer that is not of the awakeable's type."""
        if isinstance(self.result, Success) and self.result.value is None and not self.reads_bytes:
            self.result = Success(b"null")
        return super().value()

    @property
    def slot(self) -> str:
        """A name of its own, so that whoever guesses ids can complete nothing but awakeables."""
        return awakeable_slot(self.index)
