"""A program under test: its output goes to a file, every wait for it has a bound, and nothing of it is left behind.

Owns starting, waiting and ending. Does not own which program it is. A pipe is read nowhere: one that nobody reads stops
its writer once it is full, and reading one that nobody writes to never comes back.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

WAIT_SECONDS_MAX: Final = 60.0
KILL_SECONDS_MAX: Final = 10.0
POLL_S: Final = 0.05


class Program:
    """One process in a group of its own. `log` is a file that gets both of its streams."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                self.argv,
                cwd=cwd,
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Where the tests themselves were started in the background, an interrupt would be ignored.
                preexec_fn=_interruptible,  # noqa: PLW1509 - one call, no lock
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def until(self, holds: Callable[[], object], timeout_s: float = WAIT_SECONDS_MAX) -> None:
        """Wait until it holds; fails when the program ends before, and when the time is up."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            # Asked again after the look at the process: what it did last may be what was waited for.
            assert self.running or holds(), f"{self.argv} has ended with {self._process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"not in {timeout_s} s:\n{self.output}"
            time.sleep(POLL_S)

    def shows(self, pattern: str, timeout_s: float = WAIT_SECONDS_MAX) -> re.Match[str]:
        """Wait until its output has the pattern."""
        self.until(lambda: re.search(pattern, self.output, re.MULTILINE), timeout_s)
        found = re.search(pattern, self.output, re.MULTILINE)
        assert found is not None, "it was there a moment ago"
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself."""
        self._process.send_signal(number)

    def send_to_group(self, number: signal.Signals) -> None:
        """Send a signal to everything in its group, as a terminal does."""
        os.killpg(self._process.pid, number)

    def wait(self, timeout_s: float = WAIT_SECONDS_MAX) -> int:
        """Its exit status; one that does not end is killed, and fails the test with its output."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"{self.argv} has not ended in {timeout_s} s:\n{self.output}") from None

    def interrupt(self, timeout_s: float = WAIT_SECONDS_MAX) -> int:
        """Ctrl-C; its exit status."""
        self.send(signal.SIGINT)
        return self.wait(timeout_s)

    def close(self) -> None:
        """Kill what still runs of it."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(KILL_SECONDS_MAX)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
