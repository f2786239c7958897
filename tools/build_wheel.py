# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Builds the wheel into `dist/`, and prints its path: the same sources make the same bytes.

    python tools/build_wheel.py [FOLDER]

Owns what could make two builds differ: the time, the permissions of this checkout's files, and what else is in it.
Does not own what the wheel holds (`pyproject.toml`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = (
    "adapters",
    "control_plane",
    "infra",
    "cli",
    "requirements",
    "template.yaml",
    "Dockerfile",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
EPOCH_S: Final = "1577836800"
"""2020-01-01: a zip cannot hold dates before 1980, and today's would make each day's wheel another one."""


def build(folder: Path) -> Path:
    """Build the wheel into a folder, from a copy of the sources whose files have one kind of permissions."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tenuto-wheel-") as scratch:
        copy = Path(scratch) / "tenuto"
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.py[cod]"))
            else:
                shutil.copy(source, copy / name)
        for path in copy.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made = subprocess.run(  # noqa: S603 - the interpreter at work, with arguments from here
            [
                sys.executable,
                "-m",
                "hatchling",
                "build",
                "--target",
                "wheel",
                "--directory",
                str(Path(scratch) / "out"),
            ],
            cwd=copy,
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH_S},
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise SystemExit(f"the wheel cannot be built:\n{made.stderr}")
        (wheel,) = (Path(scratch) / "out").glob("*.whl")
        return Path(shutil.copy(wheel, folder / wheel.name))


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")))  # noqa: T201 - what a command says
