"""The pytest plugin: fixtures for tests of handlers.

Owns the fixtures. Does not own the environment (`tenuto.testing`), which is imported when a test first requests it:
pytest loads this module in every run of a project that has tenuto installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tenuto.handler import Handler
    from tenuto.service import Service, VirtualObject
    from tenuto.testing import Environment


@pytest.fixture
def tenuto_services() -> Sequence[Service | VirtualObject]:
    """Services and virtual objects of `tenuto_env`. Override this fixture in conftest.py."""
    pytest.fail(
        "tenuto_env needs the services under test. Override the fixture in conftest.py:\n\n"
        "    @pytest.fixture\n    def tenuto_services():\n        return [orders]\n",
        pytrace=False,
    )


@pytest.fixture
def tenuto_topics() -> Mapping[str, Handler[Any, Any] | str]:
    """Topics of `tenuto_env` and the handlers of their records: none by default. Override it in conftest.py."""
    return {}


@pytest.fixture
def tenuto_env(
    tenuto_services: Sequence[Service | VirtualObject], tenuto_topics: Mapping[str, Handler[Any, Any] | str]
) -> Iterator[Environment]:
    """A new `tenuto.testing.Environment` for each test, with `tenuto_services` and `tenuto_topics`."""
    from tenuto.testing import Environment

    with Environment(*tenuto_services, topics=tenuto_topics) as env:
        yield env
