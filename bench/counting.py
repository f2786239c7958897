"""Counts requests to DynamoDB and the capacity they consumed, by standing between the stack and DynamoDB Local.

Owns the counting endpoint. It asks DynamoDB for the consumed capacity of every request by adding one field to it, which
DynamoDB Local lets pass because it does not check signatures. It costs about a millisecond a request, so no time is
measured behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final, Self

import aiohttp
import msgspec

from bench.figures import Requests
from tenuto_control.drivers.aws_wire import USER_AGENT
from tenuto_local.http_server import HttpServer, Request, Responder
from tenuto_local.ports import LOOPBACK, bind_loopback_socket

TIMEOUT_S: Final = 30.0
CONNECTIONS_MAX: Final = 128

FORWARDED: Final = ("x-amz-target", "content-type", "x-amz-date", "authorization", "x-amz-security-token")
WRITES: Final = frozenset({"UpdateItem", "PutItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"})
MEASURED: Final = WRITES | {"GetItem", "Query", "Scan", "BatchGetItem", "TransactGetItems"}


class CountingEndpoint:
    """An async context manager that listens at `url` and forwards to `upstream`."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self._server = HttpServer(self._handle)
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.requests: dict[str, dict[str, int]] = {}
        self.write_units = 0.0
        self.read_units = 0.0

    async def __aenter__(self) -> Self:
        sock = bind_loopback_socket()
        self.url = f"http://{LOOPBACK}:{sock.getsockname()[1]}"
        await self._server.start(sock)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
        )
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def reset(self) -> None:
        """Count from zero: what came before was preparation."""
        self.requests = {}
        self.write_units = self.read_units = 0.0

    def result(self, events: int, keys: int, invocations: int) -> Requests:
        """What was counted, per event."""
        every = [(operation, n) for counts in self.requests.values() for operation, n in counts.items()]
        return Requests(
            events=events,
            keys=keys,
            dynamodb={sender: dict(sorted(counts.items())) for sender, counts in sorted(self.requests.items())},
            dynamodb_per_event=round(sum(n for _, n in every) / events, 4),
            writes_per_event=round(sum(n for operation, n in every if operation in WRITES) / events, 4),
            write_units_per_event=round(self.write_units / events, 4),
            read_units_per_event=round(self.read_units / events, 4),
            invocations_per_event=round(invocations / events, 4),
        )

    def _handle(self, request: Request, responder: Responder) -> None:
        task = asyncio.create_task(self._forward(request, responder))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, request: Request, responder: Responder) -> None:
        assert self._session is not None, "the endpoint is open while it serves"
        operation = request.headers.get("x-amz-target", "").rpartition(".")[2]
        sender = "control plane" if request.headers.get("user-agent", "").startswith(USER_AGENT) else "functions"
        counts = self.requests.setdefault(sender, {})
        counts[operation] = counts.get(operation, 0) + 1
        body = request.body
        if operation in MEASURED:
            body = msgspec.json.encode({**msgspec.json.decode(body), "ReturnConsumedCapacity": "TOTAL"})
        headers: dict[str, str] = {name: request.headers[name] for name in FORWARDED if name in request.headers}
        try:
            async with self._session.post(self.upstream, data=body, headers=headers) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            responder.send_json(503, {"__type": "ServiceUnavailable", "message": str(error)})
            return
        self._add_capacity(operation, msgspec.json.decode(content))
        responder.send(answer.status, [("Content-Type", "application/x-amz-json-1.0")], content)

    def _add_capacity(self, operation: str, answer: dict[str, Any]) -> None:
        units = sum(_units(answer))
        if operation in WRITES:
            # A refused condition is billed as well, and its answer does not say how much: one unit at least.
            refused = "ConditionalCheckFailed" in str(answer.get("__type", ""))
            self.write_units += 1.0 if refused else units
        else:
            self.read_units += units


def _units(answer: dict[str, Any]) -> Iterator[float]:
    # A single request answers with one record, a batch with a list of one per table.
    consumed = answer.get("ConsumedCapacity") or []
    for record in consumed if isinstance(consumed, list) else [consumed]:
        yield float(record.get("CapacityUnits", 0.0))
