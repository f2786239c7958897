"""What callers may hold of a process: waiting calls, bytes, connections, heads without end.

Owns the bounds of the server, the ingress and the calls of a dispatcher, each met by more than it allows: what is
beyond is refused, what is within is served, and what tells about the process answers meanwhile. Does not own the memory
that all of it takes, which no short test can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.records import Event
from tenuto.service import Services
from tenuto.store.port import TableUnavailableError
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher import Dispatcher
from tenuto_control.dispatcher.outages import watched
from tenuto_control.dispatcher.room import Room
from tenuto_control.drivers import http_connections, http_protocol
from tenuto_control.drivers.http_connections import FILES_KEPT, Connections, connections_possible
from tenuto_control.drivers.http_protocol import HEAD_BYTES_MAX, HEADERS_MAX, PIECE_BYTES, PIPELINED_MAX
from tenuto_control.ingress import create_app
from tenuto_control.limits import Limits
from tenuto_control.pace import Pace
from tenuto_control.ports import AnswerHolder, OverloadedError, Pending, UndecidedError
from tests.attack import asgi
from tests.attack.http_server import ANSWER_S_MAX, Server, post, reply_of, serving
from tests.control import in_memory_execution
from tests.control.in_memory_execution import InMemoryExecution
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

MEBIBYTE = 1024 * 1024


class Held:
    """An ingress whose one handler waits until it is told to go on. `begun` counts its runs."""

    def __init__(self, room: Room | None = None, result: bytes = b"1") -> None:
        self.go_on = asyncio.Event()
        self.begun = 0
        self.room = room or Room(1_000, 64 * MEBIBYTE)
        services = in_memory_execution.Services()

        async def wait(_ctx: in_memory_execution.Context, _value: Any) -> Any:
            self.begun += 1
            await self.go_on.wait()
            return result

        services.register("box", "exclusive", wait)
        self.execution = InMemoryExecution(services)
        self.app: Starlette = create_app(self.execution, services, ready=_ready, room=self.room)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        async with asyncio.timeout(ANSWER_S_MAX):
            while not condition():  # noqa: ASYNC110 - a condition of others has no event
                await asyncio.sleep(0.001)


async def _ready() -> None:
    return None


def real(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario in real time, on the loop that a control plane has."""
    uvloop.run(scenario)


async def assert_alive(server: Server) -> None:
    """What tells about the process answers."""
    for path in ("/health", "/ready", "/"):
        assert (await server.get(path)).status == 200, path


# --- room ----------------------------------------------------------------------------------------------------------


@given(
    items_max=st.integers(1, 4),
    bytes_max=st.integers(1, 40),
    steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["enter", "add", "release"]), st.integers(0, 50))),
)
def test_a_room_never_holds_more_than_it_may(items_max: int, bytes_max: int, steps: list[tuple[int, str, int]]) -> None:
    room = Room(items_max, bytes_max)
    holders = [room.held() for _ in range(6)]
    for who, what, size in steps:
        with contextlib.suppress(OverloadedError):
            match what:
                case "enter":
                    holders[who].enter()
                case "add":
                    holders[who].add(size)
                case _:
                    holders[who].release()
        assert 0 <= room.items <= items_max
        assert 0 <= room.size <= bytes_max
    for holder in holders:
        holder.release()
    assert (room.items, room.size) == (0, 0)


def test_as_many_calls_wait_as_may_and_all_others_are_told_to_come_back() -> None:
    async def scenario() -> None:
        held = Held(Room(5, MEBIBYTE))
        async with serving(held.app) as server:
            waiting = [await server.connect(post(f"/call/box/k{n}/wait", b"1")) for n in range(5)]
            await held.until(lambda: held.begun == 5)
            for n, path in enumerate(("/call/box/x/wait", "/send/box/y/wait", "/call/box/k0/wait")):
                reply = await server.ask(post(path, b"1"))
                assert reply.status == 503, n
                assert reply.headers["retry-after"] == "5"
                assert "nothing was accepted" in reply.message
            assert (await server.get(f"/invocations/{_invocation(held)}/attach")).status == 503
            await assert_alive(server)
            held.go_on.set()
            assert [(await peer.reply()).status for peer in waiting] == [200] * 5
            assert (await server.ask(post("/call/box/x/wait", b"1"))).status == 200
        assert (held.room.items, held.room.size) == (0, 0)

    real(scenario())


def test_refusals_leave_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        held = Held(Room(1, MEBIBYTE))
        async with serving(held.app) as server:
            await server.connect(post("/call/box/k/wait", b"1"))
            await held.until(lambda: held.begun == 1)
            peer = await server.connect(post("/call/box/x/wait", b"1") * PIPELINED_MAX)
            assert [(await peer.reply()).status for _ in range(PIPELINED_MAX)] == [503] * PIPELINED_MAX
            held.app.state.overloaded_next_s = 0.0
            assert (await server.ask(post(f"/call/box/{'x' * 900}/wait", b"1"))).status == 503

    real(scenario())
    first, second = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "OverloadedError" in first
    assert f"{PIPELINED_MAX:,} refused" in second
    assert len(second) < 800


def _invocation(held: Held) -> str:
    return held.execution.events[0].id


def test_bodies_count_while_they_arrive_and_no_longer_than_they_are_here() -> None:
    async def scenario() -> None:
        held = Held(Room(100, MEBIBYTE))
        held.go_on.set()
        async with serving(held.app) as server:
            # Announced is not arrived: what has been sent so far is what counts.
            most = post("/call/box/k/wait", b'"' + b"a" * 300_000 + b'"')[:-10_000]
            slow = [await server.connect(most) for _ in range(3)]
            await held.until(lambda: held.room.size > 860_000)
            reply = await server.ask(post("/call/box/x/wait", b'"' + b"a" * 300_000 + b'"'))
            assert (reply.status, reply.headers["retry-after"]) == (503, "5")
            assert held.room.size <= MEBIBYTE
            assert (await server.ask(post("/call/box/x/wait", b"1"))).status == 200
            await assert_alive(server)
            for peer in slow:
                peer.abort()
            await held.until(lambda: held.room.size == 0)
            big = post("/call/box/x/wait", b'"' + b"a" * 900_000 + b'"')
            assert (await server.ask(big)).status == 200
        assert held.begun == 2

    real(scenario())


def test_slow_bodies_take_no_place_from_calls() -> None:
    async def scenario() -> None:
        held = Held(Room(2, MEBIBYTE))
        held.go_on.set()
        async with serving(held.app) as server:
            for _ in range(20):
                await server.connect(post("/call/box/k/wait", b'"aaaa"')[:-1])
            await held.until(lambda: held.room.size == 20 * 5)
            assert (await server.ask(post("/call/box/x/wait", b"1"))).status == 200

    real(scenario())


UNREAD_BYTES = 64 * MEBIBYTE
"""More than the kernel takes for both ends of a connection: its buffers may grow to 4 and 32 MiB."""


def test_results_count_until_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_MS_MAX", 1_500)

    async def scenario() -> None:
        held = Held(Room(100, 2 * UNREAD_BYTES + MEBIBYTE), result=b"1" * UNREAD_BYTES)
        held.go_on.set()
        async with serving(held.app) as server:
            for n in range(2):
                await server.connect(post(f"/call/box/k{n}/wait", b"1"), limit=1)
            await held.until(lambda: held.room.size >= 2 * UNREAD_BYTES)
            reply = await server.ask(post("/call/box/x/wait", b"1"))
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert "idempotency-key" in reply.message
            await assert_alive(server)
            # Whoever reads nothing is not waited for.
            await held.until(lambda: held.room.size == 0)
            reader = await server.connect(post("/call/box/x/wait", b"1"), limit=2 * UNREAD_BYTES)
            assert len((await reader.reply()).body) == UNREAD_BYTES

    real(scenario())


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 300_000])
def test_a_result_arrives_whole_in_whatever_pieces_it_is_sent(size: int) -> None:
    result = bytes(n % 251 for n in range(size))

    async def scenario() -> None:
        held = Held(result=result)
        held.go_on.set()
        async with serving(held.app) as server:
            peer = await server.connect(post("/call/box/k/wait", b"1") * 2, limit=MEBIBYTE)
            for _ in range(2):
                assert (await peer.reply()).body == result

    real(scenario())


# --- calls of the dispatcher ----------------------------------------------------------------------------------------

box = VirtualObject("box")


@box.handler()
async def noted(_ctx: ObjectContext, value: str) -> int:
    """Takes a text."""
    return len(value)


class Slow(Meter):
    """A meter whose function answers when it is told to."""

    gate: asyncio.Event | None = None

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        if self.gate is not None:
            await self.gate.wait()
        return await super().invoke(function, payload)


def test_a_call_is_held_until_it_is_over_and_not_until_its_caller_has_gone() -> None:
    async def scenario() -> None:
        meter = Slow(Services([box]), Limits(calls_max=3, calls_bytes_max=3 * MEBIBYTE))
        meter.gate = asyncio.Event()
        # Too large to be handed over: it runs on here after its caller's wait.
        large = _call(meter, "a", b'"' + b"a" * 900_000 + b'"')
        with pytest.raises(UndecidedError):
            await meter.dispatcher.call(large, 1_000)
        # As large, and handed over: what waits for its turn elsewhere holds nothing.
        small = [meter.dispatcher.call(_call(meter, f"k{n}", b'"a"'), 10_000) for n in range(2)]
        waiting = [asyncio.create_task(one) for one in small]
        await asyncio.sleep(1)
        for beyond in (_call(meter, "x", b'"a"'), _call(meter, "y", b'"a"')):
            with pytest.raises(OverloadedError, match="wait in this control plane"):
                await meter.dispatcher.call(beyond, 1_000)
            with pytest.raises(OverloadedError):
                await meter.dispatcher.send(beyond, 0)
        meter.gate.set()
        await asyncio.gather(*waiting)
        await meter.quiet()
        assert not isinstance(await meter.dispatcher.call(_call(meter, "x", b'"a"'), 10_000), Pending)
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_what_calls_hold_is_bounded_in_bytes() -> None:
    async def scenario() -> None:
        meter = Slow(Services([box]), Limits(calls_bytes_max=MEBIBYTE))
        meter.gate = asyncio.Event()
        body = b'"' + b"a" * 300_000 + b'"'
        calls = [asyncio.create_task(meter.dispatcher.call(_call(meter, f"k{n}", body), 5_000)) for n in range(3)]
        await asyncio.sleep(1)
        with pytest.raises(OverloadedError, match="bytes"):
            await meter.dispatcher.call(_call(meter, "x", body), 5_000)
        meter.gate.set()
        for call in calls:
            assert not isinstance(await call, Pending)
        assert not isinstance(await meter.dispatcher.call(_call(meter, "x", body), 5_000), Pending)
        await meter.dispatcher.kill()

    run_virtual(scenario())


_nonces = itertools.count()


def _call(meter: Meter, key: str, body: bytes) -> Event:
    made = meter.event_of_call(noted, key, f"c{next(_nonces):024x}")
    return Event(made.id, made.handler, made.source, body, made.headers)


class Throttled:
    """A table most of whose requests are refused for the moment."""

    def __init__(self, table: Any, answered: Iterator[bool]) -> None:
        self._table = table
        self._answered = answered

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._table, name)

        async def asked(*arguments: Any, **named: Any) -> Any:
            if not next(self._answered):
                await asyncio.sleep(0.05)
                raise TableUnavailableError("throttled")
            return await method(*arguments, **named)

        return asked


@pytest.mark.parametrize("wait_s", [0, 4, 25])
@pytest.mark.parametrize("answered_of_10", [0, 1, 3])
def test_a_wait_ends_when_it_says_whatever_is_throttled(wait_s: int, answered_of_10: int) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        pattern = itertools.cycle([True] * answered_of_10 + [False] * (10 - answered_of_10))
        throttled = cast("Any", Throttled(meter.table, pattern))
        meter.wiring = _rewired(meter, throttled)
        app = create_app(meter.dispatcher, meter, ready=_ready, wait_ms_max=25_000)
        requests = [("POST", f"/call/box/k{n}/noted", b'"a"') for n in range(20)]
        requests += [("POST", f"/send/box/k{n}/noted", b'"a"') for n in range(20)]
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def asked(method: str, path: str, body: bytes) -> tuple[int, float]:
            headers = ((b"prefer", b"wait=%d" % wait_s), (b"content-type", b"application/json"))
            status, _ = await asgi.asked(app, method, path, body, headers)
            return status, loop.time() - began_s

        for status, after_s in await asyncio.gather(*(asked(*one) for one in requests)):
            assert status in (200, 202, 503)
            assert after_s <= wait_s + 2
        await meter.dispatcher.kill()

    run_virtual(scenario())


def _rewired(meter: Meter, table: Any) -> Any:
    """The same wiring with another table; the dispatcher is made again."""
    wiring = replace(meter.wiring, table=watched(table, Uncounted()))
    meter.dispatcher = Dispatcher(wiring)
    return wiring


# --- turns of the event loop ---------------------------------------------------------------------------------------


def test_many_that_are_due_at_once_leave_turns_to_others() -> None:
    async def scenario() -> None:
        pace, begun, seen = Pace(8), 0, []

        async def one() -> None:
            nonlocal begun
            await pace.turn()
            begun += 1

        tasks = [asyncio.create_task(one()) for _ in range(100)]
        while begun < 100:
            await asyncio.sleep(0)
            seen.append(begun)
        assert max(later - sooner for sooner, later in itertools.pairwise([0, *seen])) <= 16
        await asyncio.gather(*tasks)
        # Those that give up take nobody's turn.
        gone = [asyncio.create_task(one()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in gone[:-1]:
            task.cancel()
        await asyncio.wait_for(gone[-1], ANSWER_S_MAX)

    asyncio.run(scenario())


# --- connections ---------------------------------------------------------------------------------------------------


class Silent:
    """A connection in a table of them."""

    def __init__(self) -> None:
        self.given_up = False

    def give_up(self) -> None:
        """See `http_connections.Silent`."""
        self.given_up = True


@given(steps=st.lists(st.tuples(st.sampled_from(["open", "begin", "work", "idle", "close"]), st.integers(0, 9))))
def test_open_connections_stay_within_their_bound_and_work_is_never_given_up(steps: list[tuple[str, int]]) -> None:
    now_s = 0.0
    connections = Connections(4, lambda: now_s)
    present: dict[Silent, str] = {}
    for step, number in steps:
        now_s += number
        if step == "open":
            one = Silent()
            if connections.opened(one):
                present[one] = "silent"
            else:
                assert len(present) >= 4
            for gone in [other for other in present if other.given_up]:
                assert present.pop(gone) != "works"
                connections.closed(gone)
        elif present:
            one = list(present)[number % len(present)]
            match step:
                case "begin":
                    connections.begins(one)
                case "work":
                    connections.works(one)
                    present[one] = "works"
                case "idle":
                    connections.idles(one)
                    present[one] = "idle"
                case _:
                    connections.closed(one)
                    del present[one]
        assert len(present) <= 4


def test_silent_connections_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "SILENT_S_MIN", 0.0)

    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app, connections=Connections(10)) as server:
            openings = (b"", b"GET /health HTTP/1.1\r\nx: ", b"\r\n", post("/call/box/k/wait", b"11")[:-1])
            for n in range(60):
                await server.connect(openings[n % 4])
            for n in range(10):
                assert (await server.ask(post(f"/call/box/k{n}/wait", b"1"))).status == 200
            await assert_alive(server)
            assert len(server.uvicorn.server_state.connections) <= 12

    real(scenario())


def test_connections_with_work_under_way_stay_and_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "REFUSED_MAX", 3)

    async def scenario() -> None:
        held = Held()
        async with serving(held.app, connections=Connections(4)) as server:
            working = [await server.connect(post(f"/call/box/k{n}/wait", b"1")) for n in range(4)]
            await held.until(lambda: held.begun == 4)
            more = [await server.connect(post("/call/box/x/wait", b"1")) for _ in range(12)]
            replies = [reply_of(await peer.all()) for peer in more]
            told = [reply for reply in replies if reply.status]
            assert told
            assert {(reply.status, reply.headers["retry-after"]) for reply in told} == {(503, "5")}
            held.go_on.set()
            assert [(await peer.reply()).status for peer in working] == [200] * 4
            # Unused ones make room at once when somebody else comes, once they have been silent for a moment.
            monkeypatch.setattr(http_connections, "SILENT_S_MIN", 0.0)
            await assert_alive(server)

    real(scenario())


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "possible"),
    [
        (1_024, 1_024, 4_000, 512),
        (1_024, 65_536, 4_000, 4_000),
        (1_024, 2_048, 4_000, 2_048 - FILES_KEPT),
        (65_536, 65_536, 4_000, 4_000),
        (256, 256, 4_000, 128),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4_000, 4_000),
        (1_024, resource.RLIM_INFINITY, 4_000, 4_000),
    ],
)
def test_connections_stay_below_the_limit_of_open_files(
    soft: int, hard: int, wanted: int, possible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limit.append(new))
    assert connections_possible(wanted) == possible


# --- what has no end -----------------------------------------------------------------------------------------------

CHUNKED = b"POST /call/box/k/wait HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "headers": (b"GET /health HTTP/1.1\r\n", b"x: y\r\n"),
    "short headers": (b"GET /health HTTP/1.1\r\n", b"a:\r\n"),
    "one header": (b"GET /health HTTP/1.1\r\nx: ", b"v"),
    "one name": (b"GET /health HTTP/1.1\r\n", b"n"),
    "address": (b"GET /", b"a"),
    "query": (b"GET /?", b"a"),
    "method": (b"", b"G"),
    "blank lines": (b"", b"\r\n"),
    "trailers": (CHUNKED + b"1\r\n1\r\n0\r\n", b"x: y\r\n"),
    "one trailer": (CHUNKED + b"1\r\n1\r\n0\r\nx: ", b"v"),
    "chunk extension": (CHUNKED + b"1;", b"e"),
    "chunk extensions": (CHUNKED, b"1;eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee\r\n1\r\n"),
    "pipelined requests": (post("/call/box/k/wait", b"1"), post("/call/box/k/wait", b"1")),
    "pipelined heads": (post("/call/box/k/wait", b"1"), b"GET /health HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_is_ended(what: str) -> None:
    start, again = ENDLESS[what]

    async def scenario() -> None:
        held = Held()
        async with serving(held.app) as server:
            peer = await server.connect(start)
            answer = asyncio.create_task(peer.all())
            piece = again * (8_192 // len(again) + 1)
            sent = 0
            # Well above the bound and what sockets hold, far below what would hurt.
            while not answer.done() and sent < 16 * MEBIBYTE:
                peer.send(piece)
                sent += len(piece)
                with contextlib.suppress(ConnectionError):
                    await peer.writer.drain()
                await asyncio.sleep(0)
            said = await answer
            # What is wrong with a later request is no answer to the first, which is under way.
            assert reply_of(said).status in ((0,) if "pipelined" in what else (400, 414, 431)), said[:200]
            assert sent < 16 * MEBIBYTE
            await assert_alive(server)

    real(scenario())


@pytest.mark.parametrize("over", [0, 1])
def test_so_many_headers_and_no_more(over: int) -> None:
    lines = [f"x-{n}: y" for n in range(HEADERS_MAX - 1 + over)]

    async def scenario() -> None:
        async with serving(Held().app) as server:
            request = "\r\n".join(["GET /health HTTP/1.1", "host: localhost", *lines]).encode() + b"\r\n\r\n"
            assert len(request) < HEAD_BYTES_MAX
            assert (await server.ask(request)).status == (431 if over else 200)

    real(scenario())


def test_requests_in_a_row_are_answered_in_a_row() -> None:
    async def scenario() -> None:
        held = Held()
        held.go_on.set()
        async with serving(held.app) as server:
            peer = await server.connect(post("/call/box/k/wait", b"1") * PIPELINED_MAX)
            assert [(await peer.reply()).status for _ in range(PIPELINED_MAX)] == [200] * PIPELINED_MAX

    real(scenario())


def test_blank_lines_keep_no_connection_open() -> None:
    async def scenario() -> None:
        async with serving(Held().app, keep_alive_s=1) as server:
            peer = await server.connect(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await peer.reply()).status == 200
            ended = asyncio.create_task(peer.all())
            async with asyncio.timeout(ANSWER_S_MAX):
                while not ended.done():
                    peer.send(b"\r\n")
                    await asyncio.sleep(0.05)

    real(scenario())


def test_an_unused_connection_outlives_that_of_a_load_balancer() -> None:
    assert Limits().http_keep_alive_ms > 35_000

    async def scenario() -> None:
        async with serving(Held().app, keep_alive_s=Limits().http_keep_alive_ms // 1_000) as server:
            peer = await server.connect(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await peer.reply()).status == 200
            (connection,) = server.uvicorn.server_state.connections
            timer = cast("Any", connection).timeout_keep_alive_task
            left_s = timer.when() - asyncio.get_running_loop().time()
            assert left_s > 35

    real(scenario())


@pytest.mark.parametrize("close", [True, False])
def test_a_refusal_reaches_a_client_that_is_still_sending(close: bool) -> None:
    async def scenario() -> None:
        held = Held(Room(10, 1_000))
        async with serving(held.app) as server:
            headers = ["connection: close"] if close else []
            peer = await server.connect(post("/call/box/k/wait", b"a" * 4 * MEBIBYTE, *headers))
            assert (await peer.reply()).status == 503
            if not close:
                peer.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert (await peer.reply()).status == 200

    real(scenario())


def test_a_body_that_was_refused_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "REST_MS_MAX", 50)

    async def scenario() -> None:
        async with serving(Held().app) as server:
            peer = await server.connect(post("/call/nobody/k/wait", b"a" * 1_000)[:-1])
            assert (await peer.reply()).status == 404
            assert await peer.all() == b""

    real(scenario())


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
def test_a_stop_with_callers_that_have_gone_is_no_error(in_a_row: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        held = Held()
        async with serving(held.app) as server:
            calls = [post(f"/call/box/k{n}/wait", b"1") * in_a_row for n in range(20)]
            peers = [await server.connect(call) for call in calls]
            await held.until(lambda: held.begun == 20)
            for peer in peers[::2]:
                peer.abort()
            await held.until(lambda: len(server.uvicorn.server_state.connections) == 10)
            tasks = server.uvicorn.server_state.tasks
            # The next in a row begins when the one before it has been given up.
            await held.until(lambda: not [task.cancel() for task in tasks])
            assert {(await peer.reply()).status for peer in peers[1::2]} == {503}

    real(scenario())
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []
