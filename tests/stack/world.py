"""One running system for a module of tests, and what a test does with it: produce, call, look, wait.

Owns the fixture's parts. Does not own any scenario.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.system import System
from tests.stack import app
from tests.support.stack import run

ROOT = Path(__file__).resolve().parents[2]
EVENTUALLY_S = 20.0
JOBS = """
[functions.app]

[[subscriptions]]
topic = "jobs"
target = "account/work"
"""
LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; `body` is parsed JSON, None when it is empty."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(slots=True)
class World:
    """A running system and where its function leaves notes."""

    system: System
    notes_path: Path
    keys: int = field(default=0)

    def key(self, prefix: str) -> str:
        """A key nobody used."""
        self.keys += 1
        return f"{prefix}-{self.keys}"

    def notes(self, key: str) -> list[str]:
        """What was noted for a key, in order."""
        return [one.what for one in app.notes(self.notes_path) if one.key == key]

    def noted_at(self, key: str, what: str) -> float:
        """When something was first noted, in seconds since the epoch."""
        return next(one.at_s for one in app.notes(self.notes_path) if one.key == key and one.what == what)

    async def produce(
        self,
        topic: str,
        *records: tuple[str | bytes | None, Any],
        headers: tuple[tuple[str, bytes], ...] = (),
        partition: int | None = None,
    ) -> list[RecordMetadata]:
        """Produce records (key, value); bytes and None go as they are, other values as JSON."""
        async with self.producer() as producer:
            taken = []
            for key, value in records:
                raw_key = key.encode() if isinstance(key, str) else key
                raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
                taken.append(await producer.send(topic, raw, key=raw_key, headers=list(headers), partition=partition))
            return [await one for one in taken]

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        """A producer that repeats what the broker may not have taken, and never twice."""
        producer = AIOKafkaProducer(bootstrap_servers=self.system.bootstrap_servers, enable_idempotence=True)
        try:
            await producer.start()
            yield producer
        finally:
            await producer.stop()

    async def post(self, path: str, value: Any = None, **headers: str) -> Reply:
        """POST JSON (bytes as they are) to the ingress; `_` in a header's name stands for `-`."""
        body = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
        return await self._request("POST", path, body, headers)

    async def get(self, path: str, **headers: str) -> Reply:
        """GET from the ingress."""
        return await self._request("GET", path, None, headers)

    async def state(self, key: str) -> dict[str, Any]:
        """What the shared handler reads of an account. Asked once more if its function ends meanwhile."""
        shown = await self.post(f"/call/account/{key}/show")
        if shown.status == 503:
            shown = await self.post(f"/call/account/{key}/show")
        assert shown.status == 200, shown
        return dict(shown.body)

    async def eventually(
        self, look: Callable[[], Awaitable[object] | object], expected: object, within_s: float = EVENTUALLY_S
    ) -> None:
        """Wait until `look` finds what is expected; fails with what it found last and the logs."""
        deadline = time.monotonic() + within_s
        while True:
            found = look()
            seen = await found if isinstance(found, Awaitable) else found
            if seen == expected:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"expected {expected!r}, found {seen!r}\n{self.system.log_tail()}")
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named.setdefault("content-type", "application/json")
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.system.ingress + path, data=body, headers=named) as answer,
        ):
            data = await answer.read()
            return Reply(answer.status, msgspec.json.decode(data) if data else None, answer.headers)


def jobs_system(notes: Path, timeout_s: float, *, partitions: int, control_planes: int = 1) -> System:
    """A system of `app`, whose topic `jobs` goes to `account/work`."""
    topics = {"jobs": partitions, "jobs.dead-letter": 1, app.ECHO_TOPIC: 1}
    function = app_function(notes, timeout_s)
    return System([function], topics=topics, config_text=JOBS, control_planes=control_planes)


def app_function(notes: Path, timeout_s: float) -> FunctionSpec:
    """The function of `app`, which leaves its notes in this file."""
    return FunctionSpec(
        name="app",
        handler="tests.stack.app.handler",
        root=str(ROOT),
        timeout_s=timeout_s,
        environment={app.NOTES_VARIABLE: str(notes)},
        concurrency=4,
        queue_limit=100,
    )


def on_the_stack(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[World], None]:
    """Make a test of a scenario that is given the module's world."""

    def test(world: World) -> None:
        run(scenario(world))

    test.__doc__ = scenario.__doc__
    return pytest.mark.stack(test)
