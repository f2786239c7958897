"""tenuto.testing: test handlers in one process, in virtual time, with a crash at every durable write.

Owns the public names of the test kit and nothing else. It needs no extra: it runs the decisions and writes of the
control plane over a table and topics in memory. A function never imports it.
"""

from __future__ import annotations

from tenuto.testing.crashes import CrashReport
from tenuto.testing.environment import Environment
from tenuto.testing.errors import (
    HarnessError,
    HungError,
    KeepsFailingError,
    NoSuchHandlerError,
    NothingWaitsError,
    OutcomesDifferError,
    StillWaitingError,
)
from tenuto.testing.operations import Operation
from tenuto.testing.real import RealEnvironment
from tenuto.testing.replays import Replayed
from tenuto.testing.views import DeadLetter, Invocation, JournalEntry, Record

__all__ = [
    "CrashReport",
    "DeadLetter",
    "Environment",
    "HarnessError",
    "HungError",
    "Invocation",
    "JournalEntry",
    "KeepsFailingError",
    "NoSuchHandlerError",
    "NothingWaitsError",
    "Operation",
    "OutcomesDifferError",
    "RealEnvironment",
    "Record",
    "Replayed",
    "StillWaitingError",
]
