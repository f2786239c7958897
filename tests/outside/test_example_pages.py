"""The commands on the examples' pages do what the pages say, against `tenuto dev` of a copy of the example.

Owns the reading of the pages: which lines are run, and what their comments promise. Does not own what an example proves
under load and faults (`tests/examples`, `test_demo`).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenuto_local.system import import_path
from tests.tidy import tree

pytestmark = [pytest.mark.stack, pytest.mark.slow]

EXAMPLES = sorted(path.parent for path in (tree.ROOT / "examples").glob("*/tenuto.toml"))
ANY_PORTS = ("--http-port", "0", "--kafka-port", "0", "--aws-port", "0")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0
EVENTUALLY_S = 40.0
POLL_S = 0.1

FENCE = re.compile(r"^```sh\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"(?P<command>.*?)(?:\s{2,}# (?P<promise>prints|fails with) (?P<words>.*))?")
AWAKEABLE = re.compile(r"awk_\w{10,}")
START = ("make dev APP=", ". .venv/bin/activate && cd ")
"""Beginnings of lines that this test carries out in its own way: they start the example, and go to its folder."""


def commands(example: Path) -> list[str]:
    """The lines of a page that talk to the running example."""
    text = (example / "README.md").read_text("utf-8")
    shown = [line for fence in FENCE.findall(text) for line in fence.splitlines() if line]
    assert [line for line in shown if line.startswith(START)] == [
        f"make dev APP=examples/{example.name}",
        f". .venv/bin/activate && cd examples/{example.name}",
    ]
    return [line for line in shown if not line.startswith(START)]


class Example:
    """A copy of an example under `tenuto dev`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder.parents[1] / "dev.log"
        self._used: set[str] = set()
        self._environment = {**os.environ, "PYTHONPATH": import_path("tenuto_local", "tenuto_cli")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tenuto_cli", "dev", *ANY_PORTS, f"examples/{folder.name}"],
                cwd=folder.parents[1],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What `tenuto dev` has printed."""
        return self._log.read_text("utf-8")

    def until_up(self) -> None:
        """Wait until it takes commands."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Its log follows" not in self.output:
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(STOP_TIMEOUT_S)

    def run(self, command: str) -> tuple[int, str]:
        """A line of the page, in a shell: its exit status, and what it printed."""
        own = f'tenuto() {{ {shlex.quote(sys.executable)} -m tenuto_cli "$@"; }}\n{command}'
        done = subprocess.run(
            ["bash", "-c", own],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=EVENTUALLY_S,
            check=False,
        )
        return done.returncode, done.stdout

    def new_awakeable(self) -> str:
        """The id of an awakeable that the log shows and no line has used."""
        deadline = time.monotonic() + EVENTUALLY_S
        found: set[str] = set()
        while not found:
            found = set(AWAKEABLE.findall(self.output)) - self._used
            assert time.monotonic() < deadline, self.output
            time.sleep(POLL_S)
        self._used |= found
        return found.pop()


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Example]:
    # Beside its own folder an example imports the ledger; `tenuto dev` writes into the folder.
    kept = shutil.ignore_patterns(".tenuto", "__pycache__", "*.sqlite")
    shutil.copytree(tree.ROOT / "examples", tmp_path / "examples", ignore=kept)
    started = Example(tmp_path / "examples" / request.param.name)
    try:
        started.until_up()
        yield started
    finally:
        started.stop()


@pytest.mark.parametrize("example", EXAMPLES, indirect=True, ids=lambda path: path.name)
def test_the_page_does_what_it_says(example: Example) -> None:
    for line in commands(tree.ROOT / "examples" / example.folder.name):
        found = LINE.fullmatch(line)
        assert found is not None
        command, promise, words = found["command"], found["promise"], found["words"]
        if "awk_..." in command:
            command = command.replace("awk_...", example.new_awakeable())
        match promise:
            case "prints":
                await_output(example, command, words)
            case "fails with":
                status, printed = example.run(command)
                assert status == 1
                assert words in printed
            case _:
                status, printed = example.run(command)
                assert status == 0, printed + example.output


def await_output(example: Example, command: str, words: str) -> None:
    """Repeat a command that only reads until it prints what the page says: records are handled a little later."""
    deadline = time.monotonic() + EVENTUALLY_S
    while True:
        status, printed = example.run(command)
        assert status == 0, printed + example.output
        if words in printed:
            return
        assert time.monotonic() < deadline, f"{command} printed {printed!r}\n{example.output}"
        time.sleep(POLL_S)


def test_every_example_has_a_page_with_commands() -> None:
    assert len(EXAMPLES) >= 5
    for example in EXAMPLES:
        lines = commands(example)
        assert [line for line in lines if not line.startswith("tenuto ")] == []
        assert len(lines) >= 3
