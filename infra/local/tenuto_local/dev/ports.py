"""The ports of a session: fixed ones to begin with, the next free one where another process listens already.

Owns the search. Does not own which ports are wanted (`tenuto_control.config`), nor what listens (`stack`).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from tenuto_control.core.settings import LOCAL_PORT_MAX
from tenuto_local.errors import ConfigurationError
from tenuto_local.ports import LOOPBACK, free_port

TRIES_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class Chosen:
    """A port, and the line that says so when it is not the one that was wanted."""

    port: int
    notice: str | None = None


def choose(what: str, wanted: int, taken: set[int], option: str) -> Chosen:
    """The wanted port, or the next that is free; 0 is any. `taken` gets it. Raises `ConfigurationError`."""
    if wanted == 0:
        port = free_port()
        taken.add(port)
        return Chosen(port)
    for port in range(wanted, min(wanted + TRIES_MAX, max(wanted, LOCAL_PORT_MAX) + 1)):
        if port not in taken and is_free(port):
            taken.add(port)
            notice = f"port {wanted} is in use, so {what} listens on {port} ({option} chooses another)"
            return Chosen(port, None if port == wanted else notice)
    raise ConfigurationError(f"no free port for {what} from {wanted} to {wanted + TRIES_MAX}; name one with {option}")


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
