"""Which requests a local server answers at all: those of programs on this machine, and none that a web page causes.

Owns the rule for `Host`, `Origin` and the headers by which browsers mark what pages ask for. Every server that the
stack starts applies it before anything else (`http_server`). Does not own who may do what: the gateway asks for a
signature (`signatures`) or for the secret of this start (`gateway_contract`).

A page cannot read this machine's ports, but it can have a browser send requests to them. A browser always says where
such a request comes from: by `Origin` when it could change anything, by `Sec-Fetch-Site` otherwise, and, when a name of
the page's own server was pointed at this machine, by a `Host` that is not this server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost")
BROWSER_HEADERS: Final = ("origin", "sec-fetch-site", "sec-fetch-mode")


def foreign(headers: Mapping[str, str], port: int) -> str | None:
    """Why a request is not answered at all; None for one of a program that means this server.

    Header names are lower case. `port` is the server's own.
    """
    for name in BROWSER_HEADERS:
        if name in headers:
            return f"a request with {name} comes from a web page, and this server answers none of those"
    if headers.get("host", "").lower() not in _own_hosts(port):
        return f"the Host header has to be {LOOPBACK_NAMES[0]}:{port}"
    return None


@lru_cache(maxsize=64)
def _own_hosts(port: int) -> tuple[str, ...]:
    return tuple(f"{name}:{port}" for name in LOOPBACK_NAMES)
