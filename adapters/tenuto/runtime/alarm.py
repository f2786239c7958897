"""An alarm that one thread sets and clears, and that wakes another one only when it goes off.

Owns the kernel's timer behind it, where there is one (timerfd, Linux). Does not own what is done then. Every other way
to wait with a limit wakes the waiting thread to change the limit, or at each limit that was in vain.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Final

# <sys/timerfd.h>: the numbers of Linux, the same on all of Lambda's architectures.
_CLOCK_MONOTONIC: Final = 1
_NS: Final = 1_000_000_000
_EXPIRATIONS_BYTES: Final = 8


class Alarm:
    """A timer of the kernel. `descriptor` becomes readable when it goes off. Raises OSError when it cannot be made."""

    def __init__(self) -> None:
        # Only a function that takes durable steps pays for this import.
        import ctypes

        class Times(ctypes.Structure):
            """Struct itimerspec: pause between two times, which is none, and time until the first; in s and ns."""

            _fields_ = [(name, ctypes.c_long) for name in ("pause_s", "pause_ns", "first_s", "first_ns")]

        # These calls return at once: to release the interpreter for them would take longer than they do.
        libc = ctypes.PyDLL(None, use_errno=True)
        if not hasattr(libc, "timerfd_create"):
            raise OSError("this system has no timerfd")
        descriptor = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self.descriptor: int = descriptor
        self._set_time = libc.timerfd_settime
        self._set_time.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._times: Any = Times()
        self._address = ctypes.addressof(self._times)
        self._never = Times()
        self._never_address = ctypes.addressof(self._never)
        self._delay_s = -1.0

    def set(self, delay_s: float) -> None:
        """Go off once, after so long: in place of what was set before."""
        if delay_s != self._delay_s:
            # Nothing but zero would clear it.
            self._times.first_s, self._times.first_ns = divmod(max(1, int(delay_s * _NS)), _NS)
            self._delay_s = delay_s
        self._set_time(self.descriptor, 0, self._address, None)

    def clear(self) -> None:
        """Do not go off."""
        self._set_time(self.descriptor, 0, self._never_address, None)

    def quiet(self) -> None:
        """Stop being readable, after it has gone off."""
        with suppress(BlockingIOError):  # It was set again, or cleared, meanwhile.
            os.read(self.descriptor, _EXPIRATIONS_BYTES)

    def close(self) -> None:
        """Give the timer back."""
        os.close(self.descriptor)


def open_alarm() -> Alarm | None:
    """An alarm, None where this system has none."""
    try:
        return Alarm()
    except (ImportError, OSError):
        return None
