"""A bare environment with the wheel in it: made in two seconds, without a network.

Owns the building of the wheel and the environment. What the wheel requires is taken from the environment at work, by
links, all but tenuto itself: so `pip` resolves the extras as anywhere else, and nothing leads to the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from tools import build_wheel

COMMAND_SECONDS_MAX = 120


class Bare:
    """A virtual environment. `bin` holds its programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        self._links = folder / "others"
        self._links.mkdir()

    @property
    def packages(self) -> Path:
        """Where its packages are installed."""
        return next((self.folder / "lib").glob("python*")) / "site-packages"

    def offer(self, *names: str) -> None:
        """Make installed distributions visible by the first word of their entries; without names, all but tenuto."""
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            offered = entry.name.startswith(names) if names else True
            if offered and entry.suffix != ".pth" and not entry.name.startswith(("tenuto", "_tenuto")):
                (self._links / entry.name).symlink_to(entry)
        (self.packages / "others.pth").write_text(f"{self._links}\n", "utf-8")

    def install(self, *requirements: str, wheels: Path) -> None:
        """Install from a folder of wheels and what was offered. Fails when something else would be needed."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        run([*pip, "install", "--quiet", "--no-index", "--find-links", str(wheels), *requirements])

    def run(
        self, *command: str, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs outside of the repository; its output is in the result."""
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=cwd,
            env=outside() | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )


def outside() -> dict[str, str]:
    """This process's environment without what would lead a program to the repository."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def built_wheel(folder: Path) -> Path:
    """The wheel of this checkout."""
    return build_wheel.build(folder)


def run(command: list[str]) -> None:
    """Run a command, whose complaint becomes the test's."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stderr or ended.stdout}"
