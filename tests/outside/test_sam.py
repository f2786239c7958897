"""`sam validate --lint` and `sam build` of what `tenuto init` writes, for both architectures, without a container.

Owns what is in the artefacts, and that the functions of this machine's architecture answer with nothing else at hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tenuto.protocol.messages import Discover, Manifest, decode_outcome, encode
from tenuto_cli.init import TEMPLATES
from tests.infra.tools import MACHINE, RUNTIME
from tests.install.environment import Bare
from tests.outside.project import built, made, sam
from tests.sam.test_build import ASK

SERVICES: Final = {"minimal": "greeter", "kafka-enricher": "customer", "workflow": "purchase"}
ELF_MACHINES: Final = {"x86_64": 0x3E, "arm64": 0xB7}
"""`e_machine` of the ELF header, which the two bytes at offset 18 hold."""


def elf_machines(artefact: Path) -> set[int]:
    """What the extension modules of an artefact are compiled for."""
    modules = [path.read_bytes()[:20] for path in artefact.rglob("*.so")]
    assert all(module.startswith(b"\x7fELF") for module in modules)
    return {int.from_bytes(module[18:20], "little") for module in modules}


@pytest.mark.parametrize("template", TEMPLATES)
def test_sam_and_its_linter_accept_it_as_written(bare: Bare, tmp_path: Path, template: str) -> None:
    answer = sam(bare, made(bare, tmp_path, template), "validate", "--lint")
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("template", "architecture"),
    [("minimal", "arm64"), ("minimal", "x86_64"), ("kafka-enricher", "arm64"), ("workflow", "x86_64")],
)
def test_it_is_built_as_written(bare: Bare, tmp_path: Path, template: str, architecture: str) -> None:
    project = made(bare, tmp_path, template)
    artefacts = built(bare, project, architecture=architecture) / "Tenuto"
    function, dispatcher = artefacts / "Functions" / "ShopFunction", artefacts / "Dispatcher" / "Dispatcher"
    packages = {path.name for path in function.iterdir() if path.suffix != ".dist-info"}
    assert packages == {"msgspec", "shop", "tenuto"}
    assert {"tenuto_control", "tenuto.toml", "aiokafka"} <= {path.name for path in dispatcher.iterdir()}
    for artefact in (function, dispatcher):
        assert elf_machines(artefact) == {ELF_MACHINES[architecture]}
    if architecture != MACHINE:
        return
    command = [sys.executable, "-I", "-S", "-c", ASK, str(function), "shop.handlers.handler"]
    answer = subprocess.run([*command, encode(Discover()).decode()], check=True, capture_output=True, timeout=60)
    manifest = decode_outcome(answer.stdout)
    assert isinstance(manifest, Manifest)
    assert [service.name for service in manifest.services] == [SERVICES[template]]


def test_the_runtime_is_that_of_the_templates_unless_another_is_named(bare: Bare, tmp_path: Path) -> None:
    """What is built for an interpreter that is not here: its extension modules are those of that interpreter."""
    project = made(bare, tmp_path, "minimal")
    artefacts = built(bare, project, runtime="python3.13") / "Tenuto"
    modules = {path.name.split(".")[1] for path in (artefacts / "Functions").rglob("*.so")}
    assert {module.partition("-linux")[0].removesuffix("-x86_64") for module in modules} == {"cpython-313"}
    assert RUNTIME.startswith("python3.")
