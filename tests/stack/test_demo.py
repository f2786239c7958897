"""The commands a person types, as processes: `demo` and `dev`.

Owns that they end as they promise and leave nothing behind. Does not own what the examples do.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenuto_local.system import import_path
from tests.support.programs import Program

pytestmark = [pytest.mark.stack, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
DEMO_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 25.0
ANY_PORTS = ("--http-port", "0", "--kafka-port", "0", "--aws-port", "0")


class Command(Program):
    """One command in a process group of its own, with a temporary directory of its own."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self.temporary = tmp_path / "tmp"
        self.temporary.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": import_path("tenuto", "tenuto_control", "tenuto_local", "tenuto_cli"),
            "TMPDIR": str(self.temporary),
        }
        super().__init__([sys.executable, "-m", *arguments], tmp_path / "output.log", cwd=ROOT, env=environment)


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        command.close()


def descendants(pid: int) -> set[int]:
    """The living descendants of a process."""
    found: set[int] = set()
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            found |= {child} | descendants(child)
    return found


def post(url: str, body: bytes = b"") -> bytes:
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=STOP_TIMEOUT_S) as answer:
        found: bytes = answer.read()
        return found


def test_the_demo_agrees_with_the_truth(tmp_path: Path, commands: list[Command]) -> None:
    demo = Command(tmp_path, "tenuto_local.demo", "--no-live", "--events", "60")
    commands.append(demo)
    status = demo.wait(DEMO_TIMEOUT_S)
    assert status == 0, demo.output
    for promised in (
        r"Java \d+ ✓ Maven ✓",
        r"^up after [\d.]+ s:",
        r"not ready, sleeps until [\d:.]+ with \d+ later events queued; \d+ neighbours run",
        r"function process \d+ killed after step 2",
        r"went on at step 3 in another process; step 2 ran once",
        r"^user_updates +24 +\d+ +0 +0 +0 +0$",
        r"^profile_enricher +24 +\d+ +0 +0 +0 +0$",
        r"^food_order +12 +\d+ +0 +0 +0 +0$",
        r"^DynamoDB writes per event: [\d.]+, by the cost table [\d.]+",
        r"^no difference",
        r"^  tenuto send user-updates ann ",
        r"^  tenuto call userUpdates ann update_user_event ",
        r"examples/user_updates/handler.py$",
    ):
        assert re.search(promised, demo.output, re.MULTILINE), f"no {promised!r}:\n{demo.output}"
    assert list(demo.temporary.iterdir()) == []


@pytest.mark.parametrize("moment", [r"^tenuto demo", r"the stack is up", r"sent \d+ of"])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, commands: list[Command], moment: str) -> None:
    demo = Command(tmp_path, "tenuto_local.demo", "--no-live", "--events", "60")
    commands.append(demo)
    demo.shows(moment)
    children = descendants(demo.pid)
    status = demo.interrupt(STOP_TIMEOUT_S)
    assert status == 130, demo.output
    assert "Traceback" not in demo.output
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert list(demo.temporary.iterdir()) == []


def test_dev_serves_an_example_until_it_is_interrupted(tmp_path: Path, commands: list[Command]) -> None:
    folder = tmp_path / "enricher"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "profile_enricher" / "tenuto.toml", folder)
    dev = Command(tmp_path, "tenuto_cli", "dev", str(folder), *ANY_PORTS)
    commands.append(dev)
    ingress = dev.shows(r"HTTP (\S+)").group(1)
    assert post(f"{ingress}/call/profile/ann/user_event", b'{"id": "ann", "name": "Ann"}') == b""
    assert b'"Ann"' in post(f"{ingress}/call/profile/ann/show")
    children = descendants(dev.pid)
    assert children
    assert dev.interrupt(STOP_TIMEOUT_S) == 130
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert list(dev.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "complaint"),
    [("examples/nowhere", "no such folder"), ("examples", "there is no tenuto.toml")],
)
def test_dev_says_what_a_project_is(tmp_path: Path, commands: list[Command], folder: str, complaint: str) -> None:
    dev = Command(tmp_path, "tenuto_cli", "dev", folder)
    commands.append(dev)
    assert dev.wait(STOP_TIMEOUT_S) == 2
    assert complaint in dev.output
    assert "Traceback" not in dev.output
