"""Who gets the next place for an invocation.

Owns order, fairness and that no place is lost. Does not own what runs in a place.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from tenuto.protocol.messages import ServiceManifest
from tenuto_control.dispatcher.capacity import BEGUN_IN_A_ROW_MAX, Capacity
from tenuto_control.ports import Target
from tests.support.virtual_time import run_virtual

TARGET = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=2)
ONE = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=1)
OTHER = Target("g", ServiceManifest("other", keyed=True, handlers=()), 10_000, concurrency=2)


@dataclass(slots=True)
class Yard:
    """A capacity, and who held a place of it in which order."""

    capacity: Capacity
    order: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def work(self, name: str, *, begun: bool = False, target: Target = TARGET, seconds: float = 1.0) -> None:
        async with self.capacity.place(target, begun=begun):
            self.order.append(name)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.running -= 1


def test_what_has_begun_comes_first_and_otherwise_who_came_first() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        tasks = [asyncio.create_task(yard.work("first", target=ONE))]
        for n in range(3):
            tasks.append(asyncio.create_task(yard.work(f"new {n}", target=ONE)))
            tasks.append(asyncio.create_task(yard.work(f"begun {n}", begun=True, target=ONE)))
        await asyncio.gather(*tasks)
        assert yard.order == ["first", "begun 0", "begun 1", "begun 2", "new 0", "new 1", "new 2"]

    run_virtual(scenario())


def test_it_is_told_when_as_many_wait_that_have_begun_as_there_are_places() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        assert not yard.capacity.begun_wait(TARGET)
        tasks = [asyncio.create_task(yard.work(f"held {n}")) for n in range(2)]
        tasks += [asyncio.create_task(yard.work(f"new {n}")) for n in range(5)]
        tasks.append(asyncio.create_task(yard.work("begun 0", begun=True)))
        await asyncio.sleep(0.5)
        assert not yard.capacity.begun_wait(TARGET)
        tasks.append(asyncio.create_task(yard.work("begun 1", begun=True)))
        await asyncio.sleep(0)
        assert yard.capacity.begun_wait(TARGET)
        assert not yard.capacity.begun_wait(OTHER)
        await asyncio.gather(*tasks)
        assert not yard.capacity.begun_wait(TARGET)

    run_virtual(scenario())


def test_what_wakes_for_ever_does_not_keep_new_work_out() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        tasks = [asyncio.create_task(yard.work(f"begun {n}", begun=True, target=ONE)) for n in range(20)]
        tasks += [asyncio.create_task(yard.work("new", target=ONE))]
        await asyncio.gather(*tasks)
        assert yard.order.index("new") <= BEGUN_IN_A_ROW_MAX + 1

    run_virtual(scenario())


def test_a_function_is_bounded_by_itself_and_all_by_the_total() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(3, 1_000))
        await asyncio.gather(*(yard.work("f") for _ in range(5)))
        assert yard.most == 2
        await asyncio.gather(*(yard.work("f") for _ in range(5)), *(yard.work("g", target=OTHER) for _ in range(5)))
        assert yard.most == 3

    run_virtual(scenario())


@pytest.mark.parametrize("seed", range(30))
def test_no_place_is_lost_when_waiters_give_up(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        yard = Yard(Capacity(3, 1_000))
        tasks = []
        for n in range(60):
            target = rng.choice([TARGET, OTHER])
            work = yard.work(str(n), begun=rng.random() < 0.5, target=target, seconds=rng.choice([0.0, 0.1, 1.0]))
            tasks.append(asyncio.create_task(work))
            if rng.random() < 0.4:
                asyncio.get_running_loop().call_later(rng.uniform(0, 5), rng.choice(tasks).cancel)
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.05]))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert yard.most <= 3
        # Everybody is gone, so as many as ever may run at once.
        yard.running = yard.most = 0
        fresh = [yard.work("f") for _ in range(4)] + [yard.work("g", target=OTHER) for _ in range(4)]
        await asyncio.gather(*fresh)
        assert yard.most == 3

    run_virtual(scenario())
