"""Journals of invocations in progress, replayed against the current handlers.

Owns the replay: a copy of the invocation's items, a function that writes to that alone, and steps that end it rather
than run. Does not own the form of the file (`tenuto_control.admin.journals`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from tenuto.errors import JournalMismatchError
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.transitions import takeover
from tenuto.lane.writes import Applied, Put
from tenuto.lane.writes import Key as At
from tenuto.protocol.messages import Activation, Committed, Rejected, Suspended
from tenuto.protocol.records import Failed
from tenuto.runtime.activation import activate
from tenuto.runtime.commands import Commands
from tenuto.runtime.environment import Environment, InlineWriteLoop, ProcessEnded
from tenuto.runtime.handlers import HandlerSpec
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.testing.courses import WatchedServices
from tenuto.testing.errors import HarnessError, NoSuchHandlerError
from tenuto.testing.processes import in_place
from tenuto.testing.world import World
from tenuto_control.admin.journals import Journal, NoJournalError, parse, read, write

REPLAY_MS: Final = 3_600_000
"""How long a replay may take: with a debugger, as long as its user does."""

LINGER_S: Final = 1.0
"""A step that the journal lacks waits for so long in virtual time, until all that it has was told to the handler."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome of a successful replay."""

    invocation: str
    """Id of the invocation."""
    handler: str
    """Name of the handler, as "service/handler"."""
    commands: int
    """Number of commands of the journal that the handler issued again."""
    then: str
    """What the handler does next, such as "it would run 'pay'" or "it waits"."""


class _JournalOverError(ProcessEnded):
    """The replay has come to a step that the journal lacks."""


class _ReplayedServices(WatchedServices):
    """A registry whose handlers run no step: a step that the journal lacks is where the replay ends."""

    next_step: str | None = None

    def context(self, spec: HandlerSpec, commands: Commands) -> Any:
        """See `Registry.context`."""
        run, journal = commands.run, commands._journal  # noqa: SLF001 - whether the journal has the step

        def replayed(name: str, call: Callable[[], Any], *rest: Any) -> Any:
            lacks = journal.slot(str(journal.next_command)) is None
            return run(name, self._beyond(name) if lacks else call, *rest)

        commands.run = replayed  # type: ignore[method-assign, assignment]  # of this one attempt
        return super().context(spec, commands)

    def _beyond(self, name: str) -> Callable[[], Any]:
        async def beyond() -> None:
            await asyncio.sleep(LINGER_S)
            self.next_step = name
            raise _JournalOverError

        return beyond


async def exported(world: World, invocation: str) -> bytes:
    """The file of a journal. Raises HarnessError for an invocation that is not in progress."""
    try:
        return write(await read(world.table, invocation, world.now_ms()))
    except NoJournalError as e:
        raise HarnessError(str(e)) from e


async def replayed(journal: str | PathLike[str] | bytes, services: Services) -> Replayed:
    """Replay a journal. Raises JournalMismatchError, HarnessError for an invalid journal, and the handler's error."""
    return await _replay(journal_in(journal), services)


def journal_in(journal: str | PathLike[str] | bytes) -> Journal:
    """The journal in a file, or in its contents. Raises HarnessError."""
    try:
        return parse(journal if isinstance(journal, bytes) else Path(os.fspath(journal)).read_bytes())
    except NoJournalError as e:
        raise HarnessError(str(e)) from e
    except OSError as e:
        raise HarnessError(f"{os.fspath(journal)!r}: the journal cannot be read: {e.strerror}") from e


async def _replay(journal: Journal, services: Services) -> Replayed:
    lane = journal.lane
    target = f"{lane.service}/{journal.handler}"
    if services.find(lane.service, journal.handler) is None:
        raise NoSuchHandlerError(f"the journal is of {target}, which is not served here any more")
    table = MemoryTable()
    for item in journal.items:
        at = At(str(item["pk"]), str(item["sk"]))
        table.apply(Put(at, {name: value for name, value in item.items() if name not in ("pk", "sk")}))
    at = head_key(lane)
    head = parse_head(table.items[at.pk, at.sk])
    lease_ms = journal.at_ms + REPLAY_MS
    answer = table.apply(takeover(lane, head, "replay", lease_ms, {}, "replay.takeover"))
    assert isinstance(answer, Applied)
    request = Activation(lane.service, lane.key, "resume", parse_head(answer.item), "replay", hold_ms=0)
    watched = _ReplayedServices(services, lambda _change: None)
    env = Environment(
        table=table,
        now_ms=lambda: journal.at_ms,
        deadline_ms=lease_ms,
        writes=InlineWriteLoop(),
        thread=in_place,
        random_bytes=bytes,
    )
    try:
        outcome = await activate(request, watched, env)
    except _JournalOverError:
        outcome = None
    course = watched.course(journal.invocation, target)
    if course.diverged is not None:
        raise course.diverged
    if course.error is not None:
        raise course.error
    then = _then(outcome, watched.next_step)
    return Replayed(journal.invocation, target, sum(index < _known(course) for index in course.commands), then)


def _known(course: Any) -> int:
    numbers = [int("".join(filter(str.isdigit, name))) + 1 for name in course.slots if name[:1].isdigit()]
    return max(numbers, default=0)


def _then(outcome: Any, next_step: str | None) -> str:
    match outcome:
        case None:
            return f"it would run {next_step!r}"
        case Suspended(head=head) if head.run is not None and head.run.error is not None:
            text = head.run.error
            if text.startswith(JournalMismatchError.__name__):
                raise HarnessError(text)
            return f"it failed: {text}"
        case Suspended():
            return "it waits"
        case Committed(results=results):
            ended = results[-1].result
            return f"it ends as failed: {ended.failure.message}" if isinstance(ended, Failed) else "it ends"
        case Rejected(failure):
            raise HarnessError(failure.message)
        case _:
            return f"it ends: {type(outcome).__name__}"
