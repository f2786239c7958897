"""Signature Version 4 as the local AWS services check it: a request of this start's access key, or none.

Owns the check of the `Authorization` header against one pair of credentials. Does not own which credentials these are
(`aws_api`), nor where a request goes. Written out here because botocore signs and does not check, and because every
invocation passes this check. Requests signed in their query (presigned URLs) and bodies signed in chunks are refused:
no client of the stack makes them. The time of a signature is not judged: who could record one on the loopback interface
could do worse.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

from tenuto_local.http_server import Request

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SCOPES_MAX: Final = 64
"""Signing keys kept: one for each day, region and service that was asked for."""

_AUTHORIZATION: Final = re.compile(
    ALGORITHM + r" Credential=(?P<key>[^/,]+)/(?P<date>\d{8})/(?P<region>[^/,]+)/(?P<service>[^/,]+)/aws4_request"
    r", ?SignedHeaders=(?P<names>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


class Claim(NamedTuple):
    """What an `Authorization` header claims."""

    key: str
    date: str
    region: str
    service: str
    names: tuple[str, ...]
    signature: str


def claim_of(request: Request) -> Claim | None:
    """What a request claims to be signed with; None when it is not signed."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return None
    key, date, region, service, names, signature = found.groups()
    return Claim(key, date, region, service, tuple(names.split(";")), signature)


def proven(request: Request, claim: Claim, access_key: str, secret_key: str) -> bool:
    """Whether a claim is true: these credentials signed this request, its address and its body."""
    if claim.key != access_key or "host" not in claim.names or "x-amz-date" not in claim.names:
        return False
    wanted = _signature(request, claim, secret_key)
    return wanted is not None and hmac.compare_digest(wanted, claim.signature)


def _signature(request: Request, claim: Claim, secret_key: str) -> str | None:
    headers = request.headers
    if any(name not in headers for name in claim.names):
        return None
    canonical = "\n".join(
        (
            request.method,
            _quoted(request.path or "/"),
            _in_order(request.query) if "&" in request.query else request.query,
            *(f"{name}:{' '.join(headers[name].split())}" for name in claim.names),
            "",
            ";".join(claim.names),
            hashlib.sha256(request.body).hexdigest(),
        )
    )
    scope = f"{claim.date}/{claim.region}/{claim.service}/aws4_request"
    digest = hashlib.sha256(canonical.encode("latin-1", "replace")).hexdigest()
    text = "\n".join((ALGORITHM, headers["x-amz-date"], scope, digest))
    key = _signing_key(secret_key, claim.date, claim.region, claim.service)
    return hmac.digest(key, text.encode("latin-1", "replace"), "sha256").hex()


@lru_cache(maxsize=SCOPES_MAX)
def _quoted(path: str) -> str:
    # The same few are invoked again and again.
    return quote(path, safe="/~")


def _in_order(query: str) -> str:
    return "&".join(sorted(query.split("&"), key=lambda pair: pair.partition("=")[::2]))


@lru_cache(maxsize=SCOPES_MAX)
def _signing_key(secret_key: str, *scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (*scope, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
