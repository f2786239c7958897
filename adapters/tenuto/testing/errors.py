"""What an environment raises when a test asks for something that cannot be, or that will not come.

Owns the errors of the test kit and their order. Does not own what a handler fails with: a caller gets its TerminalError
as it would over HTTP.

    AssertionError
      HarnessError               a test asked for something that is not so
        NoSuchHandlerError       no handler, service or topic of that name; says which there are
        StillWaitingError        what was waited for will not come by itself; says what it waits for
        KeepsFailingError        a handler fails at each attempt; its last error is the cause
        NothingWaitsError        nothing waits for that awakeable (any more); says what does
        HungError                user code has been running for too long; says where
        OutcomesDifferError      a crash changed the outcome; says at which write, and what differs
"""

from __future__ import annotations


class HarnessError(AssertionError):
    """A test asked for something that is not so. The message names it, and the way out."""


class NoSuchHandlerError(HarnessError):
    """There is no such handler, service or topic here."""


class StillWaitingError(HarnessError):
    """What was waited for will not come by itself, however much time passes."""


class KeepsFailingError(HarnessError):
    """A handler that is retried without end fails at each attempt. `__cause__` is its last error."""


class NothingWaitsError(HarnessError):
    """Nothing waits for an awakeable, or it has another answer already."""


class HungError(HarnessError):
    """Code of the user's has been running for too long, by the clock on the wall."""


class OutcomesDifferError(HarnessError):
    """A crash changed what a scenario leads to."""
