"""A loop that ends by a mistake of its own is begun again, and nothing else ends with it.

Owns restarts, their pauses, and how they are seen. Does not own bad data, which is to end no loop in the first place
(`test_unreadable_items`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.timers import GuardTimer, timer_put
from tenuto.protocol.ids import Lane
from tenuto.store.port import Page
from tenuto_control.always_on import Consuming
from tenuto_control.config import ConfigError
from tenuto_control.core import lane_policy
from tenuto_control.core.lane_bounds import Bounds
from tenuto_control.core.lane_facts import Turn
from tenuto_control.core.lane_memory import LaneMemory
from tenuto_control.core.lane_policy import Action
from tenuto_control.core.metrics import Tally
from tenuto_control.ingress.readiness import ready
from tenuto_control.loops.restarts import RESTART_PAUSE_MS_MAX, STEADY_MS, Loops
from tests.costs.meter import CountingTable, Meter, meter_of
from tests.support.virtual_time import VirtualClock, run_virtual

MISTAKES: list[Callable[[], BaseException]] = [
    lambda: KeyError("Items"),
    lambda: TypeError("a secret"),
    lambda: ValueError("a secret"),
    AssertionError,
    lambda: RecursionError("maximum recursion depth exceeded"),
    MemoryError,
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a secret"),
    lambda: msgspec.DecodeError("a secret"),
    lambda: ExceptionGroup("of a task group", [ExceptionGroup("inner", [ZeroDivisionError("a secret")])]),
    lambda: asyncio.CancelledError("by a library"),
    lambda: ConfigError("certificates have gone"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: type(mistake()).__name__)
def test_a_loop_that_fails_is_begun_again_and_others_go_on(
    mistake: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        clock, tally = VirtualClock(), Tally()
        loops = Loops(clock, tally)
        begun: list[int] = []
        last = asyncio.Event()
        turns = 0

        async def failing() -> None:
            begun.append(clock.now_ms())
            if len(begun) == 1:
                await asyncio.sleep(2 * STEADY_MS / 1_000)
            if len(begun) < 12:
                raise mistake()
            last.set()
            await asyncio.sleep(1e9)

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(1)

        tasks = [asyncio.create_task(loops.keep(name, run)) for name, run in (("bad", failing), ("good", other))]
        await last.wait()
        assert not any(task.done() for task in tasks)
        (stopped,) = loops.stopped
        assert (stopped.name, stopped.since_ms) == ("bad", begun[0] + 2 * STEADY_MS)
        told = ready([], stopped=loops.stopped)
        assert told["status"] == "ready"
        assert told["stopped"][0]["loop"] == "bad"
        assert "secret" not in str(told)
        pauses = [after - before for before, after in itertools.pairwise(begun[1:])]
        assert pauses == sorted(pauses)
        assert pauses[-1] == RESTART_PAUSE_MS_MAX
        assert turns >= (clock.now_ms() - begun[0]) / 1_000 - 1
        await asyncio.sleep(STEADY_MS / 1_000 + 1)
        assert ready([], stopped=loops.stopped) == {"status": "ready"}
        assert tally.take().counts["LoopRestarts"] == 11
        await _ended(tasks)

    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5, "said at the first, second, fourth and eighth time, and once when it is over"
    assert lines[-1].startswith("bad runs again, after")


def test_a_mistake_in_the_configuration_still_ends_the_start() -> None:
    async def scenario() -> None:
        async def failing() -> None:
            raise ConfigError("kafka.ssl_*: the certificate files cannot be used")

        with pytest.raises(ConfigError):
            await Loops(VirtualClock(), Tally()).keep("consume", failing)

    run_virtual(scenario())


def test_a_loop_that_is_told_to_stop_or_returns_is_not_begun_again() -> None:
    async def scenario() -> None:
        loops = Loops(VirtualClock(), Tally())
        begun = 0

        async def once() -> None:
            nonlocal begun
            begun += 1

        await loops.keep("once", once)

        async def forever() -> None:
            nonlocal begun
            begun += 1
            await asyncio.sleep(1e9)

        task = asyncio.create_task(loops.keep("forever", forever))
        await asyncio.sleep(1)
        await _ended([task])
        assert begun == 2
        assert not loops.stopped

    run_virtual(scenario())


def test_the_sweep_finds_what_waited_while_a_mistake_kept_it_from_running() -> None:
    class Mistaken(CountingTable):
        wrong = False

        async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
            if self.wrong:
                raise AssertionError("a mistake")
            return await super().query(pk, low, high, limit=limit, after=after)

    async def scenario() -> None:
        table = Mistaken()
        meter = Meter(meter_of(VirtualObject("box")).services, table=table)
        loops = Loops(meter.clock, Tally())
        sweeping = asyncio.create_task(loops.keep("sweep", meter.sweeper.run))
        await asyncio.sleep(20)
        table.wrong = True
        timer = GuardTimer(Lane("box", "k"), "n", meter.clock.now_ms(), "guard")
        table.apply(timer_put(timer))
        await asyncio.sleep(100)
        assert [one.name for one in loops.stopped] == ["sweep"]
        assert (timer.key.pk, timer.key.sk) in table.items
        table.wrong = False
        await asyncio.sleep(RESTART_PAUSE_MS_MAX / 1_000 + STEADY_MS / 1_000 + 1)
        assert (timer.key.pk, timer.key.sk) not in table.items
        assert not loops.stopped
        await _ended([sweeping])

    run_virtual(scenario())


def test_each_consumer_that_fails_is_followed_by_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Failing:
        def __init__(self, *_: Any) -> None:
            self.stopping = asyncio.Event()
            made.append(self)

        async def run(self) -> None:
            if len(made) < 3:
                raise KeyError("a mistake")
            await self.stopping.wait()

        def stop(self) -> None:
            self.stopping.set()

    monkeypatch.setattr("tenuto_control.always_on.Consumer", Failing)
    monkeypatch.setattr("tenuto_control.always_on.KafkaEventLog", lambda *_: None)

    class Config:
        subscriptions = ()
        kafka = limits = None

    class Parts:
        config = Config()
        sink = dispatcher = clock = tally = unreadable = None

    async def scenario() -> None:
        consuming = Consuming(cast("Any", Parts()))
        task = asyncio.create_task(Loops(VirtualClock(), Tally()).keep("consume", consuming.run))
        await asyncio.sleep(10)
        assert len(made) == 3
        consuming.stop()
        await asyncio.wait_for(task, 1)

    run_virtual(scenario())


def test_a_decision_that_fails_stops_its_key_for_a_while_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    box = VirtualObject("box")

    @box.handler()
    async def touch(ctx: ObjectContext, n: int) -> None:
        ctx.set("touched", n)

    wrong = 0

    def decide(memory: LaneMemory, turn: Turn, bounds: Bounds) -> Action:
        nonlocal wrong
        if turn.first is not None and turn.first.invocation.lane.key == "bad" and wrong < 2:
            wrong += 1
            raise KeyError("a mistake")
        return lane_policy.decide(memory, turn, bounds)

    monkeypatch.setattr("tenuto_control.dispatcher.lane_worker.decide", decide)

    async def scenario() -> None:
        meter = meter_of(box)
        meter.deliver(touch, "bad")
        meter.deliver(touch, "good")
        await asyncio.sleep(0.5)
        assert wrong == 1
        assert meter.head("box", "good").state == {"touched": b"1"}
        await asyncio.sleep(60)
        assert meter.head("box", "bad").state == {"touched": b"1"}

    run_virtual(scenario())


async def _ended(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*cast("list[Awaitable[Any]]", tasks), return_exceptions=True)
