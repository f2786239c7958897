"""tenuto.testing: tests of handlers in one process, in virtual time, and proofs that they survive a crash anywhere.

Owns the public names of the test kit. Does not own anything else. Needs no extra: of the control plane it runs what
decides and writes, over a table and topics in memory. A function never imports it.
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
