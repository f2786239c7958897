"""The scheduler: it fires, once, at its time, and keeps the rules that AWS has for schedules."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tenuto_local import EmbeddedStack
from tests.support.stack import aws_client

pytestmark = pytest.mark.stack
ARN = "arn:aws:lambda:us-east-1:000000000000:function:sample"


@pytest.fixture(scope="session")
def scheduler(functions: EmbeddedStack) -> Any:
    """A boto3 client of the scheduler."""
    return aws_client(functions, "scheduler")


def create(client: Any, name: str, due: datetime, event: dict[str, Any] | None = None, **changes: Any) -> Any:
    definition: dict[str, Any] = {
        "Name": name,
        "ScheduleExpression": f"at({due:%Y-%m-%dT%H:%M:%S})",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": ARN,
            "RoleArn": "arn:aws:iam::000000000000:role/r",
            "Input": json.dumps(event or {}),
        },
        "ActionAfterCompletion": "DELETE",
    }
    return client.create_schedule(**definition | changes)


def later() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def test_a_schedule_fires_at_its_time_and_is_gone(scheduler: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    due = (datetime.now(UTC) + timedelta(seconds=2)).replace(microsecond=0)
    create(scheduler, "wake", due, {"do": "count", "file": str(file)})
    assert scheduler.get_schedule(Name="wake")["State"] == "ENABLED"
    deadline = time.monotonic() + 6
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    late_s = float(file.read_text()) - due.timestamp()
    assert 0 <= late_s < 1
    with pytest.raises(scheduler.exceptions.ResourceNotFoundException):
        scheduler.get_schedule(Name="wake")


def test_a_schedule_in_the_past_fires_at_once(scheduler: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    create(scheduler, "past", datetime.now(UTC) - timedelta(hours=1), {"do": "count", "file": str(file)})
    deadline = time.monotonic() + 5
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_deleted_schedule_does_not_fire(scheduler: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    create(scheduler, "deleted", datetime.now(UTC) + timedelta(seconds=1), {"do": "count", "file": str(file)})
    scheduler.delete_schedule(Name="deleted")
    time.sleep(1.2)
    assert not file.exists()


def test_the_same_name_twice_is_a_conflict(scheduler: Any) -> None:
    create(scheduler, "same", later())
    with pytest.raises(scheduler.exceptions.ConflictException, match="already exists"):
        create(scheduler, "same", later())
    scheduler.delete_schedule(Name="same")


def test_a_time_zone_is_honoured(scheduler: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    # Noon in Tokyo an hour before this UTC wall time is long past, so it fires at once; read as UTC it would
    # not.
    due = datetime.now(UTC) + timedelta(hours=1)
    event = {"do": "count", "file": str(file)}
    create(scheduler, "tokyo", due, event, ScheduleExpressionTimezone="Asia/Tokyo")
    deadline = time.monotonic() + 5
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_schedules_are_listed_in_pages(scheduler: Any) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        create(scheduler, name, later())
    pages = scheduler.get_paginator("list_schedules").paginate(NamePrefix="page-", PaginationConfig={"PageSize": 2})
    assert [schedule["Name"] for page in pages for schedule in page["Schedules"]] == names
    for name in names:
        scheduler.delete_schedule(Name=name)


def test_an_update_moves_a_schedule(scheduler: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    create(scheduler, "moved", later())
    scheduler.update_schedule(
        Name="moved",
        ScheduleExpression="at(2020-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": ARN, "RoleArn": "r", "Input": json.dumps({"do": "count", "file": str(file)})},
        ActionAfterCompletion="DELETE",
    )
    deadline = time.monotonic() + 5
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Name": "a/b"}, "must match"),
        ({"Name": "ä"}, "must match"),
        ({"ScheduleExpression": "at(tomorrow)"}, "at\\(yyyy-mm-ddThh:mm:ss\\)"),
        ({"ScheduleExpression": "at(2026-13-01T00:00:00)"}, "not a time"),
        ({"ScheduleExpressionTimezone": "Mars/Olympus"}, "not a time"),
        ({"Target": {"Arn": "arn:aws:sqs:us-east-1:000000000000:q", "RoleArn": "r"}}, "only Lambda"),
        ({"FlexibleTimeWindow": {"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 5}}, "OFF"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(scheduler: Any, change: dict[str, Any], message: str) -> None:
    definition: dict[str, Any] = {"name": "bad"} | change
    name = change.get("Name", "bad")
    with pytest.raises(ClientError, match=message) as refused:
        create(scheduler, name, later(), **{key: value for key, value in definition.items() if key[0].isupper()})
    assert refused.value.response["Error"]["Code"] == "ValidationException"
