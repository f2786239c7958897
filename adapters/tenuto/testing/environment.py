"""An environment for tests: handlers in this process, over production code and a table in memory, in virtual time.

Owns the methods that tests call and the errors for impossible requests. Does not own the simulated system (`world`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import PathLike
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tenuto.handler import Handler
from tenuto.protocol.durations import milliseconds
from tenuto.service import Service, VirtualObject
from tenuto.testing import answers
from tenuto.testing.crashes import CrashReport, crash_everywhere
from tenuto.testing.errors import HarnessError
from tenuto.testing.face import Face
from tenuto.testing.operations import Operation
from tenuto.testing.processes import Crash
from tenuto.testing.replays import Replayed, exported, replayed
from tenuto.testing.targets import Targets
from tenuto.testing.views import Invocation, JournalEntry
from tenuto.testing.virtual_loop import LoopThread
from tenuto.testing.waits import waiting_awakeables
from tenuto.testing.world import Setup, World
from tenuto_control.core.routing import Subscription

T = TypeVar("T")
O = TypeVar("O")  # noqa: E741 - a handler's output

ATTEMPTS_MAX: Final = 20
PATIENCE_S: Final = 10.0

Headers = Mapping[str, str | bytes]


class Environment(Face):
    """Services and virtual objects in this process, in virtual time. Use it with `async with` or `with`.

        async with Environment(orders, topics={"orders": place}) as env:
            assert await env.call(status, "order-7") == "paid"

    `topics` routes the records of a topic to a handler; `config` is the path of a tenuto.toml whose subscriptions do
    the same. `now` is the start of virtual time, by default the current time. `attempts_max` is the number of
    consecutive failed attempts after which a handler that is retried indefinitely fails the test. `patience` is the
    real time in seconds that user code may run without returning control; None, for a debugger, sets no limit.

    Each method starts at once and returns an `Operation`: await it, or call its `result()` where no event loop runs.
    Virtual time advances only during an operation. Methods raise HarnessError for a request that makes no sense, such
    as an unknown handler. The constructor raises TypeError for anything other than services and virtual objects.
    """

    def __init__(
        self,
        *services: Service | VirtualObject,
        topics: Mapping[str, Handler[Any, Any] | str] | None = None,
        config: str | PathLike[str] | None = None,
        now: datetime | None = None,
        attempts_max: int = ATTEMPTS_MAX,
        patience: float | None = PATIENCE_S,
    ) -> None:
        self._targets = Targets(services)
        subscriptions = self._targets.subscriptions(topics or {}, config)
        start_ms = round(time.time() * 1000) if now is None else round(now.timestamp() * 1000)
        self._setup = Setup(services, subscriptions, start_ms, attempts_max)
        self._patience = patience
        self._entered: tuple[LoopThread, World] | None = None
        self._operations: list[Operation[Any]] = []

    def __enter__(self) -> Self:
        """Start the environment. Raises HarnessError if it has been started already."""
        if self._entered is not None:
            raise HarnessError("this environment is in use already: create one for each test")
        thread = LoopThread("tenuto-testing")
        self._entered = (thread, World(self._setup, thread))
        self._operations.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop the environment. Raises HarnessError if an operation was never awaited."""
        thread, _world = self._living
        self._entered = None
        thread.close()
        forgotten = [operation for operation in self._operations if not operation.looked_at]
        if kind is None and forgotten:
            raise HarnessError(f"{forgotten[0].what} was never awaited: await it, or call its result()")

    async def __aenter__(self) -> Self:
        """See `__enter__`."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `__exit__`."""
        self.__exit__(kind, error, traceback)

    # --- time -------------------------------------------------------------------------------------------------------

    def advance(self, duration: timedelta | float | None = None, /, **units: float) -> Operation[None]:
        """Advance virtual time: `advance(days=30)`, or by a timedelta, or by a number of seconds.

        Sleeps end, delayed messages are delivered and retries start, in the order in which they are due. Raises
        TypeError for anything other than a duration, and HarnessError for a negative one.
        """
        passing = timedelta(**units) if duration is None else duration
        duration_ms = milliseconds(passing, "env.advance: the duration")
        if duration_ms < 0:
            raise HarnessError(
                "env.advance: the duration is negative, but time only moves forward: env.advance(days=30)"
            )
        world = self._world

        async def work() -> None:
            await world.advance(duration_ms)

        return self._begin(work, "env.advance(...)")

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """Current virtual time, in UTC."""
        return datetime.fromtimestamp(self._world.now_ms() / 1000, UTC)

    def journal(self, invocation: Invocation[Any] | str) -> Operation[list[JournalEntry]]:
        """Return the commands of an invocation, in the order in which the handler issued them.

        Raises HarnessError if the invocation has not started.
        """
        world, name = self._world, answers.require_invocation(invocation)

        async def work() -> list[JournalEntry]:
            return answers.journal_of(world, name)

        return self._begin(work, "env.journal(...)")

    def awakeables(self) -> Operation[list[str]]:
        """Return the ids of all awakeables that an invocation is waiting for, for `resolve_awakeable`."""
        world = self._world

        async def work() -> list[str]:
            return waiting_awakeables(world.heads())

        return self._begin(work, "env.awakeables()")

    def waits(self) -> Operation[list[str]]:
        """Describe what each unfinished invocation is waiting for, one line each."""
        world = self._world

        async def work() -> list[str]:
            return world.waits()

        return self._begin(work, "env.waits()")

    # --- proofs -----------------------------------------------------------------------------------------------------

    async def crash_everywhere(
        self, scenario: Callable[[Environment], Awaitable[Any]], *, without: Iterable[str] = ()
    ) -> CrashReport:
        """Run a scenario once for each durable write, with a crash before and after it, and compare the outcomes.

        `scenario` is a coroutine function; each run passes it a new environment. The outcome consists of what the
        scenario returns, the results of its calls, all state, the published records (once for each `tenuto-id`) and the
        dead letters. Fields named in `without`, such as timestamps, are not compared.

        Raises OutcomesDifferError, which names the write and the line of the handler, and HarnessError if two runs
        without a crash already differ.
        """
        return await crash_everywhere(self._crashing, scenario, frozenset(without))

    def export_journal(self, invocation: Invocation[Any] | str) -> Operation[bytes]:
        """Return the journal of an unfinished invocation, in the format of `tenuto journal`, for `replay`.

        Raises HarnessError if the invocation is not in progress.
        """
        world, name = self._world, answers.require_invocation(invocation)

        async def work() -> bytes:
            return await exported(world, name)

        return self._begin(work, "env.export_journal(...)")

    def replay(self, journal: str | PathLike[str] | bytes) -> Operation[Replayed]:
        """Replay a journal, a file of `tenuto journal` or its contents, against the current code of the handlers.

        No step runs and nothing is written. Raises JournalMismatchError if the handler issues other commands than the
        journal holds, HarnessError if the journal cannot be read, and any exception that the handler raises.
        """
        services = self._targets.services
        return self._begin(lambda: replayed(journal, services), "env.replay(...)")

    # --- parts ------------------------------------------------------------------------------------------------------

    @property
    def _living(self) -> tuple[LoopThread, World]:
        if self._entered is None:
            raise HarnessError("this environment is not in use: async with Environment(...) as env")
        return self._entered

    @property
    def _world(self) -> World:
        return self._living[1]

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> Operation[T]:
        thread, _ = self._living
        operation = Operation(thread.submit(work), thread, self._patience, what)
        self._operations = [one for one in self._operations if not one.looked_at]
        self._operations.append(operation)
        return operation

    @property
    def _behind(self) -> World:
        return self._world

    @property
    def _subscriptions(self) -> tuple[Subscription, ...]:
        return self._setup.subscriptions

    @property
    def _inside(self) -> bool:
        return self._living[0].inside

    def _crashing(self, crash: Crash | None) -> tuple[Environment, Callable[[], World]]:
        """An environment like this one in which a process ends at a write, and the way to its world."""
        made = copy.copy(self)
        vars(made).update(_setup=replace(self._setup, crash=crash), _entered=None, _operations=[])
        return made, lambda: made._world  # noqa: SLF001 - another one of this class
