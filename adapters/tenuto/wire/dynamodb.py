"""DynamoDB over an asyncio event loop, in the place of aiobotocore's client.

Owns the operations that are used, and what of their answers is shown to watchers. Does not own connections (`aio`), nor
what requests say (`tenuto.store.expressions`).
"""

from __future__ import annotations

from typing import Any, Protocol

from tenuto.wire import services
from tenuto.wire.aio import AsyncClient


class Watcher(Protocol):
    """Looks at the dates of answers."""

    def asked(self) -> int:
        """A request is about to be sent: the time, in milliseconds."""
        ...

    def answered(self, asked_ms: int, date: str | None) -> None:
        """The answer to a request of that time has this Date."""
        ...


class WireDynamo:
    """DynamoDB's operations, as `tenuto.store.dynamodb.DynamoClient` has them. `watcher` sees the dates of answers."""

    def __init__(self, http: AsyncClient, user_agent: str) -> None:
        self._http = http
        self._user_agent = user_agent
        self.watcher: Watcher | None = None

    async def update_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's UpdateItem."""
        return await self._call("UpdateItem", arguments)

    async def put_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's PutItem."""
        return await self._call("PutItem", arguments)

    async def delete_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's DeleteItem."""
        return await self._call("DeleteItem", arguments)

    async def get_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's GetItem."""
        return await self._call("GetItem", arguments)

    async def query(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's Query."""
        return await self._call("Query", arguments)

    async def batch_write_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's BatchWriteItem."""
        return await self._call("BatchWriteItem", arguments)

    async def batch_get_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's BatchGetItem."""
        return await self._call("BatchGetItem", arguments)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The document that DynamoDB answers with. Raises WireError and ServiceError."""
        request = services.dynamodb_request(self._http.base_path, operation, arguments, self._user_agent)
        watcher = self.watcher
        asked_ms = None if watcher is None else watcher.asked()
        answer = await self._http.send(request)
        if watcher is not None and asked_ms is not None:
            watcher.answered(asked_ms, answer.headers.get("date"))
        return services.dynamodb_answer(operation, answer)
