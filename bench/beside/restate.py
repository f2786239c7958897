"""Restate: its server from npm and its SDK from PyPI, in the cache, and the life of one server.

Owns the pinned versions and the server's configuration. Both are what its own documentation gives for one node; its
functions are invoked over its Lambda transport. Does not own its handlers (`restate_handlers`).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.environment import ROOT
from tenuto_local.aws_api import function_arn
from tenuto_local.cache import Progress, TemporarySibling, cache_root, locked, run_to_end
from tenuto_local.errors import LocalStackError, PrerequisiteMissing, ProcessFailed
from tenuto_local.npm import NpmProgram, fetch_program
from tenuto_local.ports import LOOPBACK, free_port
from tenuto_local.processes import ManagedProcess

SERVER: Final = NpmProgram(
    title="Restate's server",
    package="@restatedev/restate-server-linux-x64",
    version="1.7.12",
    integrity="sha512-URotJ1AIqaSCDkRMl4OrQfTLH+NYuOZb3ZsP7wxxiuAB6pncgPhTUYSvegTF5PTrAShnNyHNpju9kjf2O3QxoA==",
    member="package/bin/restate-server",
    size_mb=81,
)
SDK_VERSION: Final = "1.3.0"
SDK_LOCK: Final = ROOT / "requirements" / "restate.txt"
PIP_TIMEOUT_S: Final = 300.0
READY_TIMEOUT_S: Final = 60.0
READY_POLL_S: Final = 0.1
REQUEST_TIMEOUT_S: Final = 60.0
STOP_GRACE_S: Final = 15.0

CONFIGURATION: Final = """\
node-name = "n1"
bind-ip = "{host}"
bind-port = {node_port}
listen-mode = "tcp"
disable-telemetry = true
log-format = "compact"
log-disable-ansi-codes = true
log-filter = "warn,restate=warn"

[admin]
bind-port = {admin_port}

[ingress]
bind-port = {ingress_port}

[[ingress.kafka-clusters]]
name = "local"
brokers = ["PLAINTEXT://{brokers}"]
"""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the server and the SDK are."""

    server: Path
    sdk: Path


async def install(progress: Progress) -> Programs:
    """Fetch what is missing. Raises `PrerequisiteMissing`, in one line, when Restate cannot be installed."""
    try:
        return Programs(await fetch_program(SERVER, progress), await _fetch_sdk(progress))
    except LocalStackError as error:
        raise PrerequisiteMissing(
            f"Restate cannot be installed: {error}. To measure tenuto alone, add --sides tenuto"
        ) from error


async def _fetch_sdk(progress: Progress) -> Path:
    folder = cache_root() / f"restate-sdk-{SDK_VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    if folder.is_dir():
        return folder
    async with locked(folder.name):
        if folder.is_dir():
            return folder
        progress("fetching Restate's SDK (about 4 MB, once)")
        with TemporarySibling(folder) as staging:
            options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
            argv = [sys.executable, "-m", "pip", "install", *options, "--target", "sdk", "-r", str(SDK_LOCK)]
            pip = ManagedProcess("pip", argv, staging / "pip.log", cwd=staging)
            await run_to_end(pip, PIP_TIMEOUT_S, "Restate's SDK could not be fetched; check the network")
            (staging / "sdk").rename(folder)
    return folder


class RestateServer:
    """One server with a fresh data directory under `workdir`."""

    def __init__(self, program: Path, workdir: Path, brokers: str, environment: Mapping[str, str]) -> None:
        self._ports = {name: free_port() for name in ("node_port", "admin_port", "ingress_port")}
        configuration = workdir / "restate.toml"
        configuration.write_text(CONFIGURATION.format(host=LOOPBACK, brokers=brokers, **self._ports))
        options = ["--no-logo", "--config-file", str(configuration), "--base-dir", str(workdir / "data")]
        self._process = ManagedProcess(
            "Restate's server",
            [str(program), *options],
            workdir / "restate.log",
            # Its Lambda client asks the instance's metadata for a region, unless it is told not to.
            # It leaves folders behind where it puts what is temporary.
            env={**os.environ, **environment, "AWS_EC2_METADATA_DISABLED": "true", "TMPDIR": str(workdir)},
        )

    @property
    def ingress(self) -> str:
        """Where it takes calls."""
        return f"http://{LOOPBACK}:{self._ports['ingress_port']}"

    async def start(self) -> None:
        """Start it and wait until it serves. Raises `ProcessFailed` with the end of its log."""
        self._process.spawn()
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not await self._healthy():
            if not self._process.running or time.monotonic() > deadline_s:
                log = self._process.log_since_start().strip()[-800:]
                await self._process.kill()
                raise ProcessFailed(f"Restate's server did not start: {log or 'it said nothing'}")
            await asyncio.sleep(READY_POLL_S)

    async def stop(self) -> None:
        """End it."""
        await self._process.stop(STOP_GRACE_S)

    async def deploy(self, function: str) -> None:
        """Have it discover the handlers of a function. Raises `ProcessFailed` with its answer."""
        await self._admin("/deployments", {"arn": f"{function_arn(function)}:1"})

    async def subscribe(self, topic: str, target: str) -> None:
        """Route a topic to `service/handler`. Raises `ProcessFailed` with its answer."""
        options = {"auto.offset.reset": "earliest", "group.id": f"restate-{topic}"}
        source = {"source": f"kafka://local/{topic}", "sink": f"service://{target}", "options": options}
        await self._admin("/subscriptions", source)

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Ask for its state. Raises `ProcessFailed` with its answer."""
        answer = await self._admin("/query", {"query": sql})
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    async def _admin(self, path: str, body: Mapping[str, Any]) -> Any:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as session,
            session.post(self._admin_url + path, json=body, headers={"accept": "application/json"}) as answer,
        ):
            if not answer.ok:
                raise ProcessFailed(f"Restate answered {answer.status} to {path}: {(await answer.text())[:400]}")
            return await answer.json()

    async def _healthy(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as session,
                session.get(self._admin_url + "/health") as answer,
            ):
                return answer.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

    @property
    def _admin_url(self) -> str:
        return f"http://{LOOPBACK}:{self._ports['admin_port']}"
