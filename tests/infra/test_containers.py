"""What can be checked of the Dockerfile and the compose file where no container engine is."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.tidy import tree

DOCKERFILE: Final = (tree.ROOT / "Dockerfile").read_text("utf-8")
DEFAULTS: Final = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
COPIED: Final = [
    re.sub(r"\$\{(\w+)\}", lambda match: DEFAULTS[match[1]], source)
    for source in re.findall(r"^COPY (?!--from)(\S+) \S+$", DOCKERFILE, re.MULTILINE)
]


@pytest.mark.parametrize("source", COPIED)
def test_what_the_image_copies_is_there_and_not_ignored(source: str) -> None:
    assert (tree.ROOT / source).exists()
    kept = [line[1:] for line in (tree.ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert any(re.fullmatch(pattern.replace("*", "[^/]+"), source) for pattern in kept), kept


def test_the_container_is_nobody_and_installs_from_the_lock() -> None:
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", DOCKERFILE, re.MULTILINE)
    assert "--require-hashes" in DOCKERFILE
    assert "requirements/control.txt" in COPIED
    # A shell between the engine and the program would keep SIGTERM to itself.
    assert re.search(r'^ENTRYPOINT \["python", "-m", "tenuto_control"\]$', DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml"])
def test_a_reader_is_told_that_ci_does_not_run_it(name: str) -> None:
    assert "not run there" in (tree.ROOT / name).read_text("utf-8")


def test_compose_listens_on_this_machine_alone() -> None:
    compose = (tree.ROOT / "compose.yaml").read_text("utf-8")
    ports = re.findall(r'^ +- "(\S+):\d+:\d+"$', compose, re.MULTILINE)
    assert ports == ["127.0.0.1"] * 2


def test_what_a_deployment_is_built_on_is_pinned_by_digest() -> None:
    assert re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", DEFAULTS["BASE"])
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"${BASE}"}
