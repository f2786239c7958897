"""LocalStack in host mode: one process on one loopback port, before a DynamoDB Local of this project's own.

Owns both processes, LocalStack's settings, and the directory where everything it writes goes. Installs nothing:
the interpreter that has LocalStack is given. What LocalStack has no setting for is done in its own process, by
the modules in `inside`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tenuto_local.cache import Progress, silent
from tenuto_local.dynamodb_local import DynamoDBLocal
from tenuto_local.errors import ProcessFailed
from tenuto_local.ports import LOOPBACK, free_port
from tenuto_local.processes import ManagedProcess
from tenuto_local.workdir import Workdir

READY_MARKER = "Ready."
READY_TIMEOUT_S = 90.0
START_ATTEMPTS_MAX = 3
BIND_FAILED = "Failed to bind"
EXECUTOR = "process"
INSIDE = Path(__file__).parent / "inside"

SETTINGS = {
    # Host mode is what LocalStack does where it believes to be in no container.
    "OVERRIDE_IN_DOCKER": "0",
    "SKIP_SSL_CERT_DOWNLOAD": "1",
    "DISABLE_EVENTS": "1",
    # Its DNS server would listen on port 53.
    "DNS_ADDRESS": "0",
    # The older providers keep tables in a second process.
    "PROVIDER_OVERRIDE_DYNAMODB": "v2",
    "PROVIDER_OVERRIDE_DYNAMODBSTREAMS": "v2",
    "LAMBDA_RUNTIME_EXECUTOR": EXECUTOR,
    # Its modules are read from this repository, which stays as it is.
    "PYTHONDONTWRITEBYTECODE": "1",
}


class LocalStackHost:
    """`python` is an interpreter that has LocalStack. Functions run under the interpreter of this process."""

    def __init__(self, python: Path, progress: Progress = silent) -> None:
        self._python = python
        self._progress = progress
        self._workdir: Workdir | None = None
        self._dynamodb: DynamoDBLocal | None = None
        self._process: ManagedProcess | None = None
        self._port = 0

    @property
    def endpoint_url(self) -> str:
        """`http://host:port` of every service; raises `ProcessFailed` when it does not run."""
        if self._process is None:
            raise ProcessFailed("LocalStack is not running")
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def workdir(self) -> Path:
        """Where everything is written, `localstack.log` first of all; raises `ProcessFailed` as above."""
        if self._workdir is None:
            raise ProcessFailed("LocalStack is not running")
        return self._workdir.path

    async def start(self) -> None:
        """Start both processes and wait until they serve; raises `LocalStackError`, with nothing left."""
        assert self._workdir is None, "LocalStack is already started"
        self._workdir = Workdir()
        try:
            self._dynamodb = DynamoDBLocal(_subdirectory(self.workdir, "dynamodb"), progress=self._progress)
            await self._dynamodb.start()
            await self._start_process(self._environment(self._dynamodb.endpoint_url))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End every process and remove what they wrote; may be called at any time, and twice."""
        try:
            if self._process is not None:
                # Killed with its group, to which the functions belong: it has nothing worth saving, and takes
                # five seconds for leaving by itself.
                await self._process.kill()
                self._process = None
            if self._dynamodb is not None:
                await self._dynamodb.stop()
        finally:
            if self._workdir is not None:
                self._workdir.close()
                self._workdir = None

    async def _start_process(self, environment: dict[str, str]) -> None:
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            self._port = free_port()
            address = f"{LOOPBACK}:{self._port}"
            self._process = ManagedProcess(
                "LocalStack",
                [str(self._python), str(INSIDE / "launch.py")],
                self.workdir / "localstack.log",
                ready_marker=READY_MARKER,
                ready_timeout_s=READY_TIMEOUT_S,
                cwd=self.workdir,
                env=environment | {"GATEWAY_LISTEN": address, "LOCALSTACK_HOST": address},
            )
            try:
                await self._process.start()
                return
            except ProcessFailed as error:
                # Between choosing a free port and binding it, another process may have taken it.
                if attempt == START_ATTEMPTS_MAX or BIND_FAILED not in str(error):
                    raise

    def _environment(self, dynamodb_endpoint_url: str) -> dict[str, str]:
        """What LocalStack sees: none of a person's AWS settings, and no directory but its own."""
        home = _subdirectory(self.workdir, "home")
        return {
            **SETTINGS,
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(_subdirectory(home, ".cache")),
            "TMPDIR": str(_subdirectory(self.workdir, "tmp")),
            "FILESYSTEM_ROOT": str(_subdirectory(self.workdir, "root")),
            "PYTHONPATH": str(_plugin(self.workdir / "plugin")),
            "DYNAMODB_LOCAL_PORT": dynamodb_endpoint_url.rpartition(":")[2],
            "TENUTO_LAMBDA_PYTHON": sys.executable,
        }


def _plugin(directory: Path) -> Path:
    """Make the metadata by which LocalStack finds the executor of functions; the module itself lies in `inside`."""
    metadata = directory / "tenuto_localstack-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tenuto-localstack\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        f"[localstack.lambda.runtime_executor]\n{EXECUTOR} = process_executor:ProcessExecutorPlugin\n"
    )
    return directory


def _subdirectory(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(exist_ok=True)
    return path
