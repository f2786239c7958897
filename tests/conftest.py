"""What every test run has in common.

Owns the guard that nothing outlives a run. Does not own the fixtures of single suites.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import configuration

LEAVING_SECONDS_MAX: Final = 5.0
LOOK_AGAIN_SECONDS: Final = 0.05

# One folder holds what commands leave for next time, and `make clean` removes it.
configuration.set_hypothesis_home_dir(Path(__file__).resolve().parents[1] / ".cache" / "hypothesis")


def _children() -> dict[int, str]:
    """Process id to command of each living child; empty where the system does not tell (only Linux does)."""
    living: dict[int, str] = {}
    for listing in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        try:
            pids = [int(pid) for pid in listing.read_text().split()]
        except OSError:
            continue  # The thread ended while we looked.
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # The process ended while we looked.
            # A process that has ended but is not yet waited for has an empty command line. The helper that
            # multiprocessing starts stays until the interpreter leaves.
            if command and "multiprocessing.resource_tracker" not in command:
                living[pid] = command
    return living


def _threads() -> list[str]:
    """Threads that would keep the interpreter from leaving."""
    return [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_run() -> Iterator[None]:
    """Fail when a process or thread started by a test is still there after all fixtures have gone."""
    before = _children()
    yield
    deadline = time.monotonic() + LEAVING_SECONDS_MAX
    while True:
        processes = {pid: command for pid, command in _children().items() if pid not in before}
        threads = _threads()
        if not processes and not threads:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: processes {processes}, threads {threads}", pytrace=False)
        time.sleep(LOOK_AGAIN_SECONDS)
