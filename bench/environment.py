"""The system a workload runs on: the embedded stack with the bench's function, and a client of its table.

Owns how many workers, partitions and control planes there are. Does not own what runs there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from bench.counting import CountingEndpoint
from tenuto.store.aws_client import CLIENT_OPTIONS
from tenuto_local import FunctionSpec
from tenuto_local.errors import ConfigurationError
from tenuto_local.stack import EmbeddedStack
from tenuto_local.system import System
from tenuto_local.table_engine import chosen_engine
from tenuto_local.workdir import Workdir

ROOT: Final = Path(__file__).resolve().parents[1]
SERVICE: Final = "bench"
FUNCTION: Final = "bench"
TOPIC: Final = "bench-events"
PARTITIONS: Final = 4
WORKERS: Final = 8
"""Function processes, and hence invocations at a time."""

FUNCTION_TIMEOUT_S: Final = 15.0
"""Of the same order as the template's default (10 s): far above what any invocation here takes, with room to nap."""

READ_TIMEOUT_S: Final = 30.0
"""Creating a table on a busy machine takes longer than any request of the product may."""

DYNAMODB_VARIABLE: Final = "AWS_ENDPOINT_URL_DYNAMODB"
FOREIGN: Final = ("AWS_ENDPOINT_URL", DYNAMODB_VARIABLE, "TENUTO_BOOTSTRAP_SERVERS")


def settings(engine: str | None = None, *, on_disk: bool = False) -> dict[str, object]:
    """What a run is made with. `engine` is the table engine, by default that of TENUTO_TABLE_ENGINE."""
    return {
        "control_planes": 1,
        "function_workers": WORKERS,
        "partitions": PARTITIONS,
        "table": f"{chosen_engine(engine).title()}, {'on disk' if on_disk else 'in memory'}",
    }


@dataclass(frozen=True, slots=True)
class Bench:
    """A running system, a DynamoDB client that passes no proxy, and the counting endpoint if there is one."""

    system: System
    dynamodb: Any
    counting: CountingEndpoint | None

    async def invocations(self) -> int:
        """Invocations of the function so far."""
        described = await self.system.stack.describe_functions()
        return int(described[FUNCTION]["invocations"])


def require_embedded() -> None:
    """Raise ConfigurationError when the environment names other components than the embedded ones."""
    named = [name for name in FOREIGN if os.environ.get(name)]
    if named:
        raise ConfigurationError(f"the bench measures the embedded stack; unset {', '.join(named)}")


@asynccontextmanager
async def running(handler: str, *, counted: bool) -> AsyncIterator[Bench]:
    """A system that runs `handler` for each event of TOPIC. With `counted`, requests to DynamoDB pass a counter."""
    async with AsyncExitStack() as stack:
        counting = await _counting(stack) if counted else None
        system = System(
            [_function()],
            topics={TOPIC: PARTITIONS},
            config_text=subscription(FUNCTION, TOPIC, handler),
            log_level="warning",
        )
        await stack.enter_async_context(system)
        url = system.stack.dynamodb_endpoint_url if counting is None else counting.upstream
        yield Bench(system, await stack.enter_async_context(dynamodb_client(system.stack, url)), counting)


@asynccontextmanager
async def dynamodb_client(stack: EmbeddedStack, url: str) -> AsyncIterator[Any]:
    """A client of the DynamoDB at `url`, tuned as the product's own."""
    own = stack.environment()
    async with get_session().create_client(
        "dynamodb",
        region_name=own["AWS_REGION"],
        endpoint_url=url,
        aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=own.get("AWS_SESSION_TOKEN"),
        config=AioConfig(**{**CLIENT_OPTIONS, "read_timeout": READ_TIMEOUT_S}),
    ) as client:
        yield client


async def _counting(stack: AsyncExitStack) -> CountingEndpoint:
    """A table engine with a counter before it, named by the environment as a person's own DynamoDB would be."""
    workdir = Workdir()
    stack.callback(workdir.close)
    engine = chosen_engine().make(workdir.path)
    stack.push_async_callback(engine.stop)
    await engine.start()
    counting = await stack.enter_async_context(CountingEndpoint(engine.endpoint_url))
    os.environ[DYNAMODB_VARIABLE] = counting.url
    stack.callback(os.environ.pop, DYNAMODB_VARIABLE)
    return counting


def _function() -> FunctionSpec:
    return FunctionSpec(
        name=FUNCTION,
        handler="bench.handlers.handler",
        root=str(ROOT),
        timeout_s=FUNCTION_TIMEOUT_S,
        concurrency=WORKERS,
        # A worker answers before it is ready for the next invocation; on AWS another instance would take that one.
        queue_limit=WORKERS,
    )


def subscription(function: str, topic: str, handler: str, concurrency: int = WORKERS) -> str:
    """A configuration that routes a topic to a handler of the bench's object, by so many invocations at a time."""
    return f"""
[functions.{function}]
concurrency = {concurrency}

[[subscriptions]]
topic = "{topic}"
target = "{SERVICE}/{handler}"
key = "utf-8"
"""
