"""Rules for Python files that ruff and mypy do not check.

Owns limits of size, reasons of suppressed checks and the truth of `__all__`. Does not own formatting or lint.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.tidy import tree

REASON_CHARACTERS_MIN: Final = 10

# Written in two halves, so that this file does not break its own rule.
BANNED_WORDS: Final = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")

SUPPRESSION: Final = re.compile(
    r"#\s*(?:noqa|type:\s*ignore|pragma:\s*no cover|fmt:\s*(?:off|skip)|mypy:)"
    r"(?P<codes>\[[\w\-, ]+\]|:\s*[A-Z]+[0-9]+(?:\s*,\s*[A-Z]+[0-9]+)*)?"
    r"(?P<reason>.*)",
)
EXPORTS: Final = re.compile(r"^__all__\b", re.MULTILINE)
MUST_NAME_CODES: Final = re.compile(r"#\s*(?:noqa|type:\s*ignore)")


def comments(source: str) -> Iterator[tuple[int, str]]:
    """The line number and text of each comment; text inside strings is none."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file; a syntax error names the file."""
    return ast.parse(path.read_text("utf-8"), filename=tree.name_of(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, methods and inner functions included."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def unexplained(comment: str) -> bool:
    """Whether a comment suppresses a check without naming which one and why."""
    match = SUPPRESSION.search(comment)
    if match is None:
        return False
    if MUST_NAME_CODES.match(match.group()) and match["codes"] is None:
        return True
    return len(match["reason"].strip(" -#:")) < REASON_CHARACTERS_MIN


def report(problems: list[str]) -> None:
    """Fail with one line per problem."""
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_lines_fit() -> None:
    report(
        [
            f"{tree.name_of(path)}:{number}: {len(line)} columns, at most {tree.LINE_COLUMNS_MAX}"
            for path in tree.python_files()
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            if len(line) > tree.LINE_COLUMNS_MAX
        ]
    )


def test_files_and_functions_are_short() -> None:
    problems: list[str] = []
    for path in tree.python_files():
        if tree.is_test(path):
            continue
        lines = len(path.read_text("utf-8").splitlines())
        if lines > tree.FILE_LINES_MAX:
            problems.append(f"{tree.name_of(path)}: {lines} lines, at most {tree.FILE_LINES_MAX}")
        for function in functions(path):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > tree.FUNCTION_LINES_MAX:
                place = f"{tree.name_of(path)}:{function.lineno}: {function.name}"
                problems.append(f"{place} has {length} lines, at most {tree.FUNCTION_LINES_MAX}")
    report(problems)


def test_modules_say_what_they_own() -> None:
    report(
        [
            f"{tree.name_of(path)}: no module docstring"
            for path in tree.python_files()
            if not ast.get_docstring(parsed(path))
        ]
    )


def test_suppressed_checks_carry_a_reason() -> None:
    report(
        [
            f"{tree.name_of(path)}:{number}: name the rule and the reason: {comment}"
            for path in tree.python_files()
            for number, comment in comments(path.read_text("utf-8"))
            if unexplained(comment)
        ]
    )


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# noqa", True),
        ("# noqa: BLE001", True),
        ("# noqa: BLE001, S110 - user code may raise anything", False),
        ("# type: ignore", True),
        ("# type: ignore[attr-defined]", True),
        ("# type: ignore[attr-defined]  # the stubs lack this attribute", False),
        ("# pragma: no cover", True),
        ("# an ordinary comment about noqa", False),
    ],
)
def test_a_suppression_without_reason_is_recognised(comment: str, *, expected: bool) -> None:
    assert unexplained(comment) is expected


def test_nothing_is_left_for_later() -> None:
    report(
        [
            f"{tree.name_of(path)}:{number}: {line.strip()}"
            for path in tree.files()
            if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".in"}
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            if BANNED_WORDS.search(line)
        ]
    )


def test_source_roots_are_no_packages() -> None:
    roots = ("adapters", "control_plane", "infra", "infra/local", "cli")
    present = [root for root in roots if (tree.ROOT / root / "__init__.py").exists()]
    assert not present, f"__init__.py makes the code importable under a second name: {present}"


def exporting_modules() -> list[str]:
    """Modules of the four packages that say what they export."""
    named = ((tree.module_of(path), path) for path in tree.python_files())
    return [module for module, path in named if module is not None and EXPORTS.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("module", exporting_modules())
def test_exported_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    names: list[str] = list(loaded.__all__)
    assert len(names) == len(set(names)), "a name is exported twice"
    assert [name for name in names if not hasattr(loaded, name)] == []
