"""A project that `tenuto init` made from an installed wheel, and SAM at work on it as a person runs it.

Owns the commands and their environment: the repository is out of reach, and no region is set. Does not own what is
expected of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.infra.tools import BIN, MACHINE, RUNTIME
from tests.install.environment import Bare, outside

SAM_SECONDS_MAX: Final = 400
REGION_VARIABLES: Final = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")


def made(bare: Bare, folder: Path, template: str, name: str = "shop") -> Path:
    """A new project; its folder."""
    ended = bare.run("tenuto", "init", name, "--template", template, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / name


def sam(
    bare: Bare, project: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run SAM in the project's folder, with the environment's interpreter; its output is in the result."""
    own = {name: value for name, value in outside().items() if name not in REGION_VARIABLES}
    return subprocess.run(
        [str(BIN / "sam"), *arguments],
        cwd=project,
        env={**own, "SAM_CLI_TELEMETRY": "0", "PYTHON": str(bare.bin / "python"), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SAM_SECONDS_MAX,
        check=False,
    )


def built(bare: Bare, project: Path, *, runtime: str = RUNTIME, architecture: str = MACHINE) -> Path:
    """What `sam build` makes of the project; the folder of its template."""
    variables = {"TENUTO_RUNTIME": runtime, "TENUTO_ARCHITECTURE": architecture}
    answer = sam(bare, project, "build", environment=variables)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return project / ".aws-sam" / "build"
