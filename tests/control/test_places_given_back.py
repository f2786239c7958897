"""Places that lanes share are given back once, whatever happens to the lanes and to their invocations.

Owns that law, over random stories. Does not own who shares a place (`test_pools`, `test_beside`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from tenuto.protocol.messages import ServiceManifest, Speculated
from tenuto_control.core.flights import Trace
from tenuto_control.dispatcher.capacity import Capacity
from tenuto_control.dispatcher.pools import ALONE, UNSHARED, Sharing, Told, Watch
from tenuto_control.ports import Target
from tests.support.virtual_time import run_virtual

SEEDS = 80
LANES = 40
HANDLER = "s", "h"
WHOLE_S = 300.0
AFTERWARDS_S = 20.0


class Story:
    """Lanes that want places of one function, some of which fail, are cancelled or are not heard."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.places = rng.choice([1, 1, 2, 3])
        self.capacity = Capacity(rng.choice([1, 2, 10]), 10**6)
        self.target = Target("f", ServiceManifest("s", keyed=True, handlers=()), 10_000, self.places, 8, 8)
        self.running = 0
        self.running_most = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, payloads: Sequence[bytes]) -> Sequence[Told]:
        """An invocation, which takes its time or fails."""
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            await asyncio.sleep(self.rng.choice([0, 0.01, 1, 5]))
            if self.rng.random() < 0.1:
                raise RuntimeError
            return [ALONE if self.rng.random() < 0.1 else Speculated(()) for _ in payloads]
        finally:
            self.running -= 1

    async def look(self) -> Trace:
        """A look at the head, which may fail, too."""
        await asyncio.sleep(self.rng.choice([0, 0.001, 0.7]))
        if self.rng.random() < 0.05:
            raise KeyError
        return self.rng.choice(list(Trace))

    async def lane(self) -> None:
        """One lane: it waits for a place, and uses it or not."""
        rng, target = self.rng, self.target
        await asyncio.sleep(rng.choice([0, 0, 0.01, 1]))
        begun = rng.random() < 0.4
        sharing = rng.choice([UNSHARED, Sharing(8), Sharing(8, beside=True)])
        handler = None if begun else HANDLER
        async with self.capacity.place(target, begun=begun, handler=handler, sharing=sharing) as place:
            if rng.random() < 0.2:
                self.capacity.slept(target, HANDLER)
            if rng.random() < 0.1:
                await asyncio.sleep(0.5)
            if rng.random() < 0.1:
                return
            if place.shared:
                watch = Watch(self.look, lambda: None) if place.beside else None
                await place.answer(b"x", self.ask, self.capacity.answer(target), watch)
            else:
                await self.ask([b"x"])
        if rng.random() < 0.3:
            # Those who have just been given the place do not know it yet.
            for task in rng.sample(self.tasks, 5):
                task.cancel()

    async def play(self) -> None:
        """All of it, to its end or until everything is stopped."""
        rng = self.rng
        self.tasks = tasks = [asyncio.create_task(self.lane()) for _ in range(LANES)]
        for _ in range(rng.choice([0, 5, 20])):
            await asyncio.sleep(rng.choice([0, 0.001, 0.3]))
            rng.choice(tasks).cancel()
        if rng.random() < 0.3:
            await asyncio.sleep(rng.choice([0, 0.02, 0.6, 2]))
            for task in (*tasks, *self.capacity.halt()):
                task.cancel()
        async with asyncio.timeout(WHOLE_S):
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*self.capacity.halt(), return_exceptions=True)
        await asyncio.sleep(AFTERWARDS_S)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_place_is_given_back_once(seed: int) -> None:
    async def whole() -> None:
        # Those of invocations that failed are told to their lanes, too.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        story = Story(random.Random(seed))
        await story.play()
        assert story.running == 0
        assert story.running_most <= story.places
        async with story.capacity.place(story.target):
            function = story.capacity._functions["f"]
            assert (function.held, function.held_sleeping, function.waits) == (1, 0, False)
        assert story.capacity.halt() == ()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    run_virtual(whole())
