"""From an exception to what is stored of it.

Owns the one way from any exception to a `Failure` or to a line of text, which never raises and is always small and
encodable. Does not own the error types (`tenuto.errors`) or what is done about a failure (runtime, dispatcher).
"""

from __future__ import annotations

from typing import Final

from tenuto.errors import STATUS_DEFAULT, TerminalError, metadata_of, status_of
from tenuto.protocol.limits import FAILURE_TEXT_BYTES_MAX
from tenuto.protocol.records import Failure
from tenuto.protocol.texts import cut, one_line, text_of, type_name

__all__ = ["describe", "failure_of", "rejection_of"]

GROUP_LEVELS_MAX: Final = 3
"""How deep the groups in a group are described."""

GROUP_MEMBERS_MAX: Final = 3
"""How many members of each group are described."""


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


def _described(error: BaseException, levels: int) -> str:
    text = one_line(text_of(error))
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
