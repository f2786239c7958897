"""What every test run has in common.

Owns the guard that nothing outlives a run, and the order of the files. Does not own the fixtures of single suites.
"""

from __future__ import annotations

import gc
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


FIRST: Final = ("stack", "bench", "infra", "install", "local", "sam", "examples", "cli", "simulation", "contract")
"""Folders whose files take longest. Begun last, one of them would keep a worker busy after the others have ended."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Start one worker more than there are cores: tests wait a third of the time, for processes and timeouts."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it.
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; with `--no-loadscope-reorder`, xdist distributes files in this order."""

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return FIRST.index(folder) if folder in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Exempt what has been imported and collected from garbage collection.

    It stays until the process ends, and every full collection would look at all of it: 0.2 s each.
    """
    gc.collect()
    gc.freeze()


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
