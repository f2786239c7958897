"""What artefacts and tools are installed from: names, versions and hashes alone, and the versions that were tested."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.tidy import tree
from tests.tidy.test_packaging import REQUIREMENT_LINE

PIN: Final = re.compile(r"^([a-z0-9][a-z0-9.\-]*)==([\w.!+]+)", re.MULTILINE)
NEVER_IN_A_FUNCTION: Final = {"aiobotocore", "aiokafka", "boto3", "botocore", "starlette", "uvicorn"}


def text(name: str) -> str:
    """A file of requirements/."""
    return (tree.ROOT / "requirements" / name).read_text("utf-8")


@pytest.mark.parametrize(
    "name", ["audit.txt", "aws.txt", "control.txt", "function.txt", "function_kms.txt", "wheel.txt"]
)
def test_a_lock_holds_names_versions_and_hashes_alone(name: str) -> None:
    strange = [line for line in text(name).splitlines() if REQUIREMENT_LINE.fullmatch(line) is None]
    assert strange == [], f"{name} holds something else than pinned names and hashes; run `make lock`"


@pytest.mark.parametrize("name", ["control.txt", "function.txt", "function_kms.txt", "wheel.txt"])
def test_what_is_deployed_is_what_was_tested(name: str) -> None:
    deployed, tested = dict(PIN.findall(text(name))), dict(PIN.findall(text("dev.txt")))
    assert deployed
    assert deployed.items() <= tested.items(), "run `make lock`"


def test_a_function_installs_little() -> None:
    for name in ("function.txt", "function_kms.txt"):
        assert not NEVER_IN_A_FUNCTION & dict(PIN.findall(text(name))).keys()
