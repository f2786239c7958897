"""A whole running system: the embedded stack, the table, the topics, the functions, and control planes.

    functions = [FunctionSpec(name="hello", handler="handler.handler", root="examples/hello", timeout_s=10.0)]
    async with System(functions, topics={"greetings": 4}, config_text=toml) as system:
        ...  # system.ingress, system.stack.bootstrap_servers, system.control_planes[0].kill()

Owns the control plane processes, and that everything has ended and nothing is left when the context does. Does not own
the components (`stack`), nor what is sent through them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import aiohttp
import msgspec
from aiobotocore.session import get_session

from tenuto_local.cache import Progress, silent
from tenuto_local.errors import ConfigurationError, ProcessFailed
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.ports import LOOPBACK, free_port
from tenuto_local.processes import ManagedProcess
from tenuto_local.stack import ANY_PORTS, EmbeddedStack, Ports
from tenuto_local.table import TableAdminClient, create_table
from tenuto_local.topics import create_topics, wait_coordinator

READY_TIMEOUT_S = 30.0
READY_POLL_S = 0.05
START_ATTEMPTS_MAX = 3
PORT_TAKEN = "address already in use"
READY_REQUEST_TIMEOUT_S = 5.0
STOP_GRACE_S = 8.0
"""What a control plane has to drain in; above its default `drain_timeout_ms`."""

LOG_TAIL_LINES = 20
TABLE = "tenuto"
CONFIG_FILE = "tenuto.toml"
GROUP = "tenuto"
"""Whose coordinator is waited for; it also is the control plane's default group."""


class ControlPlane:
    """One `tenuto run` process and its HTTP address, which outlives a restart."""

    def __init__(
        self, name: str, config: Path, log_path: Path, environment: Mapping[str, str], port: int | None = None
    ) -> None:
        self.name = name
        self._port = port
        self.log_path = log_path
        self._argv = [sys.executable, "-m", "tenuto_control", "run", "--config", str(config)]
        self._environment = environment
        self._listen_elsewhere()

    @property
    def pid(self) -> int:
        """The process id; raises `ProcessFailed` when it is not running."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.running

    @property
    def ended(self) -> bool:
        """Whether it served, and its process has ended by itself: neither `stop` nor `kill` was called."""
        return self._serving and not self._process.running

    async def start(self) -> None:
        """Start the process and wait until it serves; raises `ProcessFailed` with the end of its log."""
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            self._process.spawn()
            try:
                await self._wait_ready()
                return
            except BaseException as error:
                await self.kill()
                # Between choosing a free port and binding it, another process may have taken it.
                if self._served or attempt == START_ATTEMPTS_MAX or PORT_TAKEN not in str(error).lower():
                    raise
                self._listen_elsewhere()

    async def stop(self) -> None:
        """Let it drain, then end it."""
        # First, since whoever watches `ended` sees the process end before this returns.
        self._serving = False
        await self._process.stop(STOP_GRACE_S)

    async def kill(self) -> None:
        """SIGKILL."""
        self._serving = False
        await self._process.kill()

    def look_again(self) -> None:
        """Have it ask the functions at once what they serve (SIGHUP)."""
        os.kill(self.pid, signal.SIGHUP)

    async def restart(self) -> None:
        """SIGKILL what is left and start it again at the same address."""
        await self.kill()
        await self.start()

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The end of what it logged since its last start."""
        return "\n".join(self._process.log_since_start().splitlines()[-lines:])

    def _listen_elsewhere(self) -> None:
        port = self._port or free_port()
        self.ingress = f"http://{LOOPBACK}:{port}"
        environment = {**self._environment, "TENUTO_HTTP_HOST": LOOPBACK, "TENUTO_HTTP_PORT": str(port)}
        self._process = ManagedProcess(self.name, self._argv, self.log_path, env=environment)
        self._served = self._serving = False

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(total=READY_REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not await _answers(session, f"{self.ingress}/ready"):
                if not self._process.running:
                    raise ProcessFailed(f"{self.name} ended before it was ready:\n{self.log_tail()}")
                if time.monotonic() > deadline:
                    raise ProcessFailed(f"{self.name} was not ready in {READY_TIMEOUT_S:.0f} s:\n{self.log_tail()}")
                await asyncio.sleep(READY_POLL_S)
        self._served = self._serving = True


class System:
    """An async context manager; `start` and `stop` do the same for a fixture.

    `topics` maps names to numbers of partitions. `config_text` is a `tenuto.toml`, in which addresses and the table's
    name are replaced by the stack's own. With `count_requests` every request to DynamoDB passes a counting proxy, which
    costs about a millisecond each. `table_engine`, `table_data` and `broker_engine` are those of `EmbeddedStack`.
    `plane_environment` has more variables for the control planes.
    """

    def __init__(
        self,
        functions: Sequence[FunctionSpec],
        *,
        topics: Mapping[str, int],
        config_text: str,
        control_planes: int = 1,
        workdir: Path | None = None,
        progress: Progress = silent,
        log_level: str = "info",
        count_requests: bool = False,
        table_engine: str | None = None,
        table_data: Path | None = None,
        broker_engine: str | None = None,
        ports: Ports = ANY_PORTS,
        plane_environment: Mapping[str, str] | None = None,
    ) -> None:
        assert control_planes >= 1, "a system has at least one control plane"
        self._functions = [_importable(spec) for spec in functions]
        self._topics = dict(topics)
        self._config_text = config_text
        self._size = control_planes
        self._progress = progress
        self._log_level = log_level
        self._count_requests = count_requests
        self._http_port = ports.http
        self._plane_environment = dict(plane_environment or {})
        self.stack = EmbeddedStack(
            self._functions,
            workdir,
            progress,
            table_engine=table_engine,
            table_data=table_data,
            broker_engine=broker_engine,
            ports=ports,
        )
        self.control_planes: list[ControlPlane] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def ingress(self) -> str:
        """The URL of the first control plane."""
        return self.control_planes[0].ingress

    @property
    def ingresses(self) -> list[str]:
        """The URL of each control plane."""
        return [plane.ingress for plane in self.control_planes]

    @property
    def bootstrap_servers(self) -> str:
        """Kafka's address."""
        return self.stack.bootstrap_servers

    def environment(self) -> dict[str, str]:
        """The variables by which a control plane, or boto3, reaches this system."""
        environment = {**self.stack.environment(), "TENUTO_TABLE": TABLE}
        if self._count_requests:
            environment["AWS_ENDPOINT_URL_DYNAMODB"] = self.stack.aws_endpoint_url
        return environment

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The end of each control plane's log, under its name."""
        return "\n".join(f"--- {plane.name}\n{plane.log_tail(lines)}" for plane in self.control_planes)

    async def request_counts(self) -> dict[str, int]:
        """Requests to DynamoDB so far, by operation; each member of a batch counts as one."""
        if not self._count_requests:
            raise ConfigurationError("requests are counted only by a system made with count_requests=True")
        return await self.stack.dynamodb_request_counts()

    async def start(self) -> None:
        """Start everything; raises `LocalStackError`, with nothing left running."""
        try:
            await self.stack.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(create_topics(self.stack.bootstrap_servers, self._topics))
                group.create_task(wait_coordinator(self.stack.bootstrap_servers, GROUP))
                group.create_task(self._prepare_aws())
            await self._start_control_planes()
        except BaseExceptionGroup as errors:
            await self.stop()
            # One cause is what a person can act on; the other tasks were cancelled or failed likewise.
            raise errors.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise

    async def register(self, *functions: FunctionSpec) -> None:
        """Add functions, or replace those of the same name, while the system runs."""
        await self.stack.register(*map(_importable, functions))

    async def reconfigure(self, config_text: str, topics: Mapping[str, int], environment: Mapping[str, str]) -> None:
        """Restart the control planes with another `tenuto.toml`, once its topics are there. Raises `LocalStackError`.

        `environment` takes the place of `plane_environment`.
        """
        await create_topics(self.stack.bootstrap_servers, topics)
        self._config_text, self._plane_environment = config_text, dict(environment)
        await asyncio.gather(*(plane.stop() for plane in self.control_planes))
        self.control_planes.clear()
        await self._start_control_planes()

    async def stop(self) -> None:
        """End everything; may be called at any time, and twice."""
        try:
            await asyncio.gather(*(plane.stop() for plane in self.control_planes))
        finally:
            await self.stack.stop()

    async def _prepare_aws(self) -> None:
        if self._count_requests:
            endpoint = {"AWS_ENDPOINT_URL_DYNAMODB": self.stack.aws_endpoint_url}
            await self.stack.register(
                *(msgspec.structs.replace(s, environment={**s.environment, **endpoint}) for s in self._functions)
            )
        own = self.stack.environment()
        async with get_session().create_client(
            "dynamodb",
            region_name=own["AWS_REGION"],
            endpoint_url=self.stack.dynamodb_endpoint_url,
            aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=own.get("AWS_SESSION_TOKEN"),
        ) as client:
            await create_table(cast("TableAdminClient", client), TABLE)

    async def _start_control_planes(self) -> None:
        config = self.stack.workdir / CONFIG_FILE
        config.write_text(self._config_text, encoding="utf-8")
        environment = {
            **os.environ,
            **self.environment(),
            "PYTHONPATH": import_path("tenuto", "tenuto_control"),
            "TENUTO_LOG_LEVEL": self._log_level,
            **self._plane_environment,
        }
        for number in range(1, self._size + 1):
            log_path = self.stack.workdir / f"control-plane-{number}.log"
            port = None if self._http_port is None else self._http_port + number - 1
            self.control_planes.append(ControlPlane(f"control plane {number}", config, log_path, environment, port))
        async with asyncio.TaskGroup() as group:
            for plane in self.control_planes:
                group.create_task(plane.start())
        self._progress("control plane: " + ", ".join(self.ingresses))


def import_path(*packages: str) -> str:
    """A PYTHONPATH on which a child process finds what this process would import, installed or from a source tree.

    Raises `ConfigurationError` for a package that is not there.
    """
    folders: dict[str, None] = {}
    for package in packages:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ConfigurationError(f"{package} cannot be imported; install it with pip install 'tenuto[control]'")
        folders[str(Path(found.origin).resolve().parents[1])] = None
    return os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])


def _importable(spec: FunctionSpec) -> FunctionSpec:
    root = str(Path(spec.root).resolve())
    path = os.pathsep.join([root, *filter(None, [spec.environment.get("PYTHONPATH")]), import_path("tenuto")])
    return msgspec.structs.replace(spec, root=root, environment={**spec.environment, "PYTHONPATH": path})


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.ok
    except (aiohttp.ClientError, TimeoutError):
        return False
