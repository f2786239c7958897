"""dynoxide: a native table engine that speaks DynamoDB's protocol over SQLite, beside DynamoDB Local.

Owns where the program comes from, its process and its address. Creates no tables. What it does differently from
DynamoDB Local is in docs/internals/engines.md.

It checks no signature and answers web pages, and has no option against either. So it listens on an address of the
loopback network that is drawn again at each start: a page that would try them all has 2^24 addresses with 14,000 ports
each before it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import SystemRandom
from typing import Final

from tenuto_local.cache import Progress, silent
from tenuto_local.errors import ConfigurationError, LocalStackError, PrerequisiteMissing, ProcessFailed
from tenuto_local.npm import NpmProgram, fetch_program
from tenuto_local.ports import LOOPBACK, start_at_free_port
from tenuto_local.processes import ManagedProcess

PROGRAM: Final = NpmProgram(
    title="dynoxide",
    package="@dynoxide/linux-x64",
    version="1.2.1",
    integrity="sha512-sBHqlxJ9ANkLluFkYRfd5r8Y0ApFew4FhOrlhgRAgD4XzEoFOukEo1nuBTQ1+jTtofqwn4NWQ2k0Tn5mNTjgUg==",
    member="package/dynoxide",
    size_mb=8,
)
PROGRAM_VARIABLE: Final = "TENUTO_DYNOXIDE"
"""Names a program of one's own, which goes before the pinned one."""

VERSION_TIMEOUT_S: Final = 5.0
READY_TIMEOUT_S: Final = 20.0
READY_MARKER: Final = "Dynoxide listening on"
PORT_TAKEN: Final = "already in use"
DATABASE: Final = "table.sqlite"

THREADS_VARIABLE: Final = "TOKIO_WORKER_THREADS"
CORES_PER_THREAD: Final = 2
"""It would start a thread for each core. One request at a time is in its database anyway, and memory that one thread
gives back interrupts all others: on two cores, a single thread takes less of the CPU for the same writes."""


class Dynoxide:
    """One dynoxide under `workdir`, in memory, or with `data` in a file of that folder, which outlives it."""

    def __init__(self, workdir: Path, progress: Progress = silent, data: Path | None = None) -> None:
        self._workdir = workdir
        self._progress = progress
        self._data = data
        self._endpoint_url = ""
        self._process: ManagedProcess | None = None

    @property
    def endpoint_url(self) -> str:
        """`http://host:port`, valid once started."""
        return self._endpoint_url

    @property
    def pid(self) -> int:
        """The process id; raises `ProcessFailed` when it does not run."""
        if self._process is None:
            raise ProcessFailed("dynoxide is not running")
        return self._process.pid

    async def start(self) -> None:
        """Fetch the program if it is missing, then start it. Raises `LocalStackError`."""
        program = await find_program(self._progress)
        if self._data is not None:
            self._data.mkdir(parents=True, exist_ok=True)

        def at(port: int) -> ManagedProcess:
            host = loopback_host()
            stored = [] if self._data is None else ["--db-path", str(self._data / DATABASE)]
            self._process = ManagedProcess(
                "dynoxide",
                [str(program), "--host", host, "--port", str(port), *stored],
                self._workdir / "dynoxide.log",
                ready_marker=READY_MARKER,
                ready_timeout_s=READY_TIMEOUT_S,
                cwd=self._workdir,
                env=_environment(),
            )
            self._endpoint_url = f"http://{host}:{port}"
            return self._process

        await start_at_free_port(at, PORT_TAKEN)

    async def stop(self) -> None:
        """Stop it; nothing happens when it does not run."""
        if self._process is not None:
            await self._process.stop()


def _environment() -> dict[str, str]:
    """This process's variables, and how many threads to start unless they say so."""
    return {THREADS_VARIABLE: str(max(1, (os.cpu_count() or 1) // CORES_PER_THREAD)), **os.environ}


async def find_program(progress: Progress = silent) -> Path:
    """The program that TENUTO_DYNOXIDE names, else the pinned one, else one on the PATH.

    Raises `ConfigurationError` when what is named is no program, and `PrerequisiteMissing` in one line when there is
    none.
    """
    own = own_program()
    if own is not None:
        return own
    try:
        return await fetch_program(PROGRAM, progress)
    except LocalStackError as error:
        installed = shutil.which(PROGRAM.name)
        if installed is None:
            raise PrerequisiteMissing(
                f"the table engine dynoxide is not available: {error}. Put a dynoxide on the PATH (for instance with "
                "cargo install dynoxide-rs), or take the engine dynamodb-local"
            ) from error
        progress(f"the dynoxide on the PATH is used: {error}")
        return Path(installed)


def own_program() -> Path | None:
    """The program that TENUTO_DYNOXIDE names, if it is set. Raises `ConfigurationError` when there is none."""
    named = os.environ.get(PROGRAM_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise ConfigurationError(f"{PROGRAM_VARIABLE} names {path}, which is not a program that can be run")
    return path


def title() -> str:
    """The engine and its version, as reports name it; of a program of one's own, as that says it."""
    own = own_program()
    if own is None:
        return f"{PROGRAM.title}-{PROGRAM.version}"
    try:
        said = subprocess.run([own, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"{PROGRAM_VARIABLE}: {own} --version fails: {error}") from error
    return f"{said.stdout.strip()}, {PROGRAM_VARIABLE}={own}"


def loopback_host() -> str:
    """An address of the loopback network that cannot be guessed.

    Only Linux listens on all of them. Where requests pass a proxy, the usual exception for 127.0.0.1 would not hold.
    """
    if not sys.platform.startswith("linux") or os.environ.get("HTTP_PROXY") or os.environ.get("http_proxy"):
        return LOOPBACK
    draw = SystemRandom()
    return f"127.{draw.randint(1, 254)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}"
