"""Requests over blocking sockets, for functions.

Owns a pool of keep-alive connections, each with one request at a time; any number of threads may share the client. A
stale connection is detected before a request is sent on it. A request that was sent is never retried here, because a
retried conditional write can meet the effect of the first.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tenuto.wire.destination import Destination
from tenuto.wire.errors import BadAnswerError, ConnectError, LostError, said
from tenuto.wire.http1 import Answer, AnswerParser, encode_connect, is_refusal
from tenuto.wire.limits import (
    ADDRESSES_MAX,
    ANSWER_TIMEOUTS_MAX,
    CONNECTION_AGE_S_MAX,
    CONNECTION_IDLE_S_MAX,
    KEEP_ALIVE_MARGIN_S,
    WRITE_BYTES_MAX,
    Timeouts,
)
from tenuto.wire.services import error_of
from tenuto.wire.signer import Signer
from tenuto.wire.sigv4 import Credentials, Request
from tenuto.wire.sockets import client_context, keep_alive

if TYPE_CHECKING:
    import ssl

RECEIVED_BYTES: Final = 65_536


class BlockingClient:
    """Signed requests to one destination. `credentials` is asked for every request, and renews them when it has to."""

    def __init__(
        self, to: Destination, credentials: Callable[[], Credentials], timeouts: Timeouts, body_bytes_max: int
    ) -> None:
        self._idle: list[_Connection] = []
        self._to = to
        self._credentials = credentials
        self._timeouts = timeouts
        self._body_bytes_max = body_bytes_max
        self._signer = Signer(to)
        self._process = os.getpid()
        self._tls: ssl.SSLContext | None = None

    def send(self, request: Request) -> Answer:
        """The answer to a request, whatever its status. Raises WireError.

        A request that was refused because this machine's clock is wrong took no effect: it is signed again, once.
        """
        skew_s = self._signer.skew_s
        answer = self._exchange(request)
        if is_refusal(answer):
            code, date = error_of(answer).code, answer.headers.get("date")
            if self._signer.learns(code, date, time.time(), skew_s):
                answer = self._exchange(request)
        return answer

    def close(self) -> None:
        """Close the connections that are not in use. A later request opens a new one."""
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        """Close the connections of a client that was not closed."""
        self.close()

    def _exchange(self, request: Request) -> Answer:
        head = self._signer.signed_head(request, self._credentials(), time.time())
        connection = self._take()
        try:
            answer = connection.exchange(head, request.body, AnswerParser(self._body_bytes_max))
        except BaseException:
            # The rest of this answer may still arrive, and the next request would read it.
            connection.close()
            raise
        if answer.reusable:
            connection.rest(answer.idle_s)
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take(self) -> _Connection:
        """A connection that looks alive: an idle one if there is any, else a new one."""
        if self._process != os.getpid():
            # After a fork, the connections belong to the parent: its answers would arrive here. Closing them here
            # closes this process's descriptors, and sends nothing.
            self.close()
            self._process = os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return _Connection(self._to, self._timeouts, self._context())
            if connection.is_usable():
                return connection
            connection.close()

    def _context(self) -> ssl.SSLContext | None:
        if self._to.tls and self._tls is None:
            self._tls = client_context(self._to.ca_bundle)
        return self._tls


class _Connection:
    """One open connection, through the proxy and TLS if there are any. Raises ConnectError when it cannot be made."""

    def __init__(self, to: Destination, timeouts: Timeouts, context: ssl.SSLContext | None) -> None:
        self._timeouts = timeouts
        self._opened_s = time.monotonic()
        self._until_s = (0.0, 0.0)
        try:
            self._socket = _connected(to, timeouts.connect_s)
        except (OSError, UnicodeError) as error:
            raise ConnectError(f"no connection to {to.name}: {said(error)}") from error
        try:
            if to.proxy is not None and to.tls:
                _open_tunnel(self._socket, to, timeouts.connect_s)
            if context is not None:
                self._socket = context.wrap_socket(self._socket, server_hostname=to.host, suppress_ragged_eofs=False)
            self._socket.settimeout(timeouts.read_s)
            self._poll = select.poll()
            self._poll.register(self._socket.fileno(), select.POLLIN)
        except OSError as error:
            self._socket.close()
            raise ConnectError(f"no connection to {to.name}: {said(error)}") from error
        except BaseException:
            self._socket.close()
            raise

    def exchange(self, head: bytes, body: bytes, parser: AnswerParser) -> Answer:
        """The answer to a request. Raises LostError and BadAnswerError, after which the connection is to be closed."""
        try:
            if len(body) <= WRITE_BYTES_MAX:
                self._socket.sendall(head + body)
            else:
                self._send_large(head, body)
            return self._receive(parser)
        except TimeoutError:
            raise LostError(f"no answer within {self._timeouts.read_s:g} s") from None
        except OSError as error:
            raise LostError(f"the connection broke: {said(error)}") from error

    def _send_large(self, head: bytes, body: bytes) -> None:
        view = memoryview(body)
        self._socket.sendall(head)
        try:
            for start in range(0, len(body), WRITE_BYTES_MAX):
                self._socket.sendall(view[start : start + WRITE_BYTES_MAX])
        except (BrokenPipeError, ConnectionResetError):
            # A server may reject a request by its head and close the connection. Its answer may already be here.
            if not self._poll.poll(0):
                raise

    def _receive(self, parser: AnswerParser) -> Answer:
        receive, feed = self._socket.recv, parser.feed
        answer = feed(received) if (received := receive(RECEIVED_BYTES)) else parser.eof()
        if answer is not None:
            return answer
        end_s = time.monotonic() + self._timeouts.read_s * ANSWER_TIMEOUTS_MAX
        while answer is None:
            if time.monotonic() > end_s:
                raise LostError(f"no complete answer within {self._timeouts.read_s * ANSWER_TIMEOUTS_MAX:g} s")
            answer = feed(received) if (received := receive(RECEIVED_BYTES)) else parser.eof()
        return answer

    def rest(self, idle_s: float | None) -> None:
        """Record how long this connection may stay idle; the server may have announced a limit."""
        allowed_s = (
            CONNECTION_IDLE_S_MAX if idle_s is None else min(CONNECTION_IDLE_S_MAX, idle_s - KEEP_ALIVE_MARGIN_S)
        )
        # Both clocks count: the monotonic one stops while a function is frozen, the wall clock may be adjusted.
        self._until_s = (time.monotonic() + allowed_s, time.time() + allowed_s)

    def is_usable(self) -> bool:
        """Whether a request may be sent: the connection is not too old, was not idle for too long, and is silent."""
        monotonic_s, wall_s = self._until_s
        now_s = time.monotonic()
        if now_s > monotonic_s or time.time() > wall_s or now_s - self._opened_s > CONNECTION_AGE_S_MAX:
            return False
        return not self._poll.poll(0) or self._has_nothing_to_say()

    def _has_nothing_to_say(self) -> bool:
        """Whether only TLS's own messages, such as session tickets, made the connection readable."""
        try:
            self._socket.setblocking(False)
            self._socket.recv(1)
        except OSError as error:
            alive = type(error).__name__ == "SSLWantReadError"
        else:
            # Either the end of the stream or an unsolicited answer.
            alive = False
        if alive:
            self._socket.settimeout(self._timeouts.read_s)
        return alive

    def close(self) -> None:
        """Close the socket without a TLS shutdown, which would wait for the server."""
        with suppress(OSError):
            self._socket.close()


def _connected(to: Destination, timeout_s: float) -> socket.socket:
    """A TCP connection to the first address that answers: the name is resolved each time. Raises OSError."""
    host, port = to.dialled
    last: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A dead address must leave time for the next one.
    share_s = timeout_s / min(len(found), 2)
    for family, kind, protocol, _, address in found[:ADDRESSES_MAX]:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(share_s)
            keep_alive(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
            connection.settimeout(timeout_s)
        except OSError as error:
            connection.close()
            last = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    assert last is not None, "a name that is resolved has an address"
    raise last


def _open_tunnel(connection: socket.socket, to: Destination, timeout_s: float) -> None:
    """Have the proxy connect to the endpoint. Raises ConnectError and OSError."""
    assert to.proxy is not None, "a tunnel leads through a proxy"
    connection.sendall(encode_connect(to.tunnelled, to.proxy.authorization))
    parser = AnswerParser(RECEIVED_BYTES, connect=True)
    end_s = time.monotonic() + timeout_s
    try:
        answer = None
        while answer is None:
            if time.monotonic() > end_s:
                raise TimeoutError
            received = connection.recv(RECEIVED_BYTES)
            answer = parser.feed(received) if received else parser.eof()
    except (BadAnswerError, LostError) as error:
        raise ConnectError(f"the proxy {to.proxy.host}:{to.proxy.port} did not open a tunnel: {error}") from error
    if is_refusal(answer):
        raise ConnectError(f"the proxy {to.proxy.host}:{to.proxy.port} did not open a tunnel: status {answer.status}")
