"""The directory of a running stack: made, locked and removed with it, or swept up after a SIGKILL.

Owns the directory and its lock. Does not know what is put there.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "tenuto-stack-"
_LOCK = ".lock"
# A directory younger than this may belong to a stack that has not locked it yet.
_SWEEP_AGE_S_MIN = 60.0


class Workdir:
    """A directory that exists while this object is open; a `path` given by the caller is left in place."""

    def __init__(self, path: Path | None = None) -> None:
        self._temporary = path is None
        if path is None:
            sweep_abandoned()
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        # The lock lasts exactly as long as the process, so it tells an abandoned directory from one in use.
        self._lock = (self.path / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove a temporary directory with all that is in it; a second call does nothing."""
        self._lock.close()
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def sweep_abandoned() -> None:
    """Remove the directories of stacks whose process was killed before it could."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime < _SWEEP_AGE_S_MIN:
                continue
            with (path / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            # In use, somebody else's, or gone meanwhile.
            continue
