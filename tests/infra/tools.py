"""The tools of .venv-aws, run as programs: SAM, the linters, and the interpreter that has SAM's translator.

Owns where they are and what is said when they are not there. Does not own what they are asked.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.tidy import tree

BIN: Final = tree.ROOT / ".venv-aws" / "bin"
TOOL_SECONDS_MAX: Final = 300

MACHINE: Final = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
"""This machine's architecture, as Lambda calls it."""

RUNTIME: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
"""This interpreter, as Lambda calls it."""


def run_tool(
    program: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of .venv-aws in the root folder and return how it ended."""
    if not (BIN.parent / ".complete").exists():
        pytest.fail("SAM and the linters are not installed: `make validate` does that, into .venv-aws", pytrace=False)
    return subprocess.run(
        [str(BIN / program), *arguments],
        cwd=tree.ROOT,
        env={**os.environ, "SAM_CLI_TELEMETRY": "0", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=TOOL_SECONDS_MAX,
    )


def build(folder: Path, runtime: str = RUNTIME, architecture: str = MACHINE) -> Path:
    """What `sam build` makes of the project, for an interpreter and an architecture; the folder of its template."""
    answer = run_tool(
        "sam",
        *("build", "--region", "eu-west-1", "--template", "template.yaml"),
        *("--build-dir", str(folder / "build"), "--cache-dir", str(folder / "cache")),
        environment={"PYTHON": sys.executable, "TENUTO_RUNTIME": runtime, "TENUTO_ARCHITECTURE": architecture},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "build"
