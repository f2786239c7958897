"""Scale to zero on real parts: the dispatcher is a Lambda function, and nothing runs when nothing happens.

Owns what a batch, a request, a schedule and a tick lead to when Kafka, DynamoDB, the functions' processes and the
Scheduler are real. Does not own the rules of an invocation (`tests/control/test_serverless.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from aiobotocore.session import get_session
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from tenuto.lane.dead_letters import letter_partitions, parse_letter
from tenuto.lane.head import head_key, parse_head
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.store.dynamodb import DynamoTable
from tenuto_local.event_source import KafkaEventSource
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.stack import EmbeddedStack
from tenuto_local.system import import_path
from tenuto_local.table import create_table
from tenuto_local.topics import create_topics, wait_coordinator
from tests.stack import app

ROOT = Path(__file__).resolve().parents[2]
TOPICS = {"amounts": 2, "jobs": 2, "jobs.dead-letter": 1, "amounts.dead-letter": 1, app.ECHO_TOPIC: 1}
DISPATCHER = "dispatcher"
DISPATCHER_ARN = f"arn:aws:lambda:us-east-1:000000000000:function:{DISPATCHER}"
CONFIG = """
[functions.app]

[[subscriptions]]
topic = "amounts"
target = "account/add"

[[subscriptions]]
topic = "jobs"
target = "account/work"

[[subscriptions]]
topic = "reborn"
target = "account/add"

# No dead-letter topic is made for it.
[[subscriptions]]
topic = "bare"
target = "account/work"

# So that a sleep of a second suspends and goes to the Scheduler, as one of minutes does in earnest.
[limits]
hold_sleep_ms = 300
scheduler_threshold_ms = 500
linger_ms = 400
topic_patience_ms = 1_000
"""
EVENTUALLY_S = 30.0
SCENARIO_S = 90.0
START_S = 600.0
"""The first start on a machine fetches the jars."""

TICK_S = 3.0


class ScaleToZero:
    """The stack, a dispatcher function, a local event source mapping, and the sweeper's rule."""

    def __init__(self, folder: Path) -> None:
        # One loop for all: between tests the mapping and the rule stand still, as everything else does.
        self.runner = asyncio.Runner()
        self.notes = folder / "notes"
        self._config = folder / "tenuto.toml"
        self._config.write_text(CONFIG, encoding="utf-8")
        self._functions = FunctionSpec(
            name="app",
            handler="tests.stack.app.handler",
            root=str(ROOT),
            timeout_s=5.0,
            environment={app.NOTES_VARIABLE: str(self.notes), "PYTHONPATH": import_path("tenuto")},
            concurrency=4,
            queue_limit=100,
        )
        self.stack = EmbeddedStack([self._functions])
        self._closing = AsyncExitStack()
        self._ticking: asyncio.Task[None] | None = None
        self._client: Any = None
        self.table: DynamoTable
        self.producer: AIOKafkaProducer

    async def start(self) -> None:
        await self.stack.start()
        servers = self.stack.bootstrap_servers
        await create_topics(servers, TOPICS)
        await wait_coordinator(servers, "mapping")
        own = self.stack.environment()
        common: dict[str, Any] = {
            "region_name": own["AWS_REGION"],
            "aws_access_key_id": own["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": own["AWS_SECRET_ACCESS_KEY"],
        }
        dynamodb = await self._closing.enter_async_context(
            get_session().create_client("dynamodb", endpoint_url=self.stack.dynamodb_endpoint_url, **common)
        )
        await create_table(cast("Any", dynamodb), "tenuto")
        self.table = DynamoTable(cast("Any", dynamodb), "tenuto")
        self._client = await self._closing.enter_async_context(
            get_session().create_client("lambda", endpoint_url=self.stack.aws_endpoint_url, **common)
        )
        await self.stack.register(self._dispatcher(servers))
        self.producer = AIOKafkaProducer(bootstrap_servers=servers)
        await self.producer.start()
        self._closing.push_async_callback(self.producer.stop)
        await self._closing.enter_async_context(
            KafkaEventSource(servers, {"amounts": 2, "jobs": 2}, "mapping", self.invoke)
        )
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        try:
            await self._closing.aclose()
        finally:
            await self.stack.stop()

    @asynccontextmanager
    async def mapping(self, topic: str) -> AsyncIterator[None]:
        """A topic of one partition and its mapping, which begins with the oldest record; then both are gone."""
        servers, group = self.stack.bootstrap_servers, uuid4().hex
        await create_topics(servers, {topic: 1})
        await wait_coordinator(servers, group)
        async with KafkaEventSource(servers, {topic: 1}, group, self.invoke):
            yield
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        try:
            await admin.delete_topics([topic])
            for _ in range(500):
                if topic not in await admin.list_topics():
                    return
                await asyncio.sleep(0.02)
            pytest.fail(f"{topic} is still there")
        finally:
            await admin.close()

    def run(self, work: Coroutine[Any, Any, None], timeout_s: float = SCENARIO_S) -> None:
        """Run a scenario, or fail."""
        self.runner.run(asyncio.wait_for(work, timeout_s))

    def _dispatcher(self, servers: str) -> FunctionSpec:
        return FunctionSpec(
            name=DISPATCHER,
            handler="tenuto_control.lambda_entry.handler",
            root=str(ROOT),
            timeout_s=30.0,
            memory_mb=512,
            environment={
                "PYTHONPATH": import_path("tenuto", "tenuto_control"),
                "TENUTO_CONFIG": str(self._config),
                "TENUTO_BOOTSTRAP_SERVERS": servers,
                "TENUTO_PARTIAL_BATCHES": "true",
                "TENUTO_SCHEDULER_ROLE_ARN": "arn:aws:iam::000000000000:role/wake",
                "TENUTO_SCHEDULER_TARGET_ARN": DISPATCHER_ARN,
            },
            concurrency=8,
            queue_limit=100,
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            # A tick that fails is followed by another.
            await asyncio.gather(self.invoke({"tenuto": "sweep"}), return_exceptions=True)

    async def invoke(self, event: dict[str, Any]) -> Any:
        """Invoke the dispatcher; raises for a function error."""
        answer = await self._client.invoke(FunctionName=DISPATCHER, Payload=json.dumps(event).encode())
        body = await answer["Payload"].read()
        if answer.get("FunctionError"):
            raise RuntimeError(body.decode())
        return json.loads(body)

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        """A request as API Gateway's HTTP API hands it on."""
        context = {"http": {"method": "POST", "path": path, "sourceIp": "192.0.2.1"}, "stage": "$default"}
        event = {
            "version": "2.0",
            "rawPath": path,
            "rawQueryString": "",
            "headers": {"content-type": "application/json", "host": "local"},
            "requestContext": context,
            "body": json.dumps(body),
            "isBase64Encoded": False,
        }
        answer = await self.invoke(event)
        return answer["statusCode"], json.loads(answer["body"] or "null")

    async def head(self, key: str) -> Head:
        return parse_head(await self.table.get(head_key(Lane("account", key))))

    async def send(self, topic: str, *records: tuple[str, Any]) -> None:
        for key, value in records:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            await self.producer.send_and_wait(topic, data, key=key.encode())

    def noted(self, key: str) -> list[str]:
        return [one.what for one in app.notes(self.notes) if one.key == key]

    async def eventually(self, look: Any, expected: Any) -> None:
        found: Any = None
        for _ in range(int(EVENTUALLY_S / 0.1)):
            found = look()
            if asyncio.iscoroutine(found):
                found = await found
            if found == expected:
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"expected {expected!r}, found {found!r}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaleToZero]:
    scaled = ScaleToZero(tmp_path_factory.mktemp("scaled"))
    scaled.run(scaled.start(), START_S)
    try:
        yield scaled
    finally:
        scaled.run(scaled.stop())
        scaled.runner.close()


@pytest.mark.stack
def test_records_from_a_mapping_add_up_and_a_poison_record_fails_alone(world: ScaleToZero) -> None:
    async def scenario() -> None:
        keys = [f"sum-{n}" for n in range(5)]
        await world.send("amounts", *((key, n) for n in range(1, 21) for key in keys), ("sum-0", b"{"))
        for key in keys:
            await world.eventually(lambda key=key: _state(world, key, "total"), b"210")

    world.run(scenario())


@pytest.mark.stack
def test_a_sleep_is_ended_by_the_scheduler_and_its_key_keeps_its_queue(world: ScaleToZero) -> None:
    async def scenario() -> None:
        await world.send(
            "jobs", ("sleeper", {"kind": "nap", "text": "nap"}), ("sleeper", {"kind": "note", "text": "later"})
        )
        await world.eventually(lambda: world.noted("sleeper"), ["before nap", "after nap", "later"])

    world.run(scenario())


@pytest.mark.stack
def test_a_function_that_dies_goes_on_behind_its_last_finished_step(world: ScaleToZero) -> None:
    async def scenario() -> None:
        await world.send("jobs", ("crasher", {"kind": "crash"}))
        await world.eventually(lambda: world.noted("crasher"), ["one", "two", "two", "three"])

    world.run(scenario())


@pytest.mark.stack
def test_the_same_handlers_answer_api_gateway(world: ScaleToZero) -> None:
    async def scenario() -> None:
        assert await world.post("/call/account/caller/add", 5) == (200, 5)
        assert (await world.post("/call/account/caller/show"))[1] == {"total": 5}
        assert (await world.post("/call/account/caller/nothing"))[0] == 404
        status, refused = await world.post("/call/account/caller/work", {"kind": "refuse", "text": "no"})
        assert (status, refused["error"]["message"]) == (409, "no")
        status, _ = await world.post("/send/account/caller/add", 7)
        assert status == 202
        await world.eventually(lambda: _state(world, "caller", "total"), b"12")

    world.run(scenario())


@pytest.mark.stack
def test_a_dispatcher_that_is_killed_loses_nothing(world: ScaleToZero) -> None:
    async def scenario() -> None:
        for round_ in range(3):
            await world.send("jobs", *((f"survivor-{n}", {"kind": "nap", "text": f"{round_}"}) for n in range(4)))
            await asyncio.sleep(0.3)
            for pid in await world.stack.worker_pids(DISPATCHER):
                os.kill(pid, signal.SIGKILL)
        expected = [f"{when} {round_}" for round_ in range(3) for when in ("before", "after")]
        for n in range(4):
            await world.eventually(lambda n=n: list(dict.fromkeys(world.noted(f"survivor-{n}"))), expected)

    world.run(scenario())


@pytest.mark.stack
def test_what_no_topic_takes_is_kept_and_the_records_behind_it_run(world: ScaleToZero) -> None:
    """A null key, and a handler that publishes to a topic that is not there either."""

    async def scenario() -> None:
        async with world.mapping("bare"):
            await world.producer.send_and_wait("bare", b'{"kind": "note"}', key=None)
            await world.send("bare", ("bare-1", b"{"), ("bare-2", {"kind": "note", "text": "behind"}))
            await world.eventually(lambda: world.noted("bare-2"), ["behind"])
            await world.eventually(lambda: _kept(world), {"bare.dead-letter"})

    world.run(scenario())


@pytest.mark.stack
def test_events_of_a_topic_that_was_created_again_run(world: ScaleToZero) -> None:
    async def scenario() -> None:
        for expected in (b"6", b"12"):
            async with world.mapping("reborn"):
                await world.send("reborn", *(("phoenix", n) for n in (1, 2, 3)))
                await world.eventually(lambda: _state(world, "phoenix", "total"), expected)
        first, second = (await world.head("phoenix")).watermarks.items()
        assert first[0] != second[0]
        assert (first[1], second[1]) == (3, 3)

    world.run(scenario())


async def _kept(world: ScaleToZero) -> set[str]:
    """The topics of records that are among the table's dead letters."""
    found = [item for pk in letter_partitions() for item in (await world.table.query(pk, "0", "g")).items]
    return {letter.topic for letter in map(parse_letter, found) if letter is not None}


async def _state(world: ScaleToZero, key: str, name: str) -> bytes | None:
    return (await world.head(key)).state.get(name)
