"""Each log line and message that the page on troubleshooting quotes is one of the code's own.

Owns the comparison of texts. Does not own what the page advises.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.tidy import tree

PAGE = tree.ROOT / "docs" / "guides" / "troubleshooting.md"
ROW = re.compile(r"^\| (?P<seen>`.+?) \| .+ \| .+ \|$", re.MULTILINE)
PART_CHARACTERS_MIN = 8
"""Shorter parts of a line say nothing about where it comes from."""


def texts() -> str:
    """Every text in the code, names and numbers left out, one after the other."""
    found: list[str] = []
    for root in tree.SOURCE_ROOTS:
        for path in (tree.ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
                    )
                elif isinstance(node, ast.ClassDef):
                    found.append(node.name)
    return "\n".join(found)


def quoted() -> Iterator[str]:
    """What the first column quotes, but for metrics, paths and commands."""
    for row in ROW.finditer(PAGE.read_text("utf-8")):
        for line in re.findall(r"`([^`]+)`", row["seen"]):
            if " " in line or line.endswith("Error"):
                yield line


def test_quoted_lines_are_in_the_code() -> None:
    known = texts()
    lines = list(quoted())
    assert len(lines) > 20
    missing = []
    for line in lines:
        if line.startswith("tenuto "):
            continue
        parts = [part.strip() for part in re.split(r"…", line)]
        missing += [part for part in parts if len(part) >= PART_CHARACTERS_MIN and part not in known]
    assert missing == []
