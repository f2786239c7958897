"""Fixtures of the suite. Whatever it makes at the endpoint carries the run's name and is removed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from secrets import token_hex
from typing import Any

import pytest
from botocore.config import Config as ClientConfig
from localstack_client.session import Session

from tenuto_control.config import Config
from tenuto_control.drivers.aws import AwsClients, open_clients
from tenuto_local.aws_api import region
from tenuto_local.table import create_table
from tests.contract.table_clients import client_for
from tests.localstack import capabilities
from tests.localstack.deployment import Deployment
from tests.localstack.endpoint import endpoint
from tests.localstack.stacks import Stacks
from tests.support.stack import run

Client = Callable[[str], Any]
Play = Callable[[Callable[[AwsClients], Coroutine[Any, Any, None]]], None]

# A service of LocalStack is loaded at its first request, which takes up to ten seconds.
READ_TIMEOUT_S = 60
PLAY_TIMEOUT_S = 120.0


@pytest.fixture(scope="session")
def endpoint_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The endpoint under test, which the clients of control plane and functions find in the environment."""
    with endpoint(lambda: request.session.testsfailed > 0) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_REGION", region())
        patch.setenv("AWS_DEFAULT_REGION", region())
        # What localstack-client signs with.
        patch.setenv("AWS_ACCESS_KEY_ID", "accesskey")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secretkey")
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield url


@pytest.fixture(scope="session")
def client(endpoint_url: str) -> Client:
    """A client for a service, by localstack-client. It never retries, so a test sees each answer."""
    session = Session(region_name=region())
    config = ClientConfig(
        retries={"total_max_attempts": 1},
        read_timeout=READ_TIMEOUT_S,
        # A bucket's name as a host name would have to be resolved.
        s3={"addressing_style": "path"},
    )
    return lambda service: session.client(service, config=config)


@pytest.fixture(scope="session")
def run_name() -> str:
    """A name that no other run has used: the endpoint may outlive the run, and serve others."""
    return f"tenuto-{token_hex(4)}"


@pytest.fixture(scope="session")
def table(endpoint_url: str, client: Client, run_name: str) -> Iterator[str]:
    """The name of a table of lanes."""
    # Loads the service with patience; the drivers' own clients have less.
    dynamodb = client("dynamodb")
    dynamodb.list_tables()

    async def create() -> None:
        async with client_for(endpoint_url) as admin:
            await create_table(admin, run_name)

    run(create())
    yield run_name
    dynamodb.delete_table(TableName=run_name)


@pytest.fixture(scope="session")
def deployment(client: Client, run_name: str) -> Iterator[Deployment]:
    """Functions of `functions/app.py`, deployed as they are asked for."""
    deployed = Deployment(client("lambda"), run_name)
    try:
        yield deployed
    finally:
        deployed.remove()


@pytest.fixture(scope="session")
def stacks(client: Client, run_name: str) -> Iterator[Stacks]:
    """Deploys through CloudFormation."""
    deployed = Stacks(client, run_name)
    try:
        yield deployed
    finally:
        deployed.remove()


@pytest.fixture
def play(endpoint_url: str) -> Play:
    """Run a scenario with the clients that the control plane opens."""

    def play(scenario: Callable[[AwsClients], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(PLAY_TIMEOUT_S), open_clients(Config(functions={})) as clients:
                await scenario(clients)

        asyncio.run(main())

    return play


@pytest.fixture(scope="session")
def http_api(client: Client) -> None:
    """Skips where the endpoint has no API Gateway HTTP APIs."""
    capabilities.require(capabilities.http_api(client))


@pytest.fixture(scope="session")
def kafka_mapping(client: Client, deployment: Deployment) -> None:
    """Skips where the endpoint has no event source mapping from Kafka."""
    capabilities.require(capabilities.kafka_mapping(client, deployment.function("observe")))
