"""tenuto.testing: tests of handlers in one process, in virtual time, and proofs that they survive a crash anywhere.

Owns the public names of the test kit. Does not own anything else. Needs `pip install "tenuto[testing]"`, and is never
imported by a function.
"""

from __future__ import annotations

try:
    import tenuto_control.ingress  # noqa: F401 - the test kit runs the production control plane
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f'tenuto.testing needs the package {missing.name!r}: pip install "tenuto[testing]"', name=missing.name
    ) from None

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
    "Record",
    "Replayed",
    "StillWaitingError",
]
