"""Places in the user's own code, for messages.

Owns which lines are the user's, and how one is named. Does not own what is said of it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

_NOT_THE_USERS: Final = (str(Path(__file__).parents[1]) + os.sep, str(Path(asyncio.__file__).parent) + os.sep)

_GENERATED: Final = ("<string>", "<attrs generated")
"""How the names begin of code that a class decorator has written, such as the `__init__` of a dataclass."""

_STANDARD_LIBRARY: Final = str(Path(os.__file__).parent) + os.sep

FRAMES_MAX: Final = 1_000
"""So many nested calls are looked at."""


def of_traceback(traceback: TracebackType | None) -> str | None:
    """The innermost line of the user's that an error came through."""
    found = None
    while traceback is not None:
        if _is_users(traceback.tb_frame):
            found = _named(traceback.tb_frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def of_awaitable(waiting: Any) -> str | None:
    """The innermost line of the user's at which a coroutine waits; None when it has ended."""
    found = None
    for _ in range(FRAMES_MAX):
        if waiting is None:
            break
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None and _is_users(frame):
            found = _named(frame, frame.f_lineno)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return found


def of_thread(ident: int) -> str | None:
    """The innermost line of the user's that a thread is at."""
    frame: FrameType | None = sys._current_frames().get(ident)  # noqa: SLF001 - documented, for debugging
    while frame is not None:
        if _is_users(frame) and not frame.f_code.co_filename.startswith(_STANDARD_LIBRARY):
            return _named(frame, frame.f_lineno)
        frame = frame.f_back
    return None


def _is_users(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith((*_NOT_THE_USERS, *_GENERATED))


def _named(frame: FrameType, line: int) -> str:
    path = frame.f_code.co_filename
    try:
        relative = os.path.relpath(path)
    except ValueError:
        relative = path  # On another drive.
    return f"{path if relative.startswith('..') else relative}:{line}"
