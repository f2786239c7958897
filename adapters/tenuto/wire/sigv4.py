"""AWS Signature Version 4.

Owns the canonical form of a request and its signature. Pure; `signer` remembers keys and times. Source of facts:
"Signing AWS API requests" (IAM User Guide).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

from msgspec import Struct

ALGORITHM: Final = "AWS4-HMAC-SHA256"
TERMINATOR: Final = "aws4_request"

UNSIGNED: Final = frozenset(
    {
        "baggage",
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-amzn-trace-id",
    }
)
"""Headers that stay out of a signature, as whatever lies between may add or change them."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key, with a session token when it is a temporary one."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class Request(Struct, frozen=True):
    """A request as it is to be sent. Names of `headers` are in lower case; `path` and `query` are encoded."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    query: str = ""
    method: str = "POST"


def signing_key(secret_key: str, day: str, region: str, service: str) -> bytes:
    """The key that signs all requests of one day, written as 20261129, to a service in a region."""
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, service, TERMINATOR):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


class SigningKey:
    """A key of HMAC-SHA256 with which many texts are signed, each in a third of the time that a new start takes."""

    def __init__(self, key: bytes) -> None:
        # RFC 2104: a hash over the key and the text, within a hash over the key. Both begin alike for every text.
        block = key.ljust(sha256().block_size, b"\0")
        self._inner = sha256(block.translate(_INNER_PAD))
        self._outer = sha256(block.translate(_OUTER_PAD))

    def sign(self, text: bytes) -> str:
        """The signature of a text, in hexadecimal digits."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest()


_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))


class Unsigned(Struct, frozen=True):
    """What all requests of one second have in common that differ in nothing but their bodies.

    `canonical` is the hash of a request up to its body's, `text` what is signed up to the hash of the request.
    """

    canonical: Any
    text: str
    authorization: str

    def signature(self, body: bytes, key: SigningKey) -> str:
        """What follows `authorization` in the header, for the request with this body."""
        canonical = self.canonical.copy()
        canonical.update(sha256(body).hexdigest().encode())
        return key.sign(f"{self.text}{canonical.hexdigest()}".encode())


def unsigned(request: Request, headers: Mapping[str, str], access_key: str, region: str, service: str) -> Unsigned:
    """What the signature of a request with these headers begins with, `host` and `x-amz-date` among them."""
    stamp = headers["x-amz-date"]
    signed, names = _signed(tuple(headers))
    lines = "".join([f"{name}:{_canonical_value(headers[name])}\n" for name in signed])
    canonical = (
        f"{request.method}\n{canonical_path(request.path)}\n{canonical_query(request.query)}\n{lines}\n{names}\n"
    )
    scope = f"{stamp[:8]}/{region}/{service}/{TERMINATOR}"
    return Unsigned(
        sha256(canonical.encode()),
        f"{ALGORITHM}\n{stamp}\n{scope}\n",
        f"{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, Signature=",
    )


@lru_cache(maxsize=64)
def _canonical_value(value: str) -> str:
    """A header's value with single spaces. The same few come each time."""
    return " ".join(value.split())


@lru_cache(maxsize=256)
def _signed(names: tuple[str, ...]) -> tuple[list[str], str]:
    """Those of a request's headers that are signed, in order, and as they are listed. The same few come each time."""
    signed = sorted([name for name in names if name not in UNSIGNED])
    return signed, ";".join(signed)


@lru_cache(maxsize=256)
def canonical_path(path: str) -> str:
    """An encoded path without dot segments and double slashes, encoded once more, as all services but S3 want it."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    normal = "/" + "/".join(segments) + ("/" if segments and path.endswith("/") else "")
    return quote(normal, safe="/~")


@lru_cache(maxsize=256)
def canonical_query(query: str) -> str:
    """An encoded query whose parameters are in order."""
    if not query:
        return ""
    pairs = sorted((name, value) for name, _, value in (pair.partition("=") for pair in query.split("&")))
    return "&".join(f"{name}={value}" for name, value in pairs)
