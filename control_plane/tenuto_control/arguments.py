"""How a command of `tenuto` answers arguments that it cannot use: in one line, which names the way to its help.

Owns that parser. Imports the standard library alone, so that every command can use it. Does not own any command.
"""

from __future__ import annotations

import argparse
from typing import Final, NoReturn

EXIT_USAGE: Final = 2
COMPLAINT_CHARACTERS_MAX: Final = 400
"""So much is said of a mistake, which may quote what was given."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to look, and end the process with status 2."""
        said = message if len(message) <= COMPLAINT_CHARACTERS_MAX else f"{message[:COMPLAINT_CHARACTERS_MAX]}…"
        self.exit(EXIT_USAGE, f"{self.prog}: {said}; see {self.prog} --help\n")
