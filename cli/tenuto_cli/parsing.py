"""How every command of `tenuto` parses its arguments, and reports a mistake in one line.

Owns the parser and the error. Does not own any command.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tenuto_control import arguments

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = arguments.EXIT_USAGE
EXIT_INTERRUPTED: Final = 130
COUNT_MAX: Final = 1_000_000_000_000
"""Most records that are asked for."""

positive: Final = arguments.whole(1, COUNT_MAX)
"""The type of an option that is a number of things."""


class UsageError(Exception):
    """A mistake on the command line. The message is one line that names the way out."""


class Parser(arguments.Parser):
    """A parser that reports a mistake in one line and accepts options between positional arguments."""

    def parse_args(  # type: ignore[override] # the base has one overload for each kind of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse arguments, with options anywhere between the positional ones."""
        return self.parse_intermixed_args(args, namespace)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the closest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"
