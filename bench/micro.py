"""`python -m bench.micro`: what one request to DynamoDB or Lambda costs the client in CPU time.

Owns the comparison of `tenuto.wire` with botocore's clients, over the drivers that functions and the control plane use,
against a server in a process of its own. Does not own throughput or latency of the whole system (`python -m bench`).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from tenuto.lane.writes import Equals, Key, Update
from tenuto.store.aws_client import CLIENT_VARIABLE
from tenuto.store.dynamodb import BlockingDynamoTable, DynamoTable
from tenuto_control.arguments import whole
from tenuto_control.config import Config, FunctionConfig
from tenuto_control.drivers.aws import open_clients
from tenuto_control.drivers.lambda_invoke import LambdaInvoker

BUDGET_US: Final = 100.0
"""CPU time that one request of `tenuto.wire` may take, in microseconds."""

ROUNDS: Final = 5
REQUESTS: Final = 2_000
REQUESTS_MAX: Final = 1_000_000
WARM_UP: Final = 200
CONCURRENCY: Final = 16
"""Requests at a time in the control plane, whose event loop then hands on several answers in one turn."""

CLIENTS: Final = ("wire", "botocore")
TOKEN: Final = "t" * 400
"""A session token as long as those of a function's role."""

WRITE: Final = Update(
    Key("counter/user-1", "H"),
    {"f": 8, "e": 1_764_453_600_000, "j.00001": b"x" * 60, "l": "attempt-1"},
    conditions=(Equals("fenced", "f", 7),),
)
"""A checkpoint of one small step."""

ATTRIBUTES: Final = (
    b'{"Attributes":{"pk":{"S":"counter/user-1"},"sk":{"S":"H"},"f":{"N":"8"},"e":{"N":"1764453600000"},'
    b'"j.00001":{"B":"' + b"eHh4" * 20 + b'"},"s.count":{"B":"gQE="},"l":{"S":"attempt-1"}}}'
)


@dataclass(frozen=True, slots=True)
class Row:
    """CPU time of one request in microseconds: of each client the best of some rounds."""

    what: str
    wire_us: float
    botocore_us: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table; 1 when `tenuto.wire` is above its budget."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__)
    parser.add_argument(
        "--requests", type=whole(1, REQUESTS_MAX), default=REQUESTS, help=f"requests of a round, default {REQUESTS}"
    )
    requests: int = parser.parse_args(arguments).requests
    with _environment():
        rows = [
            _row("UpdateItem, blocking (functions)", _blocking, requests),
            _row("UpdateItem, asyncio (control plane)", _updates, requests),
            _row("Invoke, asyncio (control plane)", _invocations, requests),
        ]
    print(f"{'CPU µs a request, best of ' + str(ROUNDS):36} {'wire':>8} {'botocore':>9}")
    for row in rows:
        print(f"{row.what:36} {row.wire_us:8.0f} {row.botocore_us:9.0f}")
    above = [row.what for row in rows if row.wire_us > BUDGET_US]
    if above:
        print(f"above the budget of {BUDGET_US:.0f} µs: {'; '.join(above)}", file=sys.stderr)
    return 1 if above else 0


def _row(what: str, measured: Callable[[int], float], requests: int) -> Row:
    found = []
    for client in CLIENTS:
        os.environ[CLIENT_VARIABLE] = client
        found.append(measured(requests))
    return Row(what, *found)


def _blocking(requests: int) -> float:
    table = BlockingDynamoTable("lanes")

    async def ask() -> None:
        await table.write(WRITE)

    async def some(count: int) -> None:
        for _ in range(count):
            await ask()

    try:
        return asyncio.run(_best(some, requests))
    finally:
        table.close()


def _updates(requests: int) -> float:
    async def measured() -> float:
        async with open_clients(Config(functions={})) as clients:
            table = DynamoTable(clients.dynamodb, "lanes")
            return await _best(_side_by_side(lambda: table.write(WRITE)), requests)

    return uvloop.run(measured())


def _invocations(requests: int) -> float:
    async def measured() -> float:
        async with open_clients(Config(functions={})) as clients:
            invoker = LambdaInvoker(clients.lambda_, {"f": FunctionConfig()})
            return await _best(_side_by_side(lambda: invoker.invoke("f", b'{"v":1,"key":"user-1"}' * 20)), requests)

    return uvloop.run(measured())


def _side_by_side(ask: Callable[[], Awaitable[object]]) -> Callable[[int], Awaitable[None]]:
    """CONCURRENCY lanes that ask one after the other."""

    async def lane(count: int) -> None:
        for _ in range(count):
            await ask()

    async def some(count: int) -> None:
        await asyncio.gather(*(lane(count // CONCURRENCY) for _ in range(CONCURRENCY)))

    return some


async def _best(some: Callable[[int], Awaitable[None]], requests: int) -> float:
    """Microseconds of this process's CPU time for one of so many requests."""
    await some(WARM_UP)
    found: list[float] = []
    for _ in range(ROUNDS):
        begun_s = time.process_time()
        await some(requests)
        found.append((time.process_time() - begun_s) / requests * 1e6)
    return min(found)


@contextmanager
def _environment() -> Iterator[None]:
    """A server, and what names it."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "ASIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": TOKEN,
    }
    try:
        yield
    finally:
        server.terminate()
        server.join()


class _Answers(asyncio.Protocol):
    """Answers every request alike, with the headers that DynamoDB sends."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length):
            self._received = b""
            self._transport.write(ANSWER)


ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: Server\r\nDate: Sun, 29 Nov 2026 22:00:00 GMT\r\n"
    b"Content-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\nConnection: keep-alive\r\n"
    b"x-amzn-RequestId: 3FQ1T6LLEGDT2KV0PJPAUB8BCRVV4KQNSO5AEMVJF66Q9ASUAAJG\r\n\r\n%b" % (len(ATTRIBUTES), ATTRIBUTES)
)


def _serve(ready: Connection) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=CONCURRENCY * 4)

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(_Answers, sock=listener)
        ready.send(listener.getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


if __name__ == "__main__":
    sys.exit(main())
