"""ASGI middleware that bounds what requests hold of this process together: how many wait, and how many bytes.

Owns which requests count, from when on, and the answer to those that find no room. Does not own the arithmetic
(`dispatcher.room`), nor what a call holds after its caller has gone (`dispatcher.calls`).

A request counts as waiting once its body is here, so that slow senders take no place from others. Its body counts byte
by byte as it arrives, and its result until it is sent. A large one is refused before it is sent, or else has room for
all of it as long as it comes swiftly. What tells about the process itself is answered whatever waits.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenuto.protocol.ids import AwakeableId, InvocationId
from tenuto_control.dispatcher.room import UNOWNED, Held, Room
from tenuto_control.ingress import answers
from tenuto_control.ingress.listing import Catalogue
from tenuto_control.ingress.paths import below_mount, decode_segment
from tenuto_control.ingress.problems import RefusedError
from tenuto_control.ingress.requests import BODY_BYTES_MAX, told_bytes
from tenuto_control.pace import Pace
from tenuto_control.ports import OverloadedError

ALWAYS_ANSWERED: Final = frozenset({"/health", "/ready", "/"})
"""Paths that neither wait nor hold anything."""

LOOKED_AT_PER_TURN: Final = 64
"""How many requests are let in or refused in one turn of the event loop."""

BEGUN_PER_TURN: Final = 8
"""How many of those let in begin to wait in one turn, which takes ten times as long. What tells about the process is
answered in between."""

PROMISED_BYTES_MIN: Final = 64 * 1024
"""From what size on a body is promised room before it comes. Smaller ones arrive at once."""

RESULT_FREE_BYTES: Final = 8 * 1024
"""A smaller result takes no room: what a waiting request holds by itself includes it (`memory.CALL_BYTES`)."""

BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Admission:
    """Lets requests in while there is room, and answers 503 to others."""

    def __init__(self, app: ASGIApp, room: Room, catalogue: Catalogue) -> None:
        self._app = app
        self._room = room
        self._catalogue = catalogue
        self._looks = Pace(LOOKED_AT_PER_TURN)
        self._begins = Pace(BEGUN_PER_TURN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = below_mount(scope)
        if path in ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        await self._looks.turn()
        held = self._room.held(self._owner(path))
        scope.setdefault("state", {})["held"] = held
        bodiless = scope["method"] in BODILESS

        async def counting() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not bodiless:
                held.add(len(message.get("body", b"")))
                if not message.get("more_body", False):
                    held.enter()
                    await self._begins.turn()
            return message

        try:
            if bodiless:
                held.enter()
            else:
                # Refused by what it announces, it need not be read.
                told = told_bytes(scope)
                if PROMISED_BYTES_MIN <= told <= BODY_BYTES_MAX:
                    held.promise(told)
                elif told < PROMISED_BYTES_MIN:
                    held.check(told)
        except OverloadedError as e:
            await (await answers.unavailable(Request(scope), e))(scope, receive, send)
            return
        try:
            if bodiless:
                await self._begins.turn()
            await self._app(scope, counting, send)
        finally:
            held.release()

    def _owner(self, path: str) -> str:
        """The function that a request is for, as far as its path tells; what is wrong with that is said later on."""
        try:
            _, kind, name, *_ = path.split("/")
            text = decode_segment(name)
            if kind == "invocations":
                text = InvocationId.parse(text).lane.service
            elif kind == "awakeables":
                text = AwakeableId.parse(text).invocation.lane.service
        except (ValueError, RefusedError):
            return UNOWNED
        target = self._catalogue.find(text)
        return UNOWNED if target is None else target.function


def hold_result(request: Request, value: bytes | None) -> None:
    """Count a result until it is sent. Raises RefusedError (503) when there is no room to send it from."""
    held: Held | None = getattr(request.state, "held", None)
    if held is None or not value:
        return
    try:
        # The body has been dealt with. A result that is no larger must not fail for want of room.
        held.exchange(0 if len(value) <= RESULT_FREE_BYTES else len(value))
    except OverloadedError:
        raise RefusedError(
            "the invocation has ended, but the results that are being sent take up all the room of this control plane. "
            + (
                "Repeat the request"
                if answers.is_repeatable(request)
                else "The request had no idempotency-key, so its result is not kept"
            ),
            503,
            {"retry-after": str(answers.RETRY_AFTER_S)},
        ) from None
