"""The wheel: the same bytes each time, complete, and installed into an environment that knows no repository.

Owns what can be seen of an installation. Does not own what its commands do.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import resource
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tenuto_cli.commands import COMMANDS, IMPORTED_BY, Command
from tenuto_cli.program import main
from tenuto_cli.sam.places import TABLE, TABLE_IN_WHEEL
from tenuto_cli.sam.rendering import PLACES
from tests.infra.test_locks import PIN
from tests.install.environment import Bare, built_wheel
from tests.sam.project import write_project
from tests.tidy import tree

HELP_SECONDS_MAX = 0.2
HELP_TRIES = 5
PACKAGES = ("tenuto", "tenuto_cli", "tenuto_control", "tenuto_local")
SERVICE = '''"""A service of one's own."""

from tenuto import ObjectContext, VirtualObject, aws

greeter = VirtualObject("greeter")


@greeter.handler()
async def greet(ctx: ObjectContext, name: str) -> str:
    return f"Hello, {name}"


handler = aws.handler(greeter)
'''
ASKED = """
import json, sys, tenuto, greeter

class Context:
    def get_remaining_time_in_millis(self):
        return 3_000

manifest = greeter.handler({"type": "discover", "version": 1}, Context())
print(json.dumps({"file": tenuto.__file__, "path": sys.path, "services": manifest["services"]}))
"""


def test_two_builds_give_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert built_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_its_own_few_tools_build_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    tools = Bare(tmp_path / "tools")
    pinned = (tree.ROOT / "requirements" / "wheel.txt").read_text("utf-8")
    tools.offer(*(name.replace("-", "_") for name, _ in PIN.findall(pinned)))
    built = tools.run("python", str(tree.ROOT / "tools" / "build_wheel.py"), str(tmp_path / "dist"), cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert Path(built.stdout.strip()).read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_what_the_packages_hold(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    roots = [tree.ROOT / root for root in tree.SOURCE_ROOTS]
    sources = {
        path.relative_to(root).as_posix() for root in roots for path in tree.files() if path.is_relative_to(root)
    }
    # The local folder is within infra, whose other files belong to the deployment.
    assert sources <= names
    deployment = {f"tenuto_cli/sam/data/{name}" for name in PLACES if name != TABLE}
    assert {name for name in names if ".dist-info/" not in name} - sources == {TABLE_IN_WHEEL, *deployment}


def test_a_service_runs_from_the_wheel(bare: Bare, tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(SERVICE, "utf-8")
    ended = bare.run("python", "-c", ASKED, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["file"].startswith(str(bare.packages))
    assert [path for path in found["path"] if path.startswith(str(tree.ROOT)) and ".venv" not in path] == []
    assert [service["name"] for service in found["services"]] == ["greeter"]


TESTED = """
from greeter import greet, greeter
from tenuto.testing import Environment

with Environment(greeter, topics={"names": greet}) as env:
    print(env.call(greet, "k", "Ann").result())
"""


def test_the_test_kit_needs_no_extra(sdk_alone: Bare, tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(SERVICE, "utf-8")
    ended = sdk_alone.run("python", "-c", TESTED, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "Hello, Ann\n"), ended.stderr


def test_the_version_is_said(bare: Bare, tmp_path: Path) -> None:
    version = tomllib.loads((tree.ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    ended = bare.run("tenuto", "--version", cwd=tmp_path)
    assert (ended.returncode, ended.stdout.split()[:2]) == (0, ["tenuto", version])


def processor_seconds_of_children() -> float:
    """What all processes took that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_names_every_command(sdk_alone: Bare, tmp_path: Path) -> None:
    took_s = []
    ended = None
    for _ in range(HELP_TRIES):
        begun_s = processor_seconds_of_children()
        ended = sdk_alone.run("tenuto", "--help", cwd=tmp_path)
        took_s.append(processor_seconds_of_children() - begun_s)
    assert ended is not None
    assert ended.returncode == 0
    assert [name for name in (command.name for command in COMMANDS) if f"\n  {name} " not in ended.stdout] == []
    # Time of the processor, and the best of them: whatever else the machine does slows down the others.
    assert min(took_s) < HELP_SECONDS_MAX


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.extras], ids=lambda one: one.name)
def test_a_missing_extra_is_named_in_one_line(sdk_alone: Bare, tmp_path: Path, command: Command) -> None:
    (tmp_path / "tenuto.toml").write_text('[functions.f]\n[encryption]\nkms_key_id = "alias/k"\n', "utf-8")
    (tmp_path / "greeter.py").write_text(SERVICE, "utf-8")
    arguments = NEEDED_ARGUMENTS.get(command.name, ())
    ended = sdk_alone.run("tenuto", command.name, *arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.strip()
    assert re.fullmatch(r"tenuto: [\w-]+ needs the extra '\w+', which is not installed .*", line), line
    assert f'pip install "tenuto[{",".join(command.extras)}' in line


NEEDED_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "send": ("t", "k", "v", "--kafka", "127.0.0.1:1"),
    "tail": ("t", "--kafka", "127.0.0.1:1"),
    "journal": ("greeter/ann",),
    "set-aside": ("list", "greeter/ann"),
}
"""By command: what it cannot do without."""


def test_every_extra_is_known_by_what_it_brings() -> None:
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    brought = importlib.metadata.packages_distributions()
    for extra, requirements in project["optional-dependencies"].items():
        wanted = {Requirement(line).name.lower().replace("_", "-") for line in requirements}
        known = {
            distribution.lower().replace("_", "-")
            for package in IMPORTED_BY.get(extra, ())
            for distribution in brought.get(package, [])
        }
        assert wanted <= known, f"the extra {extra} brings {wanted - known}, which tenuto_cli.commands does not know"


def test_a_project_is_deployed_from_the_wheel(bare: Bare, tmp_path: Path) -> None:
    """The templates are in the wheel, and what is written is what the repository writes."""
    installed, repository = write_project(tmp_path / "a" / "shop"), write_project(tmp_path / "b" / "shop")
    ended = bare.run("tenuto", "sam", "--quiet", cwd=installed)
    assert ended.returncode == 0, ended.stderr
    assert main(["sam", str(repository), "--quiet"]) == 0
    for path in (repository / "deploy").rglob("*"):
        if path.is_file():
            assert (installed / path.relative_to(repository)).read_bytes() == path.read_bytes(), path.name
