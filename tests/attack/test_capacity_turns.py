"""Who waits for a place of a function while others sleep, wake for ever, begin slowly or give up.

Owns that no place stays free for whom it is meant, and that nobody is kept out for long. Does not own the order among
those who wait (`tests/control/test_capacity.py`).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tenuto.protocol.messages import ServiceManifest
from tenuto_control.core.wakes import OWED_S_MAX, Handler
from tenuto_control.dispatcher.capacity import BEGUN_IN_A_ROW_MAX, CLOCK_S, Capacity
from tenuto_control.ports import Target
from tests.attack.examples import examples
from tests.support.virtual_time import run_virtual

EIGHT = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=8)
OTHER = Target("g", ServiceManifest("other", keyed=True, handlers=()), 10_000, concurrency=3)

SLEEPER: Handler = ("box", "sleeper")


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def waited_s(capacity: Capacity, target: Target, hold_s: float, handler: Handler | None = SLEEPER) -> float:
    """How long something new waits for its place, which it then holds for so long."""
    came_s = now_s()
    async with capacity.place(target, handler=handler):
        began_s = now_s()
        await asyncio.sleep(hold_s)
    return began_s - came_s


async def resumed(capacity: Capacity, target: Target, hold_s: float) -> None:
    async with capacity.place(target, begun=True):
        await asyncio.sleep(hold_s)


def test_a_free_place_waits_for_nobody_but_time() -> None:
    """Each of them is slow, so that no invocation ends which would have the others looked at."""

    async def scenario() -> None:
        capacity = Capacity(64, 1_000)
        await resumed(capacity, EIGHT, 2)
        capacity.slept(EIGHT, SLEEPER)
        waits_s = await asyncio.gather(*(waited_s(capacity, EIGHT, hold_s=30) for _ in range(3)))
        assert max(waits_s) < OWED_S_MAX, waits_s

    run_virtual(scenario())


def test_lanes_that_wake_for_ever_and_a_slow_beginner_do_not_keep_new_work_out() -> None:
    """The lanes take 85 percent of all places, so there are some, however much is owed."""

    async def scenario() -> None:
        capacity, rng = Capacity(64, 1_000), random.Random(1)
        ends_s = now_s() + 50

        async def wakes_for_ever() -> None:
            await asyncio.sleep(rng.random())
            while now_s() < ends_s:
                await resumed(capacity, EIGHT, 0.02)
                capacity.slept(EIGHT, SLEEPER)
                await asyncio.sleep(1)

        lanes = [asyncio.create_task(wakes_for_ever()) for _ in range(340)]
        await asyncio.sleep(5)
        slow = asyncio.create_task(waited_s(capacity, EIGHT, hold_s=40))
        waits_s = await asyncio.gather(*(waited_s(capacity, EIGHT, hold_s=0.006) for _ in range(20)))
        assert not slow.done()
        assert max(waits_s) < 2, waits_s
        await asyncio.gather(slow, *lanes)

    run_virtual(scenario())


def test_those_who_give_up_leave_nothing_behind() -> None:
    """Callers of read-only handlers come and go, while a lane waits for longer than all of them."""

    async def scenario() -> None:
        capacity, one = Capacity(64, 1_000), replace(EIGHT, concurrency=1)
        holder = asyncio.create_task(waited_s(capacity, one, hold_s=10, handler=None))
        await asyncio.sleep(0)
        lane = asyncio.create_task(waited_s(capacity, one, hold_s=0, handler=None))
        for _ in range(100):
            caller = asyncio.create_task(waited_s(capacity, one, hold_s=0, handler=None))
            await asyncio.sleep(0)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
        assert sum(len(queue) for queue in capacity._functions["f"].waiting.values()) == 1
        await asyncio.gather(holder, lane)

    run_virtual(scenario())


def test_what_is_owed_counts_no_more_places_than_there_are() -> None:
    async def scenario() -> None:
        capacity, many = Capacity(4, 1_000), replace(EIGHT, concurrency=1_000)
        await resumed(capacity, many, 0.1)
        for _ in range(20):
            capacity.slept(many, SLEEPER)
        waits_s = await asyncio.gather(*(waited_s(capacity, many, hold_s=0.1) for _ in range(2)))
        assert max(waits_s) > 0.05, "as if a thousand could be resumed at once"

    run_virtual(scenario())


@dataclass(slots=True)
class Crowd:
    """Two functions that share six places, and whoever comes, holds a place, sleeps, wakes and gives up."""

    seed: int
    capacity: Capacity = field(default_factory=lambda: Capacity(6, 1_000, functions=2))
    rng: random.Random = field(init=False)
    most: dict[str, int] = field(default_factory=lambda: {"f": 4, "g": 3})
    longest_s: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    async def play(self) -> None:
        tasks = []
        for _ in range(150):
            tasks.append(asyncio.create_task(self.lane()))
            if self.rng.random() < 0.3:
                asyncio.get_running_loop().call_later(self.rng.uniform(0, 3), self.rng.choice(tasks).cancel)
            if self.rng.random() < 0.05:
                self.most[self.rng.choice("fg")] = self.rng.randint(1, 6)
            await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.03, 0.3]))
            self.check()
        for task in asyncio.as_completed(tasks):
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0)
            self.check()
        for function in self.capacity._functions.values():
            assert (function.held, function.held_sleeping, function.waits) == (0, 0, False)

    def target(self, name: str) -> Target:
        return replace(EIGHT if name == "f" else OTHER, concurrency=self.most[name])

    async def lane(self) -> None:
        name = self.rng.choice("fg")
        handler = self.rng.choice([SLEEPER, ("box", "rarely"), ("box", "quick"), None])
        takes_s = self.rng.choice([0.0, 0.005, 0.1, 2.0])
        await self.hold(name, takes_s, handler=handler)
        sleeps = {SLEEPER: 1.0, ("box", "rarely"): 0.1}.get(handler or ("", ""), 0.0)
        while handler is not None and self.rng.random() < sleeps:
            self.capacity.slept(self.target(name), handler)
            await asyncio.sleep(self.rng.choice([0.1, 1.0]))
            await self.hold(name, self.rng.choice([0.005, 0.1, 2.0]), begun=True, handler=handler)
            sleeps *= 0.7

    async def hold(self, name: str, seconds: float, **how: Any) -> None:
        came_s = now_s()
        async with self.capacity.place(self.target(name), **how):
            self.longest_s = max(self.longest_s, now_s() - came_s)
            await asyncio.sleep(seconds)

    def check(self) -> None:
        """A place that is free stays so only for those who may not have it yet, and it is known when they may."""
        for function in self.capacity._functions.values():
            assert function.held >= function.held_sleeping >= 0
            stage = function.next_stage()
            if self.capacity._has_place(function) and function.waits:
                # A timer that is due at this moment may not have rung yet.
                soon = function.look is not None and function.look.when() - now_s() <= CLOCK_S
                assert stage is None or soon, f"a place is free, and {stage} waits for it"
                assert function.look is not None, "nobody looks at those who wait"


@pytest.mark.parametrize("seed", range(examples(40)))
def test_no_place_stays_free_for_whom_it_is_meant(seed: int) -> None:
    crowd = Crowd(seed)
    run_virtual(crowd.play())
    assert crowd.longest_s < 150


def test_bursts_that_continue_pass_by_so_many_and_no_more() -> None:
    async def scenario() -> None:
        capacity, one = Capacity(64, 1_000), replace(EIGHT, concurrency=1)
        order: list[str] = []

        async def hold(name: str, **how: Any) -> None:
            async with capacity.place(one, **how):
                order.append(name)
                await asyncio.sleep(0.1)

        await resumed(capacity, one, 0.1)
        capacity.slept(one, SLEEPER)
        tasks = [asyncio.create_task(hold("first"))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(hold("new", handler=SLEEPER)) for _ in range(3)]
        tasks += [asyncio.create_task(hold("begun", begun=True)) for _ in range(3 * BEGUN_IN_A_ROW_MAX)]
        await asyncio.gather(*tasks)
        assert order == ["first", *([*["begun"] * BEGUN_IN_A_ROW_MAX, "new"] * 3)]

    run_virtual(scenario())
