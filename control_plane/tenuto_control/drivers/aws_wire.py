"""Lambda by `tenuto.wire`, in the place of aiobotocore's client.

Owns the operation that is used. Does not own connections (`tenuto.wire.aio`), DynamoDB (`tenuto.wire.dynamodb`) nor the
settings (`aws`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

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
