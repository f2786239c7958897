"""What both kinds of connection set up alike: keep-alive probes, and TLS.

Owns the one way in which a server is verified. The module `ssl` is imported at the first use: a client of a plain
endpoint does without it.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tenuto.wire.errors import ConnectError
from tenuto.wire.limits import PROBE_AFTER_S, PROBE_INTERVAL_S, PROBES_MAX

if TYPE_CHECKING:
    import ssl


def client_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Verification of chain and host name, TLS 1.2 or later. Raises ConnectError when the bundle cannot be read.

    Without a bundle, the system's certificates count.
    """
    import ssl

    folder = ca_bundle is not None and Path(ca_bundle).is_dir()
    try:
        context = ssl.create_default_context(cafile=None if folder else ca_bundle, capath=ca_bundle if folder else None)
    except OSError as error:
        raise ConnectError(f"the certificates in {ca_bundle} cannot be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel probe a silent connection: it notices a dead peer, and what lies between does not forget it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not every system has all of them.
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_AFTER_S),
        ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
        ("TCP_KEEPCNT", PROBES_MAX),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
