"""Ctrl-C in the first moments of `make demo` and `make dev`: status 130, nothing said, nothing left.

Owns the moments before anything is started. What is up and running is interrupted in `tests/stack/test_demo.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.programs import Program
from tests.tidy import tree

MOMENTS_S = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45)
END_SECONDS_MAX = 60


@pytest.mark.parametrize("after_s", MOMENTS_S)
@pytest.mark.parametrize(
    "command", [["tenuto_local.demo"], ["tenuto_cli", "dev", "examples/food_order"]], ids=["demo", "dev"]
)
def test_an_early_interrupt_is_quiet(command: list[str], after_s: float, tmp_path: Path) -> None:
    """As `make` runs them. The interpreter's own start and the imports are among the moments."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = ["sh", str(tree.ROOT / "tools" / "run.sh"), sys.executable, "-m", *command]
    program = Program(command, tmp_path / "log", cwd=tree.ROOT, env={**os.environ, "TMPDIR": str(folder)})
    time.sleep(after_s)
    program.send_to_group(signal.SIGINT)
    assert program.wait(END_SECONDS_MAX) == 130, program.output
    assert "Traceback" not in program.output
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("status", [0, 1, 3])
def test_the_launcher_hands_on_the_status(status: int) -> None:
    command = ["sh", str(tree.ROOT / "tools" / "run.sh"), sys.executable, "-c", f"import sys; sys.exit({status})"]
    assert subprocess.run(command, timeout=END_SECONDS_MAX, check=False).returncode == status


def test_a_second_interrupt_does_not_end_the_clean_up(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    time.sleep(0.5)\n    print('clean')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\nprint('up', flush=True)\ntime.sleep(30)\n"
    )
    program = Program(["sh", str(tree.ROOT / "tools" / "run.sh"), sys.executable, "-c", code], tmp_path / "log")
    program.shows("^up$")
    for _ in range(3):
        program.send_to_group(signal.SIGINT)
        time.sleep(0.05)
    assert program.wait(END_SECONDS_MAX) == 130
    assert program.output == "up\nclean\n"
