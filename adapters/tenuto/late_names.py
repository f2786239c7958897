"""Names that a module defines further down than the handler whose hints use them.

Owns telling such a name from one that will never be there, while the module is still being executed. Does not own the
resolution of hints (`tenuto.serde.hints`).
"""

from __future__ import annotations

import sys
import types
from typing import Final

_MODULE: Final = "<module>"
_STORES: Final = frozenset({"STORE_NAME", "STORE_GLOBAL"})
_CAUSES_MAX: Final = 10
"""Errors that one error is followed back to."""


def may_come_later(error: BaseException) -> bool:
    """Whether the name that an error is about is still to be defined by a module that is being executed."""
    name = _missing(error)
    if name is None:
        return False
    frame: types.FrameType | None = sys._getframe()  # noqa: SLF001 - as the standard library's own warnings do
    while frame is not None:
        if frame.f_code.co_name == _MODULE and _stored_later(frame, name):
            return True
        frame = frame.f_back
    return False


def _missing(error: BaseException | None) -> str | None:
    """The name that could not be found."""
    for _ in range(_CAUSES_MAX):
        if error is None or isinstance(error, NameError):
            break
        error = error.__cause__
    return getattr(error, "name", None)


def _stored_later(frame: types.FrameType, name: str) -> bool:
    """Whether the code of a module stores a name after the instruction that it is at."""
    # Imported for a name that is not there, which few programs have.
    import dis

    for one in dis.get_instructions(frame.f_code):
        if one.offset <= frame.f_lasti:
            continue
        if one.opname in _STORES and one.argval == name:
            return True
    return False
