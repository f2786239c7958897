"""The files of the project, as the tidy tests see them.

Owns which files count and the limits they are held to. Does not own the rules; each test states its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

LINE_COLUMNS_MAX: Final = 120
FILE_LINES_MAX: Final = 600
FUNCTION_LINES_MAX: Final = 70

SOURCE_ROOTS: Final = ("adapters", "control_plane", "infra/local", "cli")
"""Folders on the import path. They are no packages themselves."""

_GIT_SECONDS_MAX: Final = 30
_NOT_OURS: Final = {
    ".git",
    ".venv",
    ".venv-audit",
    ".venv-aws",
    ".venv-localstack",
    ".venv-wheel",
    ".aws-sam",
    ".cache",
    ".tenuto",
    "build",
    "dist",
    "__pycache__",
}


def files() -> tuple[Path, ...]:
    """Every file that is tracked, or new and not ignored.

    In a copy without git: every file but what the make targets create.
    """
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=_GIT_SECONDS_MAX,
    )
    if listing.returncode == 0:
        found = {ROOT / name for name in listing.stdout.decode().split("\0") if name}
    else:
        found = {path for path in ROOT.rglob("*") if not _NOT_OURS & set(path.relative_to(ROOT).parts)}
    return tuple(sorted(path for path in found if path.is_file()))


def python_files() -> tuple[Path, ...]:
    """Every Python file of the project."""
    return tuple(path for path in files() if path.suffix == ".py")


def pages() -> tuple[Path, ...]:
    """Every markdown page of the project."""
    return tuple(path for path in files() if path.suffix == ".md")


def name_of(path: Path) -> str:
    """The path from the project's root, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def is_test(path: Path) -> bool:
    """Whether a file belongs to the tests, whose scenarios may be longer than production code."""
    return name_of(path).startswith("tests/")


def module_of(path: Path) -> str | None:
    """The dotted name under which a file of a source root is imported; None for any other file."""
    for root in SOURCE_ROOTS:
        base = ROOT / root
        if path.is_relative_to(base):
            parts = path.relative_to(base).with_suffix("").parts
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return None
