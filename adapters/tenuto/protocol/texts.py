"""Text that can be stored, logged and sent, whatever it was made of.

Owns making a text encodable, cutting it to a number of bytes, how foreign text stands in a line of a log, and the one
rule for names and keys: which characters they may hold. Does not own which error a broken rule raises (`tenuto.checks`,
the control plane) or what a failure is (`failures`). Standard library only: `tenuto.errors` imports it.

The control characters that names and keys refuse are Unicode's category Cc: U+0000 to U+001F, U+007F (DEL) and U+0080
to U+009F. They forge lines in logs, drive terminals, and one of them separates the parts of an id. Every other
character is allowed, U+2028 and U+2029 included, except a lone surrogate, which is not Unicode text.
"""

from __future__ import annotations

import re
from typing import Final

SHOWN_CHARACTERS_MAX: Final = 500
"""How much of a text that user code or another system has written goes into a line of a log."""

CUT_MARK: Final = " … (cut)"
"""Ends a text that was longer."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


def encodable(text: str) -> str:
    r"""The text itself, or with each lone surrogate as a backslash escape, such as \udce9."""
    # A subclass of str may override any method, and encoders refuse some subclasses.
    exact = str.__str__(text)
    if exact.isascii():
        return exact
    return exact.encode(errors="backslashreplace").decode()


def cut(text: str, bytes_max: int) -> str:
    """An encodable text of at most `bytes_max` bytes in UTF-8; one that was longer ends with `CUT_MARK`."""
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    return data[: bytes_max - len(CUT_MARK.encode())].decode(errors="ignore") + CUT_MARK


def text_of(value: object) -> str:
    """What `str` makes of a value, encodable. Never raises: user code may have written the `__str__`."""
    try:
        return encodable(value if isinstance(value, str) else str(value))
    except BaseException as e:  # noqa: BLE001 - reporting a failure must not become another one
        return f"<{type_name(value)}, whose __str__ raised {type_name(e)}>"


def type_name(value: object) -> str:
    """The name of a value's type, encodable."""
    return encodable(type(value).__name__)


def one_line(text: str) -> str:
    """An encodable text on one line: line breaks become spaces, other control characters escapes."""
    parts = (part.strip() for part in text.replace("\t", " ").splitlines())
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", " ".join(part for part in parts if part))


def shown(text: str, characters_max: int = SHOWN_CHARACTERS_MAX) -> str:
    """A text from elsewhere as it may stand in a line of a log: short, and no more than text.

    It can neither begin another line, nor steer a terminal, nor turn the direction of what is read: what is not
    printable is there as an escape. Cut to `characters_max`, escapes included, it says how long it was.
    """
    if len(text) <= characters_max and text.isprintable():
        return text
    plain = "".join(c if c.isprintable() else _escape(c) for c in text[:characters_max])
    if len(text) <= characters_max and len(plain) <= characters_max:
        return plain
    return f"{plain[:characters_max]} … ({len(text):,} characters)"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def problem_of_name(text: str, bytes_max: int) -> str | None:
    """Why a text is no name or key, as the end of a sentence ("is empty"); None when it is one."""
    if text.isascii() and text.isprintable() and 0 < len(text) <= bytes_max:
        return None
    if not text:
        return "is empty"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not Unicode text"
    if size > bytes_max:
        return f"is {size} bytes long; at most {bytes_max} are possible"
    control = _CONTROL.search(text)
    return None if control is None else f"holds the control character U+{ord(control[0]):04X}"
