"""The HTTP ingress over handlers that really run.

Owns what a client sees: status codes, headers, bodies, under an ASGI client and under Mangum. Does not own
the dispatcher.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mangum import Mangum
from mangum.types import LambdaCognitoIdentity, LambdaMobileClientContext
from starlette.applications import Starlette

from tenuto.errors import TerminalError
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, call_nonce
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control.ingress import create_app
from tenuto_control.ingress.delays import DELAY_MS_MAX, parse_delay
from tenuto_control.ingress.paths import decode_segment, encode_segment, parse_target, raw_path
from tenuto_control.ingress.problems import RefusedError
from tenuto_control.ingress.requests import BODY_BYTES_MAX
from tenuto_control.ports import FunctionUnreachableError, LogUnavailableError, PayloadTooLargeError, UndecidedError
from tests.control.in_memory_execution import Context, InMemoryExecution, Services

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
SECRET: Final = "the table's own words"


async def add(ctx: Context, amount: int | None) -> int:
    ctx.state["total"] = ctx.state.get("total", 0) + (1 if amount is None else amount)
    return int(ctx.state["total"])


async def total(ctx: Context, _: Any) -> int:
    return int(ctx.state.get("total", 0))


async def wait_for_driver(ctx: Context, _: Any) -> Any:
    return await ctx.awakeable("0")


async def refuse(ctx: Context, _: Any) -> None:
    raise TerminalError("no such user", 404, {"user": ctx.lane.key})


async def nothing(ctx: Context, _: Any) -> None:
    return None


async def image(ctx: Context, _: Any) -> bytes:
    return b"\x89PNG\xff"


async def echo(ctx: Context, value: Any) -> dict[str, Any]:
    headers = {name: text.decode() for name, text in ctx.event.headers}
    return {"value": value, "lane": list(ctx.lane), "headers": headers}


async def slow(ctx: Context, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def broken(ctx: Context, _: Any) -> None:
    raise ZeroDivisionError("a bug")


def registered() -> Services:
    services = Services()
    for handler in (add, wait_for_driver, refuse, nothing, image, echo, slow):
        services.register("counter", "exclusive", handler)
    services.register("counter", "shared", total)
    services.register("counter", "shared", slow, name="slow_read")
    for handler in (echo, add, broken):
        services.register("mailer", "stateless", handler)
    return services


class Setting:
    """One application over one execution, and a client of it."""

    def __init__(self, *, wait_ms: int = 25_000, problem: str | None = None) -> None:
        self.execution = InMemoryExecution(registered())
        self.app: Starlette = create_app(self.execution, self.execution.services, ready=self.probe, wait_ms_max=wait_ms)
        self.problem = problem
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://tenuto")

    async def probe(self) -> str | None:
        return self.problem


def play(scenario: Callable[[Setting], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a scenario to its end, leaving nothing behind."""

    async def whole() -> None:
        setting = Setting(**options)
        try:
            await scenario(setting)
        finally:
            await setting.http.aclose()
            await setting.execution.stop()

    asyncio.run(asyncio.wait_for(whole(), 30))


def message(response: httpx.Response) -> str:
    """The message of an error, whose shape is checked on the way."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) <= {"message", "metadata"}
    text = body["error"]["message"]
    assert isinstance(text, str)
    assert "Traceback" not in text
    return text


# --- calls ------------------------------------------------------------------------------------------------


def test_a_call_runs_the_handler_of_its_key() -> None:
    async def scenario(s: Setting) -> None:
        first = await s.http.post("/call/counter/a/add", json=2)
        second = await s.http.post("/call/counter/a/add")
        other = await s.http.post("/call/counter/b/add", json=7)
        assert [r.json() for r in (first, second, other)] == [2, 3, 7]
        assert first.headers["content-type"] == "application/json"
        parsed = InvocationId.parse(first.headers["x-tenuto-invocation-id"])
        assert parsed.lane == Lane("counter", "a")
        assert re.fullmatch("c[0-9a-f]{24}", parsed.nonce)
        shared = await s.http.post("/call/counter/a/total")
        assert (shared.status_code, shared.json()) == (200, 3)

    play(scenario)


def test_an_unkeyed_invocation_is_a_lane_of_its_own() -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post("/call/mailer/echo", json={"to": "ann"})
        service, key = reply.json()["lane"]
        parsed = InvocationId.parse(reply.headers["x-tenuto-invocation-id"])
        assert (service, key) == ("mailer", parsed.nonce)
        assert reply.json()["value"] == {"to": "ann"}

    play(scenario)


def test_output_without_value_and_output_that_is_no_json() -> None:
    async def scenario(s: Setting) -> None:
        none = await s.http.post("/call/counter/a/nothing")
        assert (none.status_code, none.content) == (204, b"")
        assert "x-tenuto-invocation-id" in none.headers
        raw = await s.http.post("/call/counter/a/image")
        assert (raw.status_code, raw.content) == (200, b"\x89PNG\xff")
        assert raw.headers["content-type"] == "application/octet-stream"

    play(scenario)


def test_a_terminal_failure_answers_with_its_status() -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post("/call/counter/ann/refuse")
        assert reply.status_code == 404
        assert reply.json() == {"error": {"message": "no such user", "metadata": {"user": "ann"}}}
        assert "x-tenuto-invocation-id" in reply.headers

    play(scenario)


def test_an_idempotency_key_runs_once_and_keeps_its_result() -> None:
    async def scenario(s: Setting) -> None:
        headers = {"idempotency-key": "order 7"}
        replies = [await s.http.post("/call/counter/a/add", json=5, headers=headers) for _ in range(3)]
        assert [r.json() for r in replies] == [5, 5, 5]
        invocation = str(InvocationId(Lane("counter", "a"), call_nonce("add", "order 7")))
        assert {r.headers["x-tenuto-invocation-id"] for r in replies} == {invocation}
        assert len(s.execution.events) == 1
        output = await s.http.get(f"/invocations/{invocation}/output")
        assert (output.status_code, output.json()) == (200, 5)
        for keys in ([""], ["x" * 2_000], ["a", "b"]):
            bad = await s.http.post("/call/counter/a/add", headers=[("idempotency-key", key) for key in keys])
            assert bad.status_code == 400
            assert "idempotency-key" in message(bad)

    play(scenario)


def test_a_call_that_takes_longer_is_attached_to() -> None:
    async def scenario(s: Setting) -> None:
        headers = {"prefer": "respond-async, wait=0", "idempotency-key": "1"}
        reply = await s.http.post("/call/counter/a/slow", json=0.2, headers=headers)
        invocation = reply.headers["x-tenuto-invocation-id"]
        assert reply.status_code == 202
        assert reply.json() == {"invocation_id": invocation, "status": "pending"}
        assert (await s.http.get(f"/invocations/{invocation}/output")).status_code == 202
        attached = await s.http.get(reply.headers["location"])
        assert (attached.status_code, attached.json()) == (200, "done")
        assert attached.headers["x-tenuto-invocation-id"] == invocation

    play(scenario)


def test_a_preference_lowers_the_wait_and_never_raises_it() -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post("/call/counter/a/slow", json=5, headers={"prefer": "wait=3600"})
        assert reply.status_code == 202
        for wrong in ("wait=soon", "wait=-1", "wait=", "wait=1.5"):
            bad = await s.http.post("/call/counter/a/add", headers={"prefer": wrong})
            assert bad.status_code == 400, wrong
        late = await s.http.post("/call/counter/a/slow_read", json=5)
        assert late.status_code == 504
        assert "may be called again" in message(late)

    play(scenario, wait_ms=50)


def test_headers_reach_the_handler_without_connection_secrets_and_framing() -> None:
    async def scenario(s: Setting) -> None:
        sent = {
            "x-team": "cellos",
            "traceparent": "00-1-2-03",
            "authorization": "Bearer s3cret",
            "cookie": "session=s3cret",
            "x-api-key": "s3cret",
            "connection": "close, X-Hop",
            "x-hop": "1",
            "te": "trailers",
            "prefer": "wait=3",
        }
        headers = (await s.http.post("/call/mailer/echo", json=1, headers=sent)).json()["headers"]
        assert headers["x-team"] == "cellos"
        assert headers["traceparent"] == "00-1-2-03"
        assert headers["content-type"] == "application/json"
        withheld = {"authorization", "cookie", "x-api-key", "connection", "x-hop", "te", "prefer", "host"}
        assert not withheld & set(headers)
        huge = await s.http.post("/call/mailer/echo", headers={"x-big": "x" * 20_000})
        assert huge.status_code == 431

    play(scenario)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/ld+json"])
@pytest.mark.parametrize("body", ["{", "nope", "[1,]", "NaN", "[" * 200_000])
def test_malformed_json_is_refused(kind: str, body: str) -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post("/call/counter/a/add", content=body, headers={"content-type": kind})
        assert reply.status_code == 400
        assert "JSON" in message(reply)
        assert s.execution.events == []

    play(scenario)


def test_the_body_passes_untouched() -> None:
    async def scenario(s: Setting) -> None:
        spaced = b' {"b" : 1.0,\n"a": 10000000000000000000001} '
        for kind in ({"content-type": "application/json"}, {}):
            await s.http.post("/call/mailer/echo", content=spaced, headers=kind)
        assert [event.input for event in s.execution.events] == [spaced, spaced]

    play(scenario)


def test_a_body_over_the_limit_is_refused() -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post("/call/counter/a/add", content=b"1" * (BODY_BYTES_MAX + 1))
        assert reply.status_code == 413
        assert f"{BODY_BYTES_MAX:,}" in message(reply)

    play(scenario)


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/call/countr/a/add", 404, "did you mean 'counter'? There is: counter, mailer"),
        ("/call/counter/a/ad", 404, "did you mean 'add'?"),
        ("/call/zzz/a/add", 404, "There is: counter, mailer"),
        ("/call/" + "z" * 5_000 + "/add", 404, "There is: counter, mailer"),
        ("/call/counter/add", 400, "counter is a virtual object: the path is counter/{key}/{handler}"),
        ("/call/mailer/a/echo", 400, "mailer is a service without keys"),
        ("/call/counter", 400, "{service}/{handler}"),
        ("/call/", 400, "{service}/{handler}"),
        ("/call/counter/a/b/add", 400, "a '/' inside a key is written %2F"),
        ("/call/counter//add", 400, "must not be empty"),
        ("/call/mailer/echo/", 400, "must not be empty"),
        ("/call/counter/%zz/add", 400, "'%' without two hex digits"),
        ("/call/counter/%ff/add", 400, "UTF-8"),
        ("/call/counter/%C0%AF/add", 400, "UTF-8"),
        ("/call/counter/" + "k" * 1_025 + "/add", 400, "1025 bytes"),
        ("/call/counter/" + "%2F" * 1_000 + "/add", 400, "shorten it"),
        ("/call/counter/a%00/add", 400, "the key holds the control character U+0000"),
        ("/call/counter/a%C2%85/add", 400, "the key holds the control character U+0085"),
        ("/call/counter/a/add?delay=5s", 400, "a delay needs /send"),
        ("/send/counter/a/add?dealy=5s", 400, "did you mean 'delay'?"),
        ("/send/counter/a/total", 400, "/call it"),
        ("/nowhere", 404, "GET / lists"),
    ],
)
def test_a_wrong_address_is_explained(path: str, status: int, words: str) -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post(path)
        assert (reply.status_code, words in message(reply)) == (status, True), reply.text
        assert s.execution.events == []

    play(scenario)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/call/counter/a/add", "POST"),
        ("DELETE", "/send/counter/a/add", "POST"),
        ("POST", "/health", "GET"),
        ("PUT", "/invocations/inv_x/output", "GET"),
        ("GET", "/awakeables/awk_x/resolve", "POST"),
    ],
)
def test_a_wrong_method_names_the_right_one(method: str, path: str, allowed: str) -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.request(method, path)
        assert reply.status_code == 405
        assert allowed in reply.headers["allow"]
        assert allowed in message(reply)

    play(scenario)


keys = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=200)


@given(keys)
@example("a/b")
@example("a%2Fb")
@example("%")
@example("+ +")
@example("..")
@example("a\u2028b?#")
def test_keys_survive_their_escaping(key: str) -> None:
    assert decode_segment(encode_segment(key)) == key
    target = parse_target(f"counter/{encode_segment(key)}/add")
    assert (target.service, target.key, target.handler) == ("counter", key, "add")


@given(keys, keys)
def test_different_keys_have_different_addresses(one: str, other: str) -> None:
    assert (encode_segment(one) == encode_segment(other)) == (one == other)


@given(st.text(st.sampled_from("abAF019%/+"), max_size=12))
def test_a_segment_decodes_to_one_text_or_is_refused(segment: str) -> None:
    try:
        text = decode_segment(segment)
    except RefusedError:
        return
    assert decode_segment(encode_segment(text)) == text


@settings(max_examples=50, deadline=None)
@given(st.lists(keys.filter(lambda key: key not in {".", ".."}), min_size=2, max_size=2, unique=True))
@example(["a/b", "a%2Fb"])
def test_keys_never_meet_over_http(pair: list[str]) -> None:
    async def scenario(s: Setting) -> None:
        for key in pair:
            reply = await s.http.post(f"/call/counter/{encode_segment(key)}/echo")
            assert reply.json()["lane"] == ["counter", key]

    play(scenario)


@pytest.mark.parametrize("root", ["", "/api"])
def test_a_mounted_application_keeps_raw_paths_and_points_below_its_mount(root: str) -> None:
    scope = {"path": f"{root}/call/a/b/c", "raw_path": f"{root}/call/a%2F/b/c".encode(), "root_path": root}
    assert raw_path(scope) == (root, "/call/a%2F/b/c")


# --- sends ------------------------------------------------------------------------------------------------


def test_a_send_answers_once_accepted_and_runs_after_its_delay() -> None:
    async def scenario(s: Setting) -> None:
        headers = {"idempotency-key": "x"}
        reply = await s.http.post("/send/counter/a/add?delay=100ms", json=4, headers=headers)
        invocation = reply.headers["x-tenuto-invocation-id"]
        assert reply.status_code == 202
        assert reply.json() == {"invocation_id": invocation, "status": "accepted"}
        assert s.execution.delays_ms == [100]
        assert (await s.http.get(f"/invocations/{invocation}/output")).status_code == 202
        assert (await s.http.get(reply.headers["location"])).json() == 4

        unkept = await s.http.post("/send/mailer/add", json=4)
        assert unkept.status_code == 202
        assert "location" not in unkept.headers
        await asyncio.sleep(0.05)
        gone = await s.http.get(f"/invocations/{unkept.json()['invocation_id']}/output")
        assert gone.status_code == 404

    play(scenario)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("5s", 5_000),
        ("250ms", 250),
        ("1.5h", 5_400_000),
        ("2d", 172_800_000),
        ("3m", 180_000),
        ("0s", 0),
        ("0.0001s", 1),
        ("365d", DELAY_MS_MAX),
        ("PT5S", 5_000),
        ("PT0.25S", 250),
        ("P1DT2H3M4.5S", 93_784_500),
        ("P1D", 86_400_000),
    ],
)
def test_delays(text: str, ms: int) -> None:
    assert parse_delay(text) == ms


NONSENSE: Final = (
    *("", "5", "s", "-5s", "5 s", "5S", "1e3s", "soon", "P", "PT", "P1DT", "P1Y", "PT5", "5s5s"),
    *("\N{ARABIC-INDIC DIGIT FIVE}s", "366d", "9" * 60 + "d", "9" * 1_000 + "s", "Infinitys", "5s\n"),
)


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_delay(text: str) -> None:
    async def scenario(s: Setting) -> None:
        reply = await s.http.post("/send/counter/a/add", params={"delay": text})
        assert reply.status_code == 400
        assert "delay" in message(reply)
        assert s.execution.events == []

    play(scenario)


# --- invocations and awakeables ---------------------------------------------------------------------------


def test_unknown_and_malformed_invocations() -> None:
    async def scenario(s: Setting) -> None:
        unknown = InvocationId(Lane("counter", "a/b"), "c0")
        assert (await s.http.get(f"/invocations/{unknown}/attach")).status_code == 404
        awakeable = AwakeableId(unknown, "0", "0" * 32)
        for text in ("inv_", "inv_%%%", "inv_AAAA", str(awakeable), f"{unknown}=", f"{unknown}%20", "inv_é"):
            reply = await s.http.get(f"/invocations/{text}/output")
            assert reply.status_code == 400, text
            message(reply)

    play(scenario)


@pytest.mark.parametrize(
    ("verb", "request_body", "status", "answer"),
    [
        ("resolve", {"json": {"driver": "bo"}}, 200, {"driver": "bo"}),
        ("resolve", {"content": b'"bo"'}, 200, "bo"),
        ("resolve", {}, 204, None),
        ("reject", {"content": "no driver today"}, 500, "no driver today"),
        ("reject", {"json": {"message": "no driver"}}, 500, "no driver"),
        ("reject", {"content": b'{"message": "no driver"}'}, 500, "no driver"),
        ("reject", {}, 500, "the awakeable was rejected"),
    ],
)
def test_an_awakeable_is_settled_once(verb: str, request_body: dict[str, Any], status: int, answer: Any) -> None:
    async def scenario(s: Setting) -> None:
        waiting = asyncio.create_task(s.http.post("/call/counter/a/wait_for_driver"))
        await s.execution.awaiting.wait()
        (awakeable,) = s.execution.awakeables
        accepted = await s.http.post(f"/awakeables/{awakeable}/{verb}", **request_body)
        assert accepted.status_code == 202
        reply = await waiting
        assert reply.status_code == status
        if status == 500:
            assert message(reply) == answer
        elif answer is not None:
            assert reply.json() == answer
        again = await s.http.post(f"/awakeables/{awakeable}/{verb}", **request_body)
        assert again.status_code == 404
        message(again)

    play(scenario)


@pytest.mark.parametrize("verb", ["resolve", "reject"])
def test_an_awakeable_takes_no_value_that_its_lane_could_not_hold(verb: str) -> None:
    async def scenario(s: Setting) -> None:
        waiting = asyncio.create_task(s.http.post("/call/counter/a/wait_for_driver"))
        await s.execution.awaiting.wait()
        (awakeable,) = s.execution.awakeables
        refused = await s.http.post(f"/awakeables/{awakeable}/{verb}", content=b'"' + b"x" * 40_000 + b'"')
        assert refused.status_code == 413
        message(refused)
        assert (await s.http.post(f"/awakeables/{awakeable}/{verb}", content=b'"small"')).status_code == 202
        await waiting

    play(scenario)


def test_malformed_settlements() -> None:
    async def scenario(s: Setting) -> None:
        awakeable = AwakeableId(InvocationId(Lane("counter", "a"), "c0"), "0", "0" * 32)
        as_json = {"content-type": "application/json"}
        for path, body, headers in (
            ("/awakeables/awk_x/resolve", b"1", as_json),
            (f"/awakeables/{awakeable.invocation}/reject", b"no", {}),
            (f"/awakeables/{awakeable}/resolve", b"{", as_json),
            (f"/awakeables/{awakeable}/reject", b"17", as_json),
            (f"/awakeables/{awakeable}/reject", b'{"reason": "no"}', as_json),
            (f"/awakeables/{awakeable}/reject", b"\xff", {}),
        ):
            reply = await s.http.post(path, content=body, headers=headers)
            assert reply.status_code == 400, (path, body)
            message(reply)

    play(scenario)


# --- trouble, probes, listing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (TableUnavailableError(SECRET), 503),
        (LogUnavailableError(SECRET), 503),
        (FunctionUnreachableError(SECRET), 503),
        (PayloadTooLargeError(SECRET), 413),
        (TableRefusedError(SECRET), 500),
        (ZeroDivisionError(SECRET), 500),
    ],
)
def test_trouble_below_is_told_without_its_details(fault: Exception, status: int) -> None:
    async def scenario(s: Setting) -> None:
        s.execution.fault = fault
        invocation = InvocationId(Lane("counter", "a"), "c0")
        for reply in (
            await s.http.post("/call/counter/a/add", json=1),
            await s.http.post("/call/counter/a/total"),
            await s.http.post("/send/counter/a/add", json=1),
            await s.http.get(f"/invocations/{invocation}/attach"),
        ):
            assert reply.status_code == status
            assert ("retry-after" in reply.headers) == (status == 503)
            assert "x-tenuto-invocation-id" in reply.headers
            assert SECRET not in message(reply)

    play(scenario)


@pytest.mark.parametrize(
    "fault", [TableUnavailableError(SECRET), UndecidedError("unknown")], ids=["table", "undecided"]
)
def test_what_may_have_taken_effect_is_repeated_with_the_key_that_was_given(fault: Exception) -> None:
    async def scenario(s: Setting) -> None:
        s.execution.fault = fault
        attach = f"/invocations/{InvocationId(Lane('counter', 'a'), 'c0')}/attach"
        key = {"idempotency-key": "order-7"}
        for reply, advice in (
            (await s.http.post("/call/counter/a/add", json=1, headers=key), "Repeat it with the same idempotency-key"),
            (await s.http.post("/send/counter/a/add", json=1, headers=key), "Repeat it with the same idempotency-key"),
            (await s.http.post("/call/counter/a/add", json=1), "may run the handler a second time"),
            (await s.http.post("/send/counter/a/add", json=1), "It had no idempotency-key"),
            (await s.http.get(attach), "unknown. Repeat it"),
        ):
            assert reply.status_code == 503
            assert advice in message(reply)
            assert ("the same" in message(reply)) == ("idempotency-key" in reply.request.headers)

    play(scenario)


def test_probes() -> None:
    async def ready(s: Setting) -> None:
        assert (await s.http.get("/health")).status_code == 200
        assert (await s.http.get("/ready")).json() == {"status": "ready"}

    async def unready(s: Setting) -> None:
        assert (await s.http.get("/health")).status_code == 200
        reply = await s.http.get("/ready")
        assert (reply.status_code, message(reply)) == (503, "not ready: no partitions yet")

    play(ready)
    play(unready, problem="no partitions yet")


def test_the_listing_has_lines_to_paste() -> None:
    async def scenario(s: Setting) -> None:
        services = (await s.http.get("/")).json()["services"]
        assert [(service["name"], service["kind"]) for service in services] == [
            ("counter", "virtual object"),
            ("mailer", "service"),
        ]
        lines = [handler["curl"] for service in services for handler in service["handlers"]]
        assert """curl "$TENUTO_URL/call/counter/my-key/add" --json '{}'""" in lines
        plain = await s.http.get("/", headers={"accept": "text/plain"})
        assert plain.headers["content-type"].startswith("text/plain")
        assert all(line in plain.text for line in lines)

    play(scenario)


def test_the_reference_names_every_route() -> None:
    page = PAGE.read_text("utf-8")
    for route in Setting().app.routes:
        path: str = getattr(route, "path", "")
        assert f"`{path.partition('{target')[0]}" in page or f" {path.partition('{target')[0]}" in page, path


# --- under Mangum -----------------------------------------------------------------------------------------


def rest_event(method: str, path: str, body: Any) -> dict[str, Any]:
    """A REST API's proxy event: the path stays as it was sent, the stage is told apart."""
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {"Content-Type": "application/json", "Host": "abc.execute-api.eu-west-1.amazonaws.com"},
        "multiValueHeaders": {
            "Content-Type": ["application/json"],
            "Host": ["abc.execute-api.eu-west-1.amazonaws.com"],
        },
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": {"proxy": path[1:]},
        "stageVariables": None,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc",
            "domainName": "abc.execute-api.eu-west-1.amazonaws.com",
            "httpMethod": method,
            "identity": {"sourceIp": "203.0.113.7", "userAgent": "curl/8"},
            "path": f"/prod{path}",
            "protocol": "HTTP/1.1",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "resourcePath": "/{proxy+}",
            "stage": "prod",
        },
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }


def v2_event(method: str, path: str, body: Any, *, domain: str) -> dict[str, Any]:
    """An event of payload format 2.0, with the body as base64, as gateways send what they take for binary."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": domain, "x-forwarded-proto": "https"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc",
            "domainName": domain,
            "domainPrefix": "abc",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": "curl/8",
            },
            "requestId": "id",
            "routeKey": "$default",
            "stage": "$default",
            "time": "22/Nov/2026:00:00:00 +0000",
            "timeEpoch": 1_795_000_000_000,
        },
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "isBase64Encoded": True,
    }


class FunctionContext:
    """What the Lambda runtime hands to a handler beside the event."""

    function_name = "ingress"
    function_version = "$LATEST"
    invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:ingress"
    memory_limit_in_mb = 256
    aws_request_id = "id"
    log_group_name = "/aws/lambda/ingress"
    log_stream_name = "stream"
    identity: LambdaCognitoIdentity | None = None
    client_context: LambdaMobileClientContext | None = None

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


HTTP_API: Final = "abc.execute-api.eu-west-1.amazonaws.com"
FUNCTION_URL: Final = "abc.lambda-url.eu-west-1.on.aws"


@pytest.fixture
def function_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop that Mangum uses from one invocation to the next, as in a function's process."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.parametrize(
    ("shape", "path", "prefix"),
    [
        ("rest", "/call/counter/a%2F50%25/echo", "/prod"),
        ("http-api", "/call/counter/a/50%/echo", ""),
        ("function-url", "/call/counter/a%2F50%25/echo", ""),
    ],
)
def test_the_same_application_runs_under_mangum(
    shape: str, path: str, prefix: str, function_loop: asyncio.AbstractEventLoop
) -> None:
    setting = Setting(wait_ms=100)
    handler = Mangum(setting.app, lifespan="off")

    def invoke(where: str, body: Any) -> dict[str, Any]:
        domain = HTTP_API if shape == "http-api" else FUNCTION_URL
        rest = shape == "rest"
        event = rest_event("POST", where, body) if rest else v2_event("POST", where, body, domain=domain)
        answer: dict[str, Any] = handler(event, FunctionContext())
        return answer

    reply = invoke(path, {"n": 1})
    assert reply["statusCode"] == 200
    body = json.loads(reply["body"])
    assert (body["value"], body["lane"]) == ({"n": 1}, ["counter", "a/50%"])
    assert InvocationId.parse(reply["headers"]["x-tenuto-invocation-id"]).lane == Lane("counter", "a/50%")

    failed = invoke("/call/counter/ann/refuse", None)
    assert (failed["statusCode"], json.loads(failed["body"])["error"]["message"]) == (404, "no such user")
    binary = invoke("/call/counter/ann/image", None)
    assert (binary["isBase64Encoded"], base64.b64decode(binary["body"])) == (True, b"\x89PNG\xff")
    pending = invoke("/call/counter/ann/slow", 0.3)
    assert pending["statusCode"] == 202
    assert pending["headers"]["location"].startswith(f"{prefix}/invocations/inv_")
    crashed = invoke("/call/mailer/broken", None)
    assert crashed["statusCode"] == 500
    assert "a bug" not in crashed["body"]
    function_loop.run_until_complete(setting.execution.stop())


def test_a_base_path_is_cut_off_where_mangum_cuts_it() -> None:
    event = v2_event("POST", "/v1/call/counter/a b/add", 1, domain=HTTP_API)
    scope = {"path": "/call/counter/a b/add", "raw_path": None, "root_path": "", "aws.event": event}
    assert raw_path(scope) == ("/v1", "/call/counter/a%20b/add")
