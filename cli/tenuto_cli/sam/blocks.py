"""The templates of tenuto's deployment as templates of templates: their marks, and what takes their place.

Each file under `infra/` is valid as it is, and deploys one example. Comments mark what is the example's:

    # tenuto sam: each function       until `end`: repeated for each function, with its names for the example's
    # tenuto sam: each topic          until `end`: repeated for each topic
    # tenuto sam: this example alone  until `end`: left out
    # tenuto sam: <anything else>     this line alone: lines of the project take its place

Owns the marks. Does not own what lines say (`rendering`). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

MARK: Final = re.compile(r"(?P<indent> *)# tenuto sam: (?P<word>[a-z ]+)")
END: Final = "end"

Block: TypeAlias = Callable[[str], Sequence[str]]
"""Makes of a block's text its copies."""


class MarkError(Exception):
    """A template's marks do not fit each other, or what replaces them: a mistake in tenuto, not in a project."""


def expanded(text: str, blocks: Mapping[str, Block], lines: Mapping[str, Sequence[str]]) -> str:
    """The text with every mark replaced. Raises MarkError.

    `blocks` says what becomes of the text between a mark and its end, `lines` what replaces a single mark; lines are
    indented as the mark is, and an empty one stays empty.
    """
    out: list[str] = []
    rest = iter(text.splitlines(keepends=True))
    for line in rest:
        found = MARK.fullmatch(line.rstrip("\n"))
        if found is None:
            out.append(line)
            continue
        word = found["word"]
        if word in blocks:
            out.extend(blocks[word](_inside(rest, word)))
        elif word in lines:
            out.extend(f"{found['indent']}{one}\n" if one else "\n" for one in lines[word])
        else:
            raise MarkError(f"no value is known for the mark {word!r}")
    return "".join(out)


def _inside(rest: Iterator[str], word: str) -> str:
    """The lines up to the end of a block, marks of single lines and of blocks inside it included."""
    inside: list[str] = []
    depth = 1
    for line in rest:
        found = MARK.fullmatch(line.rstrip("\n"))
        if found is not None:
            if found["word"] == END:
                depth -= 1
                if depth == 0:
                    return "".join(inside)
            elif found["word"] in BLOCKS:
                depth += 1
        inside.append(line)
    raise MarkError(f"the block {word!r} has no end")


FUNCTION: Final = "each function"
TOPIC: Final = "each topic"
EXAMPLE: Final = "this example alone"
BLOCKS: Final = frozenset({FUNCTION, TOPIC, EXAMPLE})
