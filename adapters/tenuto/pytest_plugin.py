"""The pytest plugin: fixtures for tests of handlers.

Owns the fixtures' names and what a project overrides. Does not own the environment they give (`tenuto.testing`), which
is imported when a test first asks for one: pytest loads this module in every run of a project that has tenuto.
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
    """The services that `tenuto_env` serves. A project overrides it in its conftest.py."""
    pytest.fail(
        "tenuto_env needs the services it is about. Override the fixture in conftest.py:\n\n"
        "    @pytest.fixture\n    def tenuto_services():\n        return [orders]\n",
        pytrace=False,
    )


@pytest.fixture
def tenuto_topics() -> Mapping[str, Handler[Any, Any] | str]:
    """Which handler of `tenuto_env` takes the records of which topic. A project overrides it in its conftest.py."""
    return {}


@pytest.fixture
def tenuto_env(
    tenuto_services: Sequence[Service | VirtualObject], tenuto_topics: Mapping[str, Handler[Any, Any] | str]
) -> Iterator[Environment]:
    """An environment of its own for each test, in virtual time. Its operations are awaited, or asked for `result()`."""
    from tenuto.testing import Environment

    with Environment(*tenuto_services, topics=tenuto_topics) as env:
        yield env
