"""Ctrl-C while a command loads: nothing has been started yet, so the process ends at once, and says nothing.

Owns the time from a command's first line to its event loop. Does not own what an interrupted command cleans up
(`commands`). Imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_INTERRUPTED = 130


def end_at_once() -> None:
    """From now on an interrupt ends the process with status 130, without a traceback.

    A handler of one's own also keeps `asyncio.run` from setting another, until the command's own takes over.
    """
    signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    # Not `sys.exit`: raised inside an import, it may be caught, or leave a module half loaded behind.
    os._exit(EXIT_INTERRUPTED)


def raise_again() -> None:
    """A command is loaded: from now on an interrupt raises KeyboardInterrupt, as Python has it, and it may clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def over() -> None:
    """The command has ended, and its status stands: an interrupt has nothing left to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
