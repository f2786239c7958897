"""What the handlers of both systems note while they are measured: that one ended, went to sleep, woke.

Owns the file's form, and the one line that a handler writes to it. A function process imports this module, so it
imports nothing that costs a cold start. Both systems pay the same for it: one `write` of some 60 bytes.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any, Final

PATH_VARIABLE: Final = "BENCH_NOTES"
ENDED: Final = "E"
SLEEPS: Final = "S"
WOKE: Final = "W"


def note(kind: str, event: dict[str, Any]) -> None:
    """Add a line: the kind, the event's number, when it was sent and the time now, seconds since the epoch."""
    os.write(_file(), f"{kind} {event['number']} {event['at']:.6f} {time.time():.6f}\n".encode())


@cache
def _file() -> int:
    # Appended lines of several processes do not mix: each is one write of less than a page.
    return os.open(os.environ[PATH_VARIABLE], os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
