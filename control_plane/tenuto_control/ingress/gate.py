"""ASGI middleware at the door: addresses that are too long, and requests that a browser makes for a foreign page.

Owns CORS: which pages may call, what their preflight is answered, and what refuses all others; and by which names this
control plane may be addressed. Does not own who may call (a gateway or proxy authenticates).

A browser sends a plain POST for any page without asking first, so headers that allow nothing do not protect a handler
within its reach: a POST that names a foreign origin is refused. Programs that are no browsers send no origin.

A page may also have its own name resolve to 127.0.0.1, and then is no foreign origin to the browser (DNS rebinding). It
cannot choose what `host` says, so a control plane that listens on its own machine alone takes names of that machine
alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenuto_control.ingress import answers

ADDRESS_BYTES_MAX: Final = 16_384
"""Longest path with its query: a key of 1,024 bytes takes 3,072 at most, and an awakeable's id not much more."""

PREFLIGHT_AGE_S: Final = 600
"""How long a browser may remember an allowed preflight."""

_HOST: Final = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s:@/\[\]]+))(?::[0-9]{0,5})?", re.ASCII)

HOSTS_REMEMBERED: Final = 64
"""The same few come with every request."""

ANY_ORIGIN: Final = "*"
METHODS: Final = "GET, POST"
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
EXPOSED_HEADERS: Final = f"location, retry-after, {answers.INVOCATION_HEADER}"


class Gate:
    """Refuses what must not be routed, and adds CORS headers for the pages of `origins`; `*` are all pages.

    Without `hosts`, requests may name any host; with them, one of them or this machine.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = (), hosts: Collection[str] | None = None) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What is noted about the request further in must be found by whoever answers for an error.
        scope.setdefault("state", {})
        request = Request(scope)
        origin = request.headers.get("origin")
        if origin is None and self._refusal(request, None, allowed=False) is None:
            # No browser asks, which is so of nearly all requests.
            await self._app(scope, receive, send)
            return
        allowed = origin is not None and (origin in self._origins or ANY_ORIGIN in self._origins)
        sender = _allowing(send, origin) if allowed and origin is not None else send
        response = self._refusal(request, origin, allowed=allowed)
        if response is not None:
            answers.count(request, "HttpRefused")
        response = response or self._preflight(request, allowed=allowed)
        await (response or self._app)(scope, receive, sender)

    def _refusal(self, request: Request, origin: str | None, *, allowed: bool) -> Response | None:
        scope = request.scope
        if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > ADDRESS_BYTES_MAX:
            message = f"the address is longer than {ADDRESS_BYTES_MAX:,} bytes: put the data into the body"
            return answers.error(request, HTTPStatus.REQUEST_URI_TOO_LONG, message)
        if self._hosts is not None and "aws.event" not in scope and not self._is_named(request):
            message = "this host is not served here: list it under hosts in [http] if it should be"
            return answers.error(request, HTTPStatus.FORBIDDEN, message)
        if origin is not None and not allowed and request.method not in SAFE_METHODS:
            message = "pages of this origin may not call: list it under cors_origins in [http] if they should"
            return answers.error(request, HTTPStatus.FORBIDDEN, message)
        return None

    def _is_named(self, request: Request) -> bool:
        """Whether the request names this machine, or a host that is served. Without a name it is no browser's."""
        lines = request.headers.getlist("host")
        if not lines:
            return True
        host = _host_of(lines[0])
        return len(lines) == 1 and (host in (self._hosts or ()) or is_loopback(host))

    @staticmethod
    def _preflight(request: Request, *, allowed: bool) -> Response | None:
        """The answer to a browser that asks whether it may; without an allowed origin no route knows OPTIONS."""
        asked = request.headers.get("access-control-request-method")
        if not allowed or request.method != "OPTIONS" or asked is None:
            return None
        headers = {
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": request.headers.get("access-control-request-headers", ""),
            "access-control-max-age": str(PREFLIGHT_AGE_S),
        }
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)


@lru_cache(maxsize=HOSTS_REMEMBERED)
def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@lru_cache(maxsize=HOSTS_REMEMBERED)
def _host_of(line: str) -> str:
    """The host in a `host` header, without its port and brackets; empty when it is none."""
    found = _HOST.fullmatch(line.strip().lower())
    return "" if found is None else found["address"] or found["name"]


def _allowing(send: Send, origin: str) -> Send:
    """Let the page of an origin read the answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = EXPOSED_HEADERS
            headers.add_vary_header("origin")
        await send(message)

    return sent
