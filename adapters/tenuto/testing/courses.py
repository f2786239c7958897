"""What handlers do, as seen from beside them: their attempts, errors, lines and commands.

Owns the registry that the runtime is given in place of the plain one, and what it notes. Does not own running handlers
(`tenuto.runtime`) nor what a test is told (`world`, `waits`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenuto.errors import FencedError, JournalMismatchError, TerminalError
from tenuto.machine.journal import Command, describe
from tenuto.protocol.records import Slot
from tenuto.runtime import results, steps
from tenuto.runtime.commands import Commands
from tenuto.runtime.ending import OutOfTimeError, Unwind
from tenuto.runtime.handler_loop import NeverRestsError
from tenuto.runtime.handlers import HandlerSpec
from tenuto.runtime.steps import StepWaitsError
from tenuto.service import Services
from tenuto.testing import places


@dataclass(slots=True)
class Course:
    """One invocation, over all of its attempts. `failures` counts those in a row that the handler's policy repeats.

    `at` is the line at which its last attempt waited or failed, `steps` are those that run, by name.
    """

    target: str
    failures: int = 0
    error: Exception | None = None
    diverged: JournalMismatchError | None = None
    at: str | None = None
    work: Any = None
    steps: list[str] = field(default_factory=list)
    commands: dict[int, str] = field(default_factory=dict)
    slots: Mapping[str, Slot] = field(default_factory=dict)

    def line(self) -> str | None:
        """Where the handler is now, or where its last attempt left off."""
        return (None if self.work is None else places.of_awaitable(self.work)) or self.at

    def failed(self, error: Exception) -> None:
        """An attempt ended in an error that is retried."""
        self.failures += 1
        self.error = error


class WatchedServices:
    """A registry (`tenuto.runtime.handlers.Registry`) that notes what handlers do, by invocation."""

    def __init__(self, services: Services, step: Callable[[int], None]) -> None:
        self.courses: dict[str, Course] = {}
        self._services = services
        self._step = step
        self._specs: dict[tuple[str, str], HandlerSpec] = {}

    def find(self, service: str, handler: str) -> HandlerSpec | None:
        """See `Registry.find`."""
        at = (service, handler)
        if at not in self._specs:
            spec = self._services.find(service, handler)
            if spec is None:
                return None
            self._specs[at] = dataclasses.replace(spec, call=functools.partial(self._call, spec))
        return self._specs[at]

    def keyed(self, service: str) -> bool:
        """See `Registry.keyed`."""
        return self._services.keyed(service)

    def context(self, spec: HandlerSpec, commands: Commands) -> Any:
        """See `Registry.context`."""
        course = self.course(commands.event.id, spec.target)
        self._watch(commands, course)
        return self._services.context(spec, commands)

    def course(self, invocation: str, target: str = "") -> Course:
        """What is known of an invocation."""
        return self.courses.setdefault(invocation, Course(target))

    def _watch(self, commands: Commands, course: Course) -> None:
        """Have the commands of one attempt noted, on this one object: they are told apart by identity."""
        issue, run = commands._issue, commands.run  # noqa: SLF001 - the one place that every command passes

        def issued(command: Command, what: str) -> int:
            index = issue(command, what)
            if index >= 0:
                course.commands[index] = describe(command)
            return index

        def ran(name: str, call: Callable[[], Any], *rest: Any) -> Any:
            return run(name, self._stepping(course, name, call), *rest)

        # What never rests is closed, which leaves no traceback: its line is read while it still has one.
        fail = commands._ending.fail  # noqa: SLF001 - one object, beside the runtime

        def failing(error: BaseException) -> None:
            if isinstance(error, NeverRestsError):
                course.at = course.line()
            fail(error)

        commands._ending.fail = failing  # type: ignore[method-assign]  # noqa: SLF001 - one object, beside the runtime
        commands._issue = issued  # type: ignore[method-assign]  # noqa: SLF001 - one object, beside the runtime
        commands.run = ran  # type: ignore[method-assign, assignment]  # on this object alone

    async def _call(self, spec: HandlerSpec, ctx: Any, *arguments: Any) -> Any:
        commands: Commands = ctx._commands  # noqa: SLF001 - handlers see no more of it than its face
        course = self.course(commands.event.id, spec.target)
        course.work = work = spec.call(ctx, *arguments)
        try:
            value = await work
            # The runtime refuses a result after this. Refused at each attempt, it counts like any other failure.
            results.encoded(spec, value)
        except BaseException as e:
            self._ended(course, e, commands)
            raise
        finally:
            course.work = None
            course.slots = dict(commands._journal.known)  # noqa: SLF001 - a copy, for the tests' eyes
        course.failures, course.error, course.at = 0, None, None
        return value

    def _ended(self, course: Course, raised: BaseException, commands: Commands) -> None:
        course.at = places.of_traceback(raised.__traceback__) or course.at
        # What ends an attempt from outside the handler, such as a step that failed, unwinds it, or closes what does not
        # wait for anything.
        ending = commands._ending  # noqa: SLF001 - one object, beside the runtime
        match ending.error if isinstance(raised, Unwind | GeneratorExit) else _checked(raised):
            case JournalMismatchError() as error:
                course.diverged = error
            case StepWaitsError() as error:
                course.error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            case TerminalError() | FencedError() | OutOfTimeError():
                pass
            case Exception() as error:
                course.failed(error)
            case _:
                pass

    def _stepping(self, course: Course, name: str, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call of a step, counted while it is awaited: what is awaited may come from outside, in real time."""

        async def counted(awaited: Awaitable[Any]) -> Any:
            course.steps.append(name)
            self._step(+1)
            try:
                return await awaited
            finally:
                self._step(-1)
                course.steps.remove(name)

        if inspect.iscoroutinefunction(call):

            @functools.wraps(call)
            async def stepping() -> Any:
                return await counted(call())

            return stepping

        @functools.wraps(call)
        def stepping_now() -> Any:
            course.steps.append(name)
            try:
                value = call()
            finally:
                course.steps.remove(name)
            return counted(value) if inspect.isawaitable(value) else value

        return stepping_now


def _checked(raised: BaseException) -> Exception | None:
    """What user code raised, as the failure that the runtime makes of it; None if it is meant for somebody else."""
    try:
        return steps.checked(raised)
    except BaseException:  # noqa: BLE001 - the end of the process, or a cancellation that the runtime asked for
        return None
