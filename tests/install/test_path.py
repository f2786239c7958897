"""The way of somebody new: from an empty folder and the wheel to a running project, and through a restart of it.

Owns the walk: init, the project's own tests, dev, send, call, a change of code while an invocation waits, a restart,
and the end of that invocation. `sam build` of such a project is in `tests/sam`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.environment import Bare, outside

pytestmark = [pytest.mark.stack, pytest.mark.slow]

START_SECONDS_MAX = 90.0
EVENTUALLY_S = 40.0
POLL_S = 0.1
ANY_PORTS = ("--http-port", "0", "--kafka-port", "0", "--aws-port", "0")


class Walk:
    """One project in an empty folder, with the commands of the environment."""

    def __init__(self, bare: Bare, folder: Path) -> None:
        self.bare = bare
        self.folder = folder
        self.project = folder / "shop"
        self._dev: subprocess.Popen[str] | None = None

    def tenuto(self, *arguments: str) -> str:
        ended = self.bare.run("tenuto", *arguments, cwd=self.project if self.project.exists() else self.folder)
        assert ended.returncode == 0, f"{arguments}: {ended.stderr}{ended.stdout}"
        return ended.stdout.strip()

    def start(self) -> dict[str, str]:
        """Start `tenuto dev`; what it says of itself to scripts."""
        self._dev = subprocess.Popen(
            [str(self.bare.bin / "tenuto"), "dev", "--json", *ANY_PORTS],
            cwd=self.project,
            env=outside(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._dev.stdout is not None
        found: dict[str, str] = json.loads(self._dev.stdout.readline())
        return found

    def stop(self) -> str:
        """Ctrl-C; the rest of what was said."""
        dev, self._dev = self._dev, None
        if dev is None:
            return ""
        dev.send_signal(signal.SIGINT)
        output, _ = dev.communicate(timeout=EVENTUALLY_S)
        assert dev.returncode == 130, output
        return output

    def until(self, wanted: str, *arguments: str) -> None:
        """Ask again until this is the answer."""
        deadline = time.monotonic() + EVENTUALLY_S
        while (answer := self.tenuto(*arguments)) != wanted:
            assert time.monotonic() < deadline, f"{arguments} answers {answer!r} and not {wanted!r}"
            time.sleep(POLL_S)


@pytest.fixture
def walk(bare: Bare, tmp_path: Path) -> Iterator[Walk]:
    made = Walk(bare, tmp_path)
    yield made
    made.stop()


def test_from_an_empty_folder_through_a_restart(walk: Walk) -> None:
    assert "Next:" in walk.tenuto("init", "shop", "--template", "workflow")
    walk.bare.install("--no-deps", "--no-build-isolation", "--editable", str(walk.project), wheels=walk.folder)
    tested = walk.bare.run("python", "-m", "pytest", "-q", cwd=walk.project)
    assert tested.returncode == 0, tested.stdout + tested.stderr

    found = walk.start()
    assert found["project"] == str(walk.project)
    assert walk.tenuto("send", "purchases", "p-1", '{"item": "a chair", "price": 80}').startswith("sent 1 record")
    walk.until('"waiting"', "call", "purchase", "p-1", "status")

    # While it waits, its code changes and everything is started anew.
    handlers = walk.project / "src" / "shop" / "handlers.py"
    handlers.write_text(handlers.read_text("utf-8").replace('"approved"', '"approved at last"'), "utf-8")
    output = walk.stop()
    assert "Traceback" not in output
    walk.start()
    record = json.loads(walk.tenuto("tail", "decisions-wanted", "--json", "--count", "1"))
    callback = json.loads(record["value"])["callback"]
    assert walk.tenuto("call", "purchase", "p-1", "status") == '"waiting"'
    walk.tenuto("resolve", callback, "true")
    walk.until('"approved at last"', "call", "purchase", "p-1", "status")
    assert "Traceback" not in walk.stop()
