"""`python -m bench.micro_plane`: the CPU time that a call takes inside the control plane, without a network around it.

Drives the production parser, ingress and dispatcher with calls over 64 connections that are none, above the in-memory
table and a function that counts. Owns both and the clock. Does not own what requests to AWS take (`python -m
bench.micro`), nor what sockets do, which `python -m bench` measures with everything else.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import uvicorn
import uvloop
from uvicorn.server import ServerState

from tenuto.lane.writes import Answer, Item, Key, Write
from tenuto.protocol.messages import (
    Activation,
    EventResult,
    HandlerManifest,
    ServiceManifest,
    Speculated,
    decode_request,
    encode,
)
from tenuto.protocol.records import PublishOut, Success
from tenuto.store.memory import MemoryTable
from tenuto_control.arguments import whole
from tenuto_control.core.metrics import Tally
from tenuto_control.dispatcher import Dispatcher, Wiring
from tenuto_control.dispatcher.outages import watched
from tenuto_control.drivers.event_scheduler import NoScheduler
from tenuto_control.drivers.http_protocol import JsonErrorsProtocol
from tenuto_control.drivers.system import SystemClock
from tenuto_control.garbage import collected_rarely
from tenuto_control.ingress import create_app
from tenuto_control.limits import Limits
from tenuto_control.ports import AnswerHolder, Target

CONNECTIONS: Final = 64
KEYS: Final = 1_000
PARTS: Final = 10
CALLS_MAX: Final = 1_000_000
CONCURRENCY: Final = 8
"""Invocations of the function at a time, as in `python -m bench`."""

MANIFEST: Final = ServiceManifest("bench", keyed=True, handlers=(HandlerManifest("count", "exclusive"),))
TARGET: Final = Target("bench", MANIFEST, timeout_ms=15_000, concurrency=CONCURRENCY)
PAD: Final = "x" * 150


class Twins:
    """What the dispatcher meets: the one service there is, its function, and a log to which nothing is written."""

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        return TARGET if service == MANIFEST.name else None

    def listed(self) -> Sequence[ServiceManifest]:
        """See `Targets.listed`."""
        return [MANIFEST]

    async def invoke(self, _function: str, payload: bytes, _room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`: a handler that counts."""
        await _turn()
        activation = decode_request(payload)
        assert isinstance(activation, Activation), "a control plane asks for nothing else here"
        count = str(int(activation.head.state.get("count") or b"0") + 1).encode()
        results = tuple(EventResult(event.id, Success(count)) for event in activation.events)
        return encode(Speculated(results, {"count": count}))

    async def produce(self, _record: PublishOut, _origin: Any = None) -> None:
        """See `RecordSink.produce`."""
        raise AssertionError("nothing is published here")


class LaterTable(MemoryTable):
    """The in-memory table, which answers a turn of the event loop later, as one behind a network does."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await _turn()
        return await super().write(write)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        await _turn()
        return await super().get(key)


async def _turn() -> None:
    loop = asyncio.get_running_loop()
    later = loop.create_future()
    loop.call_soon(later.set_result, None)
    await later


class Caller:
    """One connection's other end, which sends the next call once the last one is answered."""

    def __init__(self, run: Run) -> None:
        self.protocol: Any = None
        self.run = run
        self._answer = b""

    def send(self) -> None:
        """Send a call."""
        body = f'{{"number": {self.run.begun}, "at": 0, "pad": "{PAD}"}}'
        head = f"POST /call/bench/call-{random.randrange(KEYS)}/count HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        framing = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.protocol.data_received(f"{head}{framing}{body}".encode())

    # --- a transport, as far as the protocol uses it ---------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """A part of an answer, which is complete with its body."""
        self._answer += data
        head, ended, body = self._answer.partition(b"\r\n\r\n")
        if not ended or not body:
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self._answer = b""
        self.run.answered(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport`."""
        return {"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 40_000)}.get(name, default)

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return False

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""


class Run:
    """So many calls, over all connections."""

    def __init__(self, calls: int) -> None:
        self.begun = 0
        self._left = calls
        self._calls = calls
        self._over = asyncio.get_running_loop().create_future()

    def answered(self, caller: Caller) -> None:
        """A call has been answered."""
        self._left -= 1
        if self._left == 0:
            self._over.set_result(None)
        self._next(caller)

    def _next(self, caller: Caller) -> None:
        if self.begun < self._calls:
            self.begun += 1
            asyncio.get_running_loop().call_soon(caller.send)

    async def play(self, callers: Sequence[Caller]) -> float:
        """Make the calls. CPU seconds that they took."""
        began_s = time.process_time()
        for caller in callers:
            caller.run = self
            self._next(caller)
        await self._over
        return time.process_time() - began_s


def _callers(run: Run) -> list[Caller]:
    twins, tally, limits = Twins(), Tally(), Limits()
    wiring = Wiring(
        table=watched(LaterTable(), tally),
        invoker=twins,
        sink=twins,  # type: ignore[arg-type]  # of which nothing is asked
        targets=twins,
        scheduler=NoScheduler(),
        clock=SystemClock(),
        rng=random.Random(1),
        limits=limits,
        process="micro",
        table_name="micro",
        metrics=tally,
    )
    app = create_app(Dispatcher(wiring), twins, ready=_ready, hosts=(), metrics=tally)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False)
    config.load()
    callers = []
    for _ in range(CONNECTIONS):
        caller = Caller(run)
        caller.protocol = JsonErrorsProtocol(config=config, server_state=ServerState(), app_state={})
        caller.protocol.connection_made(caller)
        callers.append(caller)
    return callers


async def _ready() -> None:
    return None


async def measure(calls: int) -> float:
    """CPU microseconds of a call: the fastest of some parts, for other processes can only add to one."""
    part = max(1, calls // PARTS)
    callers = _callers(Run(0))
    with collected_rarely():
        spent_s = [await Run(part).play(callers) for _ in range(PARTS)]
    return 1e6 * min(spent_s) / part


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro_plane", description="CPU time of calls.")
    parser.add_argument("--calls", type=whole(1, CALLS_MAX), default=10_000)
    options = parser.parse_args(arguments)
    print(f"a call that reads and writes a counter: {uvloop.run(measure(options.calls)):6.1f} us of CPU", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
