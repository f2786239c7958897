"""A server that answers what a test says, byte by byte, with TLS or without.

Owns reading requests and playing scripts. Does not own what a client makes of them.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, Self, TypeAlias

Step: TypeAlias = bytes | float | Literal["close", "reset"]
"""Bytes to send, seconds to wait, or the end of the connection: in order, or by a reset."""

Script = Callable[[int, bytes], Sequence[Step]]
"""The answer to a request, by its number from 0 on and its bytes."""

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER's value that makes a close a reset."""

TUNNEL: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


def ok(body: bytes = b"{}", *headers: bytes) -> bytes:
    """An answer with a length."""
    return answer(200, body, *headers)


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    """An answer with a length and any status."""
    lines = b"".join(b"%b\r\n" % line for line in headers)
    return b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), lines, body)


@dataclass
class Server:
    """Listens on loopback from `start` to `stop`; each connection has a thread.

    A `hasty` one answers as soon as it has the head of a request, and reads the rest of it afterwards.
    """

    script: Script
    tls: ssl.SSLContext | None = None
    tunnels: bool = False
    hasty: bool = False
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        """Start."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and end what is open."""
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def hang_up(self) -> None:
        """End every connection from this side."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError):
            try:
                if self.tunnels:
                    self.requests.append(_request(connection))
                    connection.sendall(TUNNEL)
                if self.tls is not None:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                    self._open.append(connection)
                while True:
                    request, left = _head(connection)
                    if not self.hasty:
                        request += _rest(connection, left)
                    self.requests.append(request)
                    if not self._play(connection, self.script(len(self.requests) - 1, request)):
                        return
                    if self.hasty:
                        self.requests[-1] += _rest(connection, left)
            finally:
                connection.close()

    def _play(self, connection: socket.socket, steps: Sequence[Step]) -> bool:
        """Whether the connection goes on."""
        for step in steps:
            match step:
                case bytes():
                    connection.sendall(step)
                case float():
                    self._ended.wait(step)
                case "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return False
                case "close":
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                    return False
        return True


def _request(connection: socket.socket) -> bytes:
    data, left = _head(connection)
    return data + _rest(connection, left)


def _head(connection: socket.socket) -> tuple[bytes, int]:
    """The head of a request, with what came along of its body, and how many bytes of that are still to come."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65_536)
        if not received:
            raise EOFError
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return data, int(lengths[0].partition(b":")[2]) - len(body)


def _rest(connection: socket.socket, left: int) -> bytes:
    data = b""
    while left > 0:
        received = connection.recv(min(left, 65_536))
        if not received:
            raise EOFError
        data += received
        left -= len(received)
    return data
