"""The fixtures of this suite: one embedded stack for all of it, a broker for each file that asks for one, and clients.

The clients are those that the control plane opens.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from botocore.loaders import JSONFileLoader

from tenuto_control.config import Config
from tenuto_control.drivers.aws import AwsClients, open_clients
from tenuto_control.limits import Limits
from tenuto_local import EmbeddedStack
from tenuto_local.broker_engine import Broker, chosen_broker
from tenuto_local.cache import silent
from tests.support.stack import run, stack

__all__ = ["stack"]

NOBODY = "http://127.0.0.1:1"
"""An address where every connection is refused."""

Scenario = Callable[[AwsClients], Coroutine[Any, Any, None]]


class WithClients(Protocol):
    """Plays a scenario with open clients; `endpoint` stands in for the stack's."""

    def __call__(self, scenario: Scenario, limits: Limits | None = None, endpoint: str | None = None) -> None: ...


@pytest.fixture(scope="session", autouse=True)
def _botocore_reads_its_models_once() -> Iterator[None]:
    """Share botocore's service models, which each client of a test would otherwise read and parse again.

    The clients of one botocore session share them as well, so none of them changes what it is given.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JSONFileLoader, "load_file", staticmethod(functools.cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A broker for the tests of one file, which use topics and groups of their own.

    TENUTO_BROKER_ENGINE names another engine than Apache Kafka.
    """
    with tempfile.TemporaryDirectory() as workdir:
        broker = chosen_broker().make(Path(workdir), None, silent)
        asyncio.run(broker.start())
        try:
            yield broker
        finally:
            asyncio.run(broker.stop())


@pytest.fixture
def with_clients(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> WithClients:
    """Clients whose settings are the control plane's own."""

    def play(scenario: Scenario, limits: Limits | None = None, endpoint: str | None = None) -> None:
        for name, value in stack.environment().items():
            monkeypatch.setenv(name, value)
        if endpoint is not None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

        async def opened() -> None:
            async with open_clients(Config(functions={}, limits=limits or Limits())) as clients:
                await scenario(clients)

        run(opened())

    return play
