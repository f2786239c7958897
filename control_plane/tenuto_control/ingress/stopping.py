"""ASGI middleware for the end of a process: requests that it has to give up are told so.

Owns what a caller hears whose request was cancelled. Does not own when that happens: the server's graceful shutdown
does, and the calls that it still waits for.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenuto_control.ingress import answers


class Stopping:
    """Answers 503 for a request that is cancelled before its answer began.

    A server that stops cancels what it still serves, and would answer 500 for it: a status that callers take for a
    fault of their request, and do not repeat.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What is noted about the request further in must be found here.
        scope.setdefault("state", {})
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if begun:
                raise
            request = Request(scope)
            response = answers.error(
                request,
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the control plane is stopping; whether the request took effect is unknown. "
                + answers.repetition(request),
                headers={"retry-after": str(answers.RETRY_AFTER_S)},
            )
            await response(scope, receive, send)
