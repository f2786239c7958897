"""AWS as moto plays it, behind an endpoint of its own.

Owns the server's life. Does not own what is in it, which a test makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tenuto_local.ports import LOOPBACK, free_port


@contextmanager
def moto_server() -> Iterator[str]:
    """The endpoint of a running server."""
    # Imported here: most of a suite does without.
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(LOOPBACK, free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
