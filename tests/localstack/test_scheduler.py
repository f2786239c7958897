"""The scheduler driver of the control plane: names, conflicts, cancelling, firing, and what is left after it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from secrets import token_hex
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from tenuto.lane.writes import Key
from tenuto.store.dynamodb import DynamoTable
from tenuto_control.config import SchedulerConfig
from tenuto_control.drivers.aws import AwsClients
from tenuto_control.drivers.event_scheduler import EventBridgeScheduler, at_expression, schedule_name
from tenuto_control.ports import SchedulerUnavailableError
from tests.localstack.capabilities import why_lacking
from tests.localstack.conftest import Client, Play
from tests.localstack.deployment import ROLE, Deployment
from tests.localstack.pump import SchedulePump, pumping

PROBE_S = 12.0  # ministack looks at its schedules every ten seconds; LocalStack never does.
FIRED_WITHIN_S = 90.0  # AWS fires within the minute.
CANCELLED_S = 3.0
POLL_S = 0.2


@pytest.fixture(scope="module")
def target(deployment: Deployment) -> str:
    """The function that wake-ups go to; it leaves an item."""
    return deployment.function("observe")


@pytest.fixture(scope="module")
def group(client: Client, run_name: str) -> Iterator[str]:
    """A schedule group of the run."""
    scheduler = client("scheduler")
    try:
        scheduler.create_schedule_group(Name=run_name)
    except ClientError as error:
        if reason := why_lacking(error):
            pytest.skip(f"no scheduler: {reason}")
        raise
    yield run_name
    scheduler.delete_schedule_group(Name=run_name)


@pytest.fixture(scope="module")
def config(target: str, group: str) -> SchedulerConfig:
    """The scheduler under test. Without a target there is nothing to schedule, so that one is asked for first."""
    return SchedulerConfig(role_arn=ROLE, target_arn=target, group=group)


class Probe:
    """Whether the endpoint fires by itself: asked at the start, answered when somebody needs to know."""

    def __init__(self, client: Client, config: SchedulerConfig, table: str) -> None:
        self._dynamodb = client("dynamodb")
        self._table = table
        self._pk = f"probe/{token_hex(4)}"
        self._until_s = time.monotonic() + PROBE_S
        client("scheduler").create_schedule(
            Name=f"probe-{token_hex(4)}",
            GroupName=config.group,
            ScheduleExpression=at_expression(int(time.time() * 1_000)),
            FlexibleTimeWindow={"Mode": "OFF"},
            ActionAfterCompletion="DELETE",
            Target={"Arn": config.target_arn, "RoleArn": config.role_arn, "Input": wake_up(table, self._pk)},
        )

    def fires(self) -> bool:
        """Wait until it has fired or the time is up."""
        key = {"pk": {"S": self._pk}, "sk": {"S": "seen"}}
        while "Item" not in self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True):
            if time.monotonic() > self._until_s:
                return False
            time.sleep(POLL_S)
        return True


@pytest.fixture(scope="module")
def probe(client: Client, config: SchedulerConfig, table: str) -> Probe:
    """The probe, begun."""
    return Probe(client, config, table)


def wake_up(table: str, pk: str) -> str:
    """The payload that makes the function leave its item."""
    return json.dumps({"table": table, "pk": pk})


def names(client: Client, group: str) -> list[str]:
    """The schedules of the group, without the probe's."""
    schedules = client("scheduler").list_schedules(GroupName=group)["Schedules"]
    return [schedule["Name"] for schedule in schedules if not schedule["Name"].startswith("probe-")]


def test_a_wake_up_is_scheduled_once(play: Play, client: Client, config: SchedulerConfig) -> None:
    name = f"lane/with/slashes#{token_hex(4)}"
    due_ms = int(time.time() * 1_000) + 3_600_000

    async def scenario(clients: AwsClients) -> None:
        scheduler = EventBridgeScheduler(clients.scheduler, config)
        await scheduler.schedule(name, due_ms, b'{"first": 1}')
        await scheduler.schedule(name, due_ms + 60_000, b'{"second": 2}')

    play(scenario)
    stored = client("scheduler").get_schedule(Name=schedule_name(name), GroupName=config.group)
    assert stored["ScheduleExpression"] == at_expression(due_ms)
    assert stored["ScheduleExpressionTimezone"] == "UTC"
    assert stored["ActionAfterCompletion"] == "DELETE"
    assert (stored["Target"]["Arn"], stored["Target"]["Input"]) == (config.target_arn, '{"first": 1}')


def test_the_endpoint_itself_answers_a_second_time_with_a_conflict(client: Client, config: SchedulerConfig) -> None:
    arguments: dict[str, Any] = {
        "Name": f"twice-{token_hex(4)}",
        "GroupName": config.group,
        "ScheduleExpression": "at(2099-01-01T00:00:00)",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {"Arn": config.target_arn, "RoleArn": ROLE, "Input": "{}"},
    }
    client("scheduler").create_schedule(**arguments)
    with pytest.raises(ClientError) as refused:
        client("scheduler").create_schedule(**arguments)
    assert refused.value.response["Error"]["Code"] == "ConflictException"


def test_a_cancelled_wake_up_is_gone(play: Play, client: Client, config: SchedulerConfig) -> None:
    name = f"cancelled/{token_hex(4)}"

    async def scenario(clients: AwsClients) -> None:
        scheduler = EventBridgeScheduler(clients.scheduler, config)
        await scheduler.schedule(name, int(time.time() * 1_000) + 3_600_000, b"{}")
        assert schedule_name(name) in names(client, config.group)
        await scheduler.cancel(name)
        assert schedule_name(name) not in names(client, config.group)
        await scheduler.cancel(name)

    play(scenario)


def test_a_group_that_is_not_there_is_an_error(play: Play, config: SchedulerConfig) -> None:
    lost = SchedulerConfig(role_arn=ROLE, target_arn=config.target_arn, group="tenuto-nowhere")

    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(SchedulerUnavailableError, match="refused a wake-up"):
            await EventBridgeScheduler(clients.scheduler, lost).schedule("x", 4_000_000_000_000, b"{}")

    play(scenario)


def test_a_wake_up_fires_once_it_is_due_and_is_deleted(
    play: Play, client: Client, config: SchedulerConfig, table: str, probe: Probe
) -> None:
    fires = probe.fires()
    pump = SchedulePump(client("scheduler"), client("lambda"), config.group)
    fired, cancelled = f"fired/{token_hex(4)}", f"cancelled/{token_hex(4)}"

    async def scenario(clients: AwsClients) -> None:
        scheduler = EventBridgeScheduler(clients.scheduler, config)
        lanes = DynamoTable(cast("Any", clients.dynamodb), table)
        due_ms = int(time.time() * 1_000) + 2_000
        await scheduler.schedule(fired, due_ms, wake_up(table, fired).encode())
        await scheduler.schedule(cancelled, due_ms, wake_up(table, cancelled).encode())
        await scheduler.cancel(cancelled)
        async with asyncio.timeout(FIRED_WITHIN_S):
            while await lanes.get(Key(fired, "seen")) is None:  # noqa: ASYNC110 - another process leaves it
                await asyncio.sleep(POLL_S)
            assert time.time() * 1_000 >= due_ms, "never early"
            while schedule_name(fired) in names(client, config.group):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(POLL_S)
        await asyncio.sleep(CANCELLED_S)
        assert await lanes.get(Key(cancelled, "seen")) is None

    with nullcontext() if fires else pumping(pump):
        play(scenario)
    assert fires or schedule_name(fired) in pump.fired
