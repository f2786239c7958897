"""Dependencies of a project that its deployed functions would lack.

Owns the comparison of `pyproject.toml` with `requirements.txt`, which is what `sam build` installs. Pure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Final

PRESENT: Final = frozenset({"tenuto", "msgspec", "boto3", "botocore"})
"""What every function has: the SDK and what it brings, and what Lambda's runtime holds."""

_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_ELSEWHERE: Final = re.compile(r"\s*(-|\.|/|\S+://)")
"""A line of `requirements.txt` that names other files, folders or addresses: what they bring cannot be told from it."""


def left_out(pyproject: str, requirements: str) -> list[str]:
    """Return the packages of `[project] dependencies` that `requirements.txt` lacks; none if either cannot be read."""
    lines = [
        line for line in requirements.splitlines() if line.strip() and not line.lstrip().startswith(("#", "--hash"))
    ]
    if any(_ELSEWHERE.match(line) for line in lines):
        return []
    there = {_normal(name) for name in _names(lines)}
    return [name for name in _names(_declared(pyproject)) if _normal(name) not in there | PRESENT]


def _declared(pyproject: str) -> list[str]:
    try:
        project = tomllib.loads(pyproject).get("project", {})
    except tomllib.TOMLDecodeError:
        return []
    declared = project.get("dependencies", []) if isinstance(project, dict) else []
    return [one for one in declared if isinstance(one, str)] if isinstance(declared, list) else []


def _names(lines: list[str]) -> Iterator[str]:
    return (found[1] for found in map(_NAME.match, lines) if found is not None)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
