"""How long a save takes to be in force under `tenuto dev`, while another function is called without a pause.

    python -m tests.stack.reload [--saves 10] [--callers 4]

Owns the measurement: from the moment a file is saved to the first answer of the new code. Does not own what is fast
enough: `test_reload` holds that no call of the other function fails, and that it stays in its process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from tenuto_control.arguments import whole
from tenuto_local.system import import_path
from tests.support.programs import Program

START_SECONDS_MAX: Final = 90.0
ANSWER_SECONDS_MAX: Final = 30.0
LOOK_S: Final = 0.01
END_SECONDS_MAX: Final = 30.0

CONFIG: Final = """
[functions.changed]
handler = "shop.changed:handler"

[functions.other]
handler = "shop.other:handler"
concurrency = 2
"""
CODE: Final = """
import os

from tenuto import Context, Service, aws
{imported}

{name} = Service("{name}")


@{name}.handler()
async def look(ctx: Context) -> list[int]:
    return [{value}, os.getpid()]


handler = aws.handler({name})
"""


@dataclass
class Measured:
    """Seconds of each save, and the calls of the other function meanwhile."""

    saves_s: list[float] = field(default_factory=list)
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    processes: set[int] = field(default_factory=set)

    def line(self) -> str:
        """For a person."""
        return (
            f"{len(self.saves_s)} saves in force after {median(self.saves_s):.2f} s (median), {max(self.saves_s):.2f} "
            f"s (most); meanwhile {self.calls} calls of the other function, {len(self.failures)} of them failed, in "
            f"{len(self.processes)} processes"
        )


def measured(folder: Path, saves: int, callers: int) -> Measured:
    """Measure in a folder, in which a project is made."""
    package = folder / "src" / "shop"
    package.mkdir(parents=True)
    (folder / "tenuto.toml").write_text(CONFIG, "utf-8")
    changed = CODE.format(name="changed", imported="\nfrom shop.version import VERSION", value="VERSION")
    for name, text in (
        ("__init__", ""),
        ("version", "VERSION = 0\n"),
        ("changed", changed),
        ("other", CODE.format(name="other", imported="", value="0")),
    ):
        (package / f"{name}.py").write_text(text, "utf-8")
    with _session(folder) as ingress:
        found = Measured()
        with _calls(found, ingress, callers):
            for number in range(1, saves + 1):
                began_s = time.monotonic()
                (package / "version.py").write_text(f"VERSION = {number}\n", "utf-8")
                _wait_for(ingress, number)
                found.saves_s.append(time.monotonic() - began_s)
        return found


@contextmanager
def _session(folder: Path) -> Iterator[str]:
    """A running session; where calls go."""
    environment = {**os.environ, "PYTHONPATH": import_path("tenuto", "tenuto_control", "tenuto_local", "tenuto_cli")}
    ports = ("--http-port", "0", "--kafka-port", "0", "--aws-port", "0")
    command = [sys.executable, "-m", "tenuto_cli", "dev", "--json", *ports]
    dev = Program(command, folder.parent / f"{folder.name}.log", cwd=folder, env=environment)
    try:
        yield str(json.loads(dev.shows(r"^\{.*\}$", START_SECONDS_MAX).group())["ingress"])
        assert dev.interrupt(END_SECONDS_MAX) == 130, dev.output
    finally:
        dev.close()


@contextmanager
def _calls(found: Measured, ingress: str, callers: int) -> Iterator[None]:
    """Call the other function from so many threads, one call after the other."""
    over, lock = threading.Event(), threading.Lock()

    def call() -> None:
        while not over.is_set():
            try:
                process = _look(ingress, "other")[1]
            except (OSError, ValueError) as error:
                with lock:
                    found.failures.append(str(error))
            else:
                with lock:
                    found.calls += 1
                    found.processes.add(process)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(ANSWER_SECONDS_MAX)


def _look(ingress: str, service: str) -> list[int]:
    """Raises OSError when the call fails."""
    request = urllib.request.Request(f"{ingress}/call/{service}/look", b"", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as answer:
            found: list[int] = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        raise OSError(f"{error.code}: {error.read()[:200]!r}") from error


def _wait_for(ingress: str, version: int) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    while _look(ingress, "changed")[0] != version:
        assert time.monotonic() < deadline, f"not in {ANSWER_SECONDS_MAX} s"
        time.sleep(LOOK_S)


def main() -> None:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description="Measure how long a save takes to be in force under tenuto dev.")
    parser.add_argument("--saves", type=whole(1, 10_000_000), default=10)
    parser.add_argument("--callers", type=whole(1, 10_000_000), default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(measured(Path(folder) / "project", options.saves, options.callers).line())


if __name__ == "__main__":
    main()
