"""The errors of the SDK.

    BaseException
      Suspension                    control flow: the invocation waits, the function returns
      Exception
        TenutoError
          TerminalError             the invocation ends with this failure; never retried
            BadInputError           400  a value cannot be decoded to the type that is expected
            InvalidArgumentError    400  an argument of a context method has a value that cannot be stored
            StateTooLargeError      413  a state value is over the limit
            UnserialisableError     500  a result, state value or message cannot be encoded
          RetryableError            the attempt fails; the next one starts after `retry_after`
          JournalMismatchError      the handler took another path on replay; the invocation pauses
          ProtocolError             a message between control plane and function breaks the protocol
          FencedError               internal: another attempt owns the lane, this one stops

Any other exception that leaves a handler fails the attempt and is retried by the retry policy.

This module owns the types and the wording of their messages. It does not own how they travel (protocol) nor
what is done about them (runtime, dispatcher). Standard library only, so that every layer may import it at
no cost: what converts arguments is imported when the first error is made.

A terminal error never fails to be made: an exception raised in its place would turn a failure that is final into
one that is retried. So its arguments are converted to what can be stored, whatever they are.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Self

__all__ = [
    "BadInputError",
    "FencedError",
    "InvalidArgumentError",
    "JournalMismatchError",
    "ProtocolError",
    "RetryableError",
    "StateTooLargeError",
    "Suspension",
    "TenutoError",
    "TerminalError",
    "UnserialisableError",
]


STATUS_MIN: Final = 400
STATUS_MAX: Final = 599
STATUS_DEFAULT: Final = 500
_QUOTED_BYTES_MAX: Final = 100


class TenutoError(Exception):
    """The base of every error that tenuto raises or understands."""


class TerminalError(TenutoError):
    """Ends the invocation with a failure: it is recorded, given to the caller and never retried.

    `status_code` is the HTTP status (400 to 599) that a caller over HTTP receives. `metadata` goes to the
    caller with the message, so keep secrets out of both.

    Raises nothing, whatever it is given. The message, and names and values of the metadata, become text (lone
    surrogates as backslash escapes); the message is cut to 4,096 bytes, the metadata to 2,048 in all. A status that is
    none becomes 500, and a note on the error says so.
    """

    def __init__(
        self,
        message: object = "terminal error",
        status_code: int = STATUS_DEFAULT,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        from tenuto.protocol.limits import FAILURE_TEXT_BYTES_MAX
        from tenuto.protocol.texts import cut, text_of

        text = cut(text_of(message), FAILURE_TEXT_BYTES_MAX)
        details = metadata_of(metadata)
        status = status_of(status_code)
        if status is None:
            given, status = cut(text_of(status_code), _QUOTED_BYTES_MAX), STATUS_DEFAULT
            self.add_note(f"status_code {given} is no status of an error ({STATUS_MIN} to {STATUS_MAX}): 500 is used")
        # `args` holds every argument of the constructor, in this class and below: that is what pickle and
        # copy call the constructor with.
        super().__init__(text, status, dict(details) or None)
        self.message = text
        self.status_code = status
        self.metadata: dict[str, str] = details
        # Set by the runtime for the rejection of an awakeable, whose text comes from outside: no log may show it.
        self.foreign = False

    def __str__(self) -> str:
        return self.message


class BadInputError(TerminalError):
    """A value cannot be decoded to the expected type (400).

    `expected` names the type, `problem` what is wrong, `at` the place in the value (`$` is the whole of it,
    `$.user.age` a field). `what` is what was being read, such as "the input of profile/user_event": a serde
    does not know it, so the runtime adds it with `naming`. A problem that begins with `$` names its places itself, of
    which `at` is the first. The message never quotes the value, which may be secret.
    """

    def __init__(self, expected: str, problem: str, at: str = "$", what: str = "a value") -> None:
        place = "" if problem.startswith("$") else f" (at {at})"
        super().__init__(f"{what} is not a valid {expected}: {problem}{place}", 400)
        self.args = (expected, problem, at, what)
        self.expected = expected
        self.problem = problem
        self.at = at
        self.what = what

    def naming(self, what: str) -> Self:
        """The same error, saying what was being read."""
        return type(self)(self.expected, self.problem, self.at, what)


class InvalidArgumentError(TerminalError):
    """An argument of a context method is of the right type, but its value cannot be stored or sent (400).

    A key that is empty or too long, a name with a control character, a topic that no broker could have. Such values
    come from the data of an event, so that no retry would help. The message names handler, method and argument.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)
        self.args = (message,)


class UnserialisableError(TerminalError):
    """A value cannot be encoded, or what would be read back is not what was written (500).

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

    `retry_after` is the least pause before it, a timedelta or seconds as a number; None leaves the pause to the
    retry policy. So does one of zero or less: it comes from a time that has passed. Pauses are 10 ms at least and 365
    days at most.

    Raises TypeError when `retry_after` is no duration, ValueError when it is nan or infinite.
    """

    # Defaults for a subclass whose constructor does not call this one.
    message: str = ""
    retry_after: timedelta | None = None

    def __init__(self, message: object = "", retry_after: timedelta | float | None = None) -> None:
        from tenuto.protocol.backoff import asked_pause_ms
        from tenuto.protocol.durations import milliseconds
        from tenuto.protocol.texts import text_of

        asked_ms = None if retry_after is None else milliseconds(retry_after, "RetryableError(retry_after=...)")
        pause_ms = asked_pause_ms(asked_ms)
        self.message = text_of(message)
        self.retry_after = None if pause_ms is None else timedelta(milliseconds=pause_ms)
        super().__init__(self.message, self.retry_after)

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


def status_of(status_code: object) -> int | None:
    """The HTTP status of an error (400 to 599) that a value stands for: 409, 409.0, "409", HTTPStatus.CONFLICT.

    None for any other value. Never raises.
    """
    try:
        match status_code:
            case bool():
                return None
            case str():
                status = int(status_code) if status_code.isascii() and status_code.isdigit() else 0
            case float():
                status = int(status_code) if status_code.is_integer() else 0
            case _:
                # `int` of it: an IntEnum is an int with another name.
                status = int(operator.index(status_code))  # type: ignore[arg-type]  # anything else raises TypeError
    except Exception:  # noqa: BLE001 - a value of any type may come here, and raise anything
        return None
    return status if STATUS_MIN <= status <= STATUS_MAX else None


def metadata_of(metadata: object) -> dict[str, str]:
    """Metadata as it is stored: names and values as text, METADATA_BYTES_MAX bytes in all; the rest is cut.

    What is no mapping is kept under the name "metadata". Never raises.
    """
    from tenuto.protocol.limits import METADATA_BYTES_MAX
    from tenuto.protocol.texts import cut, text_of

    if not metadata:
        return {}
    try:
        pairs = list(metadata.items()) if isinstance(metadata, Mapping) else [("metadata", metadata)]
    except Exception:  # noqa: BLE001 - a mapping of the user's may raise anything
        pairs = [("metadata", metadata)]
    kept: dict[str, str] = {}
    left = METADATA_BYTES_MAX
    for name, value in pairs:
        named, text = text_of(name), text_of(value)
        left -= len(named.encode())
        if left < min(len(text.encode()), _QUOTED_BYTES_MAX):
            break
        kept[named] = cut(text, left)
        left -= len(kept[named].encode())
    return kept
