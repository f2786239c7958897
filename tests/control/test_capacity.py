"""Who gets the next place for an invocation.

Owns order, fairness and that no place is lost. Does not own what runs in a place.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import ClassVar

import pytest

from tenuto.protocol.messages import ServiceManifest
from tenuto_control.core.wakes import OWED_S_MAX, Handler
from tenuto_control.dispatcher.capacity import ANYWAY_S, BEGUN_IN_A_ROW_MAX, GATHER_FROM, Capacity, HeldPlace
from tenuto_control.dispatcher.pools import ALONE, UNSHARED, Sharing, Told
from tenuto_control.ports import Target
from tests.support.virtual_time import run_virtual

TARGET = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=2)
FOUR = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=4)
ONE = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=1)
MANY = Target("f", ServiceManifest("box", keyed=True, handlers=()), 10_000, concurrency=100)
OTHER = Target("g", ServiceManifest("other", keyed=True, handlers=()), 10_000, concurrency=2)

SLEEPER: Handler = ("box", "sleeper")

TOGETHER = Sharing(4, beside=True)
EIGHT_KEYS = Sharing(8, beside=True)
GATHER_MS = 5
GATHER_S = GATHER_MS / 1_000


@dataclass(slots=True)
class Yard:
    """A capacity, and who held a place of it in which order."""

    capacity: Capacity
    order: list[str] = field(default_factory=list)
    began_s: dict[str, float] = field(default_factory=dict)
    running: int = 0
    most: int = 0

    async def work(
        self,
        name: str,
        *,
        begun: bool = False,
        target: Target = TARGET,
        seconds: float = 1.0,
        handler: Handler | None = None,
        sharing: Sharing = UNSHARED,
    ) -> None:
        async with self.capacity.place(target, begun=begun, handler=handler, sharing=sharing):
            self.order.append(name)
            self.began_s[name] = asyncio.get_running_loop().time()
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


def test_it_is_told_when_half_as_many_wait_that_have_begun_as_there_are_places() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        assert not yard.capacity.begun_wait(FOUR)
        tasks = [asyncio.create_task(yard.work(f"held {n}", target=FOUR)) for n in range(4)]
        tasks += [asyncio.create_task(yard.work(f"new {n}", target=FOUR)) for n in range(5)]
        tasks.append(asyncio.create_task(yard.work("begun 0", begun=True, target=FOUR)))
        await asyncio.sleep(0.5)
        assert not yard.capacity.begun_wait(FOUR)
        tasks.append(asyncio.create_task(yard.work("begun 1", begun=True, target=FOUR)))
        await asyncio.sleep(0)
        assert yard.capacity.begun_wait(FOUR)
        assert not yard.capacity.begun_wait(OTHER)
        await asyncio.gather(*tasks)
        assert not yard.capacity.begun_wait(FOUR)

    run_virtual(scenario())


def test_what_wakes_for_ever_does_not_keep_new_work_out() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        tasks = [asyncio.create_task(yard.work(f"begun {n}", begun=True, target=ONE)) for n in range(20)]
        tasks += [asyncio.create_task(yard.work("new", target=ONE))]
        await asyncio.gather(*tasks)
        assert yard.order.index("new") <= BEGUN_IN_A_ROW_MAX + 1

    run_virtual(scenario())


def test_what_will_sleep_begins_no_faster_than_it_can_be_resumed() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        await yard.work("a wake-up", begun=True, target=FOUR)
        # Each of these owes a second of one of four places.
        for _ in range(3):
            yard.capacity.slept(FOUR, SLEEPER)
        yard.most = 0
        tasks = [asyncio.create_task(yard.work(f"sleeper {n}", target=FOUR, handler=SLEEPER)) for n in range(3)]
        tasks.append(asyncio.create_task(yard.work("another", target=FOUR, handler=("box", "quick"))))
        await asyncio.sleep(0.5)
        # One may in any case, and what does not sleep passes by.
        assert yard.order == ["a wake-up", "sleeper 0", "another"]
        tasks += [asyncio.create_task(yard.work(f"begun {n}", begun=True, target=FOUR)) for n in range(2)]
        tasks += [asyncio.create_task(yard.work("g", target=OTHER)) for n in range(2)]
        await asyncio.sleep(0)
        assert yard.running == 6
        await asyncio.gather(*tasks)
        assert len(yard.order) == 9

    run_virtual(scenario())


def test_who_came_first_is_first_whether_it_will_sleep_or_not() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        yard.capacity.place(ONE)
        yard.capacity.slept(ONE, SLEEPER)
        names = [("first", None), ("sleeper 1", SLEEPER), ("other 1", None), ("sleeper 2", SLEEPER), ("other 2", None)]
        await asyncio.gather(*(yard.work(name, target=ONE, handler=handler) for name, handler in names))
        assert yard.order == [name for name, _ in names]

    run_virtual(scenario())


@dataclass(slots=True)
class Sleepers:
    """Keys whose events begin, sleep for a second, and end; there are always more events than can be served.

    Those that share a place share a processor as well, or all of them take as long as one, `together`.
    """

    BEGINS_S: ClassVar = 0.006
    ENDS_S: ClassVar = 0.022

    foreseen: bool
    places: int = 8
    sharing: Sharing = UNSHARED
    together: bool = False
    late_s: list[float] = field(default_factory=list)

    async def run(self, keys: int, seconds: float) -> None:
        capacity = Capacity(9, 1_000)
        until_s = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._key(capacity, until_s) for _ in range(keys)))

    async def _key(self, capacity: Capacity, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        target = Target("f", MANY.manifest, 10_000, concurrency=self.places)
        while loop.time() < until_s:
            async with capacity.place(target, handler=SLEEPER, sharing=self.sharing) as place:
                await worked(place, capacity, target, self.BEGINS_S, self.together)
            if self.foreseen:
                capacity.slept(target, SLEEPER)
            await asyncio.sleep(1)
            due_s = loop.time()
            async with capacity.place(target, begun=True, sharing=self.sharing) as place:
                self.late_s.append(loop.time() - due_s)
                await worked(place, capacity, target, self.ENDS_S, self.together)

    @property
    def late_p99_s(self) -> float:
        """Once the first ones have shown how long they take."""
        return quantiles(self.late_s[len(self.late_s) // 3 :], n=100)[98]


async def worked(place: HeldPlace, capacity: Capacity, target: Target, takes_s: float, together: bool) -> None:
    """What a lane does in its place, which takes so long for each of those who share it, or for all `together`."""

    async def asked(payloads: Sequence[bytes]) -> Sequence[Told]:
        await asyncio.sleep(takes_s if together else takes_s * len(payloads))
        return [ALONE] * len(payloads)

    if place.shared:
        await place.answer(b"", asked, capacity.answer(target))
    else:
        await asked([b""])


def test_one_that_sleeps_begins_now_and_then_however_much_is_owed() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        await yard.work("a wake-up", begun=True, target=FOUR)
        for _ in range(100):
            yard.capacity.slept(FOUR, SLEEPER)
        await asyncio.gather(*(yard.work(f"{n}", target=FOUR, handler=SLEEPER, seconds=0.001) for n in range(9)))
        began_s = sorted(began for name, began in yard.began_s.items() if name != "a wake-up")
        assert [later - first for first, later in itertools.pairwise(began_s)] == pytest.approx([ANYWAY_S] * 8)

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("places", "sharing", "late_p99_s", "share"), [(8, UNSHARED, 0.06, 0.95), (3, EIGHT_KEYS, 0.15, 0.88)]
)
def test_sleeps_under_overload_end_in_time(places: int, sharing: Sharing, late_p99_s: float, share: float) -> None:
    load, unforeseen = Sleepers(True, places, sharing), Sleepers(False, places, sharing)
    run_virtual(load.run(keys=500, seconds=20))
    run_virtual(unforeseen.run(keys=500, seconds=20))
    assert load.late_p99_s < late_p99_s
    assert unforeseen.late_p99_s > 0.5
    assert len(load.late_s) > share * len(unforeseen.late_s)


def test_lanes_that_sleep_for_ever_owe_no_more_than_a_second() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(9, 1_000))
        await yard.work("a wake-up", begun=True, target=FOUR)
        for _ in range(1_000):
            yard.capacity.slept(FOUR, SLEEPER)
        await asyncio.sleep(OWED_S_MAX)
        tasks = [asyncio.create_task(yard.work(f"sleeper {n}", target=FOUR, handler=SLEEPER)) for n in range(4)]
        await asyncio.sleep(0)
        assert yard.running == 4
        await asyncio.gather(*tasks)

    run_virtual(scenario())


def test_a_function_is_bounded_by_itself_and_all_by_the_total() -> None:
    async def scenario() -> None:
        yard = Yard(Capacity(3, 1_000))
        await asyncio.gather(*(yard.work("f") for _ in range(5)))
        assert yard.most == 2
        await asyncio.gather(*(yard.work("f") for _ in range(5)), *(yard.work("g", target=OTHER) for _ in range(5)))
        assert yard.most == 3

    run_virtual(scenario())


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_no_place_is_lost_when_waiters_give_up(seed: int, *, share: bool) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        yard = Yard(Capacity(3, 1_000, gather_ms=rng.choice([0, GATHER_MS, 500])))
        tasks = []
        for n in range(60):
            target = rng.choice([TARGET, OTHER])
            handler = rng.choice([None, SLEEPER])
            yard.capacity.slept(target, SLEEPER)
            begun, seconds = rng.random() < 0.5, rng.choice([0.0, 0.1, 1.0])
            sharing = rng.choice([UNSHARED, TOGETHER, Sharing(3, beside=True), Sharing(3)]) if share else UNSHARED
            work = yard.work(str(n), begun=begun, target=target, seconds=seconds, handler=handler, sharing=sharing)
            tasks.append(asyncio.create_task(work))
            if rng.random() < 0.4:
                asyncio.get_running_loop().call_later(rng.uniform(0, 5), rng.choice(tasks).cancel)
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.05]))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert yard.most <= 3 * (TOGETHER.most if share else 1)
        # Everybody is gone, so as many as ever may run at once.
        yard.running = yard.most = 0
        fresh = [yard.work("f") for _ in range(4)] + [yard.work("g", target=OTHER) for _ in range(4)]
        await asyncio.gather(*fresh)
        assert yard.most == 3

    run_virtual(scenario())


async def busy(capacity: Capacity, places: int) -> tuple[Yard, list[asyncio.Task[None]]]:
    """A yard of which so many places are held, each by one lane, for a second."""
    yard = Yard(capacity)
    held = [asyncio.create_task(yard.work(f"held {n}", target=MANY)) for n in range(places)]
    await asyncio.sleep(0)
    return yard, held


async def shared(yard: Yard, names: str, *, begun: bool = False) -> None:
    work = (yard.work(n, target=MANY, begun=begun, sharing=TOGETHER, seconds=0.1) for n in names)
    await asyncio.gather(*work)


def test_who_may_share_waits_for_companions_while_two_invocations_run() -> None:
    async def scenario() -> None:
        yard, held = await busy(Capacity(100, 1_000, gather_ms=GATHER_MS), GATHER_FROM)
        first = asyncio.create_task(shared(yard, "a"))
        await asyncio.sleep(GATHER_S / 2)
        second = asyncio.create_task(shared(yard, "b"))
        await asyncio.gather(first, second, *held)
        assert yard.began_s["a"] == yard.began_s["b"] == pytest.approx(GATHER_S)

    run_virtual(scenario())


@pytest.mark.parametrize("begun", [True, False])
def test_as_many_as_may_share_wait_for_no_others(*, begun: bool) -> None:
    async def scenario() -> None:
        yard, held = await busy(Capacity(100, 1_000, gather_ms=GATHER_MS), GATHER_FROM)
        await asyncio.gather(shared(yard, "abcdefghi", begun=begun), *held)
        late = [name for name in "abcdefghi" if yard.began_s[name]]
        assert late == ["i"]
        assert yard.began_s["i"] == pytest.approx(GATHER_S)

    run_virtual(scenario())


@pytest.mark.parametrize(("places", "gather_ms"), [(GATHER_FROM - 1, GATHER_MS), (GATHER_FROM, 0)])
def test_otherwise_nobody_waits_for_companions(places: int, gather_ms: int) -> None:
    async def scenario() -> None:
        yard, held = await busy(Capacity(100, 1_000, gather_ms=gather_ms), places)
        await asyncio.gather(shared(yard, "a"), *held)
        assert yard.began_s["a"] == 0

    run_virtual(scenario())


def test_who_shares_with_nobody_passes_by_those_who_wait_for_companions() -> None:
    async def scenario() -> None:
        yard, held = await busy(Capacity(100, 1_000, gather_ms=GATHER_MS), GATHER_FROM)
        waits = asyncio.create_task(shared(yard, "a"))
        await asyncio.sleep(0)
        await yard.work("b", target=MANY)
        assert yard.began_s["b"] == 0
        assert yard.began_s["a"] == pytest.approx(GATHER_S)
        await asyncio.gather(waits, *held)

    run_virtual(scenario())


def test_nobody_waits_for_companions_while_others_might_take_the_last_place() -> None:
    async def scenario() -> None:
        three = Target("f", MANY.manifest, 10_000, concurrency=GATHER_FROM + 1)
        yard = Yard(Capacity(100, 1_000, gather_ms=GATHER_MS))
        works = [yard.work(f"held {n}", target=three, seconds=9) for n in range(GATHER_FROM)]
        works += [yard.work("begun", target=three, begun=True, sharing=TOGETHER), yard.work("new", target=three)]
        await asyncio.gather(*works)
        assert (yard.began_s["begun"], yard.began_s["new"]) == (0, 1)

    run_virtual(scenario())


@pytest.mark.parametrize("places", [1, 3])
def test_keys_that_cost_no_more_together_are_not_held_back(places: int) -> None:
    """An invocation takes as long for one as for eight: what keeps them apart would keep them slow."""
    load = Sleepers(True, places, EIGHT_KEYS, together=True)
    run_virtual(load.run(keys=300, seconds=20))
    assert len(load.late_s) > 150 * 20


def test_a_place_that_is_given_back_ends_the_wait_where_none_is_left() -> None:
    async def scenario() -> None:
        yard, held = await busy(Capacity(100, 1_000, gather_ms=60_000), GATHER_FROM)
        await asyncio.gather(shared(yard, "ab"), *held)
        assert yard.began_s["a"] == yard.began_s["b"] == 1

    run_virtual(scenario())


def test_who_waits_for_companions_is_not_held_up_by_those_who_wait_for_longer() -> None:
    async def scenario() -> None:
        capacity = Capacity(100, 1_000, gather_ms=GATHER_MS)
        yard, held = await busy(capacity, GATHER_FROM)
        await yard.work("a wake-up", begun=True, target=MANY)
        for _ in range(100):
            capacity.slept(MANY, SLEEPER)
        held += [asyncio.create_task(yard.work("one that sleeps", target=MANY, handler=SLEEPER, seconds=9))]
        held += [asyncio.create_task(yard.work("another one", target=MANY, handler=SLEEPER, seconds=9))]
        held += [asyncio.create_task(yard.work(f"more {n}", target=MANY, seconds=9)) for n in range(GATHER_FROM)]
        await asyncio.sleep(0)
        began_s = asyncio.get_running_loop().time()
        await shared(yard, "a")
        assert yard.began_s["a"] == pytest.approx(began_s + GATHER_S)
        await asyncio.gather(*held)

    run_virtual(scenario())


@dataclass(slots=True)
class Arrivals:
    """Keys whose events come one by one, each to a handler that mostly waits for the table."""

    TAKES_S: ClassVar = 0.03

    gather_ms: int
    invocations: int = 0
    late_s: list[float] = field(default_factory=list)

    async def run(self, rate_per_s: float, seconds: float) -> None:
        rng, loop = random.Random(1), asyncio.get_running_loop()
        capacity, tasks = Capacity(200, 1_000, gather_ms=self.gather_ms), []
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            tasks.append(loop.create_task(self._event(capacity)))
            await asyncio.sleep(rng.expovariate(rate_per_s))
        await asyncio.gather(*tasks)

    async def _event(self, capacity: Capacity) -> None:
        loop = asyncio.get_running_loop()
        came_s = loop.time()
        async with capacity.place(MANY, sharing=EIGHT_KEYS) as place:
            self.late_s.append(loop.time() - came_s)
            if place.shared:
                await place.answer(b"", self._asked, capacity.answer(MANY))
            else:
                await self._asked([b""])

    async def _asked(self, payloads: Sequence[bytes]) -> Sequence[Told]:
        self.invocations += 1
        await asyncio.sleep(self.TAKES_S)
        return [ALONE] * len(payloads)


@pytest.mark.parametrize(("rate_per_s", "share"), [(200, 0.75), (500, 0.45), (1_000, 0.25), (2_000, 0.15)])
def test_lanes_come_together_where_places_are_plenty(rate_per_s: float, share: float) -> None:
    gathered, alone = Arrivals(GATHER_MS), Arrivals(0)
    run_virtual(gathered.run(rate_per_s, 5))
    run_virtual(alone.run(rate_per_s, 5))
    assert alone.invocations > 0.95 * len(alone.late_s)
    assert gathered.invocations < share * len(gathered.late_s)
    assert max(gathered.late_s) <= GATHER_S + 0.001
