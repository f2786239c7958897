"""What must have come of a chaotic run, and the differences of what did.

Owns the oracles. They know the stream that was sent and what was killed, nothing of the engine but its stored records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tests.stack.chaos_app import Event, Execution, Kind, link

STEPS: Mapping[Kind, tuple[str, ...]] = {
    "fold": (),
    "steps": ("first", "second", "third"),
    "nap": ("before", "after"),
    "ask": ("before", "after"),
    "flaky": ("first", "second"),
    "send": (),
}
"""The steps of each kind of event, in order."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An event as the broker took it."""

    key: str
    event: Event
    partition: int
    offset: int


@dataclass(slots=True)
class Outcome:
    """What was found at the end. `inbox` are lanes with a live item, `lag` the records not yet committed."""

    heads: dict[Lane, Head] = field(default_factory=dict)
    inbox: list[str] = field(default_factory=list)
    lag: int = 0
    executions: list[Execution] = field(default_factory=list)
    published: list[tuple[str, int]] = field(default_factory=list)

    def state(self, service: str, key: str, name: str) -> object:
        """A state value of a lane, None without one."""
        head = self.heads.get(Lane(service, key))
        data = head.state.get(name) if head else None
        return None if data is None else msgspec.json.decode(data)


def unfinished(found: Outcome) -> list[str]:
    """What still waits: an end without these is what liveness promises."""
    waiting: list[str] = []
    for lane, head in found.heads.items():
        if head.run is not None:
            state = "suspended" if head.run.suspended else f"held until {head.run.lease_ms}"
            waiting.append(f"{lane.pk}: a run is left, attempt {head.run.attempt}, {state}")
        if head.out:
            waiting.append(f"{lane.pk}: {len(head.out)} outbox entries are left")
        if head.pend is not None:
            waiting.append(f"{lane.pk}: its mark is left")
    waiting += [f"{pk}: an inbox item is left" for pk in found.inbox]
    if found.lag:
        waiting.append(f"{found.lag} records are not committed")
    return waiting


def differences(
    sent: Sequence[Sent], calls: Mapping[str, Sequence[int]], killed: Collection[int], found: Outcome
) -> list[str]:
    """Every way in which the outcome is not the offline truth.

    `calls` are the numbers called over HTTP by key; `killed` are the process ids of killed functions.
    """
    by_key: dict[str, list[Sent]] = defaultdict(list)
    for one in sent:
        by_key[one.key].append(one)
    wrong = unfinished(found)
    for key, events in by_key.items():
        events.sort(key=lambda one: one.offset)
        wrong += _chain(key, events, found)
        messages = [one.event.number for one in events if one.event.kind == "send"]
        if (found.state("tally", key, "numbers") or []) != messages:
            wrong.append(f"{key}: messages {found.state('tally', key, 'numbers')}, not {messages}")
    for key, numbers in calls.items():
        took = found.state("tally", key, "calls") or []
        assert isinstance(took, list)
        if sorted(took) != sorted(numbers):
            wrong.append(f"{key}: calls {sorted(took)}, not {sorted(numbers)}")
    wrong += _published(sent, found.published)
    steps = {one.event.number: STEPS[one.event.kind] for one in sent}
    steps |= {number: ("call",) for numbers in calls.values() for number in numbers}
    wrong += _steps(steps, killed, found.executions)
    wrong += _order(by_key, found.executions)
    return wrong


def _chain(key: str, events: Iterable[Sent], found: Outcome) -> list[str]:
    value, length = "", 0
    for one in events:
        value, length = link(value, one.partition, one.offset, one.event.number), length + 1
    wrong: list[str] = []
    if found.state("chain", key, "length") != length:
        wrong.append(f"{key}: {found.state('chain', key, 'length')} events took effect, not {length}")
    elif found.state("chain", key, "chain") != value:
        wrong.append(f"{key}: its {length} events took effect in another order")
    if found.state("chain", key, "napping") is not None:
        wrong.append(f"{key}: state that a later step cleared is back")
    return wrong


def _published(sent: Iterable[Sent], published: Iterable[tuple[str, int]]) -> list[str]:
    expected = {one.event.number for one in sent if one.event.kind == "send"}
    ids: dict[int, set[str]] = defaultdict(set)
    for identity, number in published:
        ids[number].add(identity)
    wrong = [f"event {n} was published under {len(many)} ids" for n, many in ids.items() if len(many) > 1]
    if ids.keys() != expected:
        wrong.append(f"published: missing {sorted(expected - ids.keys())}, unasked {sorted(ids.keys() - expected)}")
    return wrong


def _steps(
    expected: Mapping[int, tuple[str, ...]], killed: Collection[int], executions: Iterable[Execution]
) -> list[str]:
    """Each step ran; it ran again only while it was in flight at a kill; what it answered never changed."""
    by_number: dict[int, list[Execution]] = defaultdict(list)
    for one in executions:
        by_number[one.number].append(one)
    wrong: list[str] = []
    for number, steps in expected.items():
        ran = by_number.pop(number, [])
        at = 0
        answers: dict[str, Execution] = {}
        for one in ran:
            name = f"event {number}, step {one.step}"
            index = steps.index(one.step)
            earlier = answers.get(one.step)
            if index < at:
                told = ", ".join(f"{e.step} in {e.pid} at {e.at_s:.3f}" for e in ran)
                wrong.append(f"{name} ran again after {steps[at]} had begun: {told}")
                continue
            if index > at + 1 or (index == at + 1 and steps[at] not in answers):
                wrong.append(f"{name} ran before {steps[at]}")
            at = index
            if earlier is not None and one.idempotency_key != earlier.idempotency_key:
                wrong.append(f"{name} ran with two idempotency keys")
            if earlier is not None and earlier.pid not in killed:
                wrong.append(f"{name} ran again, though its first process {earlier.pid} was not killed")
            given = tuple(answers[step].answer for step in steps[:index] if step in answers)
            if one.given != given:
                wrong.append(f"{name} was given {one.given}, the journal said {given}")
            answers[one.step] = one
        if answers.keys() != set(steps):
            wrong.append(f"event {number}: ran {sorted(answers)}, not {sorted(steps)}")
    wrong += [f"event {number} was never sent, yet steps of it ran" for number in by_number]
    return wrong


def _order(by_key: Mapping[str, Sequence[Sent]], executions: Sequence[Execution]) -> list[str]:
    """Events of a key take turns in the outside, too."""
    place = {one.event.number: (key, one.offset) for key, events in by_key.items() for one in events}
    latest: dict[str, int] = {}
    wrong: list[str] = []
    for one in executions:
        if one.number not in place:
            continue
        key, offset = place[one.number]
        if offset < latest.get(key, -1):
            wrong.append(f"{key}: a step of offset {offset} ran after one of {latest[key]}")
        latest[key] = max(offset, latest.get(key, -1))
    return wrong
