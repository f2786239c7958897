"""One embedded stack for a whole test session, and the clients that reach it.

A suite makes the fixtures its own by importing them in its `conftest.py`:

    from tests.support.stack import stack  # noqa: F401 - a fixture is found by its name

The stack has no functions of its own; a suite registers what it needs with `register`. Tests are plain
functions that call `run(...)`: the stack belongs to no event loop, so each test may have its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tenuto_local import EmbeddedStack, FunctionSpec
from tests.support.bounded import run

__all__ = ["aws_client", "register", "run", "stack"]

CLIENT_READ_TIMEOUT_S = 20


@pytest.fixture(scope="session")
def stack() -> Iterator[EmbeddedStack]:
    """A running stack, stopped at the end of the session."""
    embedded = EmbeddedStack()
    run(embedded.start(), timeout_s=600.0)  # the first start on a machine fetches the jars
    try:
        yield embedded
    finally:
        run(embedded.stop())


def register(stack: EmbeddedStack, *functions: FunctionSpec) -> None:
    """Register functions while the stack runs, replacing those of the same name."""
    run(stack.register(*functions))


def aws_client(stack: EmbeddedStack, service: str) -> Any:
    """A boto3 client that knows only the one endpoint; it never retries, so a test sees each answer."""
    environment = stack.environment()
    return boto3.client(
        service,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, read_timeout=CLIENT_READ_TIMEOUT_S, max_pool_connections=50),
    )
