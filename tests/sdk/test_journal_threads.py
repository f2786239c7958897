"""The journal between two threads: the handler's reads it while the write loop's stores what has finished.

Owns the race, with real threads and a table that takes its time. Does not own schedules on one loop, which the
simulation draws.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from tenuto import ObjectContext, RetryableError, VirtualObject
from tenuto.lane.transitions import Effects
from tenuto.lane.writes import Answer, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Committed, Head
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.attempt import Attempt
from tenuto.runtime.environment import Environment, ThreadWriteLoop
from tenuto.runtime.lease import Lease
from tenuto.runtime.state import StateView
from tenuto.runtime.steps import RunLimits
from tenuto.serde import serde_for
from tenuto.service import Services
from tenuto.store.memory import MemoryTable

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "work", KafkaSource("0", "t", 0, 0, 0))
FUNCTION_MS = 60_000
WRITE_S_MAX = 0.0005
SWITCH_S = 1e-6
ROUNDS = 1_000
READ_S = 0.001
ATTEMPTS = 40


class SlowTable(MemoryTable):
    """Answers after a moment, each time another."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(1)

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await asyncio.sleep(self._rng.uniform(0, WRITE_S_MAX))
        return await super().write(write)


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def environment() -> Iterator[Environment]:
    loop = ThreadWriteLoop()
    deadline_ms = time.time_ns() // 1_000_000 + FUNCTION_MS
    yield Environment(SlowTable(), lambda: time.time_ns() // 1_000_000, deadline_ms, loop, _inline, nonce="n")
    _end(loop)


def _end(loop: ThreadWriteLoop) -> None:
    """A function's write loop lives as long as its process; here it has to go."""
    running = loop._loop
    assert running is not None
    running.call_soon_threadsafe(running.stop)
    for thread in threading.enumerate():
        if thread.name == "tenuto-writes":
            thread.join()
    running.close()


async def _inline(call: Callable[[], object]) -> object:
    return call()


def test_what_has_finished_is_there_whoever_stores_it(environment: Environment) -> None:
    async def scenario() -> tuple[int, int]:
        lease = Lease(Activation("box", "k", "speculate", Head(), "h", (EVENT,)), environment)
        attempt = Attempt(EVENT, lease, StateView({}), Effects, environment)
        reads = missed = 0

        async def handler() -> None:
            nonlocal reads, missed
            for n in range(ROUNDS):
                future = attempt.run(f"s{n}", int, serde_for(int), RunLimits())
                await future
                # The other thread is told; then this one reads on, while that one stores.
                environment.writes.post(lambda: flushes.append(asyncio.ensure_future(lease.flush())))
                ends = time.monotonic() + READ_S
                while time.monotonic() < ends:
                    reads += 1
                    missed += lease.journal.slot(future.slot) is None

        flushes: list[asyncio.Task[None]] = []
        await attempt.drive(handler)
        await environment.writes.run(lease.flush())
        await environment.writes.run(lease.close())
        return reads, missed

    reads, missed = asyncio.run(scenario())
    assert reads > 10 * ROUNDS
    assert missed == 0, f"{missed} of {reads} reads missed a step that had finished"


def test_a_replay_inside_the_function_runs_no_finished_step_again(environment: Environment) -> None:
    box = VirtualObject("box")
    ran: list[int] = []
    tries = 0

    @box.handler()
    async def work(ctx: ObjectContext) -> None:
        nonlocal tries
        tries += 1
        for n in range(tries):
            await ctx.run(f"s{n}", ran.append, n)
        if tries < ATTEMPTS:
            raise RetryableError("once more", timedelta(milliseconds=1))

    outcome = asyncio.run(
        activate(Activation("box", "k", "speculate", Head(), "h", (EVENT,)), Services([box]), environment)
    )
    assert isinstance(outcome, Committed)
    assert ran == list(range(ATTEMPTS))
