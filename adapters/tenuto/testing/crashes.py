"""A scenario with a crash at every durable write of it, and its outcome compared.

Owns the runs, what of a world is its outcome, and the words about a difference. Does not own ending a process
(`processes`) or replacing it (`world`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tenuto.protocol.records import Failed, Result
from tenuto.testing.answers import plain
from tenuto.testing.errors import HarnessError, OutcomesDifferError
from tenuto.testing.processes import Crash, Written
from tenuto.testing.views import Record
from tenuto.testing.world import World

if TYPE_CHECKING:
    from tenuto.testing.environment import Environment

WRITES_MAX: Final = 2_000
"""Durable writes that a scenario may make: it is run twice for each."""

DIFFERENCE_LINES_MAX: Final = 40

Making = Callable[[Crash | None], "tuple[Environment, Callable[[], World]]"]
"""Makes an environment in which a process ends at a write, and the way to its world."""

Scenario = Callable[["Environment"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The extent of a successful `crash_everywhere`."""

    writes: int
    """Number of durable writes that the scenario makes."""
    runs: int
    """Number of runs with a crash: two for each write."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run has led to: its outcome as text, and its writes."""

    outcome: str
    writes: list[Written]
    error: BaseException | None = None


async def crash_everywhere(make: Making, scenario: Scenario, without: frozenset[str]) -> CrashReport:
    """See `Environment.crash_everywhere`."""
    plain_run = await _run(make, scenario, None, without)
    if plain_run.error is not None:
        raise plain_run.error
    again = await _run(make, scenario, None, without)
    if again.outcome != plain_run.outcome:
        raise HarnessError(
            "two runs of this scenario without any crash have different outcomes, so a crash cannot be blamed for one: "
            f"name the fields that may differ with without=(...)\n{_difference(plain_run.outcome, again.outcome)}"
        )
    count = len(plain_run.writes)
    if count > WRITES_MAX:
        raise HarnessError(f"this scenario makes {count:,} durable writes; at most {WRITES_MAX:,} are tried one by one")
    for number in range(1, count + 1):
        for applied in (False, True):
            run = await _run(make, scenario, Crash(number, applied), without)
            if run.error is not None or run.outcome != plain_run.outcome:
                raise OutcomesDifferError(_told(number, applied, plain_run, run)) from run.error
    return CrashReport(count, 2 * count)


async def _run(make: Making, scenario: Scenario, crash: Crash | None, without: frozenset[str]) -> _Run:
    environment, world_of = make(crash)
    async with environment as env:
        world = world_of()
        try:
            returned = await scenario(env)
            work = env._begin(lambda: _outcome(world, returned, without), "the outcome")  # noqa: SLF001 - a part of it
            text = await work
        except Exception as e:  # noqa: BLE001 - whatever a scenario raises tells how it ended
            for operation in env._operations:  # noqa: SLF001 - what failed first is told
                operation.looked_at = True
            return _Run("", list(world.gate.writes), e)
        return _Run(text, list(world.gate.writes))


async def _outcome(world: World, returned: Any, without: frozenset[str]) -> str:
    """All that a world has come to, as text that can be compared line by line."""
    await world.finish()
    outcome = {
        "returned": _jsonable(returned),
        "results": [[answered.target, answered.key, _result(answered.result)] for answered in world.answered],
        "state": {
            f"{lane.service}/{lane.key}": {name: plain(data) for name, data in sorted(head.state.items())}
            for lane, head in sorted(world.heads(), key=lambda found: found[0])
            if head.state
        },
        "published": {topic: _records(records) for topic, records in sorted(world.topics.published.items())},
        "dead letters": sorted(
            {
                json.dumps([letter.handler, letter.key, letter.reason, _jsonable(letter.value)])
                for letter in await world.dead_letters()
            }
        ),
        "at work": sorted(f"{lane.service}/{lane.key}" for lane, head in world.heads() if head.run is not None),
    }
    return json.dumps(_lacking(outcome, without), indent=1, sort_keys=True)


def _records(records: Iterable[Record]) -> list[Any]:
    """Each record once, those of a key in their order: a record may be produced again, with the same `tenuto-id`."""
    seen: set[str | None] = set()
    kept: list[Record] = []
    for record in records:
        name = record.header("tenuto-id")
        if name is None or name not in seen:
            seen.add(name)
            kept.append(record)
    kept.sort(key=lambda record: (record.key or b"", b"" if record.key else record.data or b""))
    return [
        [
            None if record.key is None else record.key.decode(errors="backslashreplace"),
            _jsonable(record.value),
            {name: plain(data) for name, data in record.headers if not name.startswith("tenuto-")},
        ]
        for record in kept
    ]


def _result(result: Result) -> Any:
    if isinstance(result, Failed):
        return {"failed": result.failure.message, "status": result.failure.status_code}
    return _jsonable(plain(result.value))


def _jsonable(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, enc_hook=repr, str_keys=True)
    except (TypeError, ValueError):
        return repr(value)


def _lacking(value: Any, without: frozenset[str]) -> Any:
    match value:
        case Mapping():
            return {name: _lacking(one, without) for name, one in value.items() if name not in without}
        case list() | tuple():
            return [_lacking(one, without) for one in value]
        case bytes():
            return repr(value)
        case _:
            return value


def _told(number: int, applied: bool, plain_run: _Run, run: _Run) -> str:  # noqa: FBT001 - as in Crash
    writes = run.writes if len(run.writes) >= number else plain_run.writes
    when = "right after" if applied else "right before"
    place = f"after a crash {when} durable write {number} of {len(plain_run.writes)} ({writes[number - 1]}),"
    if run.error is not None:
        return f"{place} the scenario failed: {type(run.error).__name__}: {run.error}"
    return (
        f"{place} the outcome differs (- without the crash, + with it):\n{_difference(plain_run.outcome, run.outcome)}"
    )


def _difference(before: str, after: str) -> str:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=2, lineterm=""))[2:]
    rest = len(lines) - DIFFERENCE_LINES_MAX
    return "\n".join([*lines[:DIFFERENCE_LINES_MAX], *([f"... {rest} lines more"] if rest > 0 else [])])
