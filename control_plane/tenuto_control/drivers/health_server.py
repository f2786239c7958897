"""`/health` at its own port, answered by its own thread: a burst of callers keeps no balancer waiting.

Owns the thread, its few connections, and what it tells of the main event loop: whether it comes round, and how late it
was. Does not own the measurement of that lateness (`loops.lateness`), nor `/health` among the ingress' other paths.

The thread shares nothing with the rest but the interpreter. So it answers while thousands of connections wait to be
accepted and the loop is late; and it does not say that a process is alive whose loop has stopped (ADR 30).
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Final

BEAT_S: Final = 0.05
"""How often the main loop shows that it comes round."""

STUCK_S: Final = 10.0
"""A main loop that has not come round for so long counts as stuck. The longest that bursts have held it is a second."""

SWITCH_S: Final = 0.001
"""After so long a busy thread leaves the interpreter to one that waits for it. An answer waits for it half a dozen
times, with Python's own 5 ms for up to 40 ms."""

CONNECTIONS_MAX: Final = 64
"""Open connections; beyond it the oldest are closed. A balancer has one or two, each for one request that it sends at
once, so those that are old have none."""

REQUEST_BYTES_MAX: Final = 8_192
REQUEST_S_MAX: Final = 5.0
"""How large a request may be, and how long it and its answer may take."""


class Pulse:
    """When the main loop has come round last. Written by its thread, read by the other one."""

    def __init__(self, late_ms: Callable[[], int | None]) -> None:
        self._late_ms = late_ms
        self._beat_s = time.monotonic()
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Beat from now on, on the running loop."""
        self._beat_s = time.monotonic()
        self._next = asyncio.get_running_loop().call_later(BEAT_S, self.start)

    def stop(self) -> None:
        """Beat no more."""
        if self._next is not None:
            self._next.cancel()

    def told(self) -> tuple[HTTPStatus, dict[str, object]]:
        """What to answer now. What the loop is late at this moment counts, besides what it says itself."""
        now_late_s = time.monotonic() - self._beat_s - BEAT_S
        late_ms = max(self._late_ms() or 0, round(now_late_s * 1_000))
        if now_late_s > STUCK_S:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stuck", "late_ms": late_ms}
        return HTTPStatus.OK, {"status": "alive", "late_ms": late_ms}


@contextmanager
def serving_health(listener: socket.socket, pulse: Pulse) -> Iterator[None]:
    """Serve `/health` at a bound socket, which is closed at the end. Entered by the main loop's own thread."""
    begun: Future[Callable[[], object]] = Future()
    thread = threading.Thread(target=_run, args=(listener, pulse, begun), name="tenuto-health", daemon=True)
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(min(before_s, SWITCH_S))
    pulse.start()
    thread.start()
    end = begun.result()
    try:
        yield
    finally:
        pulse.stop()
        end()
        thread.join()
        sys.setswitchinterval(before_s)


def _run(listener: socket.socket, pulse: Pulse, begun: Future[Callable[[], object]]) -> None:
    try:
        asyncio.run(_serve(listener, pulse, begun))
    except BaseException as e:  # noqa: BLE001 - whoever started the thread hears of it
        if not begun.done():
            begun.set_exception(e)


async def _serve(listener: socket.socket, pulse: Pulse, begun: Future[Callable[[], object]]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    server = await asyncio.start_server(_Door(pulse).answer, sock=listener, limit=REQUEST_BYTES_MAX)
    begun.set_result(functools.partial(loop.call_soon_threadsafe, stop.set))
    await stop.wait()
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # What they have closed is told so in the next turn.
    await asyncio.sleep(0)


class _Door:
    """Answers each connection once, the youngest of them."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._open: dict[asyncio.StreamWriter, None] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            with suppress(OSError, ValueError, EOFError, TimeoutError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_S_MAX):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        finally:
            self._open.pop(writer, None)
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].partition(b"?")[0]
        told: dict[str, object]
        if path != b"/health":
            status, told = HTTPStatus.NOT_FOUND, {"error": {"message": "only /health is served at this port"}}
        elif method not in (b"GET", b"HEAD"):
            status, told = HTTPStatus.METHOD_NOT_ALLOWED, {"error": {"message": "ask by GET"}}
        else:
            status, told = self._pulse.told()
        body = json.dumps(told).encode()
        lines = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        lines += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        return lines.encode() + (b"" if method == b"HEAD" else body)
