"""The whole stack on one machine: Kafka, DynamoDB, and one endpoint for Lambda and Scheduler.

Owns what is started and that all of it ends: on leaving, on an error half-way, on Ctrl-C, and by the kernel
when this process is killed. What the environment already names is used and not started:

    TENUTO_BOOTSTRAP_SERVERS    no broker
    AWS_ENDPOINT_URL_DYNAMODB   no table engine
    AWS_ENDPOINT_URL            no gateway and no table engine; functions are expected to be deployed there
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec

from tenuto_local import running
from tenuto_local.aws_api import credentials, region
from tenuto_local.broker_engine import Broker, chosen_broker
from tenuto_local.cache import Progress, silent
from tenuto_local.errors import ConfigurationError, ProcessFailed
from tenuto_local.gateway_contract import (
    ADMIN_DYNAMODB,
    ADMIN_FUNCTIONS,
    ADMIN_HEADER,
    ADMIN_HOLD,
    ADMIN_VARIABLE,
    READY_MARKER,
)
from tenuto_local.jars import fetched
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.ports import LOOPBACK, free_port
from tenuto_local.prerequisites import check_prerequisites
from tenuto_local.processes import ManagedProcess
from tenuto_local.table_engine import TableEngine, chosen_engine
from tenuto_local.workdir import Workdir, write_private

GATEWAY_READY_TIMEOUT_S = 20.0
ADMIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class External:
    """The addresses the environment brings along; None: start that component here."""

    bootstrap_servers: str | None
    aws_endpoint_url: str | None
    dynamodb_endpoint_url: str | None

    @classmethod
    def from_environment(cls) -> Self:
        """Read the three variables; an empty one counts as absent."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or None
        return cls(
            bootstrap_servers=os.environ.get("TENUTO_BOOTSTRAP_SERVERS") or None,
            aws_endpoint_url=endpoint,
            dynamodb_endpoint_url=os.environ.get("AWS_ENDPOINT_URL_DYNAMODB") or endpoint,
        )


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports to listen on; None: any that is free. The table's is never fixed: clients are told its address."""

    kafka: int | None = None
    aws: int | None = None
    http: int | None = None


ANY_PORTS: Final = Ports()


class EmbeddedStack:
    """The stack as an async context manager; `start` and `stop` do the same for a fixture.

    It is bound to no event loop, but (on Linux) to the thread that starts it: its processes die with that
    thread. With `workdir` None everything it writes goes to a temporary directory that is removed at the end.
    `table_engine` names one of `table_engine.ENGINES`, by default that of TENUTO_TABLE_ENGINE, else DynamoDB Local;
    `table_data` is a folder in which the table outlives the stack. `broker_engine` is one of `broker_engine.ENGINES`,
    by default that of TENUTO_BROKER_ENGINE, else Apache Kafka.
    """

    def __init__(
        self,
        functions: Sequence[FunctionSpec] = (),
        workdir: Path | None = None,
        progress: Progress = silent,
        *,
        table_engine: str | None = None,
        table_data: Path | None = None,
        broker_engine: str | None = None,
        ports: Ports = ANY_PORTS,
    ) -> None:
        self._ports = ports
        self._broker_kind = chosen_broker(broker_engine)
        self._engine = chosen_engine(table_engine)
        self._table_data = table_data
        self._functions = [spec.check() for spec in functions]
        self._requested_workdir = workdir
        self._progress = progress
        self._external = External.from_environment()
        self._credentials = credentials()
        self._secret = secrets.token_hex(32)
        self._workdir: Workdir | None = None
        self._broker: Broker | None = None
        self._dynamodb: TableEngine | None = None
        self._gateway: ManagedProcess | None = None
        self._gateway_url: str | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything at once and wait until it serves; raises `LocalStackError`, with nothing left."""
        assert self._workdir is None, "the stack is already started"
        jars = [] if self._external.bootstrap_servers else [*self._broker_kind.jars]
        jars += [] if self._external.dynamodb_endpoint_url else self._engine.jars
        if jars:
            report = check_prerequisites()
            complete = fetched(*jars)
            size_mb = sum(jar_set.size_mb for jar_set in jars)
            self._progress(report.line + ("" if complete else f", fetching about {size_mb} MB once"))
            report.require(maven=not complete)
        self._workdir = Workdir(self._requested_workdir)
        started_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_broker())
                group.create_task(self._start_aws())
        except BaseExceptionGroup as errors:
            await self.stop()
            # One cause is what a person can act on; the other component was cancelled or failed likewise.
            raise errors.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise
        if self._gateway is not None:
            write_private(self.aws_environment, _exports(self.environment()))
        self._progress(f"the stack is up after {time.monotonic() - started_s:.1f} s")

    async def stop(self) -> None:
        """End every process and remove the temporary directory; may be called at any time, and twice."""
        try:
            if self._gateway is not None:
                await self._gateway.stop()
            stops = [component.stop() for component in (self._broker, self._dynamodb) if component is not None]
            await asyncio.gather(*stops)
        finally:
            if self._workdir is not None:
                self._workdir.close()
                self._workdir = None

    @property
    def broker(self) -> Broker:
        """The broker; raises `ConfigurationError` when an external one is used."""
        if self._broker is None:
            raise ConfigurationError(
                "the broker is not the stack's own (TENUTO_BOOTSTRAP_SERVERS), so it cannot be managed"
            )
        return self._broker

    @property
    def bootstrap_servers(self) -> str:
        """Kafka's address."""
        return self._external.bootstrap_servers or self.broker.bootstrap_servers

    @property
    def aws_endpoint_url(self) -> str:
        """The endpoint of all AWS services."""
        url = self._external.aws_endpoint_url or self._gateway_url
        if url is None:
            raise ProcessFailed("the gateway is not running")
        return url

    @property
    def dynamodb_endpoint_url(self) -> str:
        """DynamoDB's own endpoint, without a proxy before it."""
        if self._external.dynamodb_endpoint_url is not None:
            return self._external.dynamodb_endpoint_url
        if self._dynamodb is None:
            raise ProcessFailed("the table engine is not running")
        return self._dynamodb.endpoint_url

    @property
    def workdir(self) -> Path:
        """Where the stack writes: logs, the broker's data, and `functions/<name>.log`."""
        if self._workdir is None:
            raise ProcessFailed("the stack is not running")
        return self._workdir.path

    @property
    def aws_environment(self) -> Path:
        """A file of `environment()` for a shell, which its owner alone may read: credentials are made at each start."""
        return self.workdir / running.AWS_ENVIRONMENT

    def environment(self) -> dict[str, str]:
        """The variables that point a child process, boto3 or a control plane at this stack."""
        return {
            **self._credentials,
            "AWS_REGION": region(),
            "AWS_DEFAULT_REGION": region(),
            "AWS_ENDPOINT_URL": self.aws_endpoint_url,
            "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb_endpoint_url,
            "TENUTO_BOOTSTRAP_SERVERS": self.bootstrap_servers,
        }

    async def register(self, *functions: FunctionSpec) -> None:
        """Add functions, or replace those of the same name, while the stack runs."""
        await self._admin("POST", ADMIN_FUNCTIONS, msgspec.json.encode([spec.check() for spec in functions]))

    async def hold(self, function: str) -> None:
        """Start no further processes of a function until it is registered again; those that run continue."""
        await self._admin("POST", ADMIN_HOLD, function.encode())

    async def describe_functions(self) -> dict[str, dict[str, Any]]:
        """By name: `workers` (pid, state, request_id), `queued`, `invocations`, `cold_starts`, `log`."""
        answer = await self._admin("GET", ADMIN_FUNCTIONS)
        return {function["name"]: function for function in answer["functions"]}

    async def dynamodb_request_counts(self) -> dict[str, int]:
        """Requests that went to DynamoDB through `aws_endpoint_url`, by operation; a batch counts as its members."""
        counts: dict[str, int] = (await self._admin("GET", ADMIN_DYNAMODB))["requests"]
        return counts

    async def worker_pids(self, function: str) -> list[int]:
        """The process ids of a function's workers; raises `ConfigurationError` for an unknown function."""
        functions = await self.describe_functions()
        if function not in functions:
            raise ConfigurationError(f"there is no function {function!r}; there are {sorted(functions)}")
        return [worker["pid"] for worker in functions[function]["workers"]]

    async def _start_broker(self) -> None:
        if self._external.bootstrap_servers is None:
            self._broker = self._broker_kind.make(
                _subdirectory(self.workdir, "kafka"), self._ports.kafka, self._progress
            )
            await self._broker.start()

    async def _start_aws(self) -> None:
        if self._external.dynamodb_endpoint_url is None:
            self._dynamodb = self._engine.make(
                _subdirectory(self.workdir, "dynamodb"), progress=self._progress, data=self._table_data
            )
            await self._dynamodb.start()
        if self._external.aws_endpoint_url is None:
            await self._start_gateway()
        elif self._functions:
            names = ", ".join(spec.name for spec in self._functions)
            self._progress(f"AWS_ENDPOINT_URL is set: the functions {names} are expected at {self.aws_endpoint_url}")

    async def _start_gateway(self) -> None:
        port = self._ports.aws or free_port()
        functions = self.workdir / "functions.json"
        functions.write_bytes(msgspec.json.encode(self._functions))
        options = {
            "--port": str(port),
            "--dynamodb": self.dynamodb_endpoint_url,
            "--functions": str(functions),
            "--logs": str(_subdirectory(self.workdir, "functions")),
        }
        self._gateway = ManagedProcess(
            "the AWS gateway",
            [
                sys.executable,
                "-m",
                "tenuto_local.gateway",
                *(word for option in options.items() for word in option),
            ],
            self.workdir / "gateway.log",
            ready_marker=READY_MARKER,
            ready_timeout_s=GATEWAY_READY_TIMEOUT_S,
            env={**os.environ, **self._credentials, ADMIN_VARIABLE: self._secret},
        )
        await self._gateway.start()
        self._gateway_url = f"http://{LOOPBACK}:{port}"

    async def _admin(self, method: str, path: str, body: bytes | None = None) -> Any:
        if self._gateway_url is None:
            raise ConfigurationError(
                "the functions are not the stack's own (AWS_ENDPOINT_URL), so they cannot be managed"
            )
        timeout = aiohttp.ClientTimeout(total=ADMIN_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(
                method, self._gateway_url + path, data=body, headers={ADMIN_HEADER: self._secret}
            ) as answer,
        ):
            value = await answer.json()
            if not answer.ok:
                raise ConfigurationError(value["message"])
            return value


def _exports(environment: Mapping[str, str]) -> str:
    """Lines for a shell to read."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


def _subdirectory(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(exist_ok=True)
    return path
