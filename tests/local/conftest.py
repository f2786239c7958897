"""The fixtures of this suite: the session's stack with the sample functions registered in it."""

from pathlib import Path
from typing import Any

import pytest

from tenuto_local import EmbeddedStack, FunctionSpec
from tests.support.stack import aws_client, register, stack

__all__ = ["stack"]

FUNCTIONS = str(Path(__file__).parent / "functions")


@pytest.fixture(scope="session")
def functions(stack: EmbeddedStack) -> EmbeddedStack:
    """The stack with the functions `sample` (two workers), `single` (one) and `broken`."""
    register(
        stack,
        FunctionSpec(
            name="sample",
            handler="sample.handler",
            root=FUNCTIONS,
            timeout_s=5.0,
            environment={"COLOUR": "blue"},
            async_retry_delays_s=(0.05, 0.1),
        ),
        FunctionSpec(name="single", handler="sample.handler", root=FUNCTIONS, timeout_s=1.0, concurrency=1),
        FunctionSpec(name="broken", handler="broken.handler", root=FUNCTIONS),
    )
    return stack


@pytest.fixture(scope="session")
def lambda_client(functions: EmbeddedStack) -> Any:
    """A boto3 Lambda client for the stack's endpoint."""
    return aws_client(functions, "lambda")
