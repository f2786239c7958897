"""The cache of what the embedded stack runs: programs that are fetched once, complete or absent.

Owns the directory (`$TENUTO_CACHE`, default `~/.cache/tenuto`), its locks, and the temporary siblings in which its
entries are made. Two processes may make the same entry at the same time; the second waits for the first. Does not own
what is fetched (`jars`, `npm`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tenuto_local.errors import FetchFailed
from tenuto_local.processes import ManagedProcess
from tenuto_local.workdir import open_lock, own_folder

Progress = Callable[[str], None]

LOCK_WAIT_S = 900.0
LOCK_POLL_S = 0.1


def silent(_line: str) -> None:
    """A `Progress` that shows nothing."""


def cache_root() -> Path:
    """The cache directory, as configured; it may not exist yet."""
    configured = os.environ.get("TENUTO_CACHE")
    return Path(configured).expanduser().resolve() if configured else Path.home() / ".cache" / "tenuto"


@asynccontextmanager
async def locked(name: str) -> AsyncIterator[None]:
    """Hold the lock `name` of the cache among all processes; the system frees it when its holder dies."""
    path = own_folder(cache_root()) / f".{name}.lock"
    deadline = time.monotonic() + LOCK_WAIT_S
    lock = open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FetchFailed(f"another process has held {path} for {LOCK_WAIT_S:.0f} s") from None
                await asyncio.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(lock)


class TemporarySibling:
    """A directory beside `target`, hence on the same file system, removed unless it was renamed away."""

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


async def run_to_end(process: ManagedProcess, timeout_s: float, complaint: str) -> None:
    """Run a program that fetches or makes an entry. Raises `FetchFailed` with the complaint and its first error."""
    process.spawn()
    try:
        status = await process.wait_exit(timeout_s)
        if status == 0:
            return
        outcome = f"took more than {timeout_s:.0f} s" if status is None else f"ended with status {status}"
        lines = process.log_since_start().strip().splitlines()
        detail = next((line for line in lines if "ERROR" in line or "error" in line), "it said nothing")
        raise FetchFailed(f"{complaint} ({process.name} {outcome}: {detail})")
    finally:
        await process.kill()
