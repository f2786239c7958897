"""Describes what everything in a world waits for.

Owns the wording. Does not own deciding that a wait cannot end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from tenuto.machine.journal import due_name
from tenuto.protocol.failures import describe
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, awakeable_token, command_of_awakeable
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import DueSlot, unpack_slot
from tenuto.testing.courses import Course

LINES_MAX = 20
"""So many waits are told."""


def waits_of(
    heads: Iterable[tuple[Lane, Head]], courses: Mapping[str, Course], now_ms: int, first: str | None
) -> list[str]:
    """What each invocation waits for, a line each; `first` comes first."""
    lines: dict[str, str] = {}
    lanes: dict[Lane, str] = {}
    for lane, head in heads:
        if head.run is not None:
            lines[head.run.event.id] = _line(lane, head, head.run, courses)
            lanes[lane] = head.run.event.id
    for invocation, course in courses.items():
        if invocation not in lines and course.error is not None:
            lines[invocation] = f"{_named(course.target, invocation)}: the next attempt, after {error_of(course)}"
    if first is not None and first not in lines:
        ahead = lanes.get(InvocationId.parse(first).lane)
        if ahead is not None:
            lines[first] = f"invocation {first}: its turn, behind another one of its key: {lines[ahead]}"
    ordered = sorted(lines, key=lambda invocation: invocation != first)
    told = [lines[invocation] for invocation in ordered[:LINES_MAX]]
    return told or [f"nothing at all (the time is {_time(now_ms)})"]


def waiting_awakeables(heads: Iterable[tuple[Lane, Head]]) -> list[str]:
    """The ids of all awakeables that an invocation waits for."""
    found: list[str] = []
    for lane, head in heads:
        if head.run is not None:
            found += [name for slot in head.run.awaits or () if (name := _awakeable(lane, head.run, slot)) is not None]
    return found


def _line(lane: Lane, head: Head, run: ClaimedRun, courses: Mapping[str, Course]) -> str:
    course = courses.get(run.event.id)
    target = f"{lane.service}/{run.event.handler}"
    at = None if course is None else course.line()
    told = _named(target, run.event.id) + (f" at {at}" if at else "")
    if course is not None and course.steps:
        return f"{told}: its step {', '.join(map(repr, course.steps))}, which runs"
    if run.napping:
        return f"{told}: a sleep until {_time(run.wake_ms or 0)}"
    if not run.suspended:
        return f"{told}: the end of its lease, {_time(run.lease_ms)}"
    if run.error is not None and not run.awaits:
        return f"{told}: the next attempt, {_time(run.wake_ms or 0)}, after {run.error}"
    return f"{told}: {' or '.join(_slots(lane, head, run)) or 'nothing that is known'}"


def _slots(lane: Lane, head: Head, run: ClaimedRun) -> list[str]:
    told: list[str] = []
    for slot in run.awaits or ():
        name = _awakeable(lane, run, slot)
        if name is not None:
            told.append(f"awakeable {name}")
            continue
        packed = head.slots.get(due_name(int(slot))) if slot.isdigit() else None
        due = None if packed is None else unpack_slot(packed)
        if isinstance(due, DueSlot):
            told.append(f"a sleep until {_time(due.wake_ms)}")
        elif run.wake_ms is not None:
            told.append(f"a sleep until {_time(run.wake_ms)}")
    return told


def _awakeable(lane: Lane, run: ClaimedRun, slot: str) -> str | None:
    if command_of_awakeable(slot) is None:
        return None
    invocation = InvocationId(lane, run.event.nonce)
    return str(AwakeableId(invocation, slot, awakeable_token(run.secret, slot)))


def _named(target: str, invocation: str) -> str:
    key = InvocationId.parse(invocation).lane.key
    return f"{target} of key {key!r} (invocation {invocation})"


def error_of(course: Course) -> str:
    """The error of an invocation's last attempt, and its line."""
    return ("" if course.error is None else describe(course.error)) + (f" ({course.at})" if course.at else "")


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(" ", "seconds")
