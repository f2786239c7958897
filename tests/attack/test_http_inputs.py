"""Whatever is sent over HTTP: what is wrong with it is the caller's to hear, and never an error of the control plane.

Owns inputs that no honest client sends, on a real socket and on the application: bytes, ids, bodies, hosts and origins.
Does not own bounds (`test_http_bounds`) nor the many ways in which a request can be wrong (`tests.hostile.test_http`).
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.writes import Key
from tenuto.protocol.ids import PARTITION_KEY_BYTES_MAX, AwakeableId, InvocationId, Lane
from tenuto.service import Services
from tenuto.store.port import TableRefusedError
from tenuto_control.config import ConfigError, parse
from tenuto_control.ingress import create_app
from tenuto_control.ingress.gate import is_loopback
from tests.attack.asgi import asked
from tests.attack.examples import examples
from tests.attack.http_server import Reply, post, reply_of, serving
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import run_virtual

box = VirtualObject("box")
waiting_ids: dict[str, str] = {}


@box.handler()
async def anything(_ctx: ObjectContext, value: Any) -> Any:
    """Takes whatever comes."""
    return value


@box.handler()
async def waits(ctx: ObjectContext) -> Any:
    """Waits for an answer of any kind."""
    name, answer = ctx.awakeable(object)
    waiting_ids[ctx.key] = name
    return await answer


class StrictTable(CountingTable):
    """Refuses keys that DynamoDB refuses (Amazon DynamoDB quotas)."""

    async def get(self, key: Key) -> Any:
        """See `Table.get`."""
        _check(key)
        return await super().get(key)

    async def write(self, write: Any) -> Any:
        """See `Table.write`."""
        _check(write.key)
        return await super().write(write)


def _check(key: Key) -> None:
    if not 0 < len(key.pk.encode()) <= PARTITION_KEY_BYTES_MAX or not 0 < len(key.sk.encode()) <= 1_024:
        raise TableRefusedError("One or more parameter values were invalid: size of a key")


def app_of(meter: Meter, **options: Any) -> Starlette:
    """An ingress that waits for a second."""
    return create_app(meter.dispatcher, meter, ready=_ready, wait_ms_max=1_000, **options)


async def _ready() -> None:
    return None


# --- ids -----------------------------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(
        ("", "box", "k", "c1", "0a", "\x00", "é", "a" * 128, "a" * 129, "a" * 1_025, "/" * 700, "x" * 9_000)
    ),
    st.text(st.characters(codec="utf-8"), max_size=30),
)
ids = st.one_of(
    st.builds(lambda *parts: str(InvocationId(Lane(*parts[:2]), parts[2])), texts, texts, texts),
    st.builds(lambda *p: str(AwakeableId(InvocationId(Lane(*p[:2]), p[2]), *p[3:])), *[texts] * 5),
    st.builds(
        lambda prefix, data: prefix + base64.urlsafe_b64encode(data).decode(),
        st.sampled_from(("inv_", "awk_", "", "inv_inv_")),
        st.binary(max_size=60),
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="/?#"), min_size=1, max_size=40),
)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(ids, st.sampled_from(("invocations/{}/attach", "invocations/{}/output", "awakeables/{}/resolve")))
def test_an_id_that_leads_nowhere_is_the_callers_mistake(identity: str, path: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), table=StrictTable())
        encoded = "".join(f"%{byte:02X}" for byte in identity.encode())
        for form in (encoded, identity):
            if not form.isascii() or "/" in form:
                continue
            method = "POST" if path.startswith("awakeables") else "GET"
            status, body = await asked(app_of(meter), method, "/" + path.format(form), b"1")
            assert status in (400, 404, 405, 414), (identity, status, body)
            assert list(json.loads(body)) == ["error"]
        await meter.dispatcher.kill()

    run_virtual(scenario())


# --- bodies --------------------------------------------------------------------------------------------------------

bodies = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        (
            b'{"message": "\\ud800"}',
            b'"\\udfff"',
            b'{"message": "\x00"}',
            b'{"message": 1}',
            b'"' + b"a" * 32_000 + b'"',
            b'{"message": "' + "é".encode() * 10_000 + b'"}',
            b"\xff\xfe",
            b"[" * 20_000,
            b'{"a":' * 20_000,
            b"9" * 30_000,
            b"1e999",
            b"\xef\xbb\xbf1",
        )
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)
kinds = st.sampled_from((b"application/json", b"text/plain", b"application/x+json; charset=latin-1", b"\xff"))


@settings(max_examples=examples(80), deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies, kinds, st.sampled_from(("resolve", "reject")))
def test_whatever_answers_an_awakeable_it_is_taken_or_refused(body: bytes, kind: bytes, way: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), table=StrictTable())
        app = app_of(meter)
        status, _ = await asked(app, "POST", "/send/box/k/waits")
        assert status == 202
        await meter.quiet()
        path = f"/awakeables/{waiting_ids['k']}/{way}"
        status, told = await asked(app, "POST", path, body, ((b"content-type", kind),))
        assert status in (202, 400, 413), (body, told)
        await meter.quiet()
        # Whatever became of it, the key is served.
        if status == 202:
            assert (await asked(app, "POST", "/call/box/k/anything", b"1"))[0] == 200
        await meter.dispatcher.kill()

    run_virtual(scenario())


@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies, kinds, st.sampled_from(("call", "send")))
def test_whatever_a_body_is_the_answer_is_no_error_of_the_control_plane(body: bytes, kind: bytes, way: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), table=StrictTable())
        status, told = await asked(app_of(meter), "POST", f"/{way}/box/k/anything", body, ((b"content-type", kind),))
        assert status in (200, 202, 204, 400, 413), (body, told)
        if kind == b"application/json" and not _is_utf8(body):
            assert status == 400
            assert b"UTF-8" in told
        await meter.dispatcher.kill()

    run_virtual(scenario())


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(deadline=None)
@given(st.integers(0, 70_000), st.sampled_from([b"\xff", "é".encode()[:1], b"\xed\xa0\x80", "\U0001f600".encode()[:3]]))
def test_the_first_byte_that_is_not_utf8_is_named_wherever_it_is(before: int, broken: bytes) -> None:
    """Bodies are decoded a piece at a time, and a character may lie across the border of two."""

    async def scenario() -> None:
        meter = Meter(Services([box]))
        text = ("é" * 40_000).encode()[: before - before % 2]
        body = b'"' + text + broken + b'"'
        status, told = await asked(
            app_of(meter), "POST", "/call/box/k/anything", body, ((b"content-type", b"application/json"),)
        )
        assert status == 400
        assert f"it is not UTF-8 (byte {1 + len(text)})" in json.loads(told)["error"]["message"]
        whole = b'"' + text + b'"'
        assert (await asked(app_of(meter), "POST", "/call/box/k/anything", whole))[0] == 200
        await meter.dispatcher.kill()

    run_virtual(scenario())


# --- bytes on a socket ----------------------------------------------------------------------------------------------

pieces = st.lists(
    st.one_of(
        st.sampled_from(
            (
                b"GET ",
                b"POST ",
                b"/call/box/k/anything",
                b"/health",
                b"*",
                b"http://evil.example/health",
                b" HTTP/1.1\r\n",
                b" HTTP/1.0\r\n",
                b" HTTP/2.0\r\n",
                b"host: localhost\r\n",
                b"content-length: 1\r\n",
                b"content-length: +1\r\n",
                b"content-length: 18446744073709551617\r\n",
                b"transfer-encoding: chunked\r\n",
                b"transfer-encoding: gzip\r\n",
                b"connection: upgrade\r\nupgrade: websocket\r\n",
                b"upgrade: h2c\r\n",
                b"expect: 100-continue\r\n",
                b"x : y\r\n",
                b" folded\r\n",
                b"\xff: \xff\r\n",
                b"\r\n",
                b"\n",
                b"\r\n\r\n",
                b"1",
                b"1\r\n1\r\n0\r\n\r\n",
                b"ffffffffffffffff\r\n",
                b"\x00",
            )
        ),
        st.binary(max_size=12),
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(pieces, min_size=1, max_size=3), min_size=10, max_size=15))
def test_no_bytes_on_a_socket_are_answered_with_500(connections: list[list[bytes]]) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        object.__setattr__(meter, "clock", _Clock())
        async with serving(app_of(meter)) as server:
            for sent in connections:
                peer = await server.connect(sent[0])
                for more in sent[1:]:
                    await asyncio.sleep(0)
                    peer.send(more)
                if peer.writer.can_write_eof():
                    peer.writer.write_eof()
                said = await peer.all()
                reply = reply_of(said)
                assert reply.status != 500, (sent, said)
                assert "server" not in reply.headers
                if reply.status >= 400:
                    assert reply.headers["content-type"] == "application/json"
            assert (await server.get("/health")).status == 200
        await meter.dispatcher.kill()

    uvloop.run(scenario())


class _Clock:
    def now_ms(self) -> int:
        """Real time."""
        return round(asyncio.get_running_loop().time() * 1_000)


def test_an_upgrade_is_answered_as_any_other_request(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Reply:
        async with serving(app_of(Meter(Services([box])))) as server:
            return await server.ask(
                b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
            )

    assert uvloop.run(scenario()).status == 200
    # One line for each request of a scanner would be a flood.
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


# --- hosts and origins ---------------------------------------------------------------------------------------------

LOCAL = (
    "localhost",
    "localhost:8080",
    "LOCALHOST:1",
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.9.9.9:1",
    "[::1]",
    "[::1]:8080",
)
FOREIGN = (
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:127.0.0.1",
    "localhost@evil.example",
    "0.0.0.0",
    "[::]",
    "192.0.2.1:8080",
    "2130706433",
    "0x7f.1",
    "127.1",
    "",
    " ",
    ":8080",
    "[::1",
    "[::1].evil.example",
    "localhost:evil",
    "localhost,evil.example",
)


@pytest.mark.parametrize("path", ["/", "/health", "/call/box/k/anything", "/invocations/x/output"])
@pytest.mark.parametrize(("host", "served"), [(h, True) for h in LOCAL] + [(h, False) for h in FOREIGN])
def test_a_local_control_plane_answers_to_names_of_its_machine_alone(host: str, served: bool, path: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        method = "POST" if path.startswith("/call") else "GET"
        status, _ = await asked(app_of(meter, hosts=()), method, path, b"1", ((b"host", host.encode()),))
        assert (status != 403) == served
        # One that is reached from elsewhere has a name that it does not know.
        assert (await asked(app_of(meter), method, path, b"1", ((b"host", host.encode()),)))[0] != 403
        await meter.dispatcher.kill()

    run_virtual(scenario())


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_no_other_host_is_taken_for_this_machine(host: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        status, _ = await asked(app_of(meter, hosts=()), "GET", "/health", b"", ((b"host", host.encode()),))
        name = host.strip().lower().partition(":")[0]
        assert status == 403 or is_loopback(name) or host.strip().startswith("[")
        await meter.dispatcher.kill()

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("hosts", "status"),
    [(("evil.example",), 403), (("tenuto.example",), 200), (("Tenuto.Example", "x"), 200), ((), 403)],
)
def test_hosts_that_are_listed_are_served(hosts: tuple[str, ...], status: int) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        for line in (b"tenuto.example", b"tenuto.example:443"):
            assert (await asked(app_of(meter, hosts=hosts), "GET", "/health", b"", ((b"host", line),)))[0] == status
        two = ((b"host", b"tenuto.example"), (b"host", b"localhost"))
        assert (await asked(app_of(meter, hosts=hosts), "GET", "/health", b"", two))[0] == 403
        await meter.dispatcher.kill()

    run_virtual(scenario())


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8080", "file://", "\xff", ""])
@pytest.mark.parametrize("path", ["/call/box/k/anything", "/send/box/k/anything", "/awakeables/x/resolve"])
@pytest.mark.parametrize("hosts", [None, ()])
def test_a_page_that_is_not_listed_calls_nothing(origin: str, path: str, hosts: tuple[str, ...] | None) -> None:
    """A text/plain POST needs no preflight."""

    async def scenario() -> None:
        meter = Meter(Services([box]))
        headers = (
            (b"host", b"127.0.0.1:8080"),
            (b"origin", origin.encode("latin-1")),
            (b"content-type", b"text/plain"),
        )
        assert (await asked(app_of(meter, hosts=hosts), "POST", path, b"1", headers))[0] == 403
        assert meter.invocations == 0
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_the_listing_repeats_no_host_that_was_not_checked() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        for kind in (b"text/plain", b"application/json"):
            headers = ((b"host", b"evil.example"), (b"accept", kind))
            status, body = await asked(app_of(meter), "GET", "/", b"", headers)
            assert status == 200
            assert b"evil" not in body
            assert b"$TENUTO_URL/call/box/my-key/anything" in body
            local = ((b"host", b"127.0.0.1:8080"), (b"accept", kind))
            assert (
                b"http://127.0.0.1:8080/call/box/" in (await asked(app_of(meter, hosts=()), "GET", "/", b"", local))[1]
            )
        await meter.dispatcher.kill()

    run_virtual(scenario())


@pytest.mark.parametrize("host", ["http://x.example", "x.example:80", "*", "x y", ""])
def test_a_host_in_the_configuration_is_a_name(host: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.hosts: .* is not a host"):
        parse(f"[http]\nhosts = [{host!r}]\n[functions.f]\n", "tenuto.toml", {})
    good = parse('[http]\nhosts = ["tenuto.example", "10.0.0.1"]\n[functions.f]\n', "tenuto.toml", {})
    assert good.http.hosts == ("tenuto.example", "10.0.0.1")


def test_a_call_is_answered_over_the_socket() -> None:
    async def scenario() -> Reply:
        meter = Meter(Services([box]))
        object.__setattr__(meter, "clock", _Clock())
        async with serving(app_of(meter, hosts=())) as server:
            reply = await server.ask(post("/call/box/k/anything", b'"\xc3\xa9"', "content-type: application/json"))
            await meter.dispatcher.kill()
            return reply

    reply = uvloop.run(scenario())
    assert (reply.status, reply.body) == (200, b'"\xc3\xa9"')
