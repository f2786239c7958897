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
from tenuto.store.aws_client import CLIENT_OPTIONS

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


def use_environment(monkeypatch: pytest.MonkeyPatch, endpoint_url: str) -> None:
    """Set what a function finds in its environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", endpoint_url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")


def fresh(sk: str = "H") -> Key:
    """A key no test has used."""
    return Key(f"counter/{next(_fresh)}", sk)
