"""uvicorn's HTTP protocol with bounds, and with errors in the ingress' own shape.

Owns what is answered before there is a request to route: lines that are no HTTP, heads that are too large or do not
come. Does not own the application's answers (`ingress`).
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES_MAX: Final = 65_536
"""Request line and headers together. The parser itself has no bound."""

HEAD_MS_MAX: Final = 20_000
"""How long a connection may take to send them."""


LINGER_S: Final = 1.0
"""How long a connection that was refused in the middle of a head is read on: closed at once, it loses the answer."""


class JsonErrorsProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = False
        self._head_bytes = 0
        self._refused = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._refused:
            return
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        # What has arrived is a part of a head; the first piece may have the end of a body in front of it.
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, f"request line and headers are larger than {HEAD_BYTES_MAX:,} bytes")

    def on_message_begin(self) -> None:
        """See `httptools`."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        if self._late is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._head_is_here()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, f"this is no well-formed HTTP request: {msg}")

    def _await_head(self) -> None:
        self._late = self.loop.call_later(HEAD_MS_MAX / 1_000, self._head_is_late)

    def _head_is_here(self) -> None:
        self._in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's head did not arrive in {HEAD_MS_MAX} ms")
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        if self.transport.is_closing() or self._refused:
            return
        self._refused = True
        self._head_is_here()
        # An answer that is under way would be cut in two: its connection only ends.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = json.dumps({"error": {"message": message}}).encode()
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
