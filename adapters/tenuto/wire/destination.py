"""Where a client's requests go, as data.

Owns the parts of an endpoint's URL that requests and connections need. Does not own how the endpoint is found
(`tenuto.store.aws_client`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is spoken to in plain HTTP. `authorization` is the value of Proxy-Authorization, if any."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Destination:
    """One service's endpoint. `base_path` ends in no slash; `ca_bundle` is a file or a folder of certificates."""

    tls: bool
    host: str
    port: int
    base_path: str
    service: str
    region: str
    ca_bundle: str | None = None
    proxy: Proxy | None = None

    @property
    def authority(self) -> str:
        """The value of the Host header: a default port is left out, an IPv6 address is in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"

    @property
    def tunnelled(self) -> str:
        """Host and port as a proxy is asked for them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def dialled(self) -> tuple[str, int]:
        """Host and port that connections are opened to."""
        return (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)

    @property
    def name(self) -> str:
        """The endpoint in messages."""
        return f"{self.host}:{self.port}"


def destination(
    url: str, *, service: str, region: str, ca_bundle: str | None = None, proxy: Proxy | None = None
) -> Destination:
    """The destination that an endpoint's URL names. Raises ValueError for one that is no HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"no HTTP endpoint: {url}")
    return Destination(
        tls=parts.scheme == "https",
        host=parts.hostname,
        port=parts.port or DEFAULT_PORTS[parts.scheme],
        base_path=parts.path.rstrip("/"),
        service=service,
        region=region,
        ca_bundle=ca_bundle,
        proxy=proxy,
    )
