"""The way of somebody new, step by step: from an empty folder and the wheel to a project that outlives a restart.

Owns the steps: init, its own tests, dev, send, call, a change of code while an invocation waits, a restart, and
the end of that invocation. Does not own where the walk ends.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.install.environment import Bare, outside
from tests.support.programs import Program

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
        self._dev: Program | None = None

    def tenuto(self, *arguments: str) -> str:
        ended = self.bare.run("tenuto", *arguments, cwd=self.project if self.project.exists() else self.folder)
        assert ended.returncode == 0, f"{arguments}: {ended.stderr}{ended.stdout}"
        return ended.stdout.strip()

    def start(self) -> dict[str, str]:
        """Start `tenuto dev`; what it says of itself to scripts."""
        command = [str(self.bare.bin / "tenuto"), "dev", "--json", *ANY_PORTS]
        dev = self._dev = Program(command, self.folder / "dev.log", cwd=self.project, env=outside())
        said = dev.shows(r"^\{.*\}$", START_SECONDS_MAX)
        found: dict[str, str] = json.loads(said.group())
        return found

    def stop(self) -> str:
        """Ctrl-C; everything that was said."""
        dev, self._dev = self._dev, None
        assert dev is not None, "dev was not started"
        assert dev.interrupt(EVENTUALLY_S) == 130, dev.output
        return dev.output

    def close(self) -> None:
        """Leave nothing, however the walk has ended."""
        if self._dev is not None:
            self._dev.close()

    def until(self, wanted: str, *arguments: str) -> None:
        """Ask again until this is the answer."""
        deadline = time.monotonic() + EVENTUALLY_S
        while (answer := self.tenuto(*arguments)) != wanted:
            assert time.monotonic() < deadline, f"{arguments} answers {answer!r} and not {wanted!r}"
            time.sleep(POLL_S)


def made(walk: Walk) -> None:
    """From nothing to a project whose tests pass."""
    assert "Next:" in walk.tenuto("init", "shop", "--template", "workflow")
    walk.bare.install("--no-deps", "--no-build-isolation", "--editable", str(walk.project), wheels=walk.folder)
    tested = walk.bare.run("python", "-m", "pytest", "-q", cwd=walk.project)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def through_a_restart(walk: Walk) -> None:
    """From a record to the end of its invocation, with new code and a restart in between."""
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
