"""A real DynamoDB Local: one database for all credentials, on the loopback interface only.

Owns its process and its port. Its data live as long as it does, unless it is given a folder for them. Creates no
tables. It checks no signature; that web pages do not reach it is the launcher's part (`maven/LoopbackDynamoDB.java`).
"""

from __future__ import annotations

import os
from pathlib import Path

from tenuto_local.cache import Progress, silent
from tenuto_local.errors import ProcessFailed
from tenuto_local.jars import DYNAMODB_LOCAL, RESOURCES, classpath, compile_java, fetch
from tenuto_local.ports import LOOPBACK, start_at_free_port
from tenuto_local.processes import ManagedProcess

READY_TIMEOUT_S = 40.0
READY_MARKER = "DynamoDB Local is listening"
PORT_TAKEN = "Failed to bind"

# No class archive here: the manifest of DynamoDB Local's jar names its own directory in its class path, and
# the JVM refuses to write an archive over a directory that is not empty.
JVM_FLAGS = (
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # The second compiler competes with everything else for two cores, and pays off only in long runs.
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
)


class DynamoDBLocal:
    """One DynamoDB Local under `workdir`. With `port` None, a free one is chosen and kept for its life.

    It keeps the table in memory, or in the folder `data`, which makes a write about four times as expensive.
    """

    def __init__(
        self, workdir: Path, port: int | None = None, progress: Progress = silent, data: Path | None = None
    ) -> None:
        self._workdir = workdir
        self._data = data
        self._fixed_port = port
        self._port = port or 0
        self._progress = progress
        self._process: ManagedProcess | None = None

    @property
    def endpoint_url(self) -> str:
        """`http://host:port`, valid once started."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        """The JVM's process id; raises `ProcessFailed` when it does not run."""
        if self._process is None:
            raise ProcessFailed("DynamoDB Local is not running")
        return self._process.pid

    async def start(self) -> None:
        """Fetch what is missing, then start and wait until requests are served. Raises `LocalStackError`."""
        home = await fetch(DYNAMODB_LOCAL, self._progress)
        launcher = await compile_java(RESOURCES / "LoopbackDynamoDB.java", home)
        if self._data is not None:
            self._data.mkdir(parents=True, exist_ok=True)

        def at(port: int) -> ManagedProcess:
            self._port = port
            self._process = ManagedProcess(
                "DynamoDB Local",
                _java(home, launcher, self._workdir, port, self._data),
                self._workdir / "dynamodb.log",
                ready_marker=READY_MARKER,
                ready_timeout_s=READY_TIMEOUT_S,
                cwd=self._workdir,
                env=os.environ | {"DDB_LOCAL_TELEMETRY": "0"},
            )
            return self._process

        await start_at_free_port(at, PORT_TAKEN, self._fixed_port)

    async def stop(self) -> None:
        """Stop it; nothing happens when it does not run."""
        if self._process is not None:
            await self._process.stop()


def _java(home: Path, launcher: Path, workdir: Path, port: int, data: Path | None) -> list[str]:
    # It unpacks a native library into the temporary directory, and a SIGKILL would leave it there.
    native = [f"-Dsqlite4java.library.path={home / 'lib'}", f"-Djava.io.tmpdir={workdir}"]
    kept = ["-inMemory"] if data is None else ["-dbPath", str(data)]
    options = ["-port", str(port), *kept, "-sharedDb", "-disableTelemetry"]
    return ["java", *JVM_FLAGS, *native, "-cp", classpath(home, launcher), "LoopbackDynamoDB", *options]
