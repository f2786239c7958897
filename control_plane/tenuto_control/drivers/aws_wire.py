"""DynamoDB and Lambda by `tenuto.wire`, in the place of aiobotocore's clients.

Owns the operations that are used, and what of their answers is shown to watchers. Does not own connections
(`tenuto.wire.aio`) nor the settings (`aws`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from tenuto.wire import services
from tenuto.wire.aio import AsyncClient
from tenuto.wire.http1 import Answer
from tenuto_control.drivers.invoke_client import (
    ASYNCHRONOUS,
    LAMBDA_NAME,
    SYNCHRONOUS,
    InvokeClient,
    Invoked,
    own_segment,
)
from tenuto_control.ports import AnswerHolder

USER_AGENT: Final = "tenuto-control"


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

    def __init__(self, http: AsyncClient) -> None:
        self._http = http
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

    async def _call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The document that DynamoDB answers with. Raises WireError and ServiceError."""
        request = services.dynamodb_request(self._http.base_path, operation, arguments, USER_AGENT)
        watcher = self.watcher
        asked_ms = None if watcher is None else watcher.asked()
        answer = await self._http.send(request)
        if watcher is not None and asked_ms is not None:
            watcher.answered(asked_ms, answer.headers.get("date"))
        return services.dynamodb_answer(operation, answer)


class WireLambda(InvokeClient):
    """Lambda's Invoke."""

    def __init__(self, http: AsyncClient) -> None:
        self._http = http
        # Whether this process is a function does not change, and the environment is slow to ask.
        self._in_lambda = LAMBDA_NAME in os.environ
        self._segment: Callable[[], str | None] = lambda: None

    def name_segments(self, segment: Callable[[], str | None]) -> None:
        """See `InvokeClient.name_segments`."""
        self._segment = segment

    async def call(
        self, function: str, qualifier: str | None, payload: bytes, room: AnswerHolder | None = None
    ) -> Invoked:
        """See `InvokeClient.call`."""
        answer = await self._send(function, qualifier, payload, SYNCHRONOUS, room)
        return Invoked(services.invoke_answer(answer), failed=services.FUNCTION_ERROR in answer.headers)

    async def post(self, function: str, payload: bytes) -> None:
        """See `InvokeClient.post`."""
        services.invoke_answer(await self._send(function, None, payload, ASYNCHRONOUS))

    async def _send(
        self, function: str, qualifier: str | None, payload: bytes, kind: str, room: AnswerHolder | None = None
    ) -> Answer:
        request = services.invoke_request(self._http.base_path, function, qualifier, payload, kind, USER_AGENT)
        segment = (own_segment() if self._in_lambda else None) or self._segment()
        if segment is not None:
            request = services.with_header(request, services.TRACE, segment)
        return await self._http.send(request, room)
