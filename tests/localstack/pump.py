"""Fires the schedules of an endpoint that only stores them, as LocalStack does.

Owns the reading of one-time schedules and their delivery: an asynchronous invocation with `Target.Input`, in the
second that was named or later, and their deletion after completion. Looks at one group alone, and at functions as
the only targets. Fires at least once, as AWS does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from botocore.exceptions import ClientError

SWEEP_S = 0.25
LEAVE_TIMEOUT_S = 30.0


class SchedulePump:
    """One sweep after another over the group; `fired` are the names of the schedules that were delivered."""

    def __init__(self, scheduler: Any, lambda_: Any, group: str) -> None:
        self._scheduler = scheduler
        self._lambda = lambda_
        self._group = group
        self.fired: list[str] = []

    def sweep(self) -> None:
        """Deliver what is due now. Raises ClientError when the endpoint refuses."""
        pages = self._scheduler.get_paginator("list_schedules").paginate(GroupName=self._group)
        for name in [summary["Name"] for page in pages for summary in page["Schedules"]]:
            schedule = self._get(name)
            if schedule is not None and due(schedule) <= datetime.now(UTC):
                self._fire(schedule)

    def _get(self, name: str) -> dict[str, Any] | None:
        try:
            schedule: dict[str, Any] = self._scheduler.get_schedule(Name=name, GroupName=self._group)
        except self._scheduler.exceptions.ResourceNotFoundException:
            return None  # Cancelled since it was listed.
        return schedule

    def _fire(self, schedule: dict[str, Any]) -> None:
        target, name = schedule["Target"], schedule["Name"]
        self._lambda.invoke(FunctionName=target["Arn"], InvocationType="Event", Payload=target["Input"].encode())
        self.fired.append(name)
        if schedule.get("ActionAfterCompletion") == "DELETE":
            try:
                self._scheduler.delete_schedule(Name=name, GroupName=self._group)
            except self._scheduler.exceptions.ResourceNotFoundException:
                return  # Cancelled meanwhile.


def due(schedule: dict[str, Any]) -> datetime:
    """When a one-time schedule fires. Raises ValueError for a recurring one."""
    expression = schedule["ScheduleExpression"]
    if not (expression.startswith("at(") and expression.endswith(")")):
        raise ValueError(f"only at(...) can be pumped, not {expression}")
    zone = ZoneInfo(schedule.get("ScheduleExpressionTimezone") or "UTC")
    return datetime.fromisoformat(expression[3:-1]).replace(tzinfo=zone)


@contextmanager
def pumping(pump: SchedulePump) -> Iterator[None]:
    """Sweep in a thread of its own. A sweep that fails fails the block at its end."""
    leave = threading.Event()
    failures: list[ClientError | ValueError] = []

    def work() -> None:
        while not leave.wait(SWEEP_S):
            try:
                pump.sweep()
            except (ClientError, ValueError) as error:
                failures.append(error)
                return

    thread = threading.Thread(target=work, name="pump")
    thread.start()
    try:
        yield
    finally:
        leave.set()
        thread.join(LEAVE_TIMEOUT_S)
    if failures:
        raise failures[0]
