"""From an exception to what is stored of it.

Owns the one way from any exception to a `Failure`, to a line of text, or to what a log may print of it, which never
raises and is always small and encodable. Does not own the error types (`tenuto.errors`) or what is done about a failure
(runtime, dispatcher).
"""

from __future__ import annotations

from typing import Final

from tenuto.errors import STATUS_DEFAULT, TerminalError, metadata_of, status_of
from tenuto.protocol.limits import FAILURE_TEXT_BYTES_MAX
from tenuto.protocol.records import Failure
from tenuto.protocol.texts import SHOWN_CHARACTERS_MAX, cut, one_line, shown, text_of, type_name

__all__ = ["describe", "failure_of", "printable", "rejection_of"]

GROUP_LEVELS_MAX: Final = 3
"""How deep the groups in a group are described."""

GROUP_MEMBERS_MAX: Final = 3
"""How many members of each group are described."""


DESCRIBED_CHARACTERS_MAX: Final = 4 * FAILURE_TEXT_BYTES_MAX
"""What of an error's text is looked at to describe it: blanks at the ends of its lines go, before the rest is cut."""

CHAINED_MAX: Final = 8
"""How many causes of an error a log prints; of each, with its traceback."""

NOTES_CHARACTERS_MAX: Final = 2_000
"""What of the notes of an error a log prints: those of a replay that diverged name lines of code."""


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception stands for: a terminal error's own, else its type and message with status 500.

    Texts are cut to FAILURE_TEXT_BYTES_MAX and METADATA_BYTES_MAX; status and metadata survive the cut of the message.
    Equal to itself once it was stored and raised again.
    """
    if not isinstance(error, TerminalError):
        return Failure(describe(error))
    # A subclass of the user's may have left the attributes out, changed them, or made properties of them.
    status = status_of(_attribute(error, "status_code"))
    metadata = metadata_of(_attribute(error, "metadata"))
    text, foreign = cut(text_of(error), FAILURE_TEXT_BYTES_MAX), _attribute(error, "foreign") is True
    return Failure(text, STATUS_DEFAULT if status is None else status, metadata, foreign)


def rejection_of(reason: object) -> Failure:
    """The failure that a rejected awakeable gives to its waiter, for a reason of any type."""
    return Failure(cut(text_of(reason), FAILURE_TEXT_BYTES_MAX))


def describe(error: BaseException) -> str:
    """One line about an error, its type and message, and of a group its first members.

    At most FAILURE_TEXT_BYTES_MAX bytes.
    """
    return cut(_described(error, GROUP_LEVELS_MAX), FAILURE_TEXT_BYTES_MAX)


def printable(error: BaseException) -> BaseException:
    """An error as a log may print it, with its traceback: itself, or a likeness whose texts are short and plain.

    A traceback ends with the error's own text, which may quote anything, and its notes: as they are, they could be
    megabytes, begin lines that look like others of the log, or steer a terminal. Lines of a text that has several are
    indented, and what is no text is escaped. Never raises.
    """
    try:
        return _printable(error, CHAINED_MAX)
    except BaseException:  # noqa: BLE001 - reporting a failure must not become another one
        return RuntimeError(f"{type_name(error)}, which cannot be printed")


def _printable(error: BaseException, levels: int) -> BaseException:
    if _is_plain(error, levels):
        return error
    whole = describe(error) if isinstance(error, BaseExceptionGroup) else text_of(error)
    kind = type(error)
    made = type(shown(kind.__name__), (Exception,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
    likeness: BaseException = made(_lines(whole, SHOWN_CHARACTERS_MAX))
    likeness.__traceback__ = error.__traceback__
    if levels:
        likeness.__cause__ = None if error.__cause__ is None else _printable(error.__cause__, levels - 1)
        likeness.__context__ = None if error.__context__ is None else _printable(error.__context__, levels - 1)
    # Last: a cause that is set suppresses the context.
    likeness.__suppress_context__ = error.__suppress_context__
    notes = _attribute(error, "__notes__")
    if isinstance(notes, list) and notes:
        likeness.add_note("    " + _lines("\n".join(map(text_of, notes)), NOTES_CHARACTERS_MAX))
    return likeness


def _is_plain(error: BaseException, levels: int) -> bool:
    """Whether a log may print an error as it is, and all that it goes on to."""
    try:
        # As a traceback looks at them: what raises there is not printed at all.
        text, notes = str(error), getattr(error, "__notes__", None)
    except BaseException:  # noqa: BLE001 - reporting a failure must not become another one
        return False
    if not levels or notes or isinstance(error, BaseExceptionGroup | SyntaxError):
        return False
    if len(text) > SHOWN_CHARACTERS_MAX or not text.isprintable():
        return False
    behind = error.__context__ if error.__cause__ is None else error.__cause__
    return behind is None or _is_plain(behind, levels - 1)


def _lines(text: str, characters_max: int) -> str:
    """The beginning of a text, each line behind the first indented."""
    more = "" if len(text) <= characters_max else f" … ({len(text):,} characters)"
    return "\n    ".join(shown(line, characters_max) for line in text[:characters_max].splitlines()) + more


def _described(error: BaseException, levels: int) -> str:
    # The rest is cut anyhow, and may be megabytes.
    text = one_line(text_of(error)[:DESCRIBED_CHARACTERS_MAX])
    line = f"{type_name(error)}: {text}" if text else type_name(error)
    members = _attribute(error, "exceptions") if isinstance(error, BaseExceptionGroup) else None
    if levels and isinstance(members, tuple):
        line += f" [{'; '.join(_described(member, levels - 1) for member in members[:GROUP_MEMBERS_MAX])}]"
    return line


def _attribute(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except BaseException:  # noqa: BLE001 - reporting a failure must not become another one
        return None
