"""Creating the table of lanes.

Owns applying the table's definition, which is that of the deployed template: `infra/table.json`. Does not own
what the table holds.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from tenuto_local.errors import ConfigurationError, ProcessFailed

POLL_INTERVAL_S: Final = 0.1
POLLS_MAX: Final = 300

_HERE: Final = Path(__file__).resolve().parent
# In a wheel the template lies beside this module, in the repository two folders up.
_TEMPLATE_PATHS: Final = (_HERE / "table.json", _HERE.parents[1] / "table.json")

LOCAL_PROPERTIES: Final = ("AttributeDefinitions", "KeySchema", "BillingMode", "TimeToLiveSpecification")
"""What DynamoDB Local takes of the table's properties; it has neither backups nor encryption."""


class TableAdminClient(Protocol):
    """What of an aiobotocore client for DynamoDB is used here."""

    exceptions: Any

    async def create_table(self, **arguments: Any) -> dict[str, Any]:
        """See DynamoDB's CreateTable."""
        ...

    async def describe_table(self, **arguments: Any) -> dict[str, Any]:
        """See DynamoDB's DescribeTable."""
        ...

    async def describe_time_to_live(self, **arguments: Any) -> dict[str, Any]:
        """See DynamoDB's DescribeTimeToLive."""
        ...

    async def update_time_to_live(self, **arguments: Any) -> dict[str, Any]:
        """See DynamoDB's UpdateTimeToLive."""
        ...


def table_definition() -> dict[str, Any]:
    """The definition: CreateTable's arguments but for the name, and UpdateTimeToLive's specification."""
    path = next(path for path in _TEMPLATE_PATHS if path.exists())
    properties: dict[str, Any] = json.loads(path.read_text())["Resources"]["Table"]["Properties"]
    return {name: properties[name] for name in LOCAL_PROPERTIES}


async def create_table(client: TableAdminClient, name: str) -> None:
    """Create the table, or find it there, and return when it can be used.

    Raises ConfigurationError when a table of that name has other keys, ProcessFailed when it is not ready
    within 30 s.
    """
    definition = table_definition()
    time_to_live = definition.pop("TimeToLiveSpecification")
    # In use: another process created it, perhaps this very moment. It only has to be the same kind of table.
    with suppress(client.exceptions.ResourceInUseException):
        await client.create_table(TableName=name, **definition)
    table = await _active(client, name)
    if sorted(map(_element, table["KeySchema"])) != sorted(map(_element, definition["KeySchema"])):
        raise ConfigurationError(f"table {name} exists with other keys than pk and sk; choose another table name")
    if await _expires(client, name):
        return
    try:
        await client.update_time_to_live(TableName=name, TimeToLiveSpecification=time_to_live)
    except client.exceptions.ClientError:
        # Enabling what is enabled is an error, and another process may have been quicker.
        if not await _expires(client, name):
            raise


async def _expires(client: TableAdminClient, name: str) -> bool:
    described = await client.describe_time_to_live(TableName=name)
    return described["TimeToLiveDescription"]["TimeToLiveStatus"] in ("ENABLED", "ENABLING")


async def _active(client: TableAdminClient, name: str) -> dict[str, Any]:
    for _ in range(POLLS_MAX):
        table: dict[str, Any] = (await client.describe_table(TableName=name))["Table"]
        if table["TableStatus"] in ("ACTIVE", "UPDATING"):
            return table
        await asyncio.sleep(POLL_INTERVAL_S)
    raise ProcessFailed(f"table {name} was not ready within {POLLS_MAX * POLL_INTERVAL_S:.0f} s")


def _element(element: dict[str, str]) -> tuple[str, str]:
    return element["KeyType"], element["AttributeName"]
