"""Requests that are wrong in every way: each gets an error in the documented shape, and none gets a 500.

Owns the ingress over handlers that really run, what a socket may send before there is a request, and API Gateway events
that no gateway sends. Does not own the dispatcher (`test_idempotency`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from tenuto import Context, ObjectContext, ObjectSharedContext, Service, VirtualObject
from tenuto.errors import TerminalError
from tenuto.hosts import api_gateway
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane
from tenuto.protocol.limits import AWAKEABLE_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.messages import HandlerManifest
from tenuto.protocol.records import Event, Result, Success
from tenuto.service import Services
from tenuto_control.config import ConfigError, parse
from tenuto_control.drivers import http_protocol
from tenuto_control.drivers.http_protocol import HEAD_BYTES_MAX, json_errors
from tenuto_control.ingress import create_app
from tenuto_control.ingress.gate import ADDRESS_BYTES_MAX
from tenuto_control.ports import Answer, Pending, Resolution, Unknown
from tests.costs.meter import Meter
from tests.support.in_process import InProcess
from tests.support.virtual_time import run_virtual

box = VirtualObject("box")
mailer = Service("mailer")


@box.handler()
async def typed(_ctx: ObjectContext, amount: int) -> int:
    """Takes a number."""
    return amount


@box.handler()
async def optional(_ctx: ObjectContext, amount: int | None) -> int | None:
    """May do without."""
    return amount


@box.handler()
async def anything(_ctx: ObjectContext, value: Any) -> Any:
    """Takes whatever comes."""
    return value


@box.handler()
async def raw(_ctx: ObjectContext, value: bytes) -> int:
    """Takes bytes."""
    return len(value or b"")


@box.handler()
async def nothing(_ctx: ObjectContext) -> str:
    """Takes no input."""
    return "done"


@box.handler(kind="shared")
async def read(_ctx: ObjectSharedContext) -> str:
    """Reads."""
    return "read"


@mailer.handler()
async def mail(_ctx: Context, _to: str) -> None:
    """A service without keys."""


def whole(act: Callable[[httpx.AsyncClient, Meter], Awaitable[None]], **options: Any) -> None:
    """Run a scenario over the ingress, the production dispatcher and runtime, in virtual time."""

    async def scenario() -> None:
        meter = Meter(Services([box, mailer]))
        app = create_app(meter.dispatcher, meter, ready=_ready, **options)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tenuto") as http:
            await act(http, meter)
        await meter.dispatcher.kill()

    run_virtual(scenario())


async def _ready() -> str | None:
    return None


def message(reply: httpx.Response) -> str:
    """The message of an error, whose shape is checked on the way."""
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) <= {"message", "metadata"}
    text = body["error"]["message"]
    assert isinstance(text, str)
    assert text
    assert "Traceback" not in text
    return text


# --- any request at all --------------------------------------------------------------------------------------------

ROUTES: Final = (
    "/",
    "/call/box/k/typed",
    "/call/box/k/nothing",
    "/call/mailer/mail",
    "/send/box/k/anything",
    "/send/mailer/mail",
    "/invocations/x/attach",
    "/invocations/x/output",
    "/awakeables/x/resolve",
    "/awakeables/x/reject",
    "/ready",
    "",
)
PARTS: Final = (
    "call",
    "send",
    "box",
    "typed",
    "k",
    "%",
    "%2F",
    "%00",
    "%ff",
    "%ed%a0%80",
    "..",
    "",
    "é",
    "\ud800",
    " ",
    "?",
    "#",
    "invocations",
    "awakeables",
    "attach",
    "inv_",
    "awk_",
    "inv_eA",
    "awk_cHJvZmlsZR9jMB8wH2Fubg",
    "a" * 3000,
)
paths_of_bytes = st.one_of(
    st.sampled_from(ROUTES).map(str.encode),
    st.lists(st.sampled_from(PARTS), max_size=6).map(lambda parts: "/".join(parts).encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.just(b"/" + b"a" * 70_000),
)
names = st.one_of(
    st.sampled_from(
        (
            b"content-type",
            b"content-encoding",
            b"content-length",
            b"idempotency-key",
            b"prefer",
            b"origin",
            b"host",
            b"connection",
            b"accept",
            b"transfer-encoding",
            b"x-forwarded-for",
            b"access-control-request-method",
        )
    ),
    st.binary(min_size=1, max_size=20),
)
values = st.one_of(
    st.sampled_from(
        (
            b"application/json",
            b"gzip",
            b"identity",
            b"wait=0",
            b"wait=-1",
            b"wait=999999999999",
            b"wait=1,wait=x",
            b"null",
            b"[::1",
            b"http://evil.example",
            b"9" * 400,
            b"-1",
            b"\xff",
            b"",
            b"close, x",
            b"text/plain",
        )
    ),
    st.binary(max_size=40),
    st.just(b"v" * 20_000),
)
bodies = st.one_of(
    st.sampled_from(
        (b"", b"1", b"null", b"{", b'"\xff"', b"\xef\xbb\xbf1", b'"\\ud800"', b"[" * 100_000, b"1" * 400_000)
    ),
    st.binary(max_size=60),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(("GET", "POST", "PUT", "OPTIONS", "HEAD", "DELETE", "PATCH", "TRACE", "x\u00ff", "")),
    path=paths_of_bytes,
    query=st.one_of(
        st.sampled_from((b"", b"delay=1s", b"delay", b"delay=x&delay=y", b"%", b"a" * 20_000)), st.binary(max_size=30)
    ),
    headers=st.lists(st.tuples(names, values), max_size=4),
    body=bodies,
)
def test_no_request_is_answered_with_500(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box, mailer]))
        app = create_app(meter.dispatcher, meter, ready=_ready, wait_ms_max=1_000)
        status, sent, content = await asked(app, method, path, query, headers, body)
        assert status != 500, (method, path, query, headers, body, content)
        if status >= 400 and method != "HEAD":
            assert sent["content-type"] == "application/json"
            assert list(json.loads(content)) == ["error"]
        await meter.dispatcher.kill()

    run_virtual(scenario())


async def asked(
    app: Starlette, method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """Hand a request to an application as a server does, whatever is in it."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in headers],
        "client": ("::1", 1),
        "server": ("::1", 80),
    }
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:])


# --- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("/call/box/k/typed", None, 400, "takes an input"),
        ("/call/box/k/typed", b"null", 400, ""),
        ("/call/box/k/typed", b"7", 200, ""),
        ("/send/box/k/typed", None, 400, "takes an input"),
        ("/call/mailer/mail", None, 400, "takes an input"),
        ("/call/box/k/optional", None, 204, ""),
        ("/call/box/k/optional", b"null", 204, ""),
        ("/call/box/k/anything", None, 204, ""),
        ("/call/box/k/raw", None, 200, ""),
        ("/call/box/k/nothing", None, 200, ""),
        ("/call/box/k/nothing", b"{}", 400, "takes no input"),
        ("/call/box/k/nothing", b" null", 200, ""),
        ("/call/box/k/nothing", b'"null"', 400, "takes no input"),
        ("/send/box/k/nothing", b"x", 400, "takes no input"),
        ("/call/box/k/read", b"1", 400, "takes no input"),
        ("/call/box/k/read", None, 200, ""),
    ],
)
def test_a_body_is_there_where_its_handler_takes_one(path: str, content: bytes | None, status: int, words: str) -> None:
    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        reply = await http.post(path, content=content)
        assert reply.status_code == status, reply.text
        if status >= 400:
            assert words in message(reply)

    whole(act)


def test_a_function_that_does_not_tell_of_inputs_is_asked() -> None:
    told = HandlerManifest("old", "exclusive")
    assert (told.takes_input, told.nullable) == (True, True)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "GZIP", "x-" + "y" * 500])
@pytest.mark.parametrize("path", ["/call/box/k/anything", "/send/box/k/anything", "/awakeables/{}/resolve"])
def test_an_encoded_body_is_refused(coding: str, path: str) -> None:
    path = path.format(AwakeableId(InvocationId(Lane("box", "k"), "c1"), "0a", "0" * 32))

    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        for kind in ("application/json", "text/plain"):
            reply = await http.post(path, content=b"1", headers={"content-encoding": coding, "content-type": kind})
            assert reply.status_code == 415
            assert "not understood" in message(reply)

    whole(act)


def test_a_body_that_says_it_is_as_it_is_is_taken() -> None:
    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        for coding in ("identity", "Identity", ""):
            reply = await http.post("/call/box/k/anything", content=b"1", headers={"content-encoding": coding})
            assert reply.json() == 1

    whole(act)


@pytest.mark.parametrize(
    "content",
    [b'"\xff"', b'{"a": "\xc3("}', b'["\xed\xa0\x80"]', '"ü"'.encode("latin-1"), '"ü"'.encode("utf-16"), b"\xff"],
)
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=latin-1", "application/vnd.x+json"])
def test_json_is_utf_8(content: bytes, kind: str) -> None:
    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        for path in ("/call/box/k/anything", "/send/box/k/raw"):
            reply = await http.post(path, content=content, headers={"content-type": kind})
            assert reply.status_code == 400
            assert "UTF-8" in message(reply)

    whole(act)


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/send/box/k/anything", VALUE_BYTES_MAX), ("/awakeables/{}/resolve", AWAKEABLE_BYTES_MAX)],
)
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(path: str, limit: int, *, announced: bool) -> None:
    path = path.format(AwakeableId(InvocationId(Lane("box", "k"), "c1"), "0a", "0" * 32))
    read_bytes = 0

    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        async def body() -> Any:
            nonlocal read_bytes
            for _ in range(2_000):
                read_bytes += 1_000
                yield b"1" * 1_000

        headers = {"content-length": "2000000"} if announced else {}
        request = http.build_request("POST", path, content=body(), headers=headers)
        reply = await http.send(request)
        assert reply.status_code == 413
        assert f"{limit:,}" in message(reply)

    whole(act)


def test_a_message_whose_headers_are_what_is_too_much_is_told_the_limit() -> None:
    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        body = b"1" * (VALUE_BYTES_MAX - 10)
        reply = await http.post("/send/box/k/anything", content=body, headers={"x-note": "n" * 100})
        assert reply.status_code == 413
        assert f"{VALUE_BYTES_MAX:,}" in message(reply)

    whole(act)


@pytest.mark.parametrize("path", ["/call/box/" + "a" * ADDRESS_BYTES_MAX + "/typed", "/?" + "q" * ADDRESS_BYTES_MAX])
def test_a_long_address_is_refused_by_name(path: str) -> None:
    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        reply = await http.post(path)
        assert reply.status_code == 414
        assert f"{ADDRESS_BYTES_MAX:,}" in message(reply)

    whole(act)


# --- awakeables ----------------------------------------------------------------------------------------------------


def test_a_second_answer_is_told_whether_it_was_the_first() -> None:
    asker = VirtualObject("asker")
    names: list[str] = []

    @asker.handler()
    async def ask(ctx: ObjectContext) -> list[Any]:
        pairs = [ctx.awakeable(str), ctx.awakeable(str)]
        await ctx.run("note", names.extend, [name for name, _ in pairs])
        return [await future for _, future in pairs]

    async def scenario() -> None:
        meter = Meter(Services([asker]))
        app = create_app(meter.dispatcher, meter, ready=_ready)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tenuto") as http:
            assert (await http.post("/call/asker/k/ask", headers={"prefer": "wait=1"})).status_code == 202
            # The second is answered, the handler waits for the first: answers stay where they are.
            tries = [
                await http.post(f"/awakeables/{names[1]}/resolve", content=b'"a"'),
                await http.post(f"/awakeables/{names[1]}/resolve", content=b'"a"'),
                await http.post(f"/awakeables/{names[1]}/resolve", content=b'"b"'),
                await http.post(f"/awakeables/{names[1]}/resolve"),
                await http.post(f"/awakeables/{names[1]}/reject", content=b"no"),
            ]
            assert [reply.status_code for reply in tries] == [202, 202, 409, 409, 409]
            assert {message(reply) for reply in tries[2:]} == {"another answer came first and is kept"}
            await http.post(f"/awakeables/{names[0]}/reject", content=b"no")
            await meter.quiet()
            assert (await http.post(f"/awakeables/{names[1]}/resolve", content=b'"a"')).status_code == 404
        await meter.dispatcher.kill()

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("hint", "empty_is"),
    [
        (str, TerminalError),
        (int, TerminalError),
        (list[int], TerminalError),
        (str | None, None),
        (None, None),
        (bytes, None),
    ],
)
def test_an_empty_answer_is_null(hint: Any, empty_is: Any) -> None:
    """Whatever null is to the awakeable's type, nothing is as well."""

    async def scenario(*, empty: bool) -> Any:
        names: list[str] = []
        asker = VirtualObject("asker")

        @asker.handler()
        async def ask(ctx: ObjectContext) -> str:
            name, future = ctx.awakeable(hint)
            await ctx.run("note", names.append, name)
            try:
                return repr(await future)
            except TerminalError as e:
                return f"TerminalError {e.status_code}"

        local = InProcess(asker)
        with pytest.raises(TimeoutError):
            await local.call(ask, "k")
        await local._fill(names[0], Success(None if empty else b"null"))
        at = next(key for key in local.table.items if key[1] == "R")
        return local.table.items[at]["res"]

    empty = asyncio.run(scenario(empty=True))
    if hint is not bytes:
        assert empty == asyncio.run(scenario(empty=False))
    assert (b"TerminalError 400" in empty) is (empty_is is TerminalError)
    assert (b"None" in empty) is (empty_is is None)


# --- browsers ------------------------------------------------------------------------------------------------------

PAGE: Final = "https://app.example"


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ((), PAGE, 403),
        ((), "null", 403),
        ((), "http://tenuto", 403),
        ((PAGE,), PAGE, 200),
        ((PAGE,), "https://app.example.evil", 403),
        ((PAGE,), "http://app.example", 403),
        ((PAGE,), "null", 403),
        (("*",), "https://whoever.example", 200),
        ((PAGE,), None, 200),
        ((), None, 200),
    ],
)
def test_a_page_calls_only_from_an_origin_that_is_listed(
    origins: tuple[str, ...], origin: str | None, status: int
) -> None:
    async def act(http: httpx.AsyncClient, meter: Meter) -> None:
        headers = {"content-type": "text/plain"} | ({} if origin is None else {"origin": origin})
        reply = await http.post("/call/box/k/nothing", headers=headers)
        assert reply.status_code == status
        if status == 403:
            message(reply)
            assert meter.invocations == 0
        allowed = origin if origin is not None and status == 200 else None
        assert reply.headers.get("access-control-allow-origin") == allowed
        # Errors are readable for a page as well.
        missing = await http.post("/call/box/k/none", headers=headers)
        assert missing.headers.get("access-control-allow-origin") == allowed

    whole(act, cors_origins=origins)


def test_a_preflight_is_answered_for_listed_origins_alone() -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,idempotency-key"}

    async def act(http: httpx.AsyncClient, _: Meter) -> None:
        reply = await http.options("/call/box/k/nothing", headers={"origin": PAGE, **asking})
        assert reply.status_code == 204
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert reply.headers["access-control-allow-headers"] == asking["access-control-request-headers"]
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert reply.headers["vary"] == "origin"
        foreign = await http.options("/call/box/k/nothing", headers={"origin": "https://evil.example", **asking})
        assert foreign.status_code == 405
        message(foreign)
        assert "access-control-allow-origin" not in foreign.headers

    whole(act, cors_origins=(PAGE,))


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://app.example/x", "", "https://*.example"]
)
def test_an_origin_that_no_browser_sends_is_a_mistake_in_the_file(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.cors_origins: .* is not an origin"):
        parse(f"[http]\ncors_origins = [{origin!r}]\n[functions.f]\n", "tenuto.toml", {})
    good = parse(f'[http]\ncors_origins = ["{PAGE}", "http://localhost:3000"]\n[functions.f]\n', "tenuto.toml", {})
    assert good.http.cors_origins == (PAGE, "http://localhost:3000")


# --- waiting -------------------------------------------------------------------------------------------------------


class Silent:
    """An execution that never answers."""

    async def call(self, _event: Event, _wait_ms: int) -> Answer:
        await asyncio.Event().wait()
        return Unknown()

    async def call_shared(self, _event: Event) -> Result:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, _event: Event, _delay_ms: int) -> None:
        await asyncio.Event().wait()

    async def result(self, _invocation: str, _wait_ms: int) -> Answer:
        await asyncio.Event().wait()
        return Unknown()

    async def resolve(self, _awakeable: str, _result: Result) -> Resolution:
        await asyncio.Event().wait()
        return Resolution.UNKNOWN


@pytest.mark.parametrize("wait", ["wait=0", "wait=3", None])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/call/box/k/nothing"),
        ("POST", "/call/box/k/read"),
        ("POST", "/send/box/k/nothing"),
        ("GET", f"/invocations/{InvocationId(Lane('box', 'k'), 'c1')}/attach"),
        ("GET", f"/invocations/{InvocationId(Lane('box', 'k'), 'c1')}/output"),
        ("POST", f"/awakeables/{AwakeableId(InvocationId(Lane('box', 'k'), 'c1'), '0a', '0' * 32)}/resolve"),
        ("POST", f"/awakeables/{AwakeableId(InvocationId(Lane('box', 'k'), 'c1'), '0a', '0' * 32)}/reject"),
    ],
)
def test_every_request_is_answered_soon_after_its_wait(method: str, path: str, wait: str | None) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        silent: Any = Silent()
        app = create_app(silent, meter, ready=_ready, wait_ms_max=25_000)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tenuto", timeout=None) as http:
            began = asyncio.get_running_loop().time()
            reply = await http.request(method, path, headers={"prefer": wait} if wait else {})
            took = asyncio.get_running_loop().time() - began
        assert reply.status_code in (503, 504)
        message(reply)
        assert took <= {"wait=0": 0, "wait=3": 3, None: 25}[wait] + 1.6

    run_virtual(scenario())


@pytest.mark.parametrize("shape", ["timeEpoch", "requestTimeEpoch"])
@pytest.mark.parametrize(("late_ms", "waits_ms"), [(0, 25_000), (9_000, 16_000), (40_000, 0), (-5_000, 25_000)])
def test_what_a_gateway_has_waited_already_counts(shape: str, late_ms: int, waits_ms: int) -> None:
    """A cold start of nine seconds leaves sixteen of twenty-five."""
    asked_ms: list[int] = []

    class Noting(Silent):
        async def call(self, _event: Event, wait_ms: int) -> Answer:
            asked_ms.append(wait_ms)
            return Pending()

    async def scenario() -> None:
        noting: Any = Noting()
        app = create_app(
            noting, Meter(Services([box])), ready=_ready, wait_ms_max=25_000, now_ms=lambda: 10**12 + late_ms
        )
        context = {"http": {"method": "POST", "path": "/call/box/k/nothing"}, shape: 10**12}

        async def gateway(scope: Any, receive: Any, send: Any) -> None:
            event = {"version": "2.0", "rawPath": "/call/box/k/nothing", "requestContext": context}
            await app({**scope, "aws.event": event}, receive, send)

        transport = httpx.ASGITransport(app=gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://tenuto") as http:
            assert (await http.post("/call/box/k/nothing")).status_code == 202

    run_virtual(scenario())
    assert asked_ms == [waits_ms]


# --- below the application -----------------------------------------------------------------------------------------


async def over_a_socket(*pieces: bytes | None, pause_s: float = 0.0) -> bytes:
    """What a server says to bytes on a connection, until it ends it. None ends what is sent."""
    meter = Meter(Services([box]))
    app = create_app(meter.dispatcher, meter, ready=_ready)
    config = uvicorn.Config(
        app, http=cast("Any", json_errors), ws="none", lifespan="off", server_header=False, log_config=None
    )
    config.load()
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: json_errors(config=config, server_state=server.server_state, app_state={}), "127.0.0.1", 0
    )
    port = listener.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            if piece is None:
                writer.write_eof()
            else:
                writer.write(piece)
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return await reader.read()
    finally:
        writer.close()
        listener.close()
        await meter.dispatcher.kill()


def told(answer: bytes) -> tuple[int, str]:
    """Status and message of an answer off a socket."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"server:" not in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "lines",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_answered_in_json(lines: bytes) -> None:
    status, text = told(asyncio.run(over_a_socket(lines)))
    assert status == 400
    assert "not a well-formed HTTP request" in text


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET / HTTP/1.1\r\n", *(b"x-%d: %s\r\n" % (n, b"v" * 1_000) for n in range(100))),
        (b"GET / HTTP/1.1\r\nx: ", *[b"v" * 1_000] * 100),
        (b"GET /", *[b"a" * 1_000] * 100),
    ],
    ids=["many headers", "one header", "request line"],
)
def test_a_head_without_end_is_cut_off(pieces: tuple[bytes, ...]) -> None:
    status, text = told(asyncio.run(over_a_socket(*pieces, pause_s=0.0005)))
    assert status == 431
    assert f"{HEAD_BYTES_MAX:,}" in text


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nhost", b"", b"\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_MS_MAX", 50)
    began = time.monotonic()
    answer = asyncio.run(over_a_socket(start))
    assert time.monotonic() - began < 5
    if b"GET" in start:
        assert told(answer)[0] == 408
    else:
        assert answer == b""


def test_a_connection_is_used_again_after_its_head_was_bounded() -> None:
    request = b"POST /call/box/k/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nx: " + b"v" * 9_000 + b"\r\n\r\n"
    last = request.replace(b"host: x", b"host: x\r\nconnection: close")
    answer = asyncio.run(over_a_socket(*[request] * 9, last, pause_s=0.02))
    assert answer.count(b"HTTP/1.1 200 OK") == 10


# --- events of a gateway -------------------------------------------------------------------------------------------


def gateway_event(**changes: Any) -> dict[str, Any]:
    """An HTTP API's event for a call."""
    http = {"method": "POST", "path": "/call/box/k/anything", "sourceIp": "192.0.2.1"}
    event = {
        "version": "2.0",
        "rawPath": http["path"],
        "rawQueryString": "",
        "headers": {"host": "x.example"},
        "requestContext": {"http": http, "domainName": "x.example"},
        "isBase64Encoded": False,
        "body": "1",
    }
    return {**event, **changes}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"body": "not base64!", "isBase64Encoded": True}, 400),
        ({"body": base64.b64encode(b"1").decode(), "isBase64Encoded": True}, 200),
        ({"headers": {"host": "[::1]:80:x"}}, 400),
        ({"headers": {"x": "\ud800"}}, 400),
        ({"body": "\ud800"}, 400),
        ({"headers": None}, 400),
        ({"requestContext": {}}, 400),
        ({"rawQueryString": "\ud800"}, 400),
    ],
)
def test_an_event_that_cannot_be_read_is_answered_in_json(changes: dict[str, Any], status: int) -> None:
    meter = Meter(Services([box]))
    loop = asyncio.new_event_loop()
    try:
        object.__setattr__(meter, "clock", _Clock())
        app = create_app(meter.dispatcher, meter, ready=_ready)
        answer = api_gateway.bridge(app, loop)(gateway_event(**changes), None)
        loop.run_until_complete(meter.dispatcher.kill())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert answer["statusCode"] == status, answer
    if status >= 400:
        assert answer["headers"]["content-type"] == "application/json"
        assert list(json.loads(answer["body"])) == ["error"]


class _Clock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@pytest.mark.parametrize("body", [b"", b'"half of what was ann'])
def test_a_client_that_leaves_is_no_error(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /call/box/k/anything HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
    assert asyncio.run(over_a_socket(head + body, None)) == b""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
