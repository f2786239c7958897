"""`sam build` of a project outside the repository: what it built answers by itself.

Owns what is in the project's artefacts. Does not own the repository's, which the same recipes make (`tests/infra`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tenuto.protocol.messages import Discover, Manifest, decode_outcome, encode
from tenuto_cli.program import main
from tests.infra.tools import BIN, MACHINE, RUNTIME, TOOL_SECONDS_MAX
from tests.sam.project import write_project

pytestmark = pytest.mark.slow

ASK: Final = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
module, _, name = sys.argv[2].rpartition(".")
class Context:
    def get_remaining_time_in_millis(self):
        return 10_000
print(json.dumps(getattr(importlib.import_module(module), name)(json.loads(sys.argv[3]), Context())))
"""


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the nested stack's functions, as `sam build` fills them; the dispatcher is left out."""
    project = write_project(tmp_path_factory.mktemp("built") / "shop")
    (project / "requirements.txt").write_text("packaging>=24\n", "utf-8")
    assert main(["sam", str(project), "--quiet"]) == 0
    root = project / "deploy" / "functions.yaml"
    ended = subprocess.run(
        [
            str(BIN / "sam"),
            "build",
            "--template",
            str(root),
            "--build-dir",
            str(project / "out"),
            "--region",
            "eu-west-1",
        ],
        cwd=project,
        env={
            **os.environ,
            "SAM_CLI_TELEMETRY": "0",
            "PYTHON": sys.executable,
            "TENUTO_RUNTIME": RUNTIME,
            "TENUTO_ARCHITECTURE": MACHINE,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=TOOL_SECONDS_MAX,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return project / "out"


@pytest.mark.parametrize(
    ("function", "handler", "service"),
    [("OrderIntakeFunction", "shop.app.handler", "order"), ("MailerFunction", "shop.app.mailer", "mail*%er")],
)
def test_a_function_answers_with_nothing_but_its_artefact(
    artefacts: Path, function: str, handler: str, service: str
) -> None:
    artefact = artefacts / function
    held = {path.name for path in artefact.iterdir() if not path.name.endswith(".dist-info")}
    assert held == {"msgspec", "packaging", "shop", "tenuto"}
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ASK, str(artefact), handler, encode(Discover()).decode()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    manifest = decode_outcome(answer.stdout)
    assert isinstance(manifest, Manifest)
    assert [one.name for one in manifest.services] == [service]


def test_the_image_holds_the_control_plane_and_the_configuration(tmp_path: Path) -> None:
    project = write_project(tmp_path / "shop")
    assert main(["sam", str(project), "--quiet"]) == 0
    image = project / "build" / "image"
    recipe = ["make", "--file", "deploy/lambda/Makefile", "image", f"ARTIFACTS_DIR={image}", "--dry-run"]
    environment = {**os.environ, "PYTHON": sys.executable}
    ended = subprocess.run(
        recipe, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert "tenuto_control" in ended.stdout
    assert f'cp "{project}/tenuto.toml"' in ended.stdout
    absent = {**environment, "PYTHON": "/usr/bin/env -i /usr/bin/python3 -S"}
    ended = subprocess.run(recipe, cwd=project, env=absent, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode != 0
    assert json.dumps("tenuto is not installed for")[1:-1] in ended.stderr
