"""Rules for what is installed: a lock true to its sources, no download hosts, functions that import little.

Owns the packaging promises. Does not own the import contracts between packages; import-linter keeps those.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy import tree

IMPORT_SECONDS_MAX: Final = 60

# What would make a cold start slow, or does not belong in a function at all. The AWS client is imported at
# the first durable write, pydantic and Mangum when a handler or an event asks for them.
HEAVY: Final = ("aiobotocore", "aiohttp", "aiokafka", "boto3", "botocore", "mangum", "pydantic", "starlette")

DOWNLOAD_HOST: Final = re.compile(
    r"--(extra-)?index-url|\"resolved\"\s*:|https?://[^\s\"']+\.(whl|tgz|jar|crate|deb|tar\.gz)\b"
)
REQUIREMENT_LINE: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.\-]*)==(?P<version>[\w.!+]+)(?P<marker> ; [^\\]+)? \\"
    r"|    --hash=sha256:[0-9a-f]{64}( \\)?"
)


def wanted() -> list[Requirement]:
    """What pyproject.toml, with all its extras, and requirements/dev.in ask for."""
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines: list[str] = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines.extend(extra)
    lines.extend((tree.ROOT / "requirements" / "dev.in").read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked() -> dict[str, str]:
    """Name to version of everything in the lock."""
    lines = (tree.ROOT / "requirements" / "dev.txt").read_text("utf-8").splitlines()
    matches = (REQUIREMENT_LINE.fullmatch(line) for line in lines)
    return {canonicalize_name(m["name"]): m["version"] for m in matches if m is not None and m["name"]}


def test_lock_holds_names_versions_and_hashes_alone() -> None:
    lines = (tree.ROOT / "requirements" / "dev.txt").read_text("utf-8").splitlines()
    strange = [line for line in lines if REQUIREMENT_LINE.fullmatch(line) is None]
    assert strange == [], "the lock holds something else than pinned names and hashes; run `make lock`"


def test_lock_answers_what_is_asked_for() -> None:
    versions = locked()
    unmet = [
        str(requirement)
        for requirement in wanted()
        if (version := versions.get(canonicalize_name(requirement.name))) is None
        or not requirement.specifier.contains(version, prereleases=True)
    ]
    assert unmet == [], "the lock is older than its sources; run `make lock`"


def test_no_file_names_a_download_host() -> None:
    named = []
    for path in tree.files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if DOWNLOAD_HOST.search(text):
            named.append(tree.name_of(path))
    assert named == []


@pytest.mark.parametrize("module", ["tenuto", "tenuto.aws"])
def test_a_function_imports_little(module: str) -> None:
    probe = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, check=False, text=True, timeout=IMPORT_SECONDS_MAX
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []
