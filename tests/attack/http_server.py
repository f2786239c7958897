"""The HTTP server of the control plane over a real socket, for a test that sends it whatever it likes.

Owns the server's life and raw requests. Does not own the application behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from tenuto_control.drivers.http_connections import Connections
from tenuto_control.drivers.http_protocol import json_errors
from tenuto_local.ports import bind_loopback_socket

ANSWER_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer off a socket; `status` is 0 when the connection ended without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """The message of an error."""
        return str(json.loads(self.body)["error"]["message"])


@dataclass(slots=True)
class Peer:
    """One connection to the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Send bytes, or drop them when the server has gone."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.write(data)

    async def all(self) -> bytes:
        """Everything the server says until it ends the connection."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(65_536), ANSWER_S_MAX):
                said += piece
        return said

    async def reply(self) -> Reply:
        """The next answer."""
        try:
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), ANSWER_S_MAX)
            reply = reply_of(head)
            size = int(reply.headers.get("content-length", 0))
            body = await asyncio.wait_for(self.reader.readexactly(size), ANSWER_S_MAX)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(0, {}, b"")
        return Reply(reply.status, reply.headers, body)

    def abort(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()


def reply_of(data: bytes) -> Reply:
    """The first answer in what a server said."""
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return Reply(0, {}, b"")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return Reply(int(lines[0].split()[1]), headers, body)


@dataclass(slots=True)
class Server:
    """A running server."""

    port: int
    uvicorn: uvicorn.Server
    peers: list[Peer] = field(default_factory=list)

    async def connect(self, data: bytes = b"", *, limit: int = 2**16) -> Peer:
        """Open a connection and send bytes. `limit` is how much of an answer the peer reads before it is asked."""
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port, limit=limit))
        self.peers.append(peer)
        peer.send(data)
        return peer

    async def ask(self, data: bytes) -> Reply:
        """Send a request on a connection of its own, and read the answer."""
        peer = await self.connect(data)
        try:
            return await peer.reply()
        finally:
            peer.abort()

    async def get(self, path: str) -> Reply:
        """GET on a connection of its own."""
        return await self.ask(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    """The bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@asynccontextmanager
async def serving(app: Any, *, connections: Connections | None = None, keep_alive_s: int = 65) -> AsyncIterator[Server]:
    """Serve an application as the control plane does."""
    protocol: Any = functools.partial(json_errors, open_connections=connections)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        server_header=False,
        log_config=None,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # as always_on does
    with bind_loopback_socket() as listener:
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.001)
        served = Server(listener.getsockname()[1], server)
        try:
            yield served
        finally:
            for peer in served.peers:
                peer.abort()
            server.should_exit = True
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await task
