"""How a function's process tells of itself: one line of JSON for each line of output, log record or failure.

Owns the form, which the host writes (`function_host`) and the view reads (`view`). Imports little: it is part of every
function's start.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

import tenuto

MARK = "\x1e"
"""Begins a line that is in this form; what a library writes past Python's streams does not begin with it."""

TEXT_CHARACTERS_MAX = 4_000
FRAMES_MAX = 8
NOTES_MAX = 12
CAUSES_MAX = 3


class Frame(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of code on the way to a failure. `own` if it is the user's."""

    file: str
    line: int
    function: str = ""
    code: str = ""


class Trouble(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception: its type and text, the frames of the user's code, the innermost last, the lines of its notes."""

    kind: str
    text: str
    frames: tuple[Frame, ...] = ()
    cause: Trouble | None = None
    notes: tuple[str, ...] = ()


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a function. `source` is `print`, or the name of a logger."""

    text: str
    level: str = "INFO"
    source: str = "print"
    invocation_id: str = ""
    service: str = ""
    key: str = ""
    handler: str = ""
    attempt: int = 0
    trouble: Trouble | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


def encoded(line: Line) -> str:
    """A line as it is written, with its end."""
    return f"{MARK}{_encoder.encode(line).decode()}\n"


def decoded(text: str) -> Line | None:
    """A line that was written so; None for any other text."""
    if not text.startswith(MARK):
        return None
    try:
        return _decoder.decode(text[1:])
    except msgspec.DecodeError:
        return None


def trouble_of(error: BaseException, roots: Sequence[str], causes: int = CAUSES_MAX) -> Trouble:
    """An exception with the lines of it that lie in the user's folders, the innermost last."""
    frames = tuple(_frames(error.__traceback__, roots))[-FRAMES_MAX:]
    text = _text_of(error)
    if isinstance(error, SyntaxError) and error.filename:
        frames = (*frames, Frame(error.filename, error.lineno or 0, "", (error.text or "").strip()))
        text = shown_text(error.msg)
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    cause = trouble_of(behind, roots, causes - 1) if behind is not None and causes else None
    notes = tuple(_notes(error, roots))[:NOTES_MAX]
    return Trouble(type(error).__name__, text[:TEXT_CHARACTERS_MAX], frames, cause, notes)


def _text_of(error: BaseException) -> str:
    try:
        return shown_text(str(error))
    except Exception as failure:  # noqa: BLE001 - a user's own exception may do anything when it is asked for its text
        return f"(its text cannot be had: {type(failure).__name__})"


def shown_text(text: str) -> str:
    """A text that can be written as UTF-8, whatever it holds."""
    return text.encode("utf-8", "backslashreplace").decode()


def _notes(error: BaseException, roots: Sequence[str]) -> Iterator[str]:
    """The lines of its notes, without those of a traceback in others' code."""
    kept = True
    for line in (line for note in getattr(error, "__notes__", ()) for line in str(note).splitlines()):
        named = _FILE.match(line)
        kept = is_own(named[1], roots) if named else kept
        if kept:
            yield shown_text(line.strip())


def _frames(trace: TracebackType | None, roots: Sequence[str]) -> Iterator[Frame]:
    for frame, number in traceback.walk_tb(trace):
        file = frame.f_code.co_filename
        if is_own(file, roots):
            yield Frame(file, number, frame.f_code.co_name, shown_text(linecache.getline(file, number).strip()))


def is_own(file: str, roots: Sequence[str]) -> bool:
    """Whether a file is the user's: within one of these folders, and not within what is installed there."""
    return not file.startswith(_TENUTO) and any(
        file.startswith(root.rstrip("/") + "/")
        and not any(part in INSTALLED or part.startswith(".") for part in file[len(root) :].split("/"))
        for root in roots
    )


_FILE = re.compile(r'\s*File "([^"]+)", line \d+')
_TENUTO = tuple(f"{folder}/" for folder in (*tenuto.__path__, str(Path(__file__).resolve().parents[1])))
"""A clone of tenuto may be the folder that a command runs in: its own frames say nothing to a user."""

INSTALLED = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__", "venv"})
"""Folders within a project that hold others' code. Those that begin with a dot count as well."""
