"""uvicorn's HTTP protocol with bounds, and with errors in the ingress' own shape.

Owns what is answered before there is a request to route: lines that are no HTTP, heads that are too large or do not
come, connections beyond the bound; and the end of connections whose peers neither read nor write, or send far ahead.
Does not own the application's answers (`ingress`), nor which connections are given up first (`http_connections`).

The parser itself has no bound for anything, so all that arrives is counted: what is not the content of a body may not
exceed `HEAD_BYTES_MAX`, be it a request line, headers, blank lines, trailers or what frames chunks.

What has been read of a body before the application asks for it is counted by nobody. So a connection is read in small
pieces, and after the first one of a body no further until the application asks: thousands of callers that send at once
would otherwise fill the memory while the first of them are looked at.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tenuto_control.drivers.http_connections import Connections

HEAD_BYTES_MAX: Final = 65_536
"""Request line and headers together."""

HEADERS_MAX: Final = 256
"""How many headers a request may have: each costs a hundred bytes or two, however short it is."""

FRAMING_PER_BODY_BYTE: Final = 8
"""What may frame a byte of a chunked body: a chunk of one byte takes 5 more."""

PIPELINED_MAX: Final = 16
"""How many requests may wait on one connection behind the one that is in progress."""

HEAD_MS_MAX: Final = 20_000
"""How long a connection may take to send a head."""

REST_MS_MAX: Final = 5_000
"""How long the rest of a body is taken, and thrown away, that was answered before it had arrived."""

UNREAD_MS_MAX: Final = 20_000
"""How long a peer may leave a full buffer of an answer unread."""

ANSWER_MS_MAX: Final = 60_000
"""How long an answer may take that its peer reads slowly. Until then it holds room, with up to 6 MB."""

PIECE_BYTES: Final = 65_536
"""How much of an answer is handed to a connection at once. A peer that does not read holds no more in buffers."""

READ_BYTES: Final = 16 * 1024
"""How much is read from a connection at once. uvloop would read 256 KB."""

RETRY_AFTER_S: Final = 5
"""When to come back after a 503."""

LINGER_S: Final = 1.0
"""How long a connection that was refused in the middle of a head is read on: closed at once, it loses the answer."""


_read: Final = bytearray(READ_BYTES)
"""Where every connection is read into: what is there is dealt with before another one is read."""


class SmallReads(asyncio.BufferedProtocol):
    """Reads a connection for another protocol, a small piece at a time.

    It is no part of that one: uvloop hands a buffer of its own size to whatever is an `asyncio.Protocol`.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See `asyncio.BaseProtocol`."""
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._protocol.resume_writing()

    def eof_received(self) -> bool | None:
        """See `asyncio.BufferedProtocol`."""
        return self._protocol.eof_received()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the event loop says it
        """See `asyncio.BufferedProtocol`."""
        return _read

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._protocol.data_received(bytes(memoryview(_read)[:nbytes]))


def json_errors(*arguments: Any, **named: Any) -> asyncio.BufferedProtocol:
    """A connection for uvicorn, with the arguments of `JsonErrorsProtocol`."""
    return SmallReads(JsonErrorsProtocol(*arguments, **named))


class JsonErrorsProtocol(HttpToolsProtocol):
    """One connection, which has a place among `open_connections`, if that is bounded."""

    def __init__(self, *arguments: Any, open_connections: Connections | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._places = open_connections
        self._placed = False
        self._turned_away = False
        self._in_head = False
        self._whole = True
        self._ends = False
        self._uncounted = 0
        self._body_bytes = 0
        self._body_began = False
        self._refused = False
        self._fault: tuple[HTTPStatus, str] | None = None
        self._active: RequestResponseCycle | None = None
        self._ahead_bytes = 0
        self._deaf = False
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = None

    # --- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if self._places is not None:
            self._placed = self._places.opened(self)
            if not self._placed:
                self._turned_away = True
                if self._places.refused(1):
                    self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again later")
                else:
                    self.transport.abort()
                return
        self._await(HEAD_MS_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._placed and self._places is not None:
            self._placed = False
            self._places.closed(self)
        elif self._turned_away and self._places is not None:
            self._places.refused(-1)
        self._come()
        self._catch_up()
        self.resume_writing()
        self._answered()
        super().connection_lost(exc)
        # It is unset there for an orderly end alone.
        self._unset_keepalive_if_required()

    def give_up(self) -> None:
        """See `Silent`."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_MS_MAX / 1_000, self.transport.abort)
        if self._slow is None:
            self._slow = self.loop.call_later(ANSWER_MS_MAX / 1_000, self.transport.abort)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        """See `HttpToolsProtocol`."""
        self._end()

    # --- what arrives -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._refused or self._deaf:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It is answered as any other request: nothing here can be upgraded to.
            pass
        except httptools.HttpParserError:
            if self._fault is None:
                self.send_400_response("Invalid HTTP request received.")
            else:
                self._refuse(*self._fault)
            return
        # The first piece of a head may have the end of a body in front of it, which counts as well.
        self._uncounted = max(0, self._uncounted + len(data) - self._body_bytes * (1 + FRAMING_PER_BODY_BYTE))
        self._body_bytes = 0
        body_began, self._body_began = self._body_began, False
        if self._uncounted > HEAD_BYTES_MAX and not self.transport.is_closing():
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, f"request line and headers are larger than {HEAD_BYTES_MAX:,} bytes")
        elif self.pipeline:
            self._run_ahead(len(data))
        elif body_began:
            # The application asks for more once it has looked at the head. It cannot have done so yet.
            self.flow.pause_reading()

    def on_message_begin(self) -> None:
        """See `httptools`."""
        if len(self.pipeline) >= PIPELINED_MAX:
            self._at_fault(HTTPStatus.TOO_MANY_REQUESTS, f"{PIPELINED_MAX} requests may wait on one connection")
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_head, self._whole = True, False
        self._uncounted = 0
        if self._late is None:
            self._await(HEAD_MS_MAX)
        if self._placed and self._places is not None and self._is_free():
            self._places.begins(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`."""
        if not self._in_head:
            # A trailer: it says nothing that a handler was promised.
            return
        if len(self.headers) >= HEADERS_MAX:
            self._at_fault(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request may have {HEADERS_MAX} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._in_head = False
        self._uncounted = 0
        self._come()
        self._body_began = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See `httptools`."""
        self._whole = True
        self._body_began = False
        self._uncounted = 0
        super().on_message_complete()
        if self._ends:
            self._end()
        elif self.cycle.response_complete:
            # It was answered before all of it had come, and only now may the next one.
            self._come()
            self._rest_idle()
        elif self._placed and self._places is not None:
            self._places.works(self)

    # --- what is answered ---------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            async def sent(message: Any) -> None:
                self._note_end(cycle)
                if cycle.waiting_for_100_continue and not cycle.response_started:
                    # Whether a body will follow, only the peer knows: what comes next may be its next request.
                    cycle.keep_alive = False
                body = message.get("body", b"")
                last = max(0, len(body) - 1 - (len(body) - 1) % PIECE_BYTES)
                for start in range(0, last, PIECE_BYTES):
                    piece = body[start : start + PIECE_BYTES]
                    await send({"type": message["type"], "body": piece, "more_body": True})
                    self._note_end(cycle)
                if cycle.response_started and not self._whole and not cycle.keep_alive:
                    # Closed while more arrives, the connection would lose the answer.
                    self._ends = cycle.keep_alive = True
                await send({**message, "body": body[last:]} if last else message)

            await app(scope, receive, sent)

        self._active = cycle
        super()._start_asgi_task(cycle, guarded)
        if not self.pipeline:
            self._catch_up()

    def _note_end(self, cycle: RequestResponseCycle) -> None:
        """Between the end of a connection and the word of it, writing is an error; so it is after a refusal."""
        cycle.disconnected = cycle.disconnected or self._refused or self.transport.is_closing()

    def on_response_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        self._answered()
        super().on_response_complete()
        if self._ends and self._whole:
            self._end()
        if self.transport.is_closing() or not self._is_free():
            return
        if self._whole:
            self._rest_idle()
        else:
            self._unset_keepalive_if_required()
            if not self._in_head:
                self._await(REST_MS_MAX)
            if self._ends and self.transport.can_write_eof():
                self.transport.write_eof()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, f"this is not a well-formed HTTP request: {msg}")

    def _at_fault(self, status: HTTPStatus, message: str) -> None:
        """Stop the parser in the middle of what it was given."""
        self._fault = status, message
        raise ValueError(message)

    # --- requests ahead of their turn ---------------------------------------------------------------------------------

    def _run_ahead(self, size: int) -> None:
        """Hold what has come behind a request that is in progress, or drop it and close after that one's answer."""
        if self._places is None:
            return
        self._ahead_bytes += size
        if self._places.ahead(size) or self._active is None:
            return
        # They were not begun, so their peer may send them again, elsewhere.
        self.pipeline.clear()
        self.cycle = self._active
        self.cycle.keep_alive = False
        self._deaf, self._whole, self._in_head = True, False, False
        self._come()
        self._catch_up()

    def _catch_up(self) -> None:
        """Nothing waits for its turn here any more."""
        if self._ahead_bytes and self._places is not None:
            self._places.ahead(-self._ahead_bytes)
        self._ahead_bytes = 0

    # --- silence ------------------------------------------------------------------------------------------------------

    def _is_free(self) -> bool:
        """Whether no request is in progress here."""
        cycle: RequestResponseCycle | None = self.cycle
        return not self.pipeline and (cycle is None or cycle.response_complete)

    def _rest_idle(self) -> None:
        """Nothing is in progress, and nothing has begun to arrive."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self._placed and self._places is not None:
            self._places.idles(self)

    def _await(self, within_ms: int) -> None:
        self._come()
        self._late = self.loop.call_later(within_ms / 1_000, self._is_late)

    def _come(self) -> None:
        """What was awaited is here, or is awaited no more."""
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_late(self) -> None:
        self._late = None
        if self.pipeline or (self._in_head and not self._is_free()):
            # Nothing is read here until those have had their turn, and the answer to the last one is not to be cut off.
            self._await(HEAD_MS_MAX)
        elif self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's head did not arrive in {HEAD_MS_MAX} ms")
        else:
            self._end()

    def _answered(self) -> None:
        """An answer has been written, or is not awaited any more."""
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _end(self) -> None:
        """Close, and do not wait for a peer that does not read what it was told."""
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(LINGER_S, self.transport.abort)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        if self.transport.is_closing() or self._refused:
            return
        # An answer that is in progress would be cut in two, and what is said of a later request would be taken for the
        # answer to an earlier one: then the connection only ends.
        cycle: RequestResponseCycle | None = self.cycle
        own = not self._whole and not self._in_head and not self.pipeline
        told = self._is_free() or (own and cycle is not None and not cycle.response_started)
        self._refused = True
        self._in_head = False
        self._come()
        if told:
            body = json.dumps({"error": {"message": message}}).encode()
            retry = f"retry-after: {RETRY_AFTER_S}\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self._end)
