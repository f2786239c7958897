"""Child processes that never outlive their parent and explain themselves when they fail.

Owns starting, readiness, stopping and killing of one operating-system process and its group. Knows nothing of
what runs in it. Nothing here is bound to an event loop: a process started under one `asyncio.run` may be
stopped under another, which is what a session-wide test fixture does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tenuto_local.errors import ProcessFailed

POLL_INTERVAL_S = 0.01
STOP_GRACE_S = 10.0
KILL_WAIT_S = 10.0
LOG_TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` by which the kernel SIGKILLs the child when its parent is gone; None off Linux.

    Linux ties this to the *thread* that forks: start processes from a thread that lives as long as they
    should.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    parent_pid = os.getpid()

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died between fork and prctl; then no signal will ever come.
        if os.getppid() != parent_pid:
            os._exit(1)

    return arm


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group led by `pid`; a group that is already gone is no error."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        # macOS answers so for a group that holds only a zombie.
        pass


@dataclass(slots=True)
class ManagedProcess:
    """One child process in its own session, logging to a file.

    It is ready once `ready_marker` appears in what it logged since its last start (None: ready at once).
    `start`, `stop`, `kill` and `restart` may be called any number of times.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    ready_marker: str | None = None
    ready_timeout_s: float = 30.0
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)

    @property
    def pid(self) -> int:
        """The process id; raises `ProcessFailed` when it is not running."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process and wait until it is ready; raises `ProcessFailed` with the end of its log."""
        self.spawn()
        try:
            await self.wait_ready()
        except BaseException:
            await self.kill()
            raise

    def spawn(self) -> None:
        """Start the process without waiting for readiness."""
        assert not self.running, f"{self.name} is already running"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    list(self.argv),
                    cwd=self.cwd,
                    env=None if self.env is None else dict(self.env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent(),  # noqa: PLW1509 - one prctl, no lock, no Python import
                )
            except OSError as error:
                raise ProcessFailed(f"cannot start {self.name}: {error}") from error

    async def wait_ready(self) -> None:
        """Wait for the marker in the log; raises `ProcessFailed` when the process ends or the time is up."""
        if self.ready_marker is None:
            return
        deadline = time.monotonic() + self.ready_timeout_s
        while self.ready_marker not in self.log_since_start():
            if not self.running:
                code = self._process.returncode if self._process else None
                raise ProcessFailed(f"{self.name} ended with status {code} before it was ready{self._tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} was not ready within {self.ready_timeout_s:.0f} s{self._tail()}")
            await asyncio.sleep(POLL_INTERVAL_S)

    async def wait_exit(self, timeout_s: float) -> int | None:
        """Wait for the process to end by itself; its exit status, or None when the time is up."""
        assert self._process is not None, f"{self.name} was never started"
        deadline = time.monotonic() + timeout_s
        while (status := self._process.poll()) is None:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(POLL_INTERVAL_S)
        return status

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, and SIGKILL after `grace_s` seconds; also for a process that is not running."""
        if self._process is None:
            return
        try:
            if self.running:
                signal_group(self._process.pid, signal.SIGTERM)
                await self.wait_exit(grace_s)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL the process and whatever it started, and reap it."""
        if self._process is None:
            return
        signal_group(self._process.pid, signal.SIGKILL)
        # Not awaited: this must also finish while a cancellation is in progress, and a SIGKILL takes
        # milliseconds.
        self._process.wait(KILL_WAIT_S)
        self._process = None

    async def restart(self) -> None:
        """Kill what is left of the process and start it again with the same arguments."""
        await self.kill()
        await self.start()

    def log_since_start(self) -> str:
        """What the process logged since its last start."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _tail(self) -> str:
        lines = self.log_since_start().splitlines()[-LOG_TAIL_LINES:]
        shown = "".join(f"\n    {line}" for line in lines)
        return f"; log {self.log_path}:{shown}" if shown else f"; nothing was logged to {self.log_path}"
