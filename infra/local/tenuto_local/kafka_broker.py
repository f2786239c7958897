"""A real Kafka broker, one node that is its own controller, for the time of a stack.

Owns its configuration, its data directory and its life: `kill()` is a SIGKILL and `restart()` comes back on
the same port with everything it had acknowledged. Creates no topics.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tenuto_local.cache import Progress, cache_root, locked, silent
from tenuto_local.class_archive import archive_flags
from tenuto_local.errors import FetchFailed, ProcessFailed
from tenuto_local.jars import KAFKA_BROKER, classpath, fetch
from tenuto_local.ports import LOOPBACK, free_port, start_at_free_port
from tenuto_local.processes import ManagedProcess

READY_TIMEOUT_S = 40.0
FORMAT_TIMEOUT_S = 40.0
READY_MARKER = "Kafka Server started"
PORT_TAKEN = "Address already in use"
CLUSTER_ID = "dGVudXRvLWxvY2FsLTAwMQ"  # 16 bytes in URL-safe base64; the storage tool refuses any other length.

JVM_FLAGS = (
    "-Xms128m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xshare:auto",
    "-Xlog:cds=off",
    "-Xlog:cds+dynamic=off",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
)

# Replication 1 because there is one node; few internal partitions and threads because each costs start-up
# time; the short session because with the default one an unclean stop delays the next start by nine seconds.
# A misspelt topic must be an error here as it is on MSK, so topics are never created by being mentioned.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
background.threads=2
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=2097152
log.cleaner.threads=1
"""


class KafkaBroker:
    """One broker under `workdir`. With `port` None, free ports are chosen and kept for its whole life."""

    def __init__(self, workdir: Path, port: int | None = None, progress: Progress = silent) -> None:
        self._workdir = workdir
        self._fixed_port = port
        self._port = port or 0
        self._progress = progress
        self._process: ManagedProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`host:port`, valid once started."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def data(self) -> Path:
        """Where it keeps the logs of its partitions, each in its own folder."""
        return self._workdir / "data"

    @property
    def pid(self) -> int:
        """The broker's process id; raises `ProcessFailed` when it does not run."""
        return self._running_process().pid

    async def start(self) -> None:
        """Fetch what is missing, then start and wait until clients are served. Raises `LocalStackError`."""
        home = await fetch(KAFKA_BROKER, self._progress)
        formatted = await _formatted_storage(home)
        flags = await archive_flags(home, KAFKA_BROKER.title, lambda f: _train(home, formatted, f), self._progress)
        await self.launch(home, formatted, flags)

    async def launch(self, home: Path, formatted: Path, flags: list[str]) -> None:
        """Start from prepared parts: the jars, a formatted data directory to copy, more flags for the JVM."""
        data = self.data
        if not data.exists():
            shutil.copytree(formatted, data)

        def at(port: int) -> ManagedProcess:
            properties = self._workdir / "server.properties"
            properties.write_text(PROPERTIES.format(host=LOOPBACK, port=port, controller_port=free_port(), data=data))
            self._port = port
            self._process = ManagedProcess(
                "the Kafka broker",
                # Codecs unpack a native library into the temporary directory, and a SIGKILL would leave it there.
                _java(home, "kafka.Kafka", str(properties), flags=[*flags, f"-Djava.io.tmpdir={self._workdir}"]),
                self._workdir / "kafka.log",
                ready_marker=READY_MARKER,
                ready_timeout_s=READY_TIMEOUT_S,
            )
            return self._process

        await start_at_free_port(at, PORT_TAKEN, self._fixed_port)

    async def stop(self) -> None:
        """Stop in order; nothing happens when it does not run."""
        if self._process is not None:
            await self._process.stop()

    async def kill(self) -> None:
        """SIGKILL the broker; its data stay."""
        await self._running_process().kill()

    async def restart(self) -> None:
        """Start it again (after `kill()`, or killing it now) on the same port and data."""
        assert self._process is not None, "the broker was never started"
        await self._process.restart()

    def _running_process(self) -> ManagedProcess:
        if self._process is None:
            raise ProcessFailed("the Kafka broker is not running")
        return self._process


def _java(home: Path, main: str, *arguments: str, flags: list[str]) -> list[str]:
    return ["java", *JVM_FLAGS, *flags, "-cp", classpath(home), main, *arguments]


async def _formatted_storage(home: Path) -> Path:
    """A formatted, empty data directory to copy: formatting takes a JVM run, copying two files does not."""
    formatted = home / "formatted"
    if formatted.is_dir():
        return formatted
    async with locked(f"{home.name}-format"):
        if formatted.is_dir():
            return formatted
        with tempfile.TemporaryDirectory(prefix=".format-", dir=cache_root()) as scratch:
            data = Path(scratch) / "data"
            properties = Path(scratch) / "server.properties"
            properties.write_text(PROPERTIES.format(host=LOOPBACK, port=9092, controller_port=9093, data=data))
            argv = _java(home, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties), flags=[])
            process = ManagedProcess("the Kafka storage tool", argv, Path(scratch) / "format.log")
            process.spawn()
            try:
                if await process.wait_exit(FORMAT_TIMEOUT_S) != 0:
                    raise FetchFailed(f"Kafka's storage could not be formatted: {process.log_since_start().strip()}")
            finally:
                await process.kill()
            data.rename(formatted)
    return formatted


async def _train(home: Path, formatted: Path, flags: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="tenuto-train-") as scratch:
        broker = KafkaBroker(Path(scratch))
        try:
            await broker.launch(home, formatted, flags)
        finally:
            await broker.stop()
