"""Connections of both clients: when one is used again, when it is given up, and what is never done with it.

Each test runs over the blocking client and the asyncio one. Does not own what answers mean (`tests/contract`).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import uvloop
from msgspec import structs

from tenuto.wire import aio, blocking, limits
from tenuto.wire.aio import AsyncClient
from tenuto.wire.blocking import BlockingClient
from tenuto.wire.destination import Destination, Proxy, destination
from tenuto.wire.errors import AnswerTooLargeError, ConnectError, LostError
from tenuto.wire.http1 import Answer
from tenuto.wire.limits import Timeouts
from tenuto.wire.sigv4 import Credentials, Request
from tests.wire.certificates import Certificates, make_certificates
from tests.wire.servers import Script, Server, Step, answer, ok

PATIENT: Timeouts = Timeouts(connect_s=20.0, read_s=20.0)
HASTY: Timeouts = Timeouts(connect_s=20.0, read_s=0.2)
BODY_BYTES_MAX = 8_000_000
KEY = Credentials("a", "s", "token")
ASKED = Request("/", {"x-amz-target": "T"}, b"{}")

Kind = Literal["blocking", "asyncio", "uvloop"]


class FixedCredentials:
    """One key."""

    current = KEY

    async def renewed(self) -> Credentials:
        """See `CredentialSource`."""
        return KEY


class Client:
    """Either client, with one way to ask it."""

    def __init__(self, kind: Kind, to: Destination, timeouts: Timeouts = PATIENT) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._of: Any
        if kind == "blocking":
            self._of = BlockingClient(to, lambda: KEY, timeouts, BODY_BYTES_MAX)
        else:
            self._loop = asyncio.new_event_loop() if kind == "asyncio" else uvloop.new_event_loop()
            self._of = AsyncClient(to, FixedCredentials(), timeouts, connections_max=4, body_bytes_max=BODY_BYTES_MAX)

    def send(self, request: Request = ASKED) -> Answer:
        """One request."""
        found = self._of.send(request)
        answered: Answer = found if self._loop is None else self._loop.run_until_complete(found)
        return answered

    def close(self) -> None:
        """Close it and its loop."""
        if self._loop is None:
            self._of.close()
        else:
            self._loop.run_until_complete(self._of.close())
            self._loop.close()


Make = Callable[..., Client]


@pytest.fixture(params=["blocking", "asyncio", "uvloop"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which client."""
    found: Kind = request.param
    return found


@pytest.fixture
def make(kind: Kind) -> Iterator[Make]:
    """Makes clients, and closes them."""
    made: list[Client] = []

    def one(to: Destination, timeouts: Timeouts = PATIENT) -> Client:
        made.append(Client(kind, to, timeouts))
        return made[-1]

    yield one
    for client in made:
        client.close()


def at(server: Server, **others: Any) -> Destination:
    """A server as a destination."""
    return replace(destination(f"http://127.0.0.1:{server.port}", service="dynamodb", region="r"), **others)


def always(*steps: Step) -> Script:
    """The same answer to all."""
    return lambda _number, _request: steps


def one_after_the_other(*answers: Sequence[Step]) -> Script:
    """Each request its own answer, the last one for the rest."""
    return lambda number, _request: answers[min(number, len(answers) - 1)]


def test_a_connection_is_used_again(make: Make) -> None:
    with Server(always(ok())) as server:
        client = make(at(server))
        for _ in range(5):
            assert client.send().body == b"{}"
        assert (server.connections, len(server.requests)) == (1, 5)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param([ok(b"{}", b"connection: close")], id="the server says so"),
        pytest.param([ok(), 0.01, "close"], id="the server closes it"),
        pytest.param([ok(), 0.01, b"HTTP/1.1 408 Request Timeout\r\n\r\n", "close"], id="the server says good-bye"),
        pytest.param([ok() + b"HTTP/1.1 200 OK\r\n\r\n"], id="more than an answer came"),
        pytest.param([ok(b"{}", b"keep-alive: timeout=0")], id="it may not rest"),
    ],
)
def test_a_connection_that_has_ended_is_found_before_anything_is_sent(make: Make, first: Sequence[Step]) -> None:
    with Server(one_after_the_other(first, [ok(b"2")])) as server:
        client = make(at(server))
        assert client.send().body == b"{}"
        if first[-1] == "close":
            # Its end has to have arrived; the next request takes it from there.
            threading.Event().wait(0.1)
        assert client.send().body == b"2"
        assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_request_that_was_sent_is_never_sent_again(make: Make, end: Step) -> None:
    with Server(one_after_the_other([ok()], [end], [ok(b"3")])) as server:
        client = make(at(server))
        client.send()
        with pytest.raises(LostError):
            client.send()
        assert len(server.requests) == 2
        assert client.send().body == b"3"


@pytest.mark.parametrize("name", ["CONNECTION_IDLE_S_MAX", "CONNECTION_AGE_S_MAX"])
def test_a_connection_is_not_used_for_ever(make: Make, kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = blocking if kind == "blocking" else aio
    assert getattr(limits, name) > 0
    with Server(always(ok())) as server:
        client = make(at(server))
        client.send()
        client.send()
        assert server.connections == 1
        monkeypatch.setattr(module, name, -1.0)
        client.send()
        client.send()
        assert server.connections >= 2


def test_a_function_that_was_frozen_finds_its_connection_old(
    make: Make, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = blocking if kind == "blocking" else aio
    with Server(always(ok())) as server:
        client = make(at(server))
        client.send()
        real = module.time.time
        # While a process is frozen, the monotonic clock stands still; this one does not.
        monkeypatch.setattr(module.time, "time", lambda: real() + 3_600)
        client.send()
        assert server.connections == 2


def test_silence_ends_and_so_does_what_trickles(make: Make) -> None:
    whole = ok(b"x" * 100)
    trickle: list[Step] = [step for i in range(len(whole)) for step in (whole[i : i + 1], 0.05)]
    with Server(one_after_the_other([5.0], trickle, [ok(b"3")])) as server:
        client = make(at(server), HASTY)
        with pytest.raises(LostError, match=r"no answer within 0.2 s"):
            client.send()
        with pytest.raises(LostError, match=r"no complete answer within 0.6 s"):
            client.send()
        assert server.connections == 2


def test_an_answer_above_the_bound_is_given_up(make: Make) -> None:
    with Server(always(ok(b"x" * (BODY_BYTES_MAX + 1)))) as server:
        client = make(at(server))
        with pytest.raises(AnswerTooLargeError):
            client.send()


def test_large_requests_and_answers_arrive_whole(make: Make) -> None:
    body = os.urandom(6_000_000)
    with Server(lambda _number, request: [ok(request.partition(b"\r\n\r\n")[2])]) as server:
        client = make(at(server))
        for _ in range(2):
            assert client.send(structs.replace(ASKED, body=body)).body == body
        assert server.connections == 1


def test_a_request_that_is_answered_by_its_head_leaves_no_rest_for_the_next_one_to_fill(make: Make) -> None:
    with Server(one_after_the_other([answer(429, b"{}")], [ok(b"2")]), hasty=True) as server:
        client = make(at(server), Timeouts(connect_s=20.0, read_s=5.0))
        assert client.send(structs.replace(ASKED, body=b"x" * 6_000_000)).status == 429
        assert client.send().body == b"2"
        assert server.requests[1].startswith(b"POST ")


def test_nobody_listens(make: Make) -> None:
    with Server(always(ok())) as server:
        to = at(server)
    with pytest.raises(ConnectError, match=rf"^no connection to 127.0.0.1:{to.port}: "):
        make(to).send()


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".invalid"])
def test_a_name_that_has_no_address(make: Make, host: str) -> None:
    with pytest.raises(ConnectError, match=r"^no connection to "):
        make(destination(f"http://{host}:1", service="s", region="r")).send()


def test_each_connection_resolves_the_name_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(always(ok(b"old", b"connection: close"))) as old, Server(always(ok(b"new"))) as new:
        now = old

        def resolve(host: str, _port: int, *_: Any, **__: Any) -> list[Any]:
            assert host == "table.example"
            # The first address is dead, as one of several may be.
            return [(2, 1, 6, "", ("127.0.0.1", 1)), (2, 1, 6, "", ("127.0.0.1", now.port))]

        async def resolve_later(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            return resolve(host, port)

        client = make(destination("http://table.example:80", service="s", region="r"))
        if client._loop is None:
            monkeypatch.setattr("tenuto.wire.blocking.socket.getaddrinfo", resolve)
        else:
            monkeypatch.setattr(aio, "_resolve", resolve_later)
        assert client.send().body == b"old"
        now = new
        assert client.send().body == b"new"


def test_a_wrong_clock_is_put_right_and_the_request_signed_anew(make: Make) -> None:
    skewed = answer(
        400,
        b'{"__type": "com.amazon.coral.service#InvalidSignatureException", "message": "Signature expired"}',
        b"date: Sun, 29 Nov 2020 22:00:00 GMT",
    )
    with Server(one_after_the_other([skewed], [ok(b"2")], [skewed])) as server:
        client = make(at(server))
        assert client.send().body == b"2"
        assert b"x-amz-date: 20201129T22" in server.requests[1]
        # The date says nothing new: what is refused then is refused.
        assert client.send().status == 400
        assert len(server.requests) == 3


def test_requests_beside_each_other_are_all_signed_anew() -> None:
    def script(_number: int, request: bytes) -> Sequence[Step]:
        refused = b'{"__type": "InvalidSignatureException"}'
        late = answer(400, refused, b"date: Sun, 29 Nov 2020 22:00:00 GMT")
        return [ok()] if b"x-amz-date: 20201129T2" in request else [0.1, late]

    async def main(server: Server) -> None:
        client = AsyncClient(at(server), FixedCredentials(), PATIENT, connections_max=4, body_bytes_max=BODY_BYTES_MAX)
        answers = await asyncio.gather(*(client.send(ASKED) for _ in range(4)))
        assert [answered.status for answered in answers] == [200] * 4
        await client.close()

    with Server(script) as server:
        asyncio.run(main(server))


# --- TLS and proxies -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, and a server that it vouches for by the name localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def secure(server: Server, certificates: Certificates, **others: Any) -> Destination:
    """A server as a destination with TLS."""
    to = destination(f"https://localhost:{server.port}", service="s", region="r", ca_bundle=str(certificates.bundle))
    return replace(to, **others)


def test_tls_connections_are_used_again(make: Make, certificates: Certificates) -> None:
    with Server(always(ok()), tls=certificates.server()) as server:
        client = make(secure(server, certificates))
        for _ in range(3):
            assert client.send().body == b"{}"
        assert server.connections == 1
        large = structs.replace(ASKED, body=b"x" * 2_000_000)
        assert client.send(large).body == b"{}"


def test_a_tls_connection_that_has_ended_is_found(make: Make, certificates: Certificates) -> None:
    with Server(one_after_the_other([ok(), 0.01, "close"], [ok(b"2")]), tls=certificates.server()) as server:
        client = make(secure(server, certificates))
        client.send()
        threading.Event().wait(0.1)
        assert client.send().body == b"2"
        assert len(server.requests) == 2


@pytest.mark.parametrize("wrong", ["another name", "another authority", "an old protocol", "no TLS at all"])
def test_a_server_that_cannot_prove_itself_is_sent_nothing(
    make: Make, certificates: Certificates, wrong: str, tmp_path: Path
) -> None:
    context: ssl.SSLContext | None = certificates.server()
    if wrong == "an old protocol":
        assert context is not None
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Server(always(ok()), tls=None if wrong == "no TLS at all" else context) as server:
        to = secure(server, certificates)
        if wrong == "another name":
            to = replace(to, host="127.0.0.1")
        if wrong == "another authority":
            to = replace(to, ca_bundle=str(make_certificates(tmp_path).bundle))
        with pytest.raises(ConnectError):
            make(to, Timeouts(connect_s=2.0, read_s=2.0)).send()
        assert not any(b"x-amz-target" in request for request in server.requests)


def test_certificates_that_cannot_be_read_are_named(make: Make, certificates: Certificates) -> None:
    with Server(always(ok()), tls=certificates.server()) as server, pytest.raises(ConnectError, match=r"nowhere\.pem"):
        make(secure(server, certificates, ca_bundle="nowhere.pem")).send()


def test_a_proxy_is_asked_for_a_tunnel(make: Make, certificates: Certificates) -> None:
    with Server(always(ok()), tls=certificates.server(), tunnels=True) as proxy:
        to = secure(proxy, certificates, port=443, proxy=Proxy("127.0.0.1", proxy.port, "Basic eA=="))
        client = make(to)
        assert client.send().body == b"{}"
        assert client.send().body == b"{}"
        tunnel, first, _ = proxy.requests
        assert tunnel.startswith(b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\n")
        assert b"proxy-authorization: Basic eA==" in tunnel
        assert b"host: localhost\r\n" in first
        assert b"proxy-authorization" not in first


@pytest.mark.parametrize("refusal", [answer(407, b"<html>who are you</html>"), b"garbage\r\n\r\n", b""])
def test_a_proxy_that_opens_no_tunnel_is_named(make: Make, certificates: Certificates, refusal: bytes) -> None:
    with Server(always(refusal, "close")) as proxy:
        to = secure(proxy, certificates, port=443, proxy=Proxy("127.0.0.1", proxy.port))
        with pytest.raises(ConnectError, match=rf"the proxy 127.0.0.1:{proxy.port} did not open a tunnel"):
            make(to).send()


def test_a_proxy_for_plain_http_is_given_the_url(make: Make) -> None:
    with Server(always(ok())) as proxy:
        to = destination("http://table.example", service="s", region="r", proxy=Proxy("127.0.0.1", proxy.port))
        make(to).send()
        assert proxy.requests[0].startswith(b"POST http://table.example/ HTTP/1.1\r\n")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a server's thread does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.001)


# --- what only one of them has ---------------------------------------------------------------------------------------


def test_threads_share_a_blocking_client() -> None:
    with Server(lambda _number, request: [ok(request.partition(b"\r\n\r\n")[2])]) as server:
        client = BlockingClient(at(server), lambda: KEY, PATIENT, BODY_BYTES_MAX)
        wrong: list[bytes] = []

        def ask(number: int) -> None:
            for turn in range(30):
                body = b"%d/%d" % (number, turn)
                if client.send(structs.replace(ASKED, body=body)).body != body:
                    wrong.append(body)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert server.connections <= 4
        client.close()


def test_a_fork_leaves_the_connection_to_the_parent() -> None:
    with Server(always(ok())) as server:
        client = BlockingClient(at(server), lambda: KEY, PATIENT, BODY_BYTES_MAX)
        client.send(ASKED)
        child = os.fork()
        if child == 0:
            try:
                client.send(ASKED)
                client.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        client.send(ASKED)
        assert server.connections == 2
        assert len(server.requests) == 3
        client.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_cancelled_request_leaves_no_connection_behind(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main(server: Server) -> None:
        client = AsyncClient(at(server), FixedCredentials(), PATIENT, connections_max=1, body_bytes_max=BODY_BYTES_MAX)
        for body in (b"{}", b"x" * 3_000_000):
            before = len(server.requests)
            asking = asyncio.ensure_future(client.send(structs.replace(ASKED, body=body)))
            await until(partial(lambda known: len(server.requests) > known, before))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            # The only place is free again, and the answer to the first request is not taken for this one's.
            assert (await client.send(structs.replace(ASKED, path="/next"))).body == b"next"
        await client.close()

    def script(_number: int, request: bytes) -> Sequence[Step]:
        return [ok(b"next")] if request.startswith(b"POST /next") else [ok(b"first")[:-2], 0.2, b"st"]

    loop = new_loop()
    try:
        with Server(script) as server:
            loop.run_until_complete(main(server))
    finally:
        loop.close()


def test_places_are_bounded_and_closing_ends_what_is_under_way() -> None:
    async def main(server: Server) -> None:
        client = AsyncClient(at(server), FixedCredentials(), PATIENT, connections_max=2, body_bytes_max=BODY_BYTES_MAX)
        asking = [asyncio.ensure_future(client.send(ASKED)) for _ in range(5)]
        await until(lambda: len(server.requests) == 2)
        await asyncio.sleep(0.05)
        assert (server.connections, len(server.requests)) == (2, 2)
        for task in asking[2:]:
            task.cancel()
        await client.close()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(one) for one in found] == [LostError] * 2 + [asyncio.CancelledError] * 3

    with Server(always(30.0, ok())) as server:
        asyncio.run(main(server))


class Rooms:
    """Room that is given when a test says so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.free = asyncio.Event()

    async def hold(self, size: int) -> None:
        """See `tenuto.wire.aio.Room`."""
        self.asked.append(size)
        await self.free.wait()


LARGE = 5_000_000


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("secure_too", [False, True], ids=["plain", "tls"])
def test_an_answer_is_not_read_before_there_is_room(
    new_loop: Callable[[], asyncio.AbstractEventLoop], secure_too: bool, certificates: Certificates
) -> None:
    async def main(server: Server) -> None:
        to = secure(server, certificates) if secure_too else at(server)
        # Room may be a long time coming, which is no silence of the server.
        client = AsyncClient(to, FixedCredentials(), HASTY, connections_max=2, body_bytes_max=BODY_BYTES_MAX)
        rooms = Rooms()
        asking = asyncio.ensure_future(client.send(ASKED, rooms))
        await until(lambda: bool(rooms.asked))
        await asyncio.sleep(4 * HASTY.read_s)
        assert not asking.done()
        (busy,) = client._busy
        assert busy._parser is not None
        assert len(busy._parser._buffer) < 1_000_000
        rooms.free.set()
        assert len((await asking).body) == LARGE
        assert rooms.asked == [LARGE]
        # What came with its head is held as well, and so is an answer of no known size.
        assert (await client.send(structs.replace(ASKED, path="/small"), rooms)).body == b"{}"
        assert len((await client.send(structs.replace(ASKED, path="/chunked"), rooms)).body) == 300_000
        assert rooms.asked == [LARGE, 2, BODY_BYTES_MAX]
        assert server.connections == 1
        await client.close()

    def script(_number: int, request: bytes) -> Sequence[Step]:
        if request.startswith(b"POST /small"):
            return [ok()]
        if request.startswith(b"POST /chunked"):
            chunk = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
            return [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 0.02, chunk * 3, b"0\r\n\r\n"]
        return [ok(b"x" * LARGE)]

    loop = new_loop()
    try:
        with Server(script, tls=certificates.server() if secure_too else None) as server:
            loop.run_until_complete(main(server))
    finally:
        loop.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_wait_for_room_may_be_cancelled_or_outlast_the_connection(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main(server: Server) -> None:
        client = AsyncClient(at(server), FixedCredentials(), PATIENT, connections_max=1, body_bytes_max=BODY_BYTES_MAX)
        rooms = Rooms()
        asking = asyncio.ensure_future(client.send(ASKED, rooms))
        await until(lambda: len(rooms.asked) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        # The only place is free again.
        asking = asyncio.ensure_future(client.send(ASKED, rooms))
        await until(lambda: len(rooms.asked) == 2)
        server.hang_up()
        rooms.free.set()
        with pytest.raises(LostError):
            await asking
        await client.close()

    loop = new_loop()
    try:
        with Server(always(ok(b"x" * LARGE)[:-10], 30.0)) as server:
            loop.run_until_complete(main(server))
    finally:
        loop.close()
