"""Where a function is written, for messages about a mistake that leaves no traceback there.

Owns finding the line and its form. Does not own the messages.
"""

from __future__ import annotations

import inspect
import os.path


def line_of(function: object) -> str | None:
    """Where a function is, as file and line; None for what has no code of its own."""
    plain = inspect.unwrap(function) if callable(function) else function
    while hasattr(plain, "func"):
        plain = plain.func
    if not hasattr(plain, "__code__") and callable(plain):
        plain = type(plain).__call__
    code = getattr(plain, "__code__", None)
    if code is None:
        return None
    return place(code.co_filename, code.co_firstlineno)


def place(file: str, line: int) -> str:
    """A file and a line, relative to the working directory where the file is below it."""
    try:
        relative = os.path.relpath(file)
    except ValueError:
        relative = file  # On another drive.
    return f"{file if relative.startswith('..') else relative}:{line}"
