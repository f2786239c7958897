"""Class-data archives (AppCDS): a JVM that maps its classes from a file starts in a third of the time.

Owns making the archive on first use, by running the component once for nothing, and the two JVM flags. An
archive is an optimisation: whatever goes wrong with it, the component starts without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from tenuto_local.cache import Progress, locked
from tenuto_local.errors import LocalStackError
from tenuto_local.jars import java_identity

TrainingRun = Callable[[list[str]], Awaitable[None]]


async def archive_flags(home: Path, title: str, train: TrainingRun, progress: Progress) -> list[str]:
    """Return the flags that use the component's archive, made first by `train(flags)` when there is none.

    `train` must start the component with the flags it is given and stop it with SIGTERM, upon which the JVM
    writes the archive. No archive, no flags.
    """
    archive = home / f"classes-{java_identity()}.jsa"
    if not archive.exists():
        async with locked(f"{home.name}-archive"):
            if not archive.exists():
                progress(f"preparing {title} to start faster (a few seconds, once)")
                staged = archive.with_suffix(".partial")
                try:
                    await train([f"-XX:ArchiveClassesAtExit={staged}"])
                    staged.rename(archive)
                except (LocalStackError, OSError) as error:
                    staged.unlink(missing_ok=True)
                    progress(f"{title} will start without a class archive: {error}")
                    return []
    return [f"-XX:SharedArchiveFile={archive}"]
