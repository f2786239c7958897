"""A lean HTTP/1.1 server side: keep-alive connections that carry one request at a time.

Owns parsing and framing, and nothing else: a handler gets a complete `Request` and a `Responder` to answer
now or later, from any callback. It exists because every invocation crosses it three times (Invoke, next,
response), where a general web framework costs more than the work. It serves programs on the same machine:
HTTP/2, TLS, chunked requests and trailers are left out, and refused clearly. What a web page may have caused is refused
before its body is read (`own_requests`).
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import cast

from tenuto_local.own_requests import foreign

HEAD_BYTES_MAX = 64 * 1024
# Above the largest body any of the services takes (DynamoDB: 16 MB), so that each can refuse in its own
# words.
BODY_BYTES_MAX = 32 * 1024 * 1024
LISTEN_BACKLOG = 1024

Header = tuple[str, str]
JSON_TYPE: Header = ("Content-Type", "application/json")
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request:
    """One complete request.

    `path` is still percent-encoded; header names are lower case, their values stripped.
    """

    __slots__ = ("body", "headers", "method", "path", "query")

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = b""


class Responder:
    """The one answer a request will get. Answering a caller that has gone away does nothing."""

    __slots__ = ("_connection",)

    def __init__(self, connection: HttpConnection) -> None:
        self._connection: HttpConnection | None = connection

    @property
    def connected(self) -> bool:
        """Whether the caller is still there to be answered."""
        return self._connection is not None and not self._connection.closed

    def send(self, status: int, headers: Iterable[Header] = (), body: bytes = b"") -> None:
        """Answer; may be called once."""
        connection, self._connection = self._connection, None
        assert connection is not None, "a request was answered twice"
        connection.answer(status, headers, body)

    def send_json(self, status: int, value: object, headers: Iterable[Header] = ()) -> None:
        """Answer with a JSON body."""
        self.send(status, (JSON_TYPE, *headers), json.dumps(value).encode())


Handler = Callable[[Request, Responder], None]


class HttpConnection(asyncio.Protocol):
    """One client connection; requests that arrive while one is being answered wait in the buffer."""

    __slots__ = (
        "_answering",
        "_buffer",
        "_chunks",
        "_handler",
        "_missing",
        "_on_lost",
        "_port",
        "_request",
        "_transport",
        "closed",
    )

    def __init__(self, handler: Handler, port: int, on_lost: Callable[[HttpConnection], None] | None = None) -> None:
        self._handler = handler
        self._port = port
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._buffer = b""  # bytes not yet parsed
        self._request: Request | None = None  # a request whose body is still arriving
        self._chunks: list[bytes] = []
        self._missing = 0  # bytes of that body not yet here
        self._answering = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands (`asyncio.Protocol`)."""
        # uvloop's transports have the interface without being subclasses.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The connection is gone (`asyncio.Protocol`)."""
        self.closed = True
        if self._on_lost is not None:
            self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived (`asyncio.Protocol`)."""
        if self._request is not None:
            self._take_body(data)
        else:
            self._buffer = self._buffer + data if self._buffer else data
            if self._answering:
                # A pipelining client waits for its turn; its bytes are held here up to the size of one head.
                if len(self._buffer) > HEAD_BYTES_MAX:
                    self._transport.pause_reading()
            else:
                self._parse()

    def close(self) -> None:
        """Drop the connection without an answer."""
        if not self.closed:
            self._transport.abort()

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Write the answer to the request being answered and continue to the next; called by its `Responder`."""
        self._answering = False
        if self.closed:
            return
        head = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nContent-Length: {len(body)}\r\n"
        head += "".join([f"{name}: {value}\r\n" for name, value in headers])
        self._transport.write(head.encode("latin-1", "replace") + b"\r\n" + body)
        if self._buffer:
            self._transport.resume_reading()
            self._parse()

    def _parse(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                self._refuse(431, "the header section is too long")
            return
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        rest, self._buffer = self._buffer[end + 4 :], b""
        method, _, rest_of_line = lines[0].partition(" ")
        target, _, version = rest_of_line.partition(" ")
        if not version.startswith("HTTP/1."):
            self._refuse(400, "not an HTTP/1.1 request")
            return
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            # Several of one name are one list; so a second Host, length or signature spoils the first.
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        refusal = foreign(headers, self._port)
        if refusal is not None:
            self._refuse(403, refusal)
            return
        if "transfer-encoding" in headers:
            self._refuse(411, "bodies need a Content-Length here, chunked ones are not taken")
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            self._refuse(400, "the Content-Length is not a number")
            return
        if int(length) > BODY_BYTES_MAX:
            self._refuse(413, f"a body may have {BODY_BYTES_MAX} bytes")
            return
        self._request = Request(method, target, headers)
        self._missing = int(length)
        if self._missing > len(rest) and headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._take_body(rest)

    def _take_body(self, data: bytes) -> None:
        request = self._request
        assert request is not None
        if len(data) < self._missing:
            self._chunks.append(data)
            self._missing -= len(data)
            return
        if self._chunks:
            self._chunks.append(data[: self._missing])
            request.body = b"".join(self._chunks)
            self._chunks = []
        else:
            request.body = data[: self._missing]
        self._buffer = data[self._missing :]
        self._request = None
        self._answering = True
        self._handler(request, Responder(self))

    def _refuse(self, status: int, message: str) -> None:
        self._buffer = b""
        self._answering = True
        Responder(self).send_json(status, {"message": message}, [("Connection", "close")])
        self._transport.close()


class HttpServer:
    """A listening socket and its open connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._port = 0
        self._connections: set[HttpConnection] = set()

    async def start(self, sock: socket.socket) -> None:
        """Listen on a bound socket, which the server owns from now on."""
        loop = asyncio.get_running_loop()
        self._port = sock.getsockname()[1]
        self._server = await loop.create_server(self._connect, sock=sock, backlog=LISTEN_BACKLOG)

    def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.close()

    def _connect(self) -> HttpConnection:
        connection = HttpConnection(self._handler, self._port, self._connections.discard)
        self._connections.add(connection)
        return connection
