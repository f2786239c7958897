"""Answers: every response the ingress gives, in one shape each.

Owns status codes and bodies. An error is always `{"error": {"message": …}}`; the failure of a handler adds
`metadata`, which tells its 404 from that of an unknown address. Does not own when to give which answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias, assert_never

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tenuto.protocol.ids import InvocationId
from tenuto.protocol.records import Failed, Result, Success
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control.core import log_fields
from tenuto_control.core.log_fields import shown
from tenuto_control.core.metrics import CountName, Metrics
from tenuto_control.ingress.problems import RefusedError
from tenuto_control.ingress.requests import json_problem
from tenuto_control.ports import (
    Answer,
    InvokeError,
    LogUnavailableError,
    OverloadedError,
    PayloadTooLargeError,
    Pending,
    TooLargeError,
    UndecidedError,
    Unknown,
)

INVOCATION_HEADER: Final = "x-tenuto-invocation-id"
RETRY_AFTER_S: Final = 1
"""When to come back after a 503."""

OVERLOADED_RETRY_AFTER_S: Final = 5
"""The same where there is no room: thousands that come back every second would take the time of those that wait."""

OVERLOADED_PAUSE_S: Final = 10.0
"""How long nothing more is logged of requests for which there is no room."""

PATH_CHARS_SHOWN_MAX: Final = 200
"""What of an address an error repeats."""

ERROR_STATUS_MIN: Final = 400
ERROR_STATUS_MAX: Final = 599

_log: Final = logging.getLogger("tenuto.ingress")


def remember(request: Request, invocation: str, handler: str | None = None) -> None:
    """From here on, every answer to this request carries the invocation's id, errors included, and so do log lines."""
    request.state.invocation = invocation
    request.state.handler = handler


def error(
    request: Request,
    status: int,
    message: str,
    metadata: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The one shape of an error."""
    body: dict[str, Any] = {"message": encodable(message)}
    if metadata is not None:
        body["metadata"] = {encodable(name): encodable(text) for name, text in metadata.items()}
    return JSONResponse({"error": body}, status, {**_identity(request), **(headers or {})})


def encodable(text: str) -> str:
    """Text that UTF-8 can say: a lone surrogate, which JSON may carry, is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def accepted(request: Request, body: Mapping[str, str], *, attach: str | None = None) -> Response:
    """202, with a `location` to attach to when the result will be there."""
    headers = _identity(request)
    if attach is not None:
        headers["location"] = f"{request.scope.get('root_path', '')}/invocations/{attach}/attach"
    return JSONResponse(dict(body), HTTPStatus.ACCEPTED, headers)


def answer(request: Request, invocation: str, found: Answer) -> Response:
    """What is known of an invocation."""
    match found:
        case Success() | Failed():
            return result(request, found)
        case Pending():
            body = {"invocation_id": invocation, "status": "pending"}
            return accepted(request, body, attach=invocation)
        case Unknown():
            return error(
                request,
                HTTPStatus.NOT_FOUND,
                "no such invocation: never accepted, or its result was not kept",
            )
        case _:
            assert_never(found)


def result(request: Request, found: Result) -> Response:
    """200 with the handler's output, 204 without one, or the status of its terminal failure."""
    match found:
        case Success():
            if found.value is None:
                return Response(status_code=HTTPStatus.NO_CONTENT, headers=_identity(request))
            # A handler may return bytes of its own making.
            kind = "application/octet-stream" if json_problem(found.value) else "application/json"
            return Response(found.value, HTTPStatus.OK, _identity(request), kind)
        case Failed(failure=failure):
            proper = ERROR_STATUS_MIN <= failure.status_code <= ERROR_STATUS_MAX
            status = failure.status_code if proper else HTTPStatus.INTERNAL_SERVER_ERROR
            return error(request, status, failure.message, failure.metadata)
        case _:
            assert_never(found)


def count(request: Request, name: CountName) -> None:
    """One more request that was answered by an error of this side."""
    metrics: Metrics | None = getattr(request.app.state, "metrics", None) if "app" in request.scope else None
    if metrics is not None:
        metrics.count(name)


async def refused(request: Request, exc: Exception) -> Response:
    """A request that cannot be served as it is."""
    assert isinstance(exc, RefusedError)
    match exc.status:
        case HTTPStatus.SERVICE_UNAVAILABLE:
            count(request, "HttpOverloaded")
        case HTTPStatus.GATEWAY_TIMEOUT:
            count(request, "HttpUnanswered")
        case _:
            count(request, "HttpRefused")
    return error(request, exc.status, exc.message, headers=exc.headers)


async def no_route(request: Request, exc: Exception) -> Response:
    """What the router refuses: an unknown address (404) or method (405)."""
    assert isinstance(exc, HTTPException)
    count(request, "HttpRefused")
    message = str(exc.detail)
    if exc.status_code == HTTPStatus.NOT_FOUND:
        path = request.scope["path"]
        shown = path if len(path) <= PATH_CHARS_SHOWN_MAX else path[:PATH_CHARS_SHOWN_MAX] + "…"
        message = f"nothing answers at {shown!r}; GET / lists what does"
    elif exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (exc.headers or {}).get("Allow", "")
        message = f"{request.method} is not possible here; use {allowed}"
    return error(request, exc.status_code, message, headers=exc.headers)


async def unavailable(request: Request, exc: Exception) -> Response:
    """503: a part of the system did not answer, and what became of the request is unknown."""
    _told(logging.WARNING, request, exc)
    match exc:
        case OverloadedError():
            count(request, "HttpOverloaded")
        case TooLargeError() | PayloadTooLargeError():
            count(request, "HttpRefused")
        case _:
            count(request, "HttpUnanswered")
    again = {"retry-after": str(RETRY_AFTER_S)}
    match exc:
        case OverloadedError():
            later = {"retry-after": str(OVERLOADED_RETRY_AFTER_S)}
            return error(request, HTTPStatus.SERVICE_UNAVAILABLE, f"nothing was accepted: {exc}", headers=later)
        case UndecidedError():
            message = f"{exc}. {repetition(request)}"
            return error(request, HTTPStatus.SERVICE_UNAVAILABLE, message, headers=again)
        case TooLargeError():
            return error(request, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(exc))
        case PayloadTooLargeError():
            return error(
                request,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "input and state together are larger than a function can be given",
            )
        case TableUnavailableError():
            part = "the table"
        case LogUnavailableError():
            part = "the event log"
        case InvokeError():
            part = "the function"
        case _:
            raise exc
    message = f"{part} did not answer; whether the request took effect is unknown. {repetition(request)}"
    return error(request, HTTPStatus.SERVICE_UNAVAILABLE, message, headers=again)


def is_repeatable(request: Request) -> bool:
    """Whether a request may be repeated once it has taken effect: a call or send may with an idempotency key only."""
    return getattr(request.state, "handler", None) is None or "idempotency-key" in request.headers


def repetition(request: Request) -> str:
    """What a caller can do whose request may have taken effect."""
    if not is_repeatable(request):
        return "It had no idempotency-key, so repeating it may run the handler a second time"
    if getattr(request.state, "handler", None) is None:
        return "Repeat it"
    return "Repeat it with the same idempotency-key"


async def broken(request: Request, exc: Exception) -> Response:
    """500: trying again cannot help. The log has the reason, the caller does not."""
    _told(logging.ERROR, request, exc)
    count(request, "HttpBroken")
    return error(request, HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the control plane's log has the reason")


async def gone(request: Request, exc: Exception) -> Response:
    """The client left while it was sending; nobody reads this."""
    assert isinstance(exc, ClientDisconnect)
    return error(request, HTTPStatus.BAD_REQUEST, "the request ended before its body did")


def _told(level: int, request: Request, exc: Exception) -> None:
    """One line about a request that failed for no fault of its own.

    Of those for which there is no room there may be thousands a second: one line in `OVERLOADED_PAUSE_S` counts them.
    """
    more = ""
    if isinstance(exc, OverloadedError):
        state, now_s = request.app.state, asyncio.get_running_loop().time()
        state.overloaded = getattr(state, "overloaded", 0) + 1
        if now_s < getattr(state, "overloaded_next_s", 0.0):
            return
        more = f" ({state.overloaded:,} refused since the last such line)" if state.overloaded > 1 else ""
        state.overloaded, state.overloaded_next_s = 0, now_s + OVERLOADED_PAUSE_S
    invocation = getattr(request.state, "invocation", None)
    fields = {} if invocation is None else log_fields.of_invocation(InvocationId.parse(invocation))
    if (handler := getattr(request.state, "handler", None)) is not None:
        fields["handler"] = handler
    what = (request.method, shown(request.scope["path"]), type(exc).__name__, shown(str(exc)), more)
    _log.log(level, "%s %s: %s: %s%s", *what, extra=fields)


def _identity(request: Request) -> dict[str, str]:
    invocation = getattr(request.state, "invocation", None)
    return {} if invocation is None else {INVOCATION_HEADER: invocation}


ErrorHandler: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]

HANDLERS: Final[Mapping[type[Exception], ErrorHandler]] = {
    RefusedError: refused,
    HTTPException: no_route,
    TableUnavailableError: unavailable,
    LogUnavailableError: unavailable,
    InvokeError: unavailable,
    OverloadedError: unavailable,
    UndecidedError: unavailable,
    TooLargeError: unavailable,
    TableRefusedError: broken,
    ClientDisconnect: gone,
    Exception: broken,
}
"""Which exception becomes which answer. An unforeseen one reaches the server's log with its traceback.

All are coroutines: Starlette would have a thread run each plain function.
"""


def handler_of(error: Exception) -> ErrorHandler | None:
    """What answers for an exception that is foreseen; None for any other."""
    return next((HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS and kind is not Exception), None)
