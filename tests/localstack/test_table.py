"""The contract of a table, over the endpoint: every law of `tests.contract.test_table`, and none of its servers.

Owns which server and which drivers answer. Does not own what a table promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.contract.table_clients import TABLE, use_environment
from tests.contract.test_table import *  # noqa: F403 - the laws, also those that will be added
from tests.contract.test_table import Open, create_lanes, open_async, open_blocking, open_wire
from tests.localstack.conftest import Client


@pytest.fixture(scope="module")  # type: ignore[no-redef] # it takes the place of the imported one
def dynamodb_local(endpoint_url: str, client: Client) -> Iterator[str]:
    """The endpoint, which has the table, where the contract has a server of its own."""
    dynamodb = client("dynamodb")
    # Loads the service with patience; the drivers' own clients have less.
    dynamodb.list_tables()
    asyncio.run(create_lanes(endpoint_url))
    yield endpoint_url
    for name in dynamodb.list_tables(ExclusiveStartTableName=TABLE[:-1])["TableNames"]:
        if name.startswith(TABLE):
            dynamodb.delete_table(TableName=name)


@pytest.fixture(params=["async", "wire", "blocking"])  # type: ignore[no-redef] # it takes the place of another
def open_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, dynamodb_local: str) -> Open:
    """How to open the table under test."""
    if request.param == "async":
        return lambda: open_async(dynamodb_local)
    if request.param == "wire":
        return lambda: open_wire(dynamodb_local)
    use_environment(monkeypatch, dynamodb_local)
    return open_blocking
