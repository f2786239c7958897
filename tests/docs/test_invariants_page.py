"""The page about invariants names tests and oracles that exist, and leaves no law of the simulation out.

Owns the comparison of names. Does not own whether a test proves what the page says of it, and imports none of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy import tree

PAGE = tree.ROOT / "docs" / "internals" / "invariants.md"
REFERENCE = re.compile(r"`(?P<path>[\w/.]+\.py)::(?P<name>[\w.]+)`")
INVARIANT = re.compile(r"^## (?P<number>\d+)\. .*?$(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
INVARIANTS = 9
SIMULATION = tree.ROOT / "tests" / "simulation"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=tree.name_of(path))


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """The functions and classes of a module, with the methods of its classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from defined(node.body, f"{prefix}{node.name}.")


def references(text: str) -> set[tuple[str, str]]:
    return {(match["path"], match["name"]) for match in REFERENCE.finditer(text)}


def laws() -> set[str]:
    """Every name under which the simulation reports a violation."""
    return {
        node.args[0].value
        for path in sorted(SIMULATION.glob("*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "report"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def test_whatever_the_page_names_exists() -> None:
    named = references(PAGE.read_text("utf-8"))
    assert named, "the page names nothing"
    missing = [path for path, _ in named if not (tree.ROOT / path).is_file()]
    assert missing == []
    names = {path: set(defined(parsed(tree.ROOT / path).body)) for path, _ in named}
    unknown = sorted(f"{path}::{name}" for path, name in named if name not in names[path])
    if unknown:
        pytest.fail("docs/internals/invariants.md names what is not there:\n" + "\n".join(unknown), pytrace=False)


def test_every_invariant_is_held_by_a_test() -> None:
    bodies = {int(match["number"]): match["body"] for match in INVARIANT.finditer(PAGE.read_text("utf-8"))}
    assert sorted(bodies) == list(range(1, INVARIANTS + 1))
    for number, body in bodies.items():
        assert any(name.startswith("test_") for _, name in references(body)), f"no test for invariant {number}"


def test_every_known_hole_has_a_test() -> None:
    _, _, holes = PAGE.read_text("utf-8").partition("\n## Known holes\n")
    rows = [line for line in holes.splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        assert any(name.startswith("test_") for _, name in references(row)), row


def test_every_law_of_the_simulation_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    found = laws()
    assert found
    assert sorted(law for law in found if f"*{law}*" not in text) == []
