"""`/health` at its own port: answered whatever waits elsewhere, and never for a loop that has stopped.

Owns `drivers.health_server` with real sockets and a loop that is held. Does not own the whole process under callers
(`tests/stack/soak_memory`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tenuto_control.always_on import listening
from tenuto_control.config import HttpConfig
from tenuto_control.drivers import health_server
from tenuto_control.drivers.health_server import CONNECTIONS_MAX, REQUEST_BYTES_MAX, Pulse, serving_health
from tenuto_local.ports import free_port

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@contextmanager
def served(late_ms: int | None = 7) -> Iterator[int]:
    """The port; closed with its thread in the end."""
    port, before_s = free_port(), sys.getswitchinterval()
    with serving_health(listening(HttpConfig(), port), Pulse(lambda: late_ms)):
        yield port
    assert not [thread for thread in threading.enumerate() if thread.name == "tenuto-health"]
    assert sys.getswitchinterval() == before_s
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def asked(port: int, request: bytes = HEALTH) -> tuple[int, dict[str, object]]:
    """Status and body, from a client that blocks the loop of this thread."""
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.sendall(request)
        head, _, body = b"".join(iter(lambda: peer.recv(65_536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else {}


def test_it_answers_while_the_loop_is_held_and_says_for_how_long() -> None:
    async def scenario() -> None:
        with served() as port:
            await asyncio.sleep(0)
            assert asked(port) == (200, {"status": "alive", "late_ms": 7})
            time.sleep(0.4)  # noqa: ASYNC251 - the loop is held
            status, told = asked(port)
            assert (status, told["status"]) == (200, "alive")
            assert isinstance(told["late_ms"], int)
            assert 300 <= told["late_ms"] < 5_000

    asyncio.run(scenario())


def test_a_loop_that_does_not_come_round_is_not_called_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "STUCK_S", 0.2)

    async def scenario() -> None:
        with served(None) as port:
            time.sleep(0.5)  # noqa: ASYNC251 - the loop is held
            status, told = asked(port)
            assert (status, told["status"]) == (503, "stuck")
            while (await asyncio.to_thread(asked, port))[0] != 200:  # noqa: ASYNC110 - another thread's answer
                await asyncio.sleep(0.05)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /healthy HTTP/1.1\r\n\r\n", 404),
        (b"POST /health HTTP/1.1\r\n\r\n", 405),
        (b"\r\n\r\n", 404),
        (b"HEAD /health HTTP/1.1\r\n\r\n", 200),
        (b"GET /health?x=1 HTTP/1.0\r\n\r\n", 200),
    ],
)
def test_nothing_else_is_there(request_: bytes, status: int) -> None:
    async def scenario() -> None:
        with served() as port:
            assert asked(port, request_)[0] == status

    asyncio.run(scenario())


def test_silent_and_endless_peers_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "REQUEST_S_MAX", 0.3)

    async def scenario() -> None:
        with served() as port:
            peers = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(2 * CONNECTIONS_MAX)]
            for number, peer in enumerate(peers):
                if number % 3:
                    peer.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * (number % 3 - 1) * 2 * REQUEST_BYTES_MAX)
            # The oldest make room at once.
            for _ in range(3):
                assert asked(port)[0] == 200
            for peer in peers:
                peer.close()

    asyncio.run(scenario())
