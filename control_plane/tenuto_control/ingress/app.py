"""The ASGI application: routes, and what each asks of the dispatcher.

Owns the meaning of a request: which invocation it is, how long it waits, what is kept. Holds nothing between
requests and starts nothing of its own, so the same application runs under uvicorn and, through Mangum, in
a Lambda function. Does not own authentication (a gateway's or proxy's) nor the way an invocation runs.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias, TypeVar, assert_never

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tenuto.protocol.ids import InvocationId, Lane, call_nonce
from tenuto.protocol.limits import AWAKEABLE_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.messages import HandlerManifest
from tenuto.protocol.records import CallSource, Event, Result, Success, answer_bytes
from tenuto_control.core.clocks import ClockCheck
from tenuto_control.core.metrics import Metrics
from tenuto_control.dispatcher.room import Room
from tenuto_control.ingress import answers, identities, listing, paths, readiness, requests
from tenuto_control.ingress.admission import Admission, hold_result
from tenuto_control.ingress.direct import Direct
from tenuto_control.ingress.gate import Gate
from tenuto_control.ingress.listing import Catalogue
from tenuto_control.ingress.problems import RefusedError
from tenuto_control.ingress.stopping import Stopping
from tenuto_control.limits import Limits
from tenuto_control.ports import Answer, Execution, Resolution, StoppedLoop, UndecidedError, Unreadable
from tenuto_control.waiting import Within

T = TypeVar("T")

WAIT_MS_MAX: Final = 25_000
"""How long a request waits for a result: below the 29 seconds after which API Gateway gives up."""

LATE_MS_MAX: Final = 1_500
"""How long after its caller's wait a request may be answered: what is in progress is made durable, or given up."""

READY_MS_MAX: Final = 2_000
"""How long the readiness probe may take."""

NONCE_BYTES: Final = 12
ReadyProbe: TypeAlias = Callable[[], Awaitable[str | None]]
"""Tells why the control plane is not ready to serve, None when it is."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def create_app(
    execution: Execution,
    catalogue: Catalogue,
    *,
    ready: ReadyProbe,
    wait_ms_max: int = WAIT_MS_MAX,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    unreadable: Callable[[], Sequence[Unreadable]] = tuple,
    unanswered: Callable[[], Mapping[str, str]] = dict,
    clock: Callable[[], ClockCheck | None] = lambda: None,
    stopped: Callable[[], Sequence[StoppedLoop]] = tuple,
    late_ms: Callable[[], int | None] = lambda: None,
    cors_origins: Collection[str] = (),
    hosts: Collection[str] | None = None,
    room: Room | None = None,
    metrics: Metrics | None = None,
    now_ms: Callable[[], int] = _now_ms,
) -> Starlette:
    """The ingress over a dispatcher. `random_bytes` makes the ids of calls that bring no idempotency key.

    `unanswered` names functions whose answers to discovery do not count, and why. `clock` tells how this machine's
    clock compares with the table's, `late_ms` how late the event loop was of late. Pages of `cors_origins` may call
    from a browser. Given `hosts`, requests must name one of them, or this machine, as their host. What requests hold
    together stays within `room`. Errors are counted in `metrics`. `now_ms` is the time (milliseconds since the epoch)
    that the time of arrival at a gateway is compared to.
    """
    named = hosts is not None
    ingress = _Ingress(
        execution,
        catalogue,
        ready,
        wait_ms_max,
        random_bytes,
        unreadable,
        unanswered,
        clock,
        stopped,
        late_ms,
        now_ms,
        named=named,
    )
    limits = Limits()
    app = Starlette(
        routes=[
            Route("/", ingress.index, methods=["GET"]),
            Route("/health", ingress.health, methods=["GET"]),
            Route("/ready", ingress.readiness, methods=["GET"]),
            Route("/call/{target:path}", ingress.call, methods=["POST"]),
            Route("/send/{target:path}", ingress.send, methods=["POST"]),
            Route("/invocations/{id}/attach", ingress.attach, methods=["GET"]),
            Route("/invocations/{id}/output", ingress.output, methods=["GET"]),
            Route("/awakeables/{id}/resolve", ingress.resolve, methods=["POST"]),
            Route("/awakeables/{id}/reject", ingress.reject, methods=["POST"]),
        ],
        middleware=[
            Middleware(Stopping),
            Middleware(Gate, origins=cors_origins, hosts=hosts),
            Middleware(paths.RawPath),
            Middleware(Admission, room=room or Room(limits.calls_max, limits.calls_bytes_max), catalogue=catalogue),
            Middleware(Direct, call=ingress.call),
        ],
        exception_handlers=answers.HANDLERS,
    )
    # A redirect would turn a POST with a stray slash into something else; the 404 says what is wrong.
    app.router.redirect_slashes = False
    app.state.metrics = metrics
    return app


@dataclass(frozen=True, slots=True)
class _Ingress:
    execution: Execution
    catalogue: Catalogue
    ready: ReadyProbe
    wait_ms_max: int
    random_bytes: Callable[[int], bytes]
    unreadable: Callable[[], Sequence[Unreadable]]
    unanswered: Callable[[], Mapping[str, str]]
    clock: Callable[[], ClockCheck | None]
    stopped: Callable[[], Sequence[StoppedLoop]]
    late_ms: Callable[[], int | None]
    now_ms: Callable[[], int]
    named: bool

    async def index(self, request: Request) -> Response:
        """List services and handlers, each with a line to paste."""
        # What a caller says of the host is repeated only where it was checked.
        base = str(request.base_url).rstrip("/") if self.named else listing.BASE + request.scope.get("root_path", "")
        if request.headers.get("accept", "").startswith("text/plain"):
            return PlainTextResponse(listing.as_text(self.catalogue.listed(), base))
        return JSONResponse(listing.as_json(self.catalogue.listed(), base))

    async def health(self, _request: Request) -> Response:
        """Tell that the process is alive, and how late it was of late at most: the caller may be late as well."""
        late_ms = self.late_ms()
        return JSONResponse({"status": "alive"} if late_ms is None else {"status": "alive", "late_ms": late_ms})

    async def readiness(self, request: Request) -> Response:
        """Tell whether calls can be served."""
        try:
            async with asyncio.timeout(READY_MS_MAX / 1_000):
                problem = await self.ready()
        except TimeoutError:
            problem = f"the readiness probe took longer than {READY_MS_MAX} ms"
        if problem is None:
            told = readiness.ready(self.unreadable(), self.clock(), self.unanswered(), self.stopped())
            return JSONResponse(told)
        return answers.error(request, HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {problem}")

    async def call(self, request: Request) -> Response:
        """Run a handler and wait for its result."""
        requests.refuse_unknown_parameters(request, ())
        wait = self._wait(request)
        handler, event = await self._event(request, requests.BODY_BYTES_MAX, "the body of a call")
        if handler.kind == "shared":
            return _result(request, await self._call_shared(event, wait.left_ms()))
        return _answer(request, event.id, await wait.of(self.execution.call(event, wait.left_ms())))

    async def send(self, request: Request) -> Response:
        """Accept a message and answer once it is durable."""
        requests.refuse_unknown_parameters(request, ("delay",))
        delay_ms = requests.delay_ms(request)
        wait = self._wait(request)
        handler, event = await self._event(request, VALUE_BYTES_MAX, "a message, headers included,")
        if handler.kind == "shared":
            raise RefusedError(f"{handler.name} is a shared handler, which only reads: /call it for its answer")
        await wait.of(self.execution.send(event, delay_ms))
        kept = isinstance(event.source, CallSource) and event.source.keep_result
        body = {"invocation_id": event.id, "status": "accepted"}
        return answers.accepted(request, body, attach=event.id if kept else None)

    async def attach(self, request: Request) -> Response:
        """Wait for the result of an invocation."""
        return await self._result(request, self._wait(request))

    async def output(self, request: Request) -> Response:
        """Tell the result of an invocation as it stands."""
        return await self._result(request, _Wait(0))

    async def resolve(self, request: Request) -> Response:
        """Give an awakeable its value."""
        awakeable = identities.awakeable_in(request)
        body = await requests.read_body(request, AWAKEABLE_BYTES_MAX, "an awakeable")
        return await self._settle(request, awakeable, Success(body))

    async def reject(self, request: Request) -> Response:
        """Let an awakeable fail."""
        awakeable = identities.awakeable_in(request)
        body = await requests.read_body(request, AWAKEABLE_BYTES_MAX, "an awakeable")
        failed = requests.rejection(body, json=requests.is_json_type(request))
        return await self._settle(request, awakeable, failed)

    def _wait(self, request: Request) -> _Wait:
        """How long this request waits from now on. Raises RefusedError."""
        wait_ms = requests.wait_ms(request, self.wait_ms_max)
        arrived_ms = requests.arrived_ms(request)
        # A cold start is part of what the gateway waits for. Clocks that differ neither add to the wait nor end it.
        since_ms = 0 if arrived_ms is None else max(0, self.now_ms() - arrived_ms)
        return _Wait(max(0, wait_ms - since_ms))

    async def _call_shared(self, event: Event, wait_ms: int) -> Result:
        """Run a read-only handler. It leaves no record to attach to, so a wait that is over is a failure."""
        try:
            with Within(wait_ms / 1_000):
                return await self.execution.call_shared(event)
        except TimeoutError:
            raise RefusedError(
                f"the shared handler {event.handler} took longer than {wait_ms} ms; "
                "it wrote nothing and may be called again",
                HTTPStatus.GATEWAY_TIMEOUT,
            ) from None

    async def _result(self, request: Request, wait: _Wait) -> Response:
        text = identities.invocation_in(request)
        answers.remember(request, text)
        return _answer(request, text, await wait.of(self.execution.result(text, wait.left_ms())))

    async def _settle(self, request: Request, awakeable: str, result: Result) -> Response:
        if answer_bytes(result) > AWAKEABLE_BYTES_MAX:
            raise RefusedError(
                f"an awakeable takes {AWAKEABLE_BYTES_MAX:,} bytes: store more elsewhere and send a reference",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        match await self._wait(request).of(self.execution.resolve(awakeable, result)):
            case Resolution.ACCEPTED | Resolution.REPEATED:
                return answers.accepted(request, {"awakeable_id": awakeable, "status": "accepted"})
            case Resolution.CONFLICT:
                raise RefusedError("another answer came first and is kept", HTTPStatus.CONFLICT)
            case Resolution.UNKNOWN:
                raise RefusedError(
                    "nothing waits for this awakeable: its id was never issued, or its invocation has ended",
                    HTTPStatus.NOT_FOUND,
                )
            case unforeseen:
                assert_never(unforeseen)

    async def _event(self, request: Request, limit: int, what: str) -> tuple[HandlerManifest, Event]:
        """The event a call or send stands for; `what` may hold `limit` bytes. Raises RefusedError."""
        target = paths.parse_target(request.path_params["target"])
        service, handler = listing.find_handler(self.catalogue, target, tuple(self.unanswered()))
        idempotency_key = requests.idempotency_key(request)
        if idempotency_key is None:
            nonce = "c" + self.random_bytes(NONCE_BYTES).hex()
        else:
            nonce = call_nonce(handler.name, idempotency_key)
        # An invocation of an unkeyed service is its own lane.
        lane = Lane(service.name, nonce if target.key is None else target.key)
        headers = requests.event_headers(request)
        too_large = None
        if not handler.takes_input:
            limit, too_large = min(limit, requests.NOTHING_BYTES_MAX), listing.no_input(service, handler)
        body = await requests.read_body(request, limit, what, too_large)
        listing.check_input(service, handler, body)
        source = CallSource(keep_result=idempotency_key is not None)
        event = Event.of(InvocationId(lane, nonce), handler.name, source, body, headers)
        answers.remember(request, event.id, handler.name)
        return handler, event


def _answer(request: Request, invocation: str, found: Answer) -> Response:
    """See `answers.answer`. Raises RefusedError when there is no room for a result."""
    if isinstance(found, Success):
        hold_result(request, found.value)
    return answers.answer(request, invocation, found)


def _result(request: Request, found: Result) -> Response:
    """See `answers.result`. Raises RefusedError when there is no room for it."""
    if isinstance(found, Success):
        hold_result(request, found.value)
    return answers.result(request, found)


class _Wait:
    """The time a request has, from its making on. `wait_ms` counts from then."""

    def __init__(self, wait_ms: int) -> None:
        self._until_s = asyncio.get_running_loop().time() + wait_ms / 1_000

    def left_ms(self) -> int:
        """What is left of it, in milliseconds."""
        return max(0, round((self._until_s - asyncio.get_running_loop().time()) * 1_000))

    async def of(self, work: Awaitable[T]) -> T:
        """Wait for something whose own bound may fail it. Raises UndecidedError soon after the time is over."""
        try:
            with Within((self.left_ms() + LATE_MS_MAX) / 1_000):
                return await work
        except TimeoutError:
            raise UndecidedError("there was no answer in time; whether the request took effect is unknown") from None
