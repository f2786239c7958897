"""Peers that keep to the letter of HTTP and not to its manners: what they send is bounded, and nobody else waits.

Owns bodies that come all at once, ahead of their turn, drop by drop or never; expectations; answers that are read
slowly; methods, targets and framing of odd kinds. Does not own what waiting calls may hold (`test_http_bounds`), nor
bytes that are not HTTP (`test_http_inputs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from tenuto_control.dispatcher.room import PROMISED_BYTES_PER_S, PROMISED_S, Room
from tenuto_control.drivers import http_connections, http_protocol
from tenuto_control.drivers.http_connections import Connections
from tenuto_control.drivers.http_protocol import PIECE_BYTES, READ_BYTES
from tenuto_control.ingress import requests
from tenuto_control.ports import OverloadedError
from tests.attack.examples import examples
from tests.attack.http_server import Server, post, reply_of, serving
from tests.attack.test_http_bounds import MEBIBYTE, UNREAD_BYTES, Held, assert_alive, real

PATH = "/call/box/k/wait"


def head(size: int | None, *headers: str, path: str = PATH) -> bytes:
    """The head of a POST that announces a body, or a chunked one."""
    framing = "transfer-encoding: chunked" if size is None else f"content-length: {size}"
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", framing, *headers]).encode() + b"\r\n\r\n"


async def assert_served(server: Server) -> None:
    """A call for another key is answered, and what tells about the process."""
    assert (await server.ask(post("/call/box/other/wait", b"1"))).status == 200
    await assert_alive(server)


def bodies_held(server: Server) -> list[int]:
    """What each connection has of a body that the application has not asked for."""
    cycles = [cast("Any", connection).cycle for connection in server.uvicorn.server_state.connections]
    return [len(cycle.body) for cycle in cycles if cycle is not None]


# --- all at once ------------------------------------------------------------------------------------------------------


def test_large_calls_that_come_all_at_once_are_all_answered_and_none_is_refused_half_way() -> None:
    """A twin of `soak_memory large`: more than the room holds, each tried again after a refusal."""
    size, callers = MEBIBYTE, 40
    body = b'"' + b"x" * (size - 2) + b'"'

    async def scenario() -> None:
        held = Held(Room(1_000, 6 * size))
        held.go_on.set()
        statuses: Counter[int] = Counter()
        async with serving(held.app, connections=Connections(1_000)) as server:

            async def one(number: int) -> None:
                while True:
                    peer = await server.connect(head(size, path=f"/call/box/k{number}/wait"))
                    for at in range(0, size, PIECE_BYTES):
                        peer.send(body[at : at + PIECE_BYTES])
                        with contextlib.suppress(ConnectionError):
                            await peer.writer.drain()
                        await asyncio.sleep(0)
                    reply = await peer.reply()
                    peer.abort()
                    statuses[reply.status] += 1
                    if reply.status == 200:
                        return
                    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
                    await asyncio.sleep(0.01 * (1 + number % 7))

            calls = [asyncio.create_task(one(number)) for number in range(callers)]
            # Small calls pass by meanwhile.
            await assert_served(server)
            await asyncio.gather(*calls)
            assert held.begun == callers + 1
        assert statuses[200] == callers
        assert (held.room.items, held.room.size, held.room._to_come, held.room._promised) == (0, 0, {}, {})

    real(scenario())


@pytest.mark.parametrize(("result", "status"), [(1, 200), (8_192, 200), (800_000, 200), (MEBIBYTE, 503)])
def test_a_result_has_the_room_of_its_body(result: int, status: int) -> None:
    """What a call has done must not be lost to its caller because others have filled the room meanwhile."""
    body = b'"' + b"a" * 800_000 + b'"'

    async def scenario() -> None:
        held = Held(Room(100, MEBIBYTE), result=b"1" * result)
        async with serving(held.app) as server:
            peer = await server.connect(post(PATH, body), limit=2 * MEBIBYTE)
            await held.until(lambda: held.begun == 1)
            small = await server.connect(post("/call/box/x/wait", b'"' + b"a" * (MEBIBYTE - len(body) - 3) + b'"')[:-1])
            await held.until(lambda: held.room.size >= MEBIBYTE - 2)
            held.go_on.set()
            assert (await peer.reply()).status == status
            small.abort()
            await held.until(lambda: (held.room.items, held.room.size) == (0, 0))

    real(scenario())


def test_of_two_that_would_not_fit_together_one_is_refused_at_once_and_the_other_has_room() -> None:
    async def scenario() -> None:
        held = Held(Room(100, MEBIBYTE))
        held.go_on.set()
        async with serving(held.app) as server:
            first = await server.connect(head(700_000) + b'"')
            await held.until(lambda: held.room.size == 1)
            assert (await server.ask(head(700_000) + b'"')).status == 503
            await assert_served(server)
            first.send(b"a" * 699_998 + b'"')
            assert (await first.reply()).status == 200

    real(scenario())


@pytest.mark.parametrize("size", [requests.BODY_BYTES_MAX + 1, 10**12, 10**17])
def test_what_can_never_be_taken_is_refused_for_good_however_large_it_is(size: int) -> None:
    async def scenario() -> None:
        async with serving(Held(Room(10, MEBIBYTE)).app) as server:
            assert (await server.ask(head(size))).status == 413

    real(scenario())


steps_of_uploads = st.lists(
    st.tuples(st.sampled_from(["promise", "add", "small", "release"]), st.integers(0, 5), st.integers(1, 60)),
    max_size=40,
)


@settings(max_examples=examples(100), deadline=None)
@given(steps=steps_of_uploads, bytes_max=st.integers(20, 100))
def test_what_was_promised_fits_as_long_as_nothing_small_takes_it(
    steps: list[tuple[str, int, int]], bytes_max: int
) -> None:
    room = Room(100, bytes_max, now_s=lambda: 0.0)
    holders = [room.held() for _ in range(6)]
    small = room.held()
    for what, who, size in steps:
        one = holders[who]
        match what:
            case "promise" if not one.to_come:
                with contextlib.suppress(OverloadedError):
                    one.promise(size)
            case "add" if one.to_come:
                if room.size + sum(room._to_come.values()) <= bytes_max:
                    one.add(min(size, one.to_come))
            case "small":
                with contextlib.suppress(OverloadedError):
                    small.add(size)
            case "release":
                one.release()
            case _:
                pass
        assert room.size <= bytes_max
        assert sum(room._to_come.values()) == sum(holder.to_come for holder in holders)
        assert set(room._promised) == {holder for holder in holders if holder.to_come}
    for holder in (*holders, small):
        holder.release()
    assert (room.size, room._to_come, room._promised, room._sizes) == (0, {}, {}, {})


@pytest.mark.parametrize(
    ("came", "after_s", "kept"),
    [
        (0, PROMISED_S, True),
        (0, PROMISED_S + 0.2, False),
        (PROMISED_BYTES_PER_S // 2, PROMISED_S + 0.4, True),
        (PROMISED_BYTES_PER_S // 2, PROMISED_S + 0.6, False),
    ],
)
def test_a_promise_is_kept_to_who_sends(came: int, after_s: float, *, kept: bool) -> None:
    now_s = 0.0
    room = Room(10, 2 * MEBIBYTE, now_s=lambda: now_s)
    slow, other = room.held(), room.held()
    slow.promise(MEBIBYTE + 1)
    if came:
        slow.add(came)
    now_s = after_s
    with pytest.raises(OverloadedError) if kept else contextlib.nullcontext():
        other.promise(MEBIBYTE)
    # What has come stays, and more may come as long as there is room.
    assert room.size == came
    slow.add(1)


def test_of_bodies_that_nobody_has_asked_for_little_is_read() -> None:
    size = 300_000
    gate, asked = asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        await gate.wait()
        got = 0
        while (message := await receive())["type"] == "http.request":
            got += len(message["body"])
            if not message["more_body"]:
                break
        asked += got
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        async with serving(app) as server:
            peers = [await server.connect(post(PATH, b"a" * size)) for _ in range(20)]
            async with asyncio.timeout(10):
                while len(bodies_held(server)) < 20:  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert max(bodies_held(server)) <= READ_BYTES
            gate.set()
            assert [(await peer.reply()).status for peer in peers] == [200] * 20
        assert asked == 20 * size

    real(scenario())


# --- ahead of their turn ----------------------------------------------------------------------------------------------


def test_what_is_sent_behind_a_waiting_request_is_bounded_over_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    most, callers = 4 * READ_BYTES, 60
    monkeypatch.setattr(http_connections, "HTTP_AHEAD_BYTES_MAX", most)

    async def scenario() -> None:
        held, places = Held(), Connections(1_000)
        async with serving(held.app, connections=places) as server:
            behind = b"".join(post(f"/call/box/late{n}/wait", b'"' + b"1" * 50_000 + b'"') for n in range(4))
            peers = [await server.connect(post(f"/call/box/k{n}/wait", b"1") + behind) for n in range(callers)]
            await held.until(lambda: held.begun == callers)
            await asyncio.sleep(0.05)
            assert places._ahead <= most
            assert sum(bodies_held(server)) <= most
            held.go_on.set()
            replies = [await peer.reply() for peer in peers]
            assert [reply.status for reply in replies] == [200] * callers
            closed = [peer for peer, reply in zip(peers, replies, strict=True) if reply.headers.get("connection")]
            assert len(closed) >= callers - 5
            # They are told, and are not left waiting; the others have their turn, unless there is no room then.
            assert [await peer.all() for peer in closed] == [b""] * len(closed)
            for peer in set(map(id, peers)) - set(map(id, closed)):
                kept = next(one for one in peers if id(one) == peer)
                assert {(await kept.reply()).status for _ in range(4)} <= {200, 0}
            await assert_served(server)
            await held.until(lambda: places._ahead == 0)

    real(scenario())


@pytest.mark.parametrize("calls", [1, 2])
def test_a_head_that_is_cut_off_behind_other_requests_is_waited_for(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_MS_MAX", 50)

    async def scenario() -> None:
        held = Held()
        async with serving(held.app, connections=Connections(10)) as server:
            call = post(PATH, b"1")
            peer = await server.connect(call * calls + call[:20])
            await held.until(lambda: held.begun == 1)
            await asyncio.sleep(0.2)
            held.go_on.set()
            assert [(await peer.reply()).status for _ in range(calls)] == [200] * calls

    real(scenario())


# --- never, or drop by drop -------------------------------------------------------------------------------------------


def test_bodies_that_are_announced_and_never_sent_hold_nothing_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_MS_MAX", 1_500)

    async def scenario() -> None:
        held = Held(Room(10, 8 * MEBIBYTE))
        held.go_on.set()
        async with serving(held.app, connections=Connections(1_000)) as server:
            silent = [await server.connect(head(4_000_000, path=f"/call/box/s{n}/wait")) for n in range(300)]
            await assert_served(server)
            assert held.room.size == 0
            # A large one waits no longer than a promise lasts to those that do not send.
            large, refused = post("/call/box/large/wait", b'"' + b"a" * 4_000_000 + b'"'), 0
            while (reply := await server.ask(large)).status == 503:
                refused += 1
                await asyncio.sleep(0.1)
            assert reply.status == 200
            assert refused <= 30
            said = {(await peer.reply()).status for peer in silent}
            assert said <= {408, 503}
            assert 408 in said
        assert (held.room.items, held.room.size, held.room._to_come) == (0, 0, {})

    real(scenario())


@pytest.mark.parametrize("piece", [1, 2, 3])
def test_a_body_in_millions_of_pieces_takes_the_memory_of_its_bytes(piece: int) -> None:
    size = 50_000
    body = bytes(n % 251 for n in range(size))
    at = 0

    async def receive() -> Any:
        nonlocal at
        at += piece
        return {"type": "http.request", "body": body[at - piece : at], "more_body": at < size}

    async def scenario() -> bytes | None:
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
        return await requests.read_body(request)

    tracemalloc.start()
    try:
        assert asyncio.run(scenario()) == body
        assert tracemalloc.get_traced_memory()[1] < 4 * size + 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk", [1, 2, 1_000])
def test_chunks_without_end_end_at_the_size_of_a_body(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_BYTES_MAX", 100_000)
    piece = b"%x\r\n%s\r\n" % (chunk, b"a" * chunk) * (8_192 // (chunk + 5) + 1)

    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            peer = await server.connect(head(None))
            answer, sent = asyncio.create_task(peer.reply()), 0
            while not answer.done() and sent < 16 * MEBIBYTE:
                peer.send(piece)
                sent += len(piece)
                with contextlib.suppress(ConnectionError):
                    await peer.writer.drain()
                await asyncio.sleep(0)
            assert (await answer).status == 413
            await assert_served(server)
            assert held.begun == 1

    real(scenario())


@pytest.mark.parametrize("behind", [True, False])
def test_a_chunked_body_may_come_byte_by_byte(behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_MS_MAX", 3_000)

    async def scenario() -> None:
        held = Held()
        async with serving(held.app, connections=Connections(10)) as server:
            peer = await server.connect(post(PATH, b"1") * behind + head(None))
            await held.until(lambda: held.begun == behind)
            held.go_on.set()
            if behind:
                assert (await peer.reply()).status == 200
            for byte in b"0003\r\n123\r\n3;x=y\r\n456\r\n0\r\n\r\n":
                peer.send(bytes([byte]))
                await asyncio.sleep(0.005)
            assert (await peer.reply()).status == 200
            assert held.execution.events[-1].input == b"123456"

    real(scenario())


def test_a_body_that_comes_slowly_behind_another_request_holds_up_nobody_else() -> None:
    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            peer = await server.connect(post(PATH, b"1") + head(21))
            assert (await peer.reply()).status == 200
            for _ in range(20):
                peer.send(b" ")
                await assert_served(server)
            peer.send(b"1")
            assert (await peer.reply()).status == 200

    real(scenario())


# --- expectations -----------------------------------------------------------------------------------------------------

EXPECTING = "expect: 100-continue"


REFUSED = {
    "too large": (head(requests.BODY_BYTES_MAX + 1, EXPECTING), 413),
    "unknown service": (head(9, EXPECTING, path="/call/nobody/k/wait"), 404),
    "unknown path": (head(9, EXPECTING, path="/nowhere"), 404),
    "encoded": (head(9, EXPECTING, "content-encoding: gzip"), 415),
    "no idempotency key": (head(9, EXPECTING, "idempotency-key:"), 400),
    "no room": (head(700_000, EXPECTING), 503),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_its_head_is_answered_before_its_body_is_sent(name: str) -> None:
    request_head, status = REFUSED[name]

    async def scenario() -> None:
        held = Held(Room(10, 600_000))
        async with serving(held.app, connections=Connections(10)) as server:
            # Nobody knows whether its body follows: what does is not taken for one, nor for another request.
            peer = await server.connect(request_head)
            reply = await peer.reply()
            assert (reply.status, reply.headers["connection"]) == (status, "close")
            peer.send(post(PATH, b"1"))
            assert await peer.all() == b""
            assert held.begun == 0

    real(scenario())


def test_an_expected_body_is_asked_for_and_taken_or_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_MS_MAX", 300)

    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            peer, silent = await server.connect(head(3, EXPECTING)), await server.connect(head(3, EXPECTING))
            for one in (peer, silent):
                assert (await one.reply()).status == 100
            peer.send(b'"a"')
            assert (await peer.reply()).status == 200
            peer.send(post(PATH, b"1"))
            assert (await peer.reply()).status == 200
            assert (await silent.reply()).status == 408
            await assert_served(server)

    real(scenario())


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_read_drop_by_drop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "ANSWER_MS_MAX", 300)

    async def scenario() -> None:
        held = Held(Room(100, UNREAD_BYTES + MEBIBYTE), result=b"1" * UNREAD_BYTES)
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            peer = await server.connect(post(PATH, b"1"), limit=1)
            await held.until(lambda: held.room.size >= UNREAD_BYTES)

            async def drops() -> None:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    while True:
                        await peer.reader.readexactly(100_000)
                        await asyncio.sleep(0.01)

            reading = asyncio.create_task(drops())
            await held.until(lambda: held.room.size == 0)
            reading.cancel()
            await assert_alive(server)

    real(scenario())


@pytest.mark.parametrize("size", [10, PIECE_BYTES, 3 * MEBIBYTE])
def test_an_answer_arrives_whole_on_a_connection_that_closes_while_more_comes(size: int) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"b" * size})

    async def scenario() -> None:
        async with serving(app, connections=Connections(10)) as server:
            peer = await server.connect(post(PATH, b"a" * 2 * MEBIBYTE, "connection: close"), limit=4 * MEBIBYTE)
            assert len((await peer.reply()).body) == size

    real(scenario())


# --- odd methods, targets and framing ---------------------------------------------------------------------------------

REQUEST = "{} HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNK = b"1\r\n1\r\n0\r\n\r\n"
ODD: dict[str, tuple[bytes, int]] = {
    "HEAD": (REQUEST.format("HEAD /health").encode(), 200),
    "HEAD of a call": (REQUEST.format(f"HEAD {PATH}").encode(), 405),
    "OPTIONS": (REQUEST.format(f"OPTIONS {PATH}").encode(), 405),
    "OPTIONS of everything": (REQUEST.format("OPTIONS *").encode(), 404),
    "TRACE": (REQUEST.format("TRACE /health").encode(), 405),
    "PURGE": (REQUEST.format(f"PURGE {PATH}").encode(), 405),
    "no method": (REQUEST.format(f"BREW {PATH}").encode(), 400),
    "a tunnel": (REQUEST.format("CONNECT localhost:80").encode(), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an absolute target": (post(f"http://evil.example{PATH}", b"1"), 200),
    "an absolute target without a path": (REQUEST.format("GET http://evil.example").encode(), 400),
    "two lengths": (head(1, "content-length: 1") + b"1", 400),
    "a list of lengths": (head(None).replace(b"transfer-encoding: chunked", b"content-length: 1, 1") + b"1", 400),
    "a length with a sign": (head(None).replace(b"transfer-encoding: chunked", b"content-length: +1") + b"1", 400),
    "length and chunks": (head(3, "transfer-encoding: chunked") + CHUNK, 400),
    "chunks and something else": (head(None, "transfer-encoding: identity") + CHUNK, 400),
    "compressed chunks": (head(None).replace(b": chunked", b": gzip, chunked") + CHUNK, 501),
    "trailers": (head(None) + CHUNK[:-2] + b"idempotency-key: x\r\nhost: evil.example\r\n\r\n", 200),
    "two idempotency keys": (head(1, "idempotency-key: a", "idempotency-key: b") + b"1", 400),
    "an unknown expectation": (head(1, "expect: 200-ok") + b"1", 200),
}


@pytest.mark.parametrize("name", ODD)
def test_requests_of_odd_kinds_are_answered_once_and_touch_no_other(name: str) -> None:
    request, status = ODD[name]

    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            peer = await server.connect(request)
            peer.writer.write(REQUEST.format("GET /nowhere").encode())
            said = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while piece := await peer.reader.read(65_536):
                        said += piece
            assert reply_of(said).status == status, said
            assert said.count(b"HTTP/1.1 ") <= 2
            # Nothing of a request passes for another one.
            assert held.begun == (1 if status == 200 and b"POST" in request else 0)
            assert not any(dict(event.headers).get("idempotency-key") for event in held.execution.events)
            await assert_served(server)

    real(scenario())


@pytest.mark.parametrize("cut", [0, 1])
def test_a_peer_that_ends_its_side_is_one_that_has_gone(cut: int) -> None:
    async def scenario() -> None:
        held = Held()
        async with serving(held.app, connections=Connections(10)) as server:
            whole = post(PATH, b'"abc"')
            peer = await server.connect(whole[: len(whole) - cut])
            await held.until(lambda: held.begun == 1 - cut)
            peer.writer.write_eof()
            assert await peer.all() == b""
            await held.until(lambda: not server.uvicorn.server_state.connections)
            held.go_on.set()
            await held.until(lambda: held.room.items == held.room.size == 0)
            await assert_served(server)

    real(scenario())


def test_what_follows_a_last_request_is_no_request() -> None:
    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            peer = await server.connect(post(PATH, b"1", "connection: close") + post("/call/box/x/wait", b"1"))
            said = await peer.all()
            assert said.count(b"HTTP/1.1 200") == 1
            assert held.begun == 1
            await assert_served(server)

    real(scenario())
