"""How every command of `tenuto` reads its arguments, and the one line that answers a mistake.

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
    """A mistake of the person at the keyboard. The message is one line that names the way out."""


class Parser(arguments.Parser):
    """A parser whose complaint is one line. Options may stand between the words."""

    def parse_args(  # type: ignore[override] # the base has one overload for each kind of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """The arguments, with those words together that options stand between."""
        return self.parse_intermixed_args(args, namespace)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a complaint about an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"
