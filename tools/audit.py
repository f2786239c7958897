# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Looks for known vulnerabilities of everything that the named locks pin, with pip-audit.

    python tools/audit.py requirements/control.txt requirements/dev.txt

Exit status 0: every pin was looked up, and nothing is known. 1: something is. 3: a pin could not be looked up, since no
database answered for it; with AUDIT_OPTIONAL=1 that is said and is no failure. Owns that difference, which pip-audit
does not make: it passes over what a package index knows no vulnerabilities of, as an index of one's own does, and then
finds nothing. Markers are left out, so that what is pinned for other platforms and interpreters is looked up as well.
Does not own the databases.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

SERVICES: Final = ("pypi", "osv")
"""pip-audit's names of its databases, in the order in which they are asked. The second is asked for what is left."""

SECONDS_MAX: Final = 300
"""How long one database may take for all pins."""

REQUEST_SECONDS_MAX: Final = 15
SHOWN_MAX: Final = 5
FOUND, UNANSWERED, USAGE = 1, 3, 2

ACCEPTED: Final[Mapping[str, str]] = {}
"""Ids of vulnerabilities that do not concern tenuto, each with the reason why not."""

PIN: Final = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.\-]*)==(?P<version>[\w.!+]+)", re.MULTILINE)
Pins: TypeAlias = Mapping[str, Sequence[str]]
"""Which locks hold a pin, which is written `name==version`."""

Ask: TypeAlias = Callable[[str, Sequence[str]], str]
"""What pip-audit, told a database and pins, writes to its standard output. Raises OSError when it does not answer."""


@dataclass(slots=True)
class Findings:
    """What is known: by pin, the vulnerabilities with the versions that end them; and the pins nobody knows of."""

    vulnerable: dict[str, list[str]] = field(default_factory=dict)
    unanswered: list[str] = field(default_factory=list)


def pins_of(locks: Sequence[Path]) -> dict[str, list[str]]:
    """Every pin, with the names of the locks that have it."""
    pins: dict[str, list[str]] = {}
    for lock in locks:
        for match in PIN.finditer(lock.read_text("utf-8")):
            pins.setdefault(f"{match['name']}=={match['version']}", []).append(lock.stem)
    return pins


def look_up(pins: Sequence[str], ask: Ask) -> Findings:
    """Ask one database after the other, until each pin has an answer."""
    findings = Findings(unanswered=sorted(pins))
    for service in SERVICES:
        if not findings.unanswered:
            break
        try:
            answer = json.loads(ask(service, findings.unanswered))
        except (OSError, ValueError):
            continue
        known = {f"{one['name']}=={one['version']}": one["vulns"] for one in answer["dependencies"] if "vulns" in one}
        for pin, vulnerabilities in known.items():
            told = [_told(one) for one in vulnerabilities if not _accepted(one)]
            if told:
                findings.vulnerable[pin] = told
        findings.unanswered = [pin for pin in findings.unanswered if _canonical(pin) not in map(_canonical, known)]
    return findings


def _canonical(pin: str) -> str:
    name, _, version = pin.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower() + "==" + version


def _accepted(vulnerability: Mapping[str, object]) -> bool:
    aliases = vulnerability.get("aliases", [])
    assert isinstance(aliases, list)
    return any(one in ACCEPTED for one in (vulnerability["id"], *aliases))


def _told(vulnerability: Mapping[str, object]) -> str:
    fixed = vulnerability.get("fix_versions", [])
    assert isinstance(fixed, list)
    return f"{vulnerability['id']} ({'fixed in ' + ', '.join(fixed) if fixed else 'no version is without it'})"


def pip_audit(service: str, pins: Sequence[str]) -> str:
    """Run pip-audit, which ends with 1 when it finds something. Raises OSError when its database does not answer."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as names:
        names.write("\n".join(pins) + "\n")
        names.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", names.name, "--no-deps", "--disable-pip"]
        options = ["--format", "json", "--aliases", "on", "--desc", "off", "--progress-spinner", "off"]
        options += ["--vulnerability-service", service, "--timeout", str(REQUEST_SECONDS_MAX)]
        options += ["--cache-dir", ".cache/pip-audit"]
        try:
            ended = subprocess.run(  # noqa: S603 - the command is this file's own
                [*command, *options], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise TimeoutError(f"{service} did not answer within {SECONDS_MAX} s") from e
    if not ended.stdout.strip():
        raise ConnectionError(ended.stderr.strip().rpartition("\n")[2])
    return ended.stdout


def report(findings: Findings, pins: Pins, *, optional: bool) -> tuple[int, list[str]]:
    """The exit status and the lines that say why."""
    lines = [
        f"audit: {pin} (in {', '.join(pins[pin])}): {'; '.join(told)}"
        for pin, told in sorted(findings.vulnerable.items())
    ]
    unanswered = findings.unanswered
    if len(unanswered) == len(pins):
        lines.append(f"audit: NOT DONE: no database of vulnerabilities answered for any of {len(pins)} packages")
    elif unanswered:
        some = ", ".join(unanswered[:SHOWN_MAX]) + (", …" if len(unanswered) > SHOWN_MAX else "")
        how_many = f"{len(unanswered)} of {len(pins)} packages"
        lines.append(f"audit: INCOMPLETE: no database of vulnerabilities answered for {how_many}: {some}")
    if findings.vulnerable:
        return FOUND, lines
    if unanswered:
        return (0 if optional else UNANSWERED), lines
    return 0, [f"audit: {len(pins)} packages, none with a known vulnerability"]


def main(arguments: Sequence[str], ask: Ask = pip_audit) -> int:
    """Audit these locks."""
    if not arguments:
        sys.stderr.write("audit: name the locks, such as requirements/control.txt\n")
        return USAGE
    pins = pins_of([Path(one) for one in arguments])
    status, lines = report(look_up(list(pins), ask), pins, optional=os.environ.get("AUDIT_OPTIONAL") == "1")
    (sys.stderr if status else sys.stdout).write("\n".join(lines) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
