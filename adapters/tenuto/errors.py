"""The errors of the SDK.

    BaseException
      Suspension                    control flow: the invocation waits, the function returns
      Exception
        TenutoError
          TerminalError             the invocation ends with this failure; never retried
            BadInputError           400  a value cannot be decoded to the type that is expected
            InvalidArgumentError    400  an argument of a context method has an invalid value
            StateTooLargeError      413  a value is larger than its limit
            UnserialisableError     500  a result, state value or message cannot be encoded
          RetryableError            the attempt fails; the next one starts after `retry_after`
          JournalMismatchError      the handler issued another command on replay; the invocation pauses
          ProtocolError             a message between control plane and function breaks the protocol
          FencedError               internal: another attempt owns the lane, this one stops

Any other exception that leaves a handler fails the attempt and is retried by the retry policy.

Owns the types and the wording of their messages. Does not own how errors are sent (`protocol`) or handled (`runtime`,
the dispatcher). Imports the standard library only, so that every layer can import it at no cost; the conversion of
arguments is imported when the first error is created.

Creating a terminal error never raises: another exception in its place would turn a final failure into one that is
retried. Arguments of any type are therefore converted to values that can be stored.
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
    """Base class of the errors that tenuto raises or handles."""


class TerminalError(TenutoError):
    """Ends the invocation with a failure, which is recorded, returned to the caller and never retried.

        raise TerminalError("not enough money", status_code=409, metadata={"missing": "5"})

    `status_code` is the HTTP status (400 to 599) of the answer to a call over HTTP. The caller receives `message` and
    `metadata`, so neither may contain secrets.

    Creating the error never raises. The message, and the names and values of the metadata, are converted to text (lone
    surrogates to backslash escapes). The message is cut to 4,096 bytes, the metadata to 2,048 bytes in total. An
    invalid status becomes 500, and a note on the error says so.
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
            self.add_note(f"status_code {given} is not an error status ({STATUS_MIN} to {STATUS_MAX}); 500 is used")
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
    """A value cannot be decoded to the expected type (status 400).

    `expected` names the type, `problem` what is wrong and `at` the place in the value: `$` is the whole value,
    `$.user.age` a field. A problem that begins with `$` names its places itself, and `at` is the first of them. `what`
    describes the value, such as "the input of profile/user_event"; a serde does not know it, so the runtime adds it
    with `naming`. The message never quotes the value, which may be secret.
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
        """Return the same error with a description of the value that was being decoded."""
        return type(self)(self.expected, self.problem, self.at, what)


class InvalidArgumentError(TerminalError):
    """An argument of a context method has the right type but an invalid value (status 400).

    Examples are a key that is empty or too long, a name with a control character and an invalid name of a topic. Such
    values come from the data of an event, so that a retry would not help. The message names handler, method and
    argument.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)
        self.args = (message,)


class UnserialisableError(TerminalError):
    """A value cannot be encoded, or decoding it would not return an equal value (status 500).

    `value_type` names the type of the value and `problem` the reason. `what` describes the value, such as "the result
    of run 'pay'" or "state 'user'"; the runtime adds it with `naming`.
    """

    def __init__(self, value_type: str, problem: str, what: str = "a value") -> None:
        super().__init__(f"{what} of type {value_type} cannot be serialised: {problem}", 500)
        self.args = (value_type, problem, what)
        self.value_type = value_type
        self.problem = problem
        self.what = what

    def naming(self, what: str) -> Self:
        """Return the same error with a description of the value that was being encoded."""
        return type(self)(self.value_type, self.problem, what)


class StateTooLargeError(TerminalError):
    """A message, a result or the state of a key is larger than its limit (status 413).

    `what` describes the value. `size_bytes` and `limit_bytes` are in bytes, after encoding.
    """

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
    """Fails the attempt and sets the earliest time of the next one.

        raise RetryableError("rate limited", retry_after=timedelta(seconds=30))

    `retry_after` is the shortest pause before the next attempt, a timedelta or a number of seconds. A pause lasts at
    least 10 ms and at most 365 days. With None, or with zero or less (a time that has already passed), the retry policy
    decides. `message` appears in logs.

    Raises TypeError if `retry_after` is not a duration, and ValueError if it is NaN or infinite.
    """

    # Defaults for a subclass whose constructor does not call this one.
    message: str = ""
    """The message as text."""
    retry_after: timedelta | None = None
    """The pause, within its bounds; None if the retry policy decides."""

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
    """On replay, the handler issued a command that differs from the one in the journal.

    The handler is not deterministic (it uses the clock, randomness or I/O outside `ctx.run`), or its code changed
    during the invocation. `index` is the position in the journal, from 0; `journaled` and `replayed` describe the two
    commands.
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
    """A message between control plane and function is invalid or out of order."""


class FencedError(TenutoError):
    """Internal: storage refused a write because another attempt owns the lane. This attempt must stop."""


class Suspension(BaseException):
    """Unwinds a handler whose invocation waits for something outside the function.

    It derives from BaseException because it is not a failure: an `except Exception` in a handler, written to compensate
    a failed step, must neither catch it nor run the compensation. The `finally` clauses of the handler run at every
    suspension and must not issue commands.
    """


def status_of(status_code: object) -> int | None:
    """Convert a value to the HTTP status of an error (400 to 599): 409, 409.0, "409", HTTPStatus.CONFLICT.

    Return None for any other value. Never raises.
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
    """Convert metadata to stored form: names and values as text, cut to METADATA_BYTES_MAX bytes in total.

    A value that is not a mapping is kept under the name "metadata". Never raises.
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
