"""What a machine must have besides Python: a JDK of at least version 17, and Maven to fetch the jars once.

Owns the check and the words that explain what is missing. Installs nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from tenuto_local.errors import PrerequisiteMissing

JAVA_MAJOR_MIN = 17
MAVEN = "Maven"
JAVA_VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its name, the version found ("" when there is none to show) and, if unusable, its problem."""

    name: str
    version: str
    problem: str | None
    apt_package: str
    brew_formula: str


@dataclass(frozen=True, slots=True)
class PrerequisiteReport:
    """The tools that were looked for, in the order a person would install them."""

    tools: tuple[Tool, ...]

    @property
    def line(self) -> str:
        """One line for the first second of output, such as `Java 17 ✓ Maven ✓`."""
        return " ".join(
            f"{' '.join(filter(None, (tool.name, tool.version)))} {'✗' if tool.problem else '✓'}" for tool in self.tools
        )

    def require(self, *, maven: bool = True) -> None:
        """Raise `PrerequisiteMissing`: one line with all that is missing and the command that installs it.

        With `maven` False a missing Maven is no problem, because everything was fetched before.
        """
        missing = [tool for tool in self.tools if tool.problem and (maven or tool.name != MAVEN)]
        if not missing:
            return
        if sys.platform == "darwin":
            install = "brew install " + " ".join(tool.brew_formula for tool in missing)
        else:
            install = "sudo apt-get install -y " + " ".join(tool.apt_package for tool in missing)
        problems = "; ".join(f"{tool.name}: {tool.problem}" for tool in missing)
        raise PrerequisiteMissing(f"{problems}. Install with: {install}")


def check_prerequisites() -> PrerequisiteReport:
    """Look for `java`, `javac` and `mvn` on the PATH. Takes one run of `java -version`, some 60 ms."""
    return PrerequisiteReport((_java(), _maven()))


def _java() -> Tool:
    version, problem = "", None
    if shutil.which("java") is None:
        problem = "not found"
    elif shutil.which("javac") is None:
        problem = "only a run-time environment, javac not found; a JDK is needed"
    else:
        # The version goes to standard error, as `openjdk version "17.0.15"` or, before 9, `java version
        # "1.8.0"`.
        shown = subprocess.run(
            ["java", "-version"], capture_output=True, text=True, timeout=JAVA_VERSION_TIMEOUT_S, check=False
        ).stderr
        match = re.search(r'version "(?:1\.)?(\d+)', shown)
        if match is None:
            problem = "`java -version` shows no version"
        else:
            version = match.group(1)
            if int(version) < JAVA_MAJOR_MIN:
                problem = f"version {version} is too old, {JAVA_MAJOR_MIN} or newer is needed"
    return Tool("Java", version, problem, f"openjdk-{JAVA_MAJOR_MIN}-jdk-headless", f"openjdk@{JAVA_MAJOR_MIN}")


def _maven() -> Tool:
    return Tool(MAVEN, "", None if shutil.which("mvn") else "mvn not found", "maven", "maven")
