"""The end of the demo: what came out against what had to, and what it cost beside what the cost table says.

Owns the comparison and its table; only differences from the truth fail a demo. The truth is the examples' own
(`examples/*/events.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from examples.food_order import events as order_events
from examples.food_order.outside import LEDGER as ORDERS_LEDGER
from examples.ledger import Call, repeated_calls, repeated_finished_steps
from examples.profile_enricher import events as profile_events
from examples.user_updates import events as update_events
from examples.user_updates.outside import LEDGER as UPDATES_LEDGER
from tenuto_local.demo.workload import Workload

WRITE_OPERATIONS: Final = ("UpdateItem", "PutItem", "DeleteItem")
SUSPENSION_WRITES: Final = 4
"""Timer, suspension, resume; and the timer's deletion."""

ANSWER_WRITES: Final = 2
"""A guard and the slot."""

GUARD_DELETION: Final = 1
WAITING_WRITES: Final = 4
"""An event that is moved to the inbox behind a sleeping one: item, guard, mark; and the item's deletion."""

REGISTRATION_WRITES: Final = 10
"""Its commit, and a message to an idle lane with a delay: six, and the deletions of its timer and its guard."""

HTTP_WRITES: Final = 4
"""A call that keeps its result: its guard and that one's deletion, the result and its clearing."""

TAKEOVER_WRITES: Final = 2


@dataclass(frozen=True, slots=True)
class ExampleOutcome:
    """One example's numbers; `differences` says in words what is wrong."""

    name: str
    events: int
    keys: int
    lost: int
    disordered: int
    repeated_finished: int
    repeated_in_flight: int
    differences: list[str]


def outcomes(
    workload: Workload, records: Iterable[profile_events.Record], status: Mapping[str, str | None]
) -> list[ExampleOutcome]:
    """What came out of each example. `records` are the topic's downstream, `status` is of each order."""
    return [_updates(workload), _profiles(workload, list(records)), _orders(workload, status)]


def _updates(workload: Workload) -> ExampleOutcome:
    calls, truth = UPDATES_LEDGER.calls(), update_events.expected(workload.updates)
    versions: dict[str, list[int]] = {}
    for event in dict.fromkeys(call.event for call in calls):
        user, _, version = event.rpartition("/")
        versions.setdefault(user, []).append(int(version))
    return ExampleOutcome(
        "user_updates",
        len(workload.updates),
        len({key for _, key, _ in workload.updates}),
        len(truth.keys() - _ended(calls, "resources")),
        sum(seen != sorted(seen) for seen in versions.values()),
        len(repeated_finished_steps(calls)),
        len(repeated_calls(calls)),
        update_events.differences(workload.updates, calls),
    )


def _profiles(workload: Workload, records: list[profile_events.Record]) -> ExampleOutcome:
    truth = profile_events.expected(workload.profiles)
    numbers = [[int(f.partition("-")[2]) for f in json.loads(value)["features"]] for _, _, value in records]
    return ExampleOutcome(
        "profile_enricher",
        len(workload.profiles),
        len(truth),
        len(truth.keys() - {key for _, key, _ in records}),
        sum(seen != sorted(seen) for seen in numbers),
        0,
        0,
        profile_events.differences(workload.profiles, records),
    )


def _orders(workload: Workload, status: Mapping[str, str | None]) -> ExampleOutcome:
    calls, truth = ORDERS_LEDGER.calls(), order_events.expected(workload.orders)
    begun = [list(dict.fromkeys(c.system for c in calls if c.event == order)) for order in truth]
    return ExampleOutcome(
        "food_order",
        len(workload.orders),
        len(truth),
        sum(status.get(order) is None for order in truth),
        sum(seen != expected[: len(seen)] for seen, (expected, _) in zip(begun, truth.values(), strict=True)),
        len(repeated_finished_steps(calls)),
        len(repeated_calls(calls)),
        order_events.differences(workload.orders, calls, status),
    )


def _ended(calls: Iterable[Call], last_system: str) -> set[str]:
    return {call.event for call in calls if call.system == last_system}


def writes_line(writes: int, table: int, events: int) -> str:
    """What the stream cost beside what the table says. Information, no verdict: the table knows no slow machine."""
    more = "; a busy machine spills, flushes and takes over more often" if writes > table else ""
    return f"DynamoDB writes per event: {writes / events:.2f}, by the cost table {table / events:.2f}{more}"


def writes_by_table(workload: Workload, over_http: int) -> int:
    """What the stream costs in DynamoDB writes by the cost table, with one takeover, when nothing takes long.

    A claim that is taken with each first step, one checkpoint a step, the last with the commit: n + 1. No upper bound:
    a last step whose handler continues for 20 ms is flushed by itself, and a lane that waits for 5 s spills.
    """
    total = TAKEOVER_WRITES
    waits: set[str] = set()
    for event, systems in update_events.expected(workload.updates).items():
        user = event.rpartition("/")[0]
        sleeps = systems.count("profiles") - 1
        total += len(systems) + 1 + sleeps * SUSPENSION_WRITES
        total += WAITING_WRITES if user in waits else 0
        if sleeps:
            waits.add(user)
    for calls, status in order_events.expected(workload.orders).values():
        total += len(calls) + 1
        if "offer to drivers" in calls:
            total += SUSPENSION_WRITES
            # Silence is answered by the timer alone.
            total += 0 if status.endswith("no driver answered") else ANSWER_WRITES + GUARD_DELETION
    for topic, _, _ in workload.profiles:
        total += REGISTRATION_WRITES if topic == profile_events.USERS_TOPIC else 1
    return total + over_http * HTTP_WRITES


def report(console: Console, found: list[ExampleOutcome], problems: list[str], costs: list[str]) -> None:
    """Print the table, the costs and what is wrong."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("against the truth", no_wrap=True)
    for title in ("events", "keys", "lost", "out of order", "repeated", "different"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found:
        cells = (row.events, row.keys, row.lost, row.disordered, row.repeated_finished, len(row.differences))
        table.add_row(row.name, *map(str, cells))
    console.print(table)
    in_flight = sum(row.repeated_in_flight for row in found)
    lines = [f"repeated: completed steps that ran again (steps in flight at the kill may; {in_flight} did)", *costs]
    for line in lines:
        console.print(line, soft_wrap=True)
    for problem in problems:
        console.print(f"WRONG  {problem}", style="bold red", markup=False, soft_wrap=True)
