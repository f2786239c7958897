"""ASGI middleware that has calls pass by the router: most requests are calls, and routing takes longer than they may.

Owns which requests are calls, and what of theirs becomes an answer, as the router has it for all others. Does not own
what a call does (`app`), nor the answers to errors (`answers`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tenuto_control.ingress import answers
from tenuto_control.ingress.paths import below_mount

CALLS: Final = "/call/"
"""What the paths of calls begin with, below a mount prefix."""

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class Direct:
    """Hands calls to their endpoint, and all else on. The path must be raw already, as `paths.RawPath` has it."""

    def __init__(self, app: ASGIApp, call: Endpoint) -> None:
        self._app = app
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or pass a request on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        path = below_mount(scope)
        if not path.startswith(CALLS):
            await self._app(scope, receive, send)
            return
        scope["path_params"] = {"target": path.removeprefix(CALLS)}
        request = Request(scope, receive, send)
        try:
            response = await self._call(request)
        except Exception as error:
            handler = answers.handler_of(error)
            if handler is None:
                # It is answered, and logged with its traceback, further out.
                raise
            response = await handler(request, error)
        await response(scope, receive, send)
