"""The whole way of somebody new, with a clock: from an empty folder and the wheel as far as what is uploaded to AWS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.install.environment import Bare
from tests.install.walk import Walk, made, through_a_restart
from tests.outside.project import built

MINUTES_MAX: Final = 10
"""What the way takes a person at most, of whose minutes a machine has none to spare."""


@pytest.fixture
def walk(bare: Bare, tmp_path: Path) -> Iterator[Walk]:
    begun = Walk(bare, tmp_path)
    yield begun
    begun.close()


def test_from_an_empty_folder_to_an_artefact(walk: Walk) -> None:
    began_s = time.monotonic()
    took_s: dict[str, float] = {}
    for step in (made, through_a_restart):
        step(walk)
        took_s[step.__name__] = time.monotonic() - began_s - sum(took_s.values())
    artefacts = built(walk.bare, walk.project) / "Tenuto"
    took_s["sam build"] = time.monotonic() - began_s - sum(took_s.values())
    code = (artefacts / "Functions" / "ShopFunction" / "shop" / "handlers.py").read_text("utf-8")
    assert '"approved at last"' in code
    print({step: round(seconds, 1) for step, seconds in took_s.items()})
    assert sum(took_s.values()) < MINUTES_MAX * 60
