"""Paths: from the bytes of a request line to a service, a key and a handler.

Owns percent-decoding, which must be injective: two keys may never meet in one lane. Hence only the raw path
is read (the decoded one no longer tells `%2F` from `/`), and malformed text is refused, never repaired. Does
not own which services exist.

Servers differ in what they hand on:

- uvicorn, API Gateway REST APIs and function URLs pass the path as it was sent;
- API Gateway HTTP APIs decode it once, in either payload format, so it is encoded again here. The handler is
  the last segment, so all between service and handler is the key, slashes included. Such a gateway cuts the
  path at a decoded `?`, which nobody behind it can notice: keys that hold one need another way in.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from tenuto.protocol.ids import check_key
from tenuto_control.ingress.problems import RefusedError

_MALFORMED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FUNCTION_URL: Final = ".lambda-url."
_TARGET_WITHOUT_KEY: Final = 2
_TARGET_WITH_KEY: Final = 3


@dataclass(frozen=True, slots=True)
class Target:
    """What a path addresses; `key` is None when the path has none."""

    service: str
    key: str | None
    handler: str


class RawPath:
    """ASGI middleware that makes `scope["path"]` the path as the client sent it, still percent-encoded."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its raw path."""
        if scope["type"] == "http":
            # Whoever answers for an error further out must find what was noted about the request.
            scope.setdefault("state", {})
            prefix, path = raw_path(scope)
            scope = {**scope, "path": prefix + path, "root_path": prefix}
        await self._app(scope, receive, send)


def below_mount(scope: Mapping[str, Any]) -> str:
    """The path of a scope that is raw already, without its mount prefix."""
    path: str = scope["path"]
    return path[len(scope["root_path"]) :]


def raw_path(scope: Mapping[str, Any]) -> tuple[str, str]:
    """The mount prefix and the path below it, both ASCII and percent-encoded."""
    event = scope.get("aws.event")
    if isinstance(event, dict):
        return _gateway_path(event, scope["path"])
    raw: bytes | None = scope.get("raw_path")
    path = _ascii(raw) if raw else quote(scope["path"])
    prefix = quote(scope.get("root_path", ""))
    return (prefix, path[len(prefix) :]) if prefix and path.startswith(f"{prefix}/") else ("", path)


def parse_target(path: str) -> Target:
    """The target in `{service}/[{key}/]{handler}`. Raises RefusedError (400) when it is none."""
    segments = path.split("/")
    if len(segments) not in {_TARGET_WITHOUT_KEY, _TARGET_WITH_KEY}:
        raise RefusedError(
            "the path must be {service}/{handler}, or {service}/{key}/{handler} for a virtual object; "
            "a '/' inside a key is written %2F"
        )
    decoded = [decode_segment(segment) for segment in segments]
    if "" in decoded:
        raise RefusedError("service, key and handler must not be empty: is a variable in the address unset?")
    key = decoded[1] if len(decoded) == _TARGET_WITH_KEY else None
    if key is not None:
        try:
            check_key(decoded[0], key)
        except ValueError as e:
            raise RefusedError(str(e)) from None
    return Target(decoded[0], key, decoded[-1])


def encode_segment(text: str) -> str:
    """A path segment that decodes to `text` and to nothing else."""
    return quote(text, safe="")


def decode_segment(segment: str) -> str:
    """The text of a percent-encoded segment. Raises RefusedError (400) instead of guessing."""
    if "%" not in segment and segment.isascii():
        return segment
    if _MALFORMED.search(segment):
        raise RefusedError(f"{segment!r} has a '%' without two hex digits; a literal '%' is written %25")
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise RefusedError(f"{segment!r} does not decode to UTF-8 text") from None


def _ascii(raw: bytes | str) -> str:
    """Percent-encode what is not ASCII and leave every escape as it is."""
    return quote(raw, safe=string.punctuation)


def _gateway_path(event: Mapping[str, Any], served: str) -> tuple[str, str]:
    """Prefix and raw path of a gateway or function URL event; `served` is what the adapter made of it."""
    context = event["requestContext"]
    sent: str = event.get("rawPath") or event.get("path") or "/"
    prefix, path = _split_base(sent, served)
    if "version" in event and _FUNCTION_URL not in context.get("domainName", ""):
        return quote(prefix), _encode_again(path)
    # A REST API tells its stage apart from the path, and only here.
    staged: str = context.get("path") or ""
    stage = staged.removesuffix(sent) if staged.endswith(sent) else ""
    return _ascii(stage + prefix), _ascii(path)


def _split_base(sent: str, served: str) -> tuple[str, str]:
    """Part `sent` where the rest decodes to `served`: the adapter may have cut a base path off."""
    start = 0
    while start >= 0:
        if unquote(sent[start:]) == served:
            return sent[:start], sent[start:]
        start = sent.find("/", start + 1)
    return "", sent


def _encode_again(path: str) -> str:
    """The raw form of a path that a gateway has decoded."""
    segments = path.split("/")
    if segments[1:2] in (["call"], ["send"]) and len(segments) > _TARGET_WITH_KEY + 2:
        segments[3:-1] = ["/".join(segments[3:-1])]
    return "/".join(encode_segment(segment) for segment in segments)
