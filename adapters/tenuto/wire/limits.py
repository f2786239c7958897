"""Bounds of the AWS client, in one place. Names end in their unit.

Owns what every client of this package keeps to. Timeouts that differ between functions and the control plane are
arguments (`Timeouts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HEAD_BYTES_MAX: Final = 65_536
"""What the head of an answer may weigh, and the trailers of a chunked one: AWS's have about 400 bytes."""

CHUNK_LINE_BYTES_MAX: Final = 4_096
"""What the line before a chunk may weigh, extensions included."""

INFORMATIONAL_MAX: Final = 16
"""Informational answers (1xx) that may come before the real one."""

DYNAMODB_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest answer of DynamoDB that is read: a page of 1 MB, whose JSON may be several times as long, has room."""

CONNECTION_IDLE_S_MAX: Final = 45.0
"""How long an idle connection is kept. Later, a load balancer or NAT gateway may have dropped it."""

CONNECTION_AGE_S_MAX: Final = 300.0
"""How long a connection is used. Its successor resolves the name again, so traffic follows a failover."""

KEEP_ALIVE_MARGIN_S: Final = 1.0
"""How long before the server's keep-alive timeout a connection is dropped: a request takes time to arrive."""

PROBE_AFTER_S: Final = 60
PROBE_INTERVAL_S: Final = 20
PROBES_MAX: Final = 4
"""Keep-alive probes of the kernel while an answer is awaited: an invocation may take longer than the 350 s of silence
after which NAT gateways forget a connection."""

ANSWER_TIMEOUTS_MAX: Final = 3
"""Read timeouts that a slow answer may take in total: the timeout itself bounds only silence."""

WRITE_BYTES_MAX: Final = 262_144
"""Requests above this size are written piece by piece, so that a large one does not delay an event loop."""

ADDRESSES_MAX: Final = 4
"""Addresses of one name that are tried for a connection."""

SKEW_S_MIN: Final = 60
"""A smaller clock difference cannot be the reason for a rejected signature: AWS accepts five minutes (SigV4)."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits. `connect_s` covers TLS and a proxy's consent, `read_s` is silence of a server."""

    connect_s: float
    read_s: float
