"""The wheel, and environments with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.install.environment import Bare, built_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, alone in its folder."""
    return built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """An environment with `tenuto[control,local]`."""
    made = Bare(tmp_path_factory.mktemp("bare") / "venv")
    made.offer()
    made.install("tenuto[control,local]", wheels=wheel.parent)
    return made


@pytest.fixture(scope="session")
def sdk_alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """An environment with `tenuto` and no extra."""
    made = Bare(tmp_path_factory.mktemp("alone") / "venv")
    made.offer("msgspec")
    made.install("tenuto", wheels=wheel.parent)
    return made
