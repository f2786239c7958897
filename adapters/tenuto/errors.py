"""The errors of the SDK.

    BaseException
      Suspension                    control flow: the invocation waits, the function returns
      Exception
        TenutoError
          TerminalError             the invocation ends with this failure; never retried
            BadInputError           400  a value cannot be decoded to the type that is expected
            StateTooLargeError      413  a state value is over the limit
            UnserialisableError     500  a result, state value or message cannot be encoded
          RetryableError            the attempt fails; the next one starts after `retry_after`
          JournalMismatchError      the handler took another path on replay; the invocation pauses
          ProtocolError             a message between control plane and function breaks the protocol
          FencedError               internal: another attempt owns the lane, this one stops

Any other exception that leaves a handler fails the attempt and is retried by the retry policy.

This module owns the types and the wording of their messages. It does not own how they travel (protocol) nor
what is done about them (runtime, dispatcher). Standard library only, so that every layer may import it at
no cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

__all__ = [
    "BadInputError",
    "FencedError",
    "JournalMismatchError",
    "ProtocolError",
    "RetryableError",
    "StateTooLargeError",
    "Suspension",
    "TenutoError",
    "TerminalError",
    "UnserialisableError",
]


class TenutoError(Exception):
    """The base of every error that tenuto raises or understands."""


class TerminalError(TenutoError):
    """Ends the invocation with a failure: it is recorded, given to the caller and never retried.

    `status_code` is the HTTP status (400 to 599) that a caller over HTTP receives. `metadata` goes to the
    caller with the message, so keep secrets out of both.
    """

    def __init__(self, message: str, status_code: int = 500, metadata: Mapping[str, str] | None = None) -> None:
        # `args` holds every argument of the constructor, in this class and below: that is what pickle and
        # copy call the constructor with.
        super().__init__(message, status_code, metadata)
        self.message = message
        self.status_code = status_code
        self.metadata: dict[str, str] = dict(metadata or {})
        # Set by the runtime for the rejection of an awakeable, whose text comes from outside: no log may show it.
        self.foreign = False

    def __str__(self) -> str:
        return self.message


class BadInputError(TerminalError):
    """A value cannot be decoded to the expected type (400).

    `expected` names the type, `problem` what is wrong, `at` the place in the value (`$` is the whole of it,
    `$.user.age` a field). `what` is what was being read, such as "the input of profile/user_event": a serde
    does not know it, so the runtime adds it with `naming`. The message never quotes the value, which may be
    secret.
    """

    def __init__(self, expected: str, problem: str, at: str = "$", what: str = "a value") -> None:
        super().__init__(f"{what} is not a valid {expected}: {problem} (at {at})", 400)
        self.args = (expected, problem, at, what)
        self.expected = expected
        self.problem = problem
        self.at = at
        self.what = what

    def naming(self, what: str) -> Self:
        """The same error, saying what was being read."""
        return type(self)(self.expected, self.problem, self.at, what)


class UnserialisableError(TerminalError):
    """A value cannot be encoded (500).

    `value_type` names the type of the value, `problem` what is in the way. `what` is what was being
    written, such as "the result of run 'pay'" or "state 'user'"; the runtime adds it with `naming`.
    """

    def __init__(self, value_type: str, problem: str, what: str = "a value") -> None:
        super().__init__(f"{what} of type {value_type} cannot be serialised: {problem}", 500)
        self.args = (value_type, problem, what)
        self.value_type = value_type
        self.problem = problem
        self.what = what

    def naming(self, what: str) -> Self:
        """The same error, saying what was being written."""
        return type(self)(self.value_type, self.problem, what)


class StateTooLargeError(TerminalError):
    """A state value, or all state of a key, is over the limit (413). Sizes are in bytes, as encoded."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{what} is {size_bytes:,} bytes; the limit is {limit_bytes:,} bytes. "
            "Store large values elsewhere and keep a reference to them.",
            413,
        )
        self.args = (what, size_bytes, limit_bytes)
        self.what = what
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class RetryableError(TenutoError):
    """Fails the attempt and says when the next may start.

    `retry_after` is the least pause before it; None leaves the pause to the retry policy.
    """

    def __init__(self, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class JournalMismatchError(TenutoError):
    """On replay the handler issued another command than the one in the journal at this index.

    Happens when a handler is not deterministic (clock, randomness or I/O outside `ctx.run`), or when its
    code changed while the invocation was under way. `journaled` and `replayed` describe the two commands.
    """

    def __init__(self, index: int, journaled: str, replayed: str) -> None:
        super().__init__(index, journaled, replayed)
        self.index = index
        self.journaled = journaled
        self.replayed = replayed

    def __str__(self) -> str:
        return (
            f"journal mismatch at command {self.index}: the journal has {self.journaled}, "
            f"the handler now issued {self.replayed}. Either the handler is not deterministic "
            "(put clocks, randomness and I/O into ctx.run) or its code changed during this invocation."
        )


class ProtocolError(TenutoError):
    """A message between control plane and function cannot be understood or comes out of turn."""


class FencedError(TenutoError):
    """Internal: storage refused a write because another attempt owns the lane. This attempt must stop."""


class Suspension(BaseException):
    """Unwinds a handler whose invocation waits for something outside the function.

    A BaseException, because it is not a failure: an `except Exception` in a handler, written to compensate
    for a failed step, must neither swallow it nor run its compensation. The `finally` clauses of the
    handler do run at every suspension, and they must not issue commands.
    """
