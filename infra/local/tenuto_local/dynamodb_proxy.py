"""Passes DynamoDB requests of the one endpoint on to DynamoDB Local, and counts them.

Owns a client session and the counts. It is for tools that know a single endpoint URL, and for whoever wants to know
what all processes together ask of DynamoDB; whoever cares for speed uses DynamoDB's own address.
"""

from __future__ import annotations

import asyncio
import json

import aiohttp

from tenuto_local.http_server import Request, Responder

TIMEOUT_S = 30.0
CONNECTIONS_MAX = 64
_BATCH_MEMBERS = {"PutRequest": "PutItem", "DeleteRequest": "DeleteItem"}
_DROPPED = {"host", "content-length", "connection", "accept-encoding", "expect"}
_RETURNED = ("Content-Type", "x-amzn-RequestId", "x-amz-crc32")


class DynamoDBProxy:
    """Forwards to `endpoint_url`."""

    def __init__(self, endpoint_url: str) -> None:
        self._endpoint_url = endpoint_url
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: dict[str, int] = {}
        """Requests so far by operation; a batch of writes counts as its members."""

    def handle(self, request: Request, responder: Responder) -> None:
        """Answer with what DynamoDB Local answers."""
        self._count(request)
        task = asyncio.create_task(self._forward(request, responder))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what is in progress."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._session is not None:
            await self._session.close()

    def _count(self, request: Request) -> None:
        operation = request.headers.get("x-amz-target", "").rpartition(".")[2] or "unknown"
        counted = [operation]
        if operation == "BatchWriteItem":
            tables = json.loads(request.body)["RequestItems"].values()
            counted = [_BATCH_MEMBERS[kind] for members in tables for member in members for kind in member]
        for name in counted:
            self.counts[name] = self.counts.get(name, 0) + 1

    async def _forward(self, request: Request, responder: Responder) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            )
        headers = {name: value for name, value in request.headers.items() if name not in _DROPPED}
        try:
            async with self._session.post(self._endpoint_url, data=request.body, headers=headers) as answer:
                body = await answer.read()
                kept = [(name, answer.headers[name]) for name in _RETURNED if name in answer.headers]
                responder.send(answer.status, kept, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            text = f"DynamoDB at {self._endpoint_url} does not answer: {error}"
            responder.send_json(503, {"__type": "ServiceUnavailable", "message": text})
