"""The errors of the test kit.

Owns the types and their hierarchy. Does not own the failures of handlers: a test gets their TerminalError, as a caller
over HTTP would.

    AssertionError
      HarnessError               the test made an invalid request
        NoSuchHandlerError       unknown handler, service or topic; lists the known ones
        StillWaitingError        an invocation waits for something that does not happen by itself; says for what
        KeepsFailingError        every attempt of a handler fails; its last error is the cause
        NothingWaitsError        nothing waits for the awakeable; lists what does
        HungError                user code has been running for too long; says where
        OutcomesDifferError      a crash changed the outcome; names the write and the difference
"""

from __future__ import annotations


class HarnessError(AssertionError):
    """The test made an invalid request. The message says how to correct it. Base class of the other errors."""


class NoSuchHandlerError(HarnessError):
    """The environment has no such handler, service or topic. The message lists those it has."""


class StillWaitingError(HarnessError):
    """An invocation waits for something that does not happen by itself, however much time passes."""


class KeepsFailingError(HarnessError):
    """Every attempt of a handler that is retried indefinitely fails. `__cause__` is the last error."""


class NothingWaitsError(HarnessError):
    """Nothing waits for the awakeable, or it has been completed already."""


class HungError(HarnessError):
    """User code has been running for too long in real time, or waits in a loop that never comes to rest."""


class OutcomesDifferError(HarnessError):
    """A crash changed the outcome of a scenario. The message names the durable write and shows the difference."""
