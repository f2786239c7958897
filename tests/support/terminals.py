"""A program at a terminal of its own, as a person has it: what is typed reaches it, Ctrl-C included.

Owns the pseudo-terminal. Does not own which program it is. A thread reads what is shown, since a terminal that nobody
reads stops its writers.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

WAIT_SECONDS_MAX: Final = 60.0
KILL_SECONDS_MAX: Final = 10.0
POLL_S: Final = 0.05
READ_BYTES_MAX: Final = 4096


class Terminal:
    """A program that has a terminal. `shown` is all that it has shown."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        self._shown = bytearray()
        self._process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,  # noqa: PLW1509 - two calls, no lock
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def shown(self) -> str:
        return bytes(self._shown).decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._master, text.encode())

    def shows(self, pattern: str, after: int = 0, timeout_s: float = WAIT_SECONDS_MAX) -> int:
        """Wait until the pattern is shown behind a place; the place behind it."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.shown[after:], re.MULTILINE)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {timeout_s} s:\n{self.shown}"
            assert self._process.poll() is None or self._reader.is_alive(), f"ended:\n{self.shown}"
            time.sleep(POLL_S)
        return after + found.end()

    def wait(self, timeout_s: float = WAIT_SECONDS_MAX) -> int:
        """Its exit status."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended in {timeout_s} s:\n{self.shown}") from None

    def close(self) -> None:
        """Leave nothing of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(KILL_SECONDS_MAX)
        # The last writer is gone, so the reader's end has come.
        self._reader.join(KILL_SECONDS_MAX)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, READ_BYTES_MAX)
            except OSError:
                # Linux says so once nobody has the other side open.
                return
            if not data:
                return
            self._shown += data


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
