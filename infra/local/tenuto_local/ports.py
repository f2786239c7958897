"""Loopback ports below the ephemeral range.

Owns the range, the search, and another try for a process whose port was taken meanwhile. Listens on nothing itself.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from tenuto_local.errors import ConfigurationError, ProcessFailed
from tenuto_local.processes import ManagedProcess

LOOPBACK = "127.0.0.1"
# Linux hands out ports from 32768 upwards to outgoing connections; a server port up there can be taken at any
# moment.
PORT_MIN = 18_000
PORT_MAX = 32_000
ATTEMPTS_MAX = 200
START_ATTEMPTS_MAX = 3


def bind_loopback_socket() -> socket.socket:
    """Return a TCP socket bound to a free loopback port of the range; it is the caller's to close."""
    for _ in range(ATTEMPTS_MAX):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.bind((LOOPBACK, random.randint(PORT_MIN, PORT_MAX)))
        except OSError:
            sock.close()
            continue
        return sock
    raise ConfigurationError(f"no free port between {PORT_MIN} and {PORT_MAX} on {LOOPBACK}")


def free_port() -> int:
    """Return a port that was free a moment ago, for a process that can only bind by number."""
    with bind_loopback_socket() as sock:
        port: int = sock.getsockname()[1]
        return port


async def start_at_free_port(make: Callable[[int], ManagedProcess], taken: str, fixed_port: int | None = None) -> None:
    """Start a process at a port that was free a moment ago, or at a fixed one. Raises `ProcessFailed`.

    `make` makes the process for a port; `taken` is what it logs when another one has the port.
    """
    for attempt in range(1, START_ATTEMPTS_MAX + 1):
        process = make(fixed_port or free_port())
        try:
            await process.start()
        except ProcessFailed as error:
            # Between choosing a free port and binding it, another process may have taken it.
            if fixed_port or attempt == START_ATTEMPTS_MAX or taken not in str(error):
                raise
        else:
            return
