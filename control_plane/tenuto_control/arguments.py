"""How a command of `tenuto` answers arguments that it cannot use: in one line, which names the way to its help.

Owns that parser, and numbers with bounds. Imports the standard library alone, so that every command can use it. Does
not own any command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final, NoReturn

EXIT_USAGE: Final = 2
COMPLAINT_CHARACTERS_MAX: Final = 400
"""So much is said of a mistake, which may quote what was given."""


NUMBER_CHARACTERS_MAX: Final = 30
"""Longest number that is read; Python itself refuses some thousand digits."""

SHOWN_CHARACTERS_MAX: Final = 40
"""So much of what is no number is shown."""


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that is a whole number within bounds, such as 1,000. Raises ArgumentTypeError."""

    def number(text: str) -> int:
        plain = text.removeprefix("-").replace(",", "")
        if plain.isascii() and plain.isdigit() and len(text) <= NUMBER_CHARACTERS_MAX:
            found = int(plain) if text[:1] != "-" else -int(plain)
            if least <= found <= most:
                return found
        raise argparse.ArgumentTypeError(
            f"{text[:SHOWN_CHARACTERS_MAX]!r} is not a whole number from {least:,} to {most:,}"
        )

    return number


def real(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that is a number within bounds, such as 1,000.5. Raises ArgumentTypeError."""

    def number(text: str) -> float:
        try:
            found = float(text.replace(",", "")) if len(text) <= NUMBER_CHARACTERS_MAX else None
        except ValueError:
            found = None
        # NaN is within no bounds.
        if found is not None and least <= found <= most:
            return found
        raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARACTERS_MAX]!r} is not a number from {least:,} to {most:,}")

    return number


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to look, and end the process with status 2."""
        said = message if len(message) <= COMPLAINT_CHARACTERS_MAX else f"{message[:COMPLAINT_CHARACTERS_MAX]}…"
        self.exit(EXIT_USAGE, f"{self.prog}: {said}; see {self.prog} --help\n")
