"""`tenuto init`: every template is a project whose own tests, lint, types and deployment are in order.

Owns what is written. Does not own a session of it (`tests/install/test_path.py`).
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenuto_cli.init import TEMPLATES, package_of, write_project
from tenuto_cli.parsing import UsageError
from tenuto_control.config import load
from tenuto_local.dev.project import read_project
from tenuto_local.system import import_path
from tests.tidy import tree
from tests.tidy.test_pages import python_fences

CHECK_SECONDS_MAX = 120


@pytest.fixture(scope="module", params=TEMPLATES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written project, by its template."""
    folder = tmp_path_factory.mktemp(request.param) / "my-shop"
    write_project(folder, request.param)
    return folder


def checked(project: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": import_path("tenuto", "tenuto_control"), "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS_MAX,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_its_own_tests_pass(project: Path) -> None:
    checked(project, "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider")


@pytest.mark.parametrize("guide", ["testing", "patterns"])
def test_tests_of_the_guides_run_in_a_project(tmp_path: Path, guide: str) -> None:
    project = tmp_path / "shop"
    write_project(project, "minimal")
    (project / "tests" / "test_handlers.py").unlink()
    fences = [code for _, code in python_fences(tree.ROOT / "docs" / "guides" / f"{guide}.md")]
    if guide == "testing":
        (project / "src" / "shop" / "handlers.py").write_text(fences.pop(0), "utf-8")
        (conftest,) = [code for code in fences if "def tenuto_services" in code]
        fences.remove(conftest)
        (project / "tests" / "conftest.py").write_text(conftest, "utf-8")
    (project / "tests" / "test_guide.py").write_text("\n\n".join(fences), "utf-8")
    # The stack that `test_an_event` starts has tests of its own.
    checked(project, "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-k", "not test_an_event")


@pytest.fixture(scope="module")
def types_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy keeps of tenuto and the standard library, which are the same for every project."""
    return tmp_path_factory.mktemp("mypy")


def test_it_is_typed_and_tidy(project: Path, types_cache: Path) -> None:
    checked(
        project, "ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,I,B,UP,RUF", "src", "tests"
    )
    checked(project, "ruff", "format", "--isolated", "--check", "--line-length", "120", "src", "tests")
    checked(project, "mypy", "--strict", "--cache-dir", str(types_cache), "src")


def test_its_configuration_names_what_is_there(project: Path) -> None:
    config = load(project / "tenuto.toml", {})
    (function,) = config.functions.values()
    assert function.handler == "my_shop.handlers:handler"
    found = read_project(project, project)
    assert found.import_path[0] == project / "src"
    assert {s.topic for s in config.subscriptions} <= set(found.topics)
    for needed in (
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "requirements.txt",
        "template.yaml",
        "samconfig.toml",
        "deploy/tenuto.yaml",
    ):
        assert (project / needed).is_file()
    left = [path for path in project.rglob("*") if path.is_file() and b"${package}" in path.read_bytes()]
    assert left == []


def test_a_place_that_takes_no_file_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for method in ("mkdir", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UsageError, match=r"shop cannot be written: .*Read-only file system.*; choose another"):
        write_project(tmp_path / "shop", "minimal")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match="not empty"):
        write_project(tmp_path / "shop", "minimal")
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("1shop", "not a valid project name"),
        ("class", "Python itself uses"),
        ("json", "Python itself uses"),
        ("a/b", "not a valid project name"),
    ],
)
def test_a_name_that_makes_no_package_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        package_of(name)
