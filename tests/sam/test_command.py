"""`tenuto sam` on a project's folder: it writes what differs, says so, and touches nothing of the project's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenuto_cli.program import main
from tenuto_cli.sam.rendering import PLACES, WRITTEN_BY
from tests.sam.project import CODE, write_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_project(tmp_path / "my shop"))
    return Path.cwd()


def test_all_is_written_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sam", "--check"]) == 1
    assert not (project / "deploy").exists()
    assert main(["sam"]) == 0
    written = {path.relative_to(project / "deploy").as_posix() for path in (project / "deploy").rglob("*.*")}
    assert written | {"lambda/Makefile", "Dockerfile"} == set(PLACES.values())
    assert "Name: my-shop\n" in (project / "template.yaml").read_text("utf-8")
    capsys.readouterr()
    assert main(["sam"]) == 0
    assert capsys.readouterr().out == "deploy is up to date\n"
    assert main(["sam", "--check"]) == 0
    assert capsys.readouterr().out == "deploy is up to date\n"


def test_a_difference_is_shown_and_the_projects_own_files_stay(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sam"])
    (project / "template.yaml").write_text("# mine\n", "utf-8")
    text = (project / "tenuto.toml").read_text("utf-8")
    (project / "tenuto.toml").write_text(text.replace("memory_mb = 256", "memory_mb = 384"), "utf-8")
    (project / "deploy" / "old.yaml").write_text(f"# {WRITTEN_BY}\n", "utf-8")
    (project / "deploy" / "notes.md").write_text("mine\n", "utf-8")
    capsys.readouterr()
    assert main(["sam"]) == 0
    said = capsys.readouterr().out
    assert "    -      MemorySize: 256\n    +      MemorySize: 384\n" in said
    assert "  changed  deploy/functions.yaml\n" in said
    assert "  removed  deploy/old.yaml\n" in said
    assert (project / "template.yaml").read_text("utf-8") == "# mine\n"
    assert (project / "deploy" / "notes.md").exists()
    assert not (project / "deploy" / "old.yaml").exists()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('handler = "shop.app:mailer"\n', "", 'functions.mailer: say where its code is: handler = "module:name"'),
        ("shop.app:mailer", "post.app:mailer", "functions.mailer.handler: there is neither post.py nor a package post"),
        ("shop.app:mailer", "shop.app:nothing", "AttributeError: module 'shop.app' has no attribute 'nothing'"),
        ("shop.app:mailer", "shop.app:CODE", "AttributeError: "),
        ("[functions.mailer]", "[functions.dispatcher]", "the deployment has a dispatcher of its own"),
        ('parameter = "QueueUrl"', 'parameter = "Name"', "the deployment has a parameter Name of its own"),
        ("timeout_s = 33", "timeout_s = 0", "functions.mailer.timeout_s: expected"),
    ],
)
def test_a_mistake_is_one_message(
    project: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, problem: str
) -> None:
    text = (project / "tenuto.toml").read_text("utf-8")
    (project / "tenuto.toml").write_text(text.replace(old, new), "utf-8")
    assert main(["sam"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tenuto sam: ")
    assert problem in said
    assert "Traceback" not in said
    assert not (project / "deploy").exists()


def test_a_folder_that_cannot_be_written_is_one_message(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "deploy").write_text("a file", "utf-8")
    assert main(["sam", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said == "tenuto sam: deploy cannot be read or written: File exists\n"


def test_code_that_cannot_be_imported_is_named_by_its_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "src" / "shop" / "app.py").write_text("import absent_library\n", "utf-8")
    assert main(["sam"]) == 2
    said = capsys.readouterr().err
    assert 'src/shop/app.py", line 1' in said
    assert "No module named 'absent_library'" in said
    assert "importlib" not in said


def test_what_is_no_handler_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "src" / "shop" / "app.py").write_text(CODE + "\ndef mailer(event, context):\n    return 1\n", "utf-8")
    assert main(["sam"]) == 2
    assert "shop.app:mailer is not a tenuto handler: write aws.handler(...)" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/tmp/elsewhere", "../elsewhere", "."])
def test_nothing_is_written_outside_the_project(project: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    assert main(["sam", "--out", out]) == 2
    assert "is not a folder inside the project" in capsys.readouterr().err
    assert {path.name for path in project.iterdir()} == {"src", "tenuto.toml"}


def test_a_folder_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sam", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "tenuto.toml: no such file; write one" in said
    assert main(["sam", "nofolder"]) == 2
    said += capsys.readouterr().err
    assert "there is no folder nofolder" in said
    assert "--config" not in said


@pytest.mark.parametrize(
    ("requirements", "missing"),
    [
        (None, "httpx, zope.interface"),
        ("# nothing yet\n", "httpx, zope.interface"),
        ("HTTPX==0.28.1 \\\n    --hash=sha256:00\n", "zope.interface"),
        ("httpx\nzope-interface>=7 # both\n", ""),
        ("-r more.txt\n", ""),
    ],
)
def test_dependencies_that_aws_would_miss_are_told(
    project: Path, capsys: pytest.CaptureFixture[str], requirements: str | None, missing: str
) -> None:
    declared = ["tenuto[pydantic]", "boto3", "httpx>=0.28", "zope.interface ; python_version > '3'"]
    (project / "pyproject.toml").write_text(f"[project]\nname = 'shop'\ndependencies = {declared}\n", "utf-8")
    if requirements is not None:
        (project / "requirements.txt").write_text(requirements, "utf-8")
    assert main(["sam", "--quiet"]) == 0
    said = capsys.readouterr().err
    if missing:
        assert said.startswith(f"tenuto sam: warning: the deployed functions will be without {missing}, which")
        assert said.count("\n") == 1
    else:
        assert said == ""


@pytest.mark.parametrize("text", ["not = [toml", "[tool.x]\n", "project = 1\n", "[project]\ndependencies = 7\n"])
def test_a_project_file_that_names_no_dependencies_is_none_of_its_concern(
    project: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (project / "pyproject.toml").write_text(text, "utf-8")
    assert main(["sam", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
