"""The directory of a running stack: made, locked and removed with it, or swept up after a SIGKILL.

Owns the directory, its lock, and how files are opened where others may have put something in their place. Does not know
what is put there.

The temporary directory of a machine is everybody's: a name in it may be another user's folder, or a link to a file of
one's own. So only what belongs to this user and is closed to all others is touched, links are not followed, and nothing
that is there already is truncated.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tenuto_local.errors import ConfigurationError

_PREFIX = "tenuto-stack-"
_LOCK = ".lock"
# A directory younger than this may belong to a stack that has not locked it yet.
_SWEEP_AGE_S_MIN = 60.0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# O_NONBLOCK: a pipe of that name would be waited for.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workdir:
    """A directory that exists while this object is open; a `path` given by the caller is left in place.

    Raises ConfigurationError when another stack uses `path`, and OSError when it cannot be used at all.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._temporary = path is None
        if path is None:
            sweep_abandoned()
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        # The lock lasts exactly as long as the process, so it tells an abandoned directory from one in use.
        self._lock = open_lock(self.path / _LOCK)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigurationError(f"{self.path} is used by another stack; name another folder") from None
        self._open = True

    def close(self) -> None:
        """Remove a temporary directory with all that is in it; a second call does nothing."""
        if self._open:
            self._open = False
            os.close(self._lock)
            if self._temporary:
                shutil.rmtree(self.path, ignore_errors=True)


def sweep_abandoned() -> None:
    """Remove the directories of this user's stacks whose process was killed before it could."""
    with suppress(OSError):
        temporary = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(temporary):  # noqa: PTH208 - of what is open, whatever its name leads to now
                if name.startswith(_PREFIX):
                    # In use, not ours, or gone meanwhile.
                    with suppress(OSError):
                        _sweep(temporary, name)
        finally:
            os.close(temporary)


def _sweep(temporary: int, name: str) -> None:
    """Remove one directory, if it is this user's and abandoned. Raises OSError when it is not."""
    folder = os.open(name, _FOLDER_FLAGS, dir_fd=temporary)
    try:
        found = os.fstat(folder)
        closed = found.st_uid == os.geteuid() and not found.st_mode & _OTHERS
        if not closed or time.time() - found.st_mtime < _SWEEP_AGE_S_MIN:
            return
        lock = open_lock(Path(_LOCK), folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # By its name in a folder that may have changed: what is removed is a folder and no link, and never what
            # links in it lead to.
            shutil.rmtree(name, ignore_errors=True, dir_fd=temporary)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def open_lock(path: Path, folder: int | None = None) -> int:
    """Open a lock file, made if it is not there, and left as it is. `folder` is the descriptor that `path` is within.

    Raises OSError for a link, for what is no plain file, and for a file of another user.
    """
    lock = os.open(path, _LOCK_FLAGS, 0o600, dir_fd=folder)
    found = os.fstat(lock)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(lock)
        raise PermissionError(f"{path} is not a lock file of this user")
    return lock


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, in the place of whatever has its name; a link is not followed."""
    path.unlink(missing_ok=True)
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(made, "w", encoding="utf-8") as file:
        file.write(text)


def own_folder(path: Path) -> Path:
    """Make a folder for what this user's programs are started from, or see that nobody else can change what is in it.

    Raises ConfigurationError for a folder of another user (the system's own apart).
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
    elif found.st_uid not in (os.geteuid(), 0) or found.st_mode & _OTHERS_WRITE:
        raise ConfigurationError(
            f"{path} can be changed by other users of this machine, and programs are started from it; "
            "name a folder of your own in TENUTO_CACHE"
        )
    return path
