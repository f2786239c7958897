"""What the table suites share: clients, the environment of a function, keys nobody used.

Owns how a test reaches DynamoDB. Does not own which server answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from secrets import token_hex
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from tenuto.lane.writes import Key
from tenuto.store.aws_client import CLIENT_OPTIONS, CONNECT_TIMEOUT_S, CONNECTIONS_MAX, READ_TIMEOUT_S
from tenuto.wire.aio import AsyncClient
from tenuto.wire.destination import destination
from tenuto.wire.dynamodb import WireDynamo
from tenuto.wire.limits import DYNAMODB_ANSWER_BYTES_MAX, Timeouts
from tenuto.wire.sigv4 import Credentials

AWS_CLIENTS = ("wire", "botocore")
"""What TENUTO_AWS_CLIENT may be."""

# A name for this run alone: some servers outlive it, and serve others.
TABLE = f"lanes-{token_hex(4)}"
_fresh = count()


@asynccontextmanager
async def client_for(endpoint_url: str, options: Mapping[str, Any] = CLIENT_OPTIONS) -> AsyncIterator[Any]:
    """An aiobotocore client as the control plane makes it."""
    session = get_session()
    async with session.create_client(
        "dynamodb",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=AioConfig(**options),
    ) as client:
        yield client


@asynccontextmanager
async def wire_for(endpoint_url: str, **options: Any) -> AsyncIterator[WireDynamo]:
    """The client that the control plane opens by default. `options` are fields of `Timeouts`."""
    timeouts = Timeouts(**{"connect_s": CONNECT_TIMEOUT_S, "read_s": READ_TIMEOUT_S} | options)
    client = AsyncClient(
        destination(endpoint_url, service="dynamodb", region="us-east-1"),
        FixedCredentials(),
        timeouts,
        connections_max=CONNECTIONS_MAX,
        body_bytes_max=DYNAMODB_ANSWER_BYTES_MAX,
    )
    try:
        yield WireDynamo(client, "tests")
    finally:
        await client.close()


class FixedCredentials:
    """The key of local servers (a `CredentialSource`)."""

    current = Credentials("local", "local")

    async def renewed(self) -> Credentials:
        """See `CredentialSource.renewed`."""
        return self.current


def use_environment(monkeypatch: pytest.MonkeyPatch, endpoint_url: str) -> None:
    """Set what a function finds in its environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", endpoint_url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")


def fresh(sk: str = "H") -> Key:
    """A key no test has used."""
    return Key(f"counter/{next(_fresh)}", sk)
