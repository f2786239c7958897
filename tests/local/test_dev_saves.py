"""A process imports what was saved last, even when Python's own bytecode could not tell it from what was before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenuto_local.dev.saves import SETTLED_S
from tenuto_local.system import import_path

SECOND = time.time() // 1 + 1_000
"""Ahead of the clock, so that a slow machine takes no save here for one of long ago."""

PLAIN = "import version; print(version.VERSION)"
OWN = "from tenuto_local.dev.saves import import_what_was_saved; import_what_was_saved(); " + PLAIN


def _imported(folder: Path, code: str) -> str:
    path = os.pathsep.join((str(folder), import_path("tenuto", "tenuto_local")))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def _save(folder: Path, version: int, at_s: float) -> None:
    path = folder / "version.py"
    path.write_text(f"VERSION = {version}\n", "utf-8")
    os.utime(path, (at_s, at_s))


@pytest.mark.parametrize("first", [OWN, PLAIN], ids=["its own bytecode", "that of another program"])
def test_of_two_saves_in_one_second_the_second_counts(tmp_path: Path, first: str) -> None:
    _save(tmp_path, 1, SECOND + 0.1)
    assert _imported(tmp_path, first) == "1"
    _save(tmp_path, 2, SECOND + 0.9)
    assert _imported(tmp_path, OWN) == "2"


def test_python_alone_takes_the_second_save_for_the_first(tmp_path: Path) -> None:
    _save(tmp_path, 1, SECOND + 0.1)
    assert _imported(tmp_path, PLAIN) == "1"
    _save(tmp_path, 2, SECOND + 0.9)
    assert _imported(tmp_path, PLAIN) == "1", "the fault that `saves` is there for"


def test_what_has_settled_is_compiled_once(tmp_path: Path) -> None:
    _save(tmp_path, 1, time.time() - 2 * SETTLED_S)
    assert _imported(tmp_path, OWN) == "1"
    assert list((tmp_path / "__pycache__").glob("version.*.pyc"))
