"""The project's own `template.yaml`, built and deployed by SAM, and used: a call, a batch of records, a sweep.

Owns that the shape that scales to zero comes up whole and does its work where nothing else runs. The other shape needs
a container engine, and Kafka itself is played: its mapping's event is handed to the dispatcher.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaProducer

from tenuto.protocol.ids import Lane
from tenuto_local.kafka_broker import KafkaBroker
from tenuto_local.topics import create_topics
from tests.infra.tools import MACHINE, RUNTIME, build, run_tool
from tests.localstack.conftest import Client
from tests.localstack.endpoint import VARIABLES

CALL_SECONDS_MAX: Final = 60
TEMPLATE_RUNTIME: Final = "python3.13"
# A LocalStack of our own runs functions by this interpreter on this machine, another endpoint as the template says.
OURS: Final = not any(os.environ.get(name) for name in VARIABLES)
LEDGER: Final = Path("/tmp/user_updates.sqlite")
"""What the example writes, where the template tells it to."""


@pytest.fixture(scope="module")
def outputs(
    client: Client, endpoint_url: str, run_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What the deployed stack says of itself."""
    folder = tmp_path_factory.mktemp("sam")
    template = build(folder, RUNTIME if OURS else TEMPLATE_RUNTIME) / "template.yaml"
    name = f"{run_name}-sam"
    answer = run_tool(
        "sam",
        *("deploy", "--template-file", str(template), "--stack-name", name, "--resolve-s3", "--no-progressbar"),
        *("--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"),
        *("--parameter-overrides", f"Name={name}", f"Architecture={MACHINE}", "Api=Rest", "ApiAuth=NONE"),
        environment={"AWS_ENDPOINT_URL": endpoint_url},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    cloudformation = client("cloudformation")
    (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    yield {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
    cloudformation.delete_stack(StackName=name)
    if OURS:
        LEDGER.unlink(missing_ok=True)


def update(user: str, version: int) -> bytes:
    """An update of a user, as the example takes it."""
    value = {"user": user, "version": version, "name": "Ann", "permissions": ["read"], "resources": ["inbox"]}
    return json.dumps(value).encode()


def record(offset: int, key: str, value: bytes) -> dict[str, Any]:
    """A record as an event source mapping hands it over."""
    return {
        "topic": "user-updates",
        "partition": 0,
        "offset": offset,
        "timestamp": 1_700_000_000_000,
        "timestampType": "CREATE_TIME",
        "key": base64.b64encode(key.encode()).decode(),
        "value": base64.b64encode(value).decode(),
        "headers": [],
    }


RECORDS: Final = (
    record(0, "cy", update("cy", 1)),
    record(1, "dee", update("dee", 1)),
    record(2, "cy", update("cy", 2)),
)
BATCH: Final = {"eventSource": "SelfManagedKafka", "bootstrapServers": "b:9092", "records": {"user-updates-0": RECORDS}}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker that has the topic of the batch: of which life its records are is asked there."""
    broker = KafkaBroker(tmp_path)

    async def start() -> None:
        await broker.start()
        await create_topics(broker.bootstrap_servers, {"user-updates": 1})
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
            for one in RECORDS:
                await producer.send_and_wait("user-updates", base64.b64decode(one["value"]))

    try:
        asyncio.run(start())
        yield broker
    finally:
        asyncio.run(broker.stop())


def dispatch(client: Client, outputs: dict[str, str], event: Any) -> Any:
    """Invoke the dispatcher behind its alias; its answer."""
    answer = client("lambda").invoke(FunctionName=outputs["DispatcherArn"], Payload=json.dumps(event).encode())
    body = answer["Payload"].read()
    assert "FunctionError" not in answer, body
    return json.loads(body)


def head(client: Client, outputs: dict[str, str], user: str) -> dict[str, Any]:
    """The head of a user's lane, as DynamoDB shows it."""
    key = {"pk": {"S": Lane("userUpdates", user).pk}, "sk": {"S": "H"}}
    item: dict[str, Any] = client("dynamodb").get_item(TableName=outputs["TableName"], Key=key)["Item"]
    return item


@pytest.mark.parametrize(("suffix", "seconds_min"), [("", 0), ("-new", 9)], ids=["steps", "steps and held sleeps"])
def test_a_call_by_way_of_the_rest_api(
    client: Client, endpoint_url: str, outputs: dict[str, str], run_name: str, suffix: str, seconds_min: int
) -> None:
    # A new user's profile is ready at the third try, and between tries the handler sleeps 5 s. Nothing could end that
    # sleep in time but the function itself.
    user = f"{run_name}{suffix}"
    api = outputs["RestApiUrl"].removeprefix("https://").partition(".")[0]
    url = f"{endpoint_url}/_aws/execute-api/{api}/live/call/userUpdates/{user}/update_user_event"
    request = urllib.request.Request(url, update(user, 1), {"Content-Type": "application/json"})
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=CALL_SECONDS_MAX) as response:
        assert response.status == 204
    assert time.monotonic() - began >= seconds_min
    assert "rid" not in head(client, outputs, user)


def test_a_batch_of_a_kafka_mapping_without_brokers_fails_whole(client: Client, outputs: dict[str, str]) -> None:
    answer = client("lambda").invoke(FunctionName=outputs["DispatcherArn"], Payload=json.dumps(BATCH).encode())
    body = answer["Payload"].read().decode()
    assert answer["FunctionError"] == "Unhandled"
    assert "none of it was run" in body
    assert "needs access to the brokers" in body


@pytest.mark.skipif(not OURS, reason="a broker of this machine may be out of reach for the endpoint's functions")
def test_a_batch_of_a_kafka_mapping(client: Client, outputs: dict[str, str], broker: KafkaBroker) -> None:
    alias = outputs["DispatcherArn"]
    function, functions = alias.rpartition(":")[0], client("lambda")
    variables = functions.get_function_configuration(FunctionName=function)["Environment"]["Variables"]
    # Not by the template's parameter, which would also ask for the mapping that the endpoint does not have.
    variables["TENUTO_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    functions.update_function_configuration(FunctionName=function, Environment={"Variables": variables})
    functions.get_waiter("function_updated_v2").wait(FunctionName=function)
    assert dispatch(client, {"DispatcherArn": function}, BATCH) == {"batchItemFailures": []}
    (watermark,) = (value for name, value in head(client, outputs, "cy").items() if name.startswith("w."))
    assert watermark == {"N": "3"}


def test_the_rule_sweeps_each_minute(client: Client, outputs: dict[str, str]) -> None:
    events = client("events")
    (rule,) = (
        one
        for one in events.list_rules()["Rules"]
        for target in events.list_targets_by_rule(Rule=one["Name"])["Targets"]
        if target["Arn"] == outputs["DispatcherArn"]
    )
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 minute)", "ENABLED")
    (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert dispatch(client, outputs, json.loads(target["Input"])) is None


def test_what_a_person_looks_at_is_there(client: Client, outputs: dict[str, str], run_name: str) -> None:
    names = {one["AlarmName"] for one in client("cloudwatch").describe_alarms()["MetricAlarms"]}
    prefix = f"{run_name}-sam"
    expected = {"dead-letters", "dispatcher-errors", "lag", "no-sweep", "dispatcher-throttles", "wake-ups-dlq"}
    assert {f"{prefix}-{one}" for one in expected} <= names
    groups = {one["Name"] for one in client("scheduler").list_schedule_groups()["ScheduleGroups"]}
    assert prefix in groups
