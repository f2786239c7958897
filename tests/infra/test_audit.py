"""`make audit`: what is known of a pin fails it, what nobody could be asked about is not taken for harmless.

Owns the behaviour of `tools/audit.py`, with a stand-in for pip-audit's databases. Does not own pip-audit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tidy import tree
from tools import audit

HASH = "    --hash=sha256:" + "0" * 64 + "\n"
LOCK = f"jinja2==2.10 \\\n{HASH}msgspec==0.22.0 ; sys_platform == 'win32' \\\n{HASH}"
FLAW = {"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": ["CVE-2019-10906"]}
Answers = Mapping[str, Mapping[str, list[dict[str, Any]]] | Exception]


@pytest.fixture
def locks(tmp_path: Path) -> list[str]:
    """Two locks, one of which holds what the other does."""
    for name, text in (("control.txt", LOCK), ("function.txt", LOCK.splitlines(keepends=True)[2])):
        (tmp_path / name).write_text(text, "utf-8")
    return [str(tmp_path / name) for name in ("control.txt", "function.txt")]


def databases(asked: list[tuple[str, list[str]]], answers: Answers) -> Callable[[str, Sequence[str]], str]:
    """pip-audit before these databases: each knows some packages by name, or does not answer."""

    def ask(service: str, pins: Sequence[str]) -> str:
        asked.append((service, list(pins)))
        known = answers[service]
        if isinstance(known, Exception):
            raise known
        found: list[dict[str, Any]] = []
        for name, _, version in (pin.partition("==") for pin in pins):
            if name in known:
                found.append({"name": name, "version": version, "vulns": known[name]})
            else:
                found.append({"name": name, "skip_reason": "Dependency not found on PyPI and could not be audited"})
        return json.dumps({"dependencies": found, "fixes": []})

    return ask


def run(locks: list[str], answers: Answers) -> tuple[int, list[tuple[str, list[str]]]]:
    """Audit the locks; the status, and who was asked about what."""
    asked: list[tuple[str, list[str]]] = []
    return audit.main(locks, databases(asked, answers)), asked


def test_nothing_is_found(locks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, asked = run(locks, {"pypi": {"jinja2": [], "msgspec": []}})
    assert status == 0
    # What is pinned for another platform is looked up here as well, and what two locks have only once.
    assert asked == [("pypi", ["jinja2==2.10", "msgspec==0.22.0"])]
    assert capsys.readouterr().out == "audit: 2 packages, none with a known vulnerability\n"


@pytest.mark.parametrize("optional", ["", "1"])
def test_a_known_vulnerability_fails_it_always(
    locks: list[str], optional: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_OPTIONAL", optional)
    status, _ = run(locks, {"pypi": {"jinja2": [FLAW], "msgspec": []}})
    assert status == 1
    assert capsys.readouterr().err == "audit: jinja2==2.10 (in control): PYSEC-2019-217 (fixed in 2.10.1)\n"
    status, _ = run(locks, {"pypi": {"msgspec": [FLAW | {"fix_versions": []}]}, "osv": ConnectionError()})
    assert status == 1
    assert "msgspec==0.22.0 (in control, function): PYSEC-2019-217 (no version" in capsys.readouterr().err


@pytest.mark.parametrize("away", [ConnectionError("no route"), TimeoutError(), ValueError("no JSON")])
def test_a_database_that_does_not_answer_is_not_taken_for_a_good_answer(
    locks: list[str], away: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUDIT_OPTIONAL", raising=False)
    status, asked = run(locks, {"pypi": away, "osv": away})
    assert status == 3
    assert [service for service, _ in asked] == ["pypi", "osv"]
    assert capsys.readouterr().err == "audit: NOT DONE: no database of vulnerabilities answered for any of 2 packages\n"
    monkeypatch.setenv("AUDIT_OPTIONAL", "1")
    assert run(locks, {"pypi": away, "osv": away})[0] == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "NOT DONE" in line


def test_an_index_that_knows_no_vulnerabilities_is_no_database(
    locks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip-audit itself ends well there, as if everything had been looked up."""
    monkeypatch.delenv("AUDIT_OPTIONAL", raising=False)
    assert run(locks, {"pypi": {}, "osv": ConnectionError()})[0] == 3


def test_a_second_database_is_asked_for_what_is_left(locks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, asked = run(locks, {"pypi": {"msgspec": []}, "osv": {"jinja2": [FLAW]}})
    assert status == 1
    assert asked[1] == ("osv", ["jinja2==2.10"])
    status, _ = run(locks, {"pypi": {"msgspec": []}, "osv": {"jinja2": []}})
    assert status == 0


def test_an_answer_for_a_part_is_said_to_be_one(
    locks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUDIT_OPTIONAL", raising=False)
    status, _ = run(locks, {"pypi": {"msgspec": []}, "osv": {}})
    assert status == 3
    assert (
        "INCOMPLETE: no database of vulnerabilities answered for 1 of 2 packages: jinja2==2.10"
        in capsys.readouterr().err
    )


def test_what_was_accepted_for_a_reason_fails_nothing(locks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-2019-10906": "no template comes from outside"})
    assert run(locks, {"pypi": {"jinja2": [FLAW], "msgspec": []}})[0] == 0


def test_pip_audit_is_asked_as_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    written: list[str] = []
    output = json.dumps({"dependencies": []})

    def ran(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        written.append(Path(command[command.index("--requirement") + 1]).read_text("utf-8"))
        return subprocess.CompletedProcess(command, 1, output, "INFO\nConnectionError: no route\n")

    monkeypatch.setattr(subprocess, "run", ran)
    assert audit.pip_audit("osv", ["jinja2==2.10"]) == output
    assert seen[0][:3] == [sys.executable, "-m", "pip_audit"]
    assert {"--no-deps", "--disable-pip", "osv", "json"} <= set(seen[0])
    assert written == ["jinja2==2.10\n"]
    output = ""
    with pytest.raises(ConnectionError, match="no route"):
        audit.pip_audit("pypi", ["jinja2==2.10"])


def test_every_lock_of_what_is_deployed_is_audited() -> None:
    makefile = (tree.ROOT / "Makefile").read_text("utf-8")
    audited = re.search(r"^AUDITED := (.+)$", makefile, re.MULTILINE)
    assert audited is not None
    assert {"control", "function", "function_kms", "dev"} <= set(audited[1].split())
    pins = audit.pins_of([tree.ROOT / "requirements" / f"{name}.txt" for name in audited[1].split()])
    assert {"control", "dev"} <= set(next(locks for pin, locks in pins.items() if pin.startswith("aiokafka==")))
    assert "AUDIT_OPTIONAL=1 step audit" in (tree.ROOT / ".ci" / "run").read_text("utf-8")


def test_without_locks_it_says_so() -> None:
    assert audit.main([]) == 2
