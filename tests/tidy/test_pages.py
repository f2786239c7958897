"""Rules for markdown pages: one title, links that lead somewhere, Python fences that compile.

Owns the form of pages. Does not own whether their code does what they say; the examples' own tests run it.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pytest

from tests.tidy import tree

FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL
)
TITLE: Final = re.compile(r"^# \S", re.MULTILINE)
HEADING: Final = re.compile(r"^#{1,6} +(?P<text>.+?)\s*$", re.MULTILINE)
INLINE_CODE: Final = re.compile(r"`[^`\n]*`")
LINK: Final = re.compile(r"!?\[[^\]\n]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
ELSEWHERE: Final = re.compile(r"^[a-z][a-z0-9+.-]*:")


def prose(page: Path) -> str:
    """A page without its fences, so that their comments and brackets do not count."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The fragments that the headings of a page answer to."""
    texts = (match["text"].replace("`", "").lower() for match in HEADING.finditer(prose(page)))
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in texts}


def dead_links(page: Path) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    for match in LINK.finditer(INLINE_CODE.sub("", prose(page))):
        target = match["target"].strip("<>")
        if ELSEWHERE.match(target):
            continue
        name, _, fragment = unquote(target).partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists() or (fragment and goal.suffix == ".md" and fragment not in anchors(goal)):
            yield target


def python_fences(page: Path) -> Iterator[tuple[int, str]]:
    """The line and the code of each Python fence of a page."""
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        language = match["info"].strip().split(" ")[0].strip("{}")
        if language in {"python", "py"}:
            yield text.count("\n", 0, match.start()) + 1, textwrap.dedent(match["body"])


every_page = pytest.mark.parametrize("page", tree.pages(), ids=tree.name_of)


@every_page
def test_one_title(page: Path) -> None:
    assert len(TITLE.findall(prose(page))) == 1


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


@every_page
def test_python_fences_compile(page: Path) -> None:
    for line, code in python_fences(page):
        place = f"{tree.name_of(page)}, fence at line {line}"
        compile(code, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_examples_compile() -> None:
    for path in tree.python_files():
        if tree.name_of(path).startswith("examples/"):
            compile(path.read_text("utf-8"), tree.name_of(path), "exec", dont_inherit=True)
