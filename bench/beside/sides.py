"""The two systems under comparison, each as the same small thing: a topic, an address for calls, and counters to check.

Owns how each is brought up for one pass: on one broker that both share, with as many function processes behind the same
local Lambda service. Does not own what is sent to them (`passes`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench.beside.notes import PATH_VARIABLE
from bench.beside.readings import Readings
from bench.beside.restate import Programs, RestateServer
from bench.commits import read_heads
from bench.environment import (
    DYNAMODB_VARIABLE,
    FUNCTION_TIMEOUT_S,
    PARTITIONS,
    ROOT,
    SERVICE,
    WORKERS,
    dynamodb_client,
    subscription,
)
from tenuto_local import FunctionSpec
from tenuto_local.cache import Progress
from tenuto_local.kafka_broker import KafkaBroker
from tenuto_local.stack import EmbeddedStack
from tenuto_local.system import TABLE, System
from tenuto_local.topics import create_topics
from tenuto_local.workdir import Workdir

BROKER_VARIABLE: Final = "TENUTO_BOOTSTRAP_SERVERS"
NOWHERE: Final = "http://127.0.0.1:1"
"""Restate keeps no table: no engine is started for it."""

FUNCTION: Final = "compared"
RESTATE_QUEUE: Final = 100_000
"""Restate's server does not limit what it has in flight at a function: the rest waits at the local Lambda, where
AWS would refuse it."""

COUNTERS: Final = "select service_key, value_utf8 from state where service_name = 'bench' and key = 'count'"
AT_A_TIME: Final = 3
"""Invocations of tenuto's function at a time. Each works on up to eight keys, so a few keep two processors at work, and
leave the others' caches alone; see `docs/internals/performance.md`. Restate's are of one key each, and not limited."""

TENUTO: Final = "tenuto"
RESTATE: Final = "restate"


@dataclass(frozen=True, slots=True)
class Side:
    """A running system. `counts` gives the counter of each key, `invocations` those of the function so far."""

    name: str
    bootstrap_servers: str
    topic: str
    service_url: str
    readings: Readings
    counts: Callable[[list[str]], Awaitable[dict[str, int]]]
    invocations: Callable[[], Awaitable[int]]

    def call_url(self, key: str, handler: str) -> str:
        """Where a handler of a key is called by POST."""
        return f"{self.service_url}/{key}/{handler}"


class Opening:
    """Brings up either system. `engine` is tenuto's table engine; without `programs` there is no Restate.

    The table is in memory, for DynamoDB's own writes are no part of this machine; with `on_disk` it is in a file. A
    function has so many `processes`, of which tenuto uses `at_a_time`, or all if there are fewer.
    """

    def __init__(
        self,
        engine: str,
        programs: Programs | None,
        *,
        on_disk: bool = False,
        processes: int = WORKERS,
        at_a_time: int = AT_A_TIME,
    ) -> None:
        self._engine = engine
        self._processes = processes
        self._at_a_time = min(at_a_time, processes)
        self._on_disk = on_disk
        self._programs = programs

    def open(self, side: str, handler: str, topic: str) -> AbstractAsyncContextManager[Side]:
        """A fresh system of that name, with `handler` subscribed to a topic of its own."""
        if side == TENUTO:
            return self.tenuto(handler, topic)
        return self._restate(handler, topic)

    @asynccontextmanager
    async def tenuto(
        self,
        handler: str,
        topic: str,
        code: str = "bench.beside.tenuto_handlers.handler",
        control_planes: int = 1,
    ) -> AsyncIterator[Side]:
        """A fresh tenuto whose function runs `code`."""
        async with AsyncExitStack() as stack:
            notes = stack.enter_context(notes_file())
            system = System(
                [_function(code, notes, self._processes, queue_limit=self._processes)],
                topics={topic: PARTITIONS},
                config_text=subscription(FUNCTION, topic, handler, self._at_a_time),
                log_level="warning",
                control_planes=control_planes,
                table_engine=self._engine,
                table_data=notes.parent / "table" if self._on_disk else None,
            )
            await stack.enter_async_context(system)
            own = system.stack
            client = await stack.enter_async_context(dynamodb_client(own, own.dynamodb_endpoint_url))

            async def counts(keys: list[str]) -> dict[str, int]:
                heads = await read_heads(client, TABLE, SERVICE, keys)
                return {key: msgspec.json.decode(head.state["count"]) for key, head in heads.items() if head.state}

            yield Side(
                TENUTO,
                system.bootstrap_servers,
                topic,
                f"{system.ingress}/call/{SERVICE}",
                Readings(notes),
                counts,
                lambda: _invocations(own),
            )

    @asynccontextmanager
    async def _restate(self, handler: str, topic: str) -> AsyncIterator[Side]:
        programs = self._programs
        assert programs is not None, "Restate is opened only where it is installed"
        async with AsyncExitStack() as stack:
            notes = stack.enter_context(notes_file())
            spec = _function("bench.beside.restate_handlers.handler", notes, self._processes, queue_limit=RESTATE_QUEUE)
            path = os.pathsep.join([str(ROOT), str(programs.sdk)])
            spec = msgspec.structs.replace(spec, environment={**spec.environment, "PYTHONPATH": path})
            with _set(DYNAMODB_VARIABLE, NOWHERE):
                own = EmbeddedStack([spec])
            await stack.enter_async_context(own)
            await create_topics(own.bootstrap_servers, {topic: PARTITIONS})
            server = RestateServer(programs.server, own.workdir, own.bootstrap_servers, own.environment())
            stack.push_async_callback(server.stop)
            await server.start()
            await server.deploy(FUNCTION)
            await server.subscribe(topic, f"{SERVICE}/{handler}")

            async def counts(_keys: list[str]) -> dict[str, int]:
                rows = await server.query(COUNTERS)
                return {row["service_key"]: int(row["value_utf8"]) for row in rows}

            yield Side(
                RESTATE,
                own.bootstrap_servers,
                topic,
                f"{server.ingress}/{SERVICE}",
                Readings(notes),
                counts,
                lambda: _invocations(own),
            )


@contextmanager
def notes_file() -> Iterator[Path]:
    """A file for the notes of one pass, which goes with it."""
    with tempfile.TemporaryDirectory(prefix="tenuto-beside-") as folder:
        yield Path(folder) / "notes"


@asynccontextmanager
async def shared_broker(progress: Progress) -> AsyncIterator[None]:
    """One broker for all systems that are opened meanwhile: the environment names it, as a person's own."""
    async with AsyncExitStack() as stack:
        workdir = Workdir()
        stack.callback(workdir.close)
        broker = KafkaBroker(workdir.path, progress=progress)
        stack.push_async_callback(broker.stop)
        await broker.start()
        stack.enter_context(_set(BROKER_VARIABLE, broker.bootstrap_servers))
        yield


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _function(handler: str, notes: Path, processes: int, queue_limit: int) -> FunctionSpec:
    return FunctionSpec(
        name=FUNCTION,
        handler=handler,
        root=str(ROOT),
        timeout_s=FUNCTION_TIMEOUT_S,
        concurrency=processes,
        queue_limit=queue_limit,
        environment={PATH_VARIABLE: str(notes)},
    )


async def _invocations(stack: EmbeddedStack) -> int:
    return int((await stack.describe_functions())[FUNCTION]["invocations"])
