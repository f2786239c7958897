"""What the control plane may take from the SDK, as an allow list.

Owns the one import rule that names what is allowed rather than what is forbidden: a new module of the SDK is
closed to the control plane until somebody opens it. Does not own the other contracts (import-linter does).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.tidy import tree

SHARED: Final = tuple(f"tenuto.{part}" for part in ("protocol", "lane", "store", "wire", "hosts", "errors", "serde"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The line and dotted name of each import of a file, late ones included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), filename=tree.name_of(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_control_plane_takes_only_shared_parts_of_the_sdk() -> None:
    strangers = [
        f"{tree.name_of(path)}:{line}: {name}"
        for path in tree.python_files()
        if tree.name_of(path).startswith("control_plane/")
        for line, name in imported(path)
        if name.split(".")[0] == "tenuto" and not f"{name}.".startswith(tuple(f"{part}." for part in SHARED))
    ]
    assert strangers == []
