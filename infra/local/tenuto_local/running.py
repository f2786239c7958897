"""What a running `tenuto dev` says of itself in its project, so that other commands find it: `.tenuto/dev.json`.

Owns the file. Imports little: `tenuto call` reads it, and is to answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

FILE: Final = "dev.json"
FOLDER: Final = ".tenuto"
PID_MAX: Final = 2**22
"""Highest number of a process that Linux gives."""

STARTING: Final = "starting"
"""In the same folder, until there is a session: the number of the process that starts one."""

AWS_ENVIRONMENT: Final = "aws.env"
"""In the same folder: a session's addresses and credentials, as a shell reads them."""


@dataclass(frozen=True, slots=True)
class Running:
    """The addresses of a session, and the process it ends with."""

    pid: int
    project: str
    ingress: str
    bootstrap_servers: str
    dynamodb: str
    aws: str
    engines: dict[str, str]

    @property
    def state(self) -> Path:
        """The folder in which it keeps everything."""
        return Path(self.project) / FOLDER

    @property
    def sound(self) -> bool:
        """Whether it is what a session writes, and no file that another process has changed."""
        found: dict[str, object] = asdict(self)
        pid = found.pop("pid")
        texts = all(isinstance(one, str) for name, one in found.items() if name != "engines")
        return texts and isinstance(pid, int) and 0 < pid <= PID_MAX

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return _alive(self.pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def begins(state: Path) -> None:
    """Say that this process starts a session."""
    (state / STARTING).write_text(str(os.getpid()), "utf-8")


def begun(state: Path) -> None:
    """There is a session, or there will be none."""
    with contextlib.suppress(OSError):
        (state / STARTING).unlink(missing_ok=True)


def starting(folder: Path) -> Path | None:
    """The project of a folder whose session is being started: its own, or that of a folder above."""
    for candidate in (folder, *folder.parents):
        try:
            pid = int((candidate / FOLDER / STARTING).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if 0 < pid <= PID_MAX and _alive(pid):
            return candidate
    return None


def write(state: Path, running: Running) -> None:
    """Write the file, whole or not at all."""
    temporary = state / f".{FILE}"
    temporary.write_text(json.dumps(asdict(running), indent=2) + "\n", "utf-8")
    temporary.replace(state / FILE)


def forget(state: Path) -> None:
    """Remove the file."""
    with contextlib.suppress(OSError):
        (state / FILE).unlink(missing_ok=True)


def read(state: Path) -> Running | None:
    """The session of a project; None when there is none, or its process has ended."""
    try:
        running = Running(**json.loads((state / FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return running if running.sound and running.alive else None


def aws_environment(running: Running) -> dict[str, str]:
    """The variables by which the AWS clients of a process reach a session; none when its file cannot be read."""
    try:
        lines = (running.state / AWS_ENVIRONMENT).read_text("utf-8").splitlines()
    except OSError:
        return {}
    pairs = (shlex.split(line)[-1].partition("=") for line in lines if line.startswith("export "))
    return {name: value for name, _, value in pairs}


def find(folder: Path) -> Running | None:
    """The session of the project that a folder belongs to: its own, or that of a folder above."""
    for candidate in (folder, *folder.parents):
        running = read(candidate / FOLDER)
        if running is not None:
            return running
    return None
