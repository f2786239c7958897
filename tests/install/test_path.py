"""From an empty folder and the wheel to a running project, and through a restart of it.

Owns nothing but the order of the steps (`walk`). As far as `sam build` the walk goes in `tests/outside`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.environment import Bare
from tests.install.walk import Walk, made, through_a_restart

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture
def walk(bare: Bare, tmp_path: Path) -> Iterator[Walk]:
    begun = Walk(bare, tmp_path)
    yield begun
    begun.close()


def test_from_an_empty_folder_through_a_restart(walk: Walk) -> None:
    made(walk)
    through_a_restart(walk)
