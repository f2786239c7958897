"""Requests over an asyncio event loop, for the control plane.

Owns a bounded pool of keep-alive connections, each with one request at a time. As in `blocking`, a request that was
sent is never retried. A connection whose exchange did not complete is closed, also when the caller was cancelled.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from tenuto.wire.destination import Destination
from tenuto.wire.errors import BadAnswerError, ConnectError, LostError, WireError, said
from tenuto.wire.http1 import Answer, AnswerParser, encode_connect, is_refusal
from tenuto.wire.limits import (
    ADDRESSES_MAX,
    ANSWER_TIMEOUTS_MAX,
    CONNECTION_AGE_S_MAX,
    CONNECTION_IDLE_S_MAX,
    HEAD_BYTES_MAX,
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

LOST: Final = "the connection was closed before the end of the answer"


class CredentialSource(Protocol):
    """Where credentials come from."""

    @property
    def current(self) -> Credentials | None:
        """Those to use now; None when they have to be waited for."""
        ...

    def renewed(self) -> Awaitable[Credentials]:
        """New ones."""
        ...


class Room(Protocol):
    """Room in memory for one answer."""

    async def hold(self, size: int) -> None:
        """Wait until an answer of so many bytes may be in memory."""
        ...


class AsyncClient:
    """Signed requests to one destination, at most `connections_max` at a time; others wait their turn."""

    def __init__(
        self,
        to: Destination,
        credentials: CredentialSource,
        timeouts: Timeouts,
        *,
        connections_max: int,
        body_bytes_max: int,
    ) -> None:
        self.base_path = to.base_path
        self.timeouts = timeouts
        self._to = to
        self._credentials = credentials
        self._body_bytes_max = body_bytes_max
        self._signer = Signer(to)
        self._places = asyncio.Semaphore(connections_max)
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._reading = asyncio.Lock()

    async def send(self, request: Request, room: Room | None = None) -> Answer:
        """The answer to a request, whatever its status. Raises WireError.

        Once it is known how large the answer is, the rest of it is not read before `room` has been held. A request
        that was refused because this machine's clock is wrong took no effect: it is signed again, once.
        """
        skew_s = self._signer.skew_s
        answer = await self._exchange(request, room)
        if is_refusal(answer):
            code, date = error_of(answer).code, answer.headers.get("date")
            if self._signer.learns(code, date, time.time(), skew_s):
                answer = await self._exchange(request, room)
        return answer

    async def close(self) -> None:
        """Close all connections. Requests in progress fail."""
        for connection in (*self._idle, *self._busy):
            connection.drop(LostError("the client was closed"))
        self._idle.clear()
        # The event loop closes the sockets at its next turn, and there may be none after this.
        await asyncio.sleep(0)

    async def _exchange(self, request: Request, room: Room | None = None) -> Answer:
        async with self._places:
            connection = self._rested()
            if connection is None:
                connection = await self._connected()
            self._busy.add(connection)
            try:
                # Signed last: neither its timestamp nor its credentials may age while a connection is awaited.
                credentials = self._credentials.current
                if credentials is None:
                    credentials = await self._credentials.renewed()
                head = self._signer.signed_head(request, credentials, time.time())
                answer = await connection.exchange(head, request.body, AnswerParser(self._body_bytes_max), room)
            except BaseException:
                # The rest of this answer may still arrive, and the next request would read it.
                connection.drop()
                raise
            finally:
                self._busy.discard(connection)
            if answer.reusable and not connection.is_lost:
                connection.rest(answer.idle_s)
                self._idle.append(connection)
            else:
                connection.drop()
            return answer

    def _rested(self) -> _Connection | None:
        """The most recently used idle connection, if any is usable. Expired ones are closed."""
        now_s, wall_s = time.monotonic(), time.time()
        while self._idle and not self._idle[0].is_usable(now_s, wall_s):
            self._idle.popleft().drop()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable(now_s, wall_s) and not connection.has_spoken():
                return connection
            connection.drop()
        return None

    async def _connected(self) -> _Connection:
        """A new connection, through the proxy and TLS if there are any. Raises ConnectError."""
        to, connect_s = self._to, self.timeouts.connect_s
        context = await self._context()
        try:
            below = await _dialled(to, connect_s)
        except (OSError, UnicodeError) as error:
            raise ConnectError(f"no connection to {to.name}: {said(error)}") from error
        connection = _Connection(self.timeouts)
        try:
            async with asyncio.timeout(connect_s):
                await self._set_up(connection, below, context)
        except OSError as error:
            below.close()
            raise ConnectError(f"no connection to {to.name}: {said(error)}") from error
        except BaseException:
            below.close()
            raise
        return connection

    async def _set_up(self, connection: _Connection, below: socket.socket, context: ssl.SSLContext | None) -> None:
        """Attach the protocol, the tunnel and TLS to a socket. Raises OSError and ConnectError."""
        to, loop = self._to, asyncio.get_running_loop()
        if to.proxy is None or context is None:
            name = None if context is None else to.host
            await loop.create_connection(lambda: connection, sock=below, ssl=context, server_hostname=name)
            return
        await loop.create_connection(lambda: connection, sock=below)
        try:
            await _open_tunnel(connection, to)
            transport = await loop.start_tls(connection.transport, connection, context, server_hostname=to.host)
        except BaseException:
            connection.drop()
            raise
        connection.connection_made(cast("asyncio.Transport", transport))

    async def _context(self) -> ssl.SSLContext | None:
        """The TLS context, created once. Raises ConnectError."""
        if self._to.tls and self._tls is None:
            async with self._reading:
                if self._tls is None:
                    # Reading the certificates takes some ten milliseconds.
                    self._tls = await asyncio.to_thread(client_context, self._to.ca_bundle)
        return self._tls


@dataclass(frozen=True, slots=True)
class _Announced:
    """In place of an answer: its size, and the future of the answer itself, whose rest is not being read."""

    size: int
    answer: asyncio.Future[Answer]


class _Connection(asyncio.Protocol):
    """One connection. Data that arrives between requests closes it."""

    __slots__ = (
        "_announces",
        "_answer",
        "_deadlines_s",
        "_loop",
        "_opened_s",
        "_parser",
        "_poll",
        "_room",
        "_timeouts",
        "_timer",
        "_until_s",
        "is_lost",
        "transport",
    )

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._opened_s = time.monotonic()
        self._until_s = (0.0, 0.0)
        self._parser: AnswerParser | None = None
        self._answer: asyncio.Future[Any] | None = None
        self._announces = False
        self._room: asyncio.Future[None] | None = None
        self._deadlines_s = (0.0, 0.0)
        self._timer: asyncio.TimerHandle | None = None
        self.is_lost = False
        self.transport: asyncio.Transport

    async def exchange(self, head: bytes, body: bytes, parser: AnswerParser, room: Room | None = None) -> Answer:
        """The answer to a request. Raises LostError and BadAnswerError, after which the connection is to be dropped."""
        if self.is_lost:
            raise LostError(LOST)
        self._parser = parser
        self._announces = room is not None
        self._answer = answer = self._loop.create_future()
        now_s = self._loop.time()
        self._deadlines_s = (now_s + self._timeouts.read_s, now_s + self._timeouts.read_s * ANSWER_TIMEOUTS_MAX)
        if self._timer is None:
            # One timer serves many requests: when it fires, it checks the deadline of the current one.
            self._timer = self._loop.call_later(self._timeouts.read_s, self._look)
        if len(body) <= WRITE_BYTES_MAX:
            self.transport.write(head + body)
        else:
            await self._write_large(head, body)
        outcome: Answer | _Announced = await answer
        if isinstance(outcome, _Announced):
            assert room is not None, "a size is announced to whoever has to hold room"
            return await self._received_into(room, outcome)
        if room is not None:
            await room.hold(len(outcome.body))
        return outcome

    async def _received_into(self, room: Room, announced: _Announced) -> Answer:
        """The answer of an announced size, read on once there is room for it."""
        answer = announced.answer
        self._deadlines_s = (inf, inf)
        try:
            await room.hold(announced.size)
        except BaseException:
            if not answer.cancel() and not answer.cancelled():
                # The connection broke meanwhile. Nothing else asks for the reason.
                answer.exception()
            raise
        if answer.done():
            return await answer
        now_s = self._loop.time()
        self._deadlines_s = (now_s + self._timeouts.read_s, now_s + self._timeouts.read_s * ANSWER_TIMEOUTS_MAX)
        self.transport.resume_reading()
        return await answer

    async def _write_large(self, head: bytes, body: bytes) -> None:
        answer = self._answer
        assert answer is not None, "a request is under way"
        view = memoryview(body)
        self.transport.write(head)
        for start in range(0, len(body), WRITE_BYTES_MAX):
            # A server may reject a request by its head and answer before the body is sent. It would take the next
            # request on this connection for the rest of it.
            if answer.done():
                self.is_lost = True
                return
            self.transport.write(view[start : start + WRITE_BYTES_MAX])
            if self._room is not None:
                await asyncio.wait((self._room, answer), return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0)

    def rest(self, idle_s: float | None) -> None:
        """Record how long this connection may stay idle; the server may have announced a limit."""
        allowed_s = (
            CONNECTION_IDLE_S_MAX if idle_s is None else min(CONNECTION_IDLE_S_MAX, idle_s - KEEP_ALIVE_MARGIN_S)
        )
        # Both clocks count: the monotonic one stops while a process is frozen, the wall clock may be adjusted.
        self._until_s = (time.monotonic() + allowed_s, time.time() + allowed_s)

    def is_usable(self, now_s: float, wall_s: float) -> bool:
        """Whether a request may be sent: the connection is open, and neither too old nor idle for too long."""
        monotonic_until_s, wall_until_s = self._until_s
        return (
            not self.is_lost
            and not self.transport.is_closing()
            and now_s <= monotonic_until_s
            and wall_s <= wall_until_s
            and now_s - self._opened_s <= CONNECTION_AGE_S_MAX
        )

    def has_spoken(self) -> bool:
        """Whether the socket is readable, mostly by its end, before the event loop has noticed."""
        return bool(self._poll.poll(0))

    def drop(self, reason: WireError | None = None) -> None:
        """Close at once. The current exchange fails with `reason`; without one, its caller is gone."""
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.transport.abort()
        self._settle(reason)

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)
        below: socket.socket = transport.get_extra_info("socket")
        keep_alive(below)
        self._poll = select.poll()
        self._poll.register(below.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        parser = self._parser
        if parser is None:
            self.drop()
            return
        self._deadlines_s = (self._loop.time() + self._timeouts.read_s, self._deadlines_s[1])
        try:
            answer = parser.feed(data)
        except WireError as error:
            self.drop(error)
            return
        if answer is not None:
            self._settle(answer)
        elif self._announces and (size := parser.announced) is not None:
            self._announces = False
            self.transport.pause_reading()
            waiting, self._answer = self._answer, self._loop.create_future()
            if waiting is not None and not waiting.done():
                waiting.set_result(_Announced(size, self._answer))

    def eof_received(self) -> None:
        """See asyncio.Protocol."""
        self.is_lost = True
        if self._parser is not None:
            try:
                self._settle(self._parser.eof())
            except WireError as error:
                self._settle(error)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._settle(LostError(LOST if error is None else f"the connection broke: {said(error)}"))
        self.resume_writing()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None

    def _settle(self, outcome: Answer | WireError | None) -> None:
        """Complete the current exchange, if there is one."""
        answer, self._answer, self._parser = self._answer, None, None
        if answer is None or answer.done():
            return
        if outcome is None:
            answer.cancel()
        elif isinstance(outcome, WireError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _look(self) -> None:
        """Fail the current exchange if its deadline has passed."""
        self._timer = None
        if self._parser is None:
            return
        now_s = self._loop.time()
        silent_s, whole_s = self._deadlines_s
        if now_s >= whole_s:
            self.drop(LostError(f"no complete answer within {self._timeouts.read_s * ANSWER_TIMEOUTS_MAX:g} s"))
        elif now_s >= silent_s:
            self.drop(LostError(f"no answer within {self._timeouts.read_s:g} s"))
        else:
            # There is no deadline while room for the answer is awaited.
            later_s = min(silent_s, whole_s, now_s + self._timeouts.read_s)
            self._timer = self._loop.call_at(later_s, self._look)


async def _resolve(host: str, port: int) -> list[Any]:
    """The addresses of a name, looked up for every connection: a failover changes them."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _dialled(to: Destination, timeout_s: float) -> socket.socket:
    """A TCP connection to the first address that answers. Raises OSError and UnicodeError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        found = await _resolve(*to.dialled)
    last: OSError | None = None
    # A dead address must leave time for the next one.
    share_s = timeout_s / min(len(found), 2)
    for family, kind, protocol, _, address in found[:ADDRESSES_MAX]:
        below = socket.socket(family, kind, protocol)
        try:
            below.setblocking(False)
            below.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(share_s):
                await loop.sock_connect(below, address)
        except OSError as error:
            below.close()
            last = error
        except BaseException:
            below.close()
            raise
        else:
            return below
    assert last is not None, "a name that is resolved has an address"
    raise last


async def _open_tunnel(connection: _Connection, to: Destination) -> None:
    """Have the proxy connect to the endpoint. Raises ConnectError."""
    assert to.proxy is not None, "a tunnel leads through a proxy"
    proxy = f"the proxy {to.proxy.host}:{to.proxy.port} did not open a tunnel"
    try:
        asked = encode_connect(to.tunnelled, to.proxy.authorization)
        answer = await connection.exchange(asked, b"", AnswerParser(HEAD_BYTES_MAX, connect=True))
    except (BadAnswerError, LostError) as error:
        raise ConnectError(f"{proxy}: {error}") from error
    if is_refusal(answer):
        raise ConnectError(f"{proxy}: status {answer.status}")
