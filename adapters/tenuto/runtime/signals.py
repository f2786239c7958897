"""Telling an interrupt that somebody sent from a KeyboardInterrupt that user code raised.

Owns a handler of SIGINT that takes note. Does not own what is done about an interrupt.
"""

from __future__ import annotations

import signal
import threading
from typing import Any, Final

_noted: Final = threading.Event()


def note_interrupts() -> None:
    """Take note of SIGINT from now on, where Python's own handler would only raise KeyboardInterrupt."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _interrupted)


def is_interrupt(error: BaseException) -> bool:
    """Whether an error comes from a signal and has to end the process, whatever code it appears in."""
    return isinstance(error, KeyboardInterrupt) and _noted.is_set()


def _interrupted(number: int, frame: Any) -> None:
    _noted.set()
    signal.default_int_handler(number, frame)
