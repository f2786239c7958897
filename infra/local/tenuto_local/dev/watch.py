"""Tells which files of a project were saved.

Owns what is watched: the project's visible folders, and not those of the broker's data, of virtual environments and
caches, which change all the time. Does not own what a change means.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import watchfiles

from tenuto_local.dev.lines import INSTALLED

DEBOUNCE_MS: Final = 100
"""Within this time changes come together: an editor saves a file in several steps."""

STEP_MS: Final = 40
LOOK_MS: Final = 1_000
"""How often the end of the watch is looked for."""

CLOCK_NS: Final = 20_000_000
"""How far the time of a file may lie behind the clock: file systems count in ticks."""

SUFFIXES: Final = (".py", ".toml", ".json", ".yaml", ".yml", ".txt", ".html", ".sql", ".csv", ".j2", ".env")


def visible(folder: Path) -> frozenset[Path]:
    """The folders in it that hold a person's own files."""
    return frozenset(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".") and path.name not in INSTALLED
    )


def counts(file: str, root: Path) -> bool:
    """Whether a file's change is one of code, configuration or data beside code."""
    path = Path(file)
    if not path.is_relative_to(root):
        return False
    parts = path.relative_to(root).parts
    folders, name = parts[:-1], parts[-1]
    hidden = any(part.startswith(".") or part in INSTALLED for part in folders)
    return not hidden and (name == ".env" or (not name.startswith(".") and name.endswith(SUFFIXES)))


async def saved(root: Path, since_ns: int) -> AsyncIterator[frozenset[str]]:
    """The files of each save, indefinitely, beginning with those since a moment (nanoseconds of the wall clock)."""
    batches: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    stop = asyncio.Event()
    top = asyncio.create_task(_watch([root], batches, stop, since_ns, recursive=False), name="watch")
    below = asyncio.create_task(_watch_below(root, batches, stop, since_ns), name="watch below")
    try:
        while True:
            asked = asyncio.create_task(batches.get())
            done, _ = await asyncio.wait({asked, top, below}, return_when=asyncio.FIRST_COMPLETED)
            if asked not in done:
                asked.cancel()
                for task in done:
                    task.result()
                return
            if files := frozenset(file for file in asked.result() if counts(file, root)):
                yield files
    finally:
        stop.set()
        for task in (top, below):
            task.cancel()
        await asyncio.gather(top, below, return_exceptions=True)


async def _watch(
    folders: list[Path],
    batches: asyncio.Queue[frozenset[str]],
    stop: asyncio.Event,
    since_ns: int,
    *,
    recursive: bool,
) -> None:
    if not folders:
        await asyncio.sleep(LOOK_MS / 1000)
        return
    begun = False
    async for changes in watchfiles.awatch(
        *folders,
        watch_filter=None,
        debounce=DEBOUNCE_MS,
        step=STEP_MS,
        rust_timeout=LOOK_MS,
        recursive=recursive,
        stop_event=stop,
        # The first one, with changes or without, says that the watch has begun.
        yield_on_timeout=True,
        ignore_permission_denied=True,
    ):
        files = {file for _, file in changes}
        if not begun:
            begun = True
            files |= await asyncio.to_thread(_changed_since, folders, since_ns - CLOCK_NS, recursive=recursive)
        if files:
            batches.put_nowait(frozenset(files))


def _changed_since(folders: list[Path], since_ns: int, *, recursive: bool) -> set[str]:
    """What was saved before a watch had begun, which it tells nothing of."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*") if recursive else folder.iterdir():
            with contextlib.suppress(OSError):
                if path.name.endswith(SUFFIXES) and path.stat().st_mtime_ns > since_ns:
                    found.add(str(path))
    return found


async def _watch_below(root: Path, batches: asyncio.Queue[frozenset[str]], stop: asyncio.Event, since_ns: int) -> None:
    """Watch the visible folders, and start over when there are others."""
    while not stop.is_set():
        folders = visible(root)
        other = asyncio.Event()
        watching = asyncio.create_task(_watch(sorted(folders), batches, other, since_ns, recursive=True))
        try:
            # A folder that is made is no change of a file, and nothing tells of one that comes and goes but a look.
            while visible(root) == folders and not watching.done():  # noqa: ASYNC110 - nothing could set an event
                await asyncio.sleep(LOOK_MS / 1000)
        finally:
            since_ns = time.time_ns()
            other.set()
            await asyncio.gather(watching, return_exceptions=True)
        if new := visible(root) - folders:
            batches.put_nowait(frozenset(str(file) for folder in new for file in folder.rglob("*.py")))
