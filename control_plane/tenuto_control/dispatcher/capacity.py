"""How many invocations run at once, in all and per function, what their requests may hold together, and who is next.

Owns the places and the room for requests, and who waits for them. Does not own how much of them is one function's
(`core.shares`), what sleeps will need (`core.wakes`), nor what is done with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import islice
from typing import Any, Final, Self, TypeAlias

from tenuto_control.core.shares import may_take
from tenuto_control.core.wakes import Handler, Wakes
from tenuto_control.dispatcher.answer_room import AnswerRoom, HeldAnswer
from tenuto_control.dispatcher.pools import ALONE, UNSHARED, Ask, Invocation, Pool, Sharing, Told, Watch
from tenuto_control.limits import MIB
from tenuto_control.ports import FunctionUnreachableError, Target

BEGUN_IN_A_ROW_MAX: Final = 16
"""So many begun invocations may pass by one that has not begun, should all of its function's places be taken.

So many lanes that continue may pass by one that begins, too, where they wait for a place to work (`lane_places`).

Lanes that wake indefinitely, such as failing ones, must not keep new work out.
"""

CLOCK_S: Final = 1e-3
"""Less time than this makes no difference."""

ANYWAY_S: Final = 0.02
"""One that will sleep begins so long after the one before, or after each of those that began together, if no other one
is beginning, however much is owed."""

GATHER_FROM: Final = 2
"""While a function holds fewer places, nobody waits for companions: an invocation that is under way is reason enough to
make another one at once, and a second one not to make a third."""


class Stage(Enum):
    """What an invocation is to its lane."""

    CONTINUES = auto()
    """It goes on with a claimed run."""
    BEGINS = auto()
    """It begins what is new."""
    SLEEPS = auto()
    """It begins what will sleep, as other work of its handler has."""


class Capacity:
    """Places for invocations, and room for their requests and answers.

    Of one function, what has begun comes first, and otherwise who came first. A sleep that has ended is late from then
    on, while an event that still waits is merely not early; and an invocation that ends makes its lane's head small
    again. New work that sleeps begins no faster than it can be resumed (`core.wakes`). Lanes that may share an
    invocation side by side wait for companions up to `gather_ms`, while others run. Functions take turns, and each
    holds no more than `core.shares` leaves it of the `functions` that there are.
    """

    def __init__(
        self,
        total: int,
        request_bytes_max: int,
        functions: int = 1,
        answer_bytes_max: int = MIB,
        gather_ms: int = 0,
    ) -> None:
        self._total = total
        self._gather_s = gather_ms / 1_000
        self._count = functions
        self._functions: dict[str, _Function] = {}
        # Functions for which somebody waits, in turns.
        self._ring: deque[_Function] = deque()
        self._room = SharedRoom(request_bytes_max, functions)
        self._answers = AnswerRoom(answer_bytes_max)
        self._shared: set[asyncio.Task[None]] = set()

    def answer(self, target: Target) -> HeldAnswer:
        """What holds room for the answer of one invocation, from when it is read to the end of the block."""
        return self._answers.answer(target.function)

    def room(self, target: Target, size_bytes: int) -> HeldRoom:
        """Hold room for a request while it is in progress: with a place, and before the request is made."""
        return HeldRoom(self._room, target.function, size_bytes)

    def place(
        self,
        target: Target,
        *,
        begun: bool = False,
        handler: Handler | None = None,
        sharing: Sharing = UNSHARED,
    ) -> HeldPlace:
        """Hold a place while an invocation of the target's function runs.

        `begun`: it continues with a claimed run. Otherwise `handler` is the one that is to begin, if it may sleep. Of
        those that wait for the same, some may come to share a place, and its invocation, as their `sharing` says.
        """
        function = self._functions.get(target.function)
        if function is None:
            function = self._functions[target.function] = _Function(self._gather_s)
        function.most = target.concurrency
        if begun:
            return HeldPlace(self, function, Stage.CONTINUES, sharing)
        sleeps = handler in function.wakes.handlers
        return HeldPlace(self, function, Stage.SLEEPS if sleeps else Stage.BEGINS, sharing)

    def begun_wait(self, target: Target) -> bool:
        """Whether half as much waits that has begun, such as sleeps that have ended, as the function has places."""
        function = self._functions.get(target.function)
        return function is not None and len(function.waiting[Stage.CONTINUES]) * 2 >= function.most

    def slept(self, target: Target, handler: Handler) -> None:
        """A lane sleeps, and will continue in a place of the target's function within seconds."""
        function = self._functions.get(target.function)
        if function is not None:
            places = min(function.most, self._total)
            function.wakes.slept(handler, asyncio.get_running_loop().time(), places)

    async def take(self, function: _Function, stage: Stage, sharing: Sharing = UNSHARED) -> Pool | None:
        """Wait for a place of a function, and hold it. Returns whom it is shared with, if it is."""
        free = self._has_place(function) and function.may_start(stage) and not function.gathers(sharing)
        # Those who wait for nothing but time or companions are passed by.
        if free and (not function.waits or function.next_stage() is None):
            function.hold(stage, 1)
            return None
        queue, entry = function.waiting[stage], function.enqueue(stage, sharing)
        if not function.listed:
            function.listed = True
            self._ring.append(function)
        # A place may be free that is not for those who wait.
        self._go()
        try:
            return await entry[1]
        except asyncio.CancelledError:
            if entry[1].cancelled():
                # Whoever is ahead may wait for long, and many may come and give up behind it.
                with suppress(ValueError):
                    queue.remove(entry)
            else:
                # The place came at the moment of giving up.
                if (pool := entry[1].result()) is not None:
                    pool.withdraw()
                self.give(function, stage, pool)
            raise

    def give(self, function: _Function, stage: Stage, pool: Pool | None = None) -> None:
        """Give a place back, once all who share it have, and their invocation is over."""
        if pool is None or pool.leave():
            self.let_go(function, stage)

    def let_go(self, function: _Function, stage: Stage) -> None:
        """Nobody needs a place any more."""
        function.let_go(stage)
        self._go()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run an invocation that lanes share, which may go on when all of them have left."""
        task = asyncio.get_running_loop().create_task(work)
        self._shared.add(task)
        task.add_done_callback(self._shared.discard)
        return task

    def halt(self) -> tuple[asyncio.Task[None], ...]:
        """The invocations that lanes share, for whoever stops everything."""
        return tuple(self._shared)

    def _go(self) -> None:
        """Give out what places there are."""
        passed_by = 0
        while passed_by < len(self._ring):
            first = self._ring.popleft()
            next_stage = first.next_stage()
            if next_stage is None and not first.waits:
                first.listed = False
                continue
            self._ring.append(first)
            if not self._has_place(first):
                passed_by += 1
            elif next_stage is None:
                passed_by += 1
                self._look_again(first)
            else:
                passed_by = 0
                first.start(next_stage)

    def _look_again(self, function: _Function) -> None:
        """See to those who wait for nothing but time, even if no invocation ends or is asked for until then."""
        opens_s = function.opens_s()
        if function.look is not None and function.look.when() > opens_s:
            function.look.cancel()
            function.look = None
        if function.look is None:
            function.look = asyncio.get_running_loop().call_at(opens_s, self._looked, function)

    def _looked(self, function: _Function) -> None:
        function.look = None
        self._go()

    def _has_place(self, function: _Function) -> bool:
        if function.held >= function.most:
            return False
        others = (other.held for other in self._functions.values() if other.held and other is not function)
        return may_take(1, function.held, others, self._total, self._count)


class HeldPlace:
    """A place that is held from the beginning of the block to its end. As a generator it would take twice as long."""

    __slots__ = ("_capacity", "_function", "_joined", "_pool", "_sharing", "_since_s", "_stage")

    def __init__(self, capacity: Capacity, function: _Function, stage: Stage, sharing: Sharing) -> None:
        self._capacity = capacity
        self._function = function
        self._stage = stage
        self._sharing = sharing
        self._pool: Pool | None = None
        self._joined = False
        self._since_s = 0.0

    async def __aenter__(self) -> Self:
        """Wait for the place."""
        self._pool = await self._capacity.take(self._function, self._stage, self._sharing)
        self._since_s = asyncio.get_running_loop().time()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        function, pool = self._function, self._pool
        if pool is None or self._sharing.beside:
            now_s = asyncio.get_running_loop().time()
            together = 1 if pool is None else pool.size
            seconds = (now_s - self._since_s) / together
            function.wakes.held(seconds, now_s, begun=self._stage is Stage.CONTINUES)
        if pool is not None and not self._joined:
            pool.withdraw()
        self._capacity.give(function, self._stage, pool)

    @property
    def shared(self) -> bool:
        """Whether others have the place as well, and the invocation that is made in it."""
        return self._pool is not None

    @property
    def beside(self) -> bool:
        """Whether the lanes that share it are worked on side by side."""
        return self._pool is not None and self._sharing.beside

    async def answer(self, payload: bytes, ask: Ask, room: HeldAnswer, watch: Watch | None = None) -> Told:
        """Have the function asked for this as well, once all who share the place are there. See `Pool.answer`."""
        if self._pool is None:
            raise AssertionError("the place is not shared")
        self._joined = True
        over = partial(self._capacity.let_go, self._function, self._stage)
        lost = FunctionUnreachableError("the request was given up") if self._sharing.beside else ALONE
        invocation = Invocation(ask, lost, room, self._capacity.start, over)
        return await self._pool.answer(payload, invocation, watch)


class HeldRoom:
    """Room for a request that is held from the beginning of the block to its end."""

    __slots__ = ("_function", "_large", "_room", "_size")

    def __init__(self, room: SharedRoom, function: str, size: int) -> None:
        self._room = room
        self._function = function
        self._size = size
        self._large = False

    async def __aenter__(self) -> None:
        """Wait for the room."""
        self._large = await self._room.take(self._function, self._size)

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        self._room.give(self._function, self._size, large=self._large)


Waiter: TypeAlias = "tuple[int, asyncio.Future[Pool | None], Sharing, float]"
"""Who waits for a place, numbered in the order of coming, how it may be shared, and until when companions may come."""


@dataclass(slots=True, eq=False)
class _Function:
    """The places of one function: how many it may have and holds, and who waits for one, by number."""

    gather_s: float = 0.0
    most: int = 1
    held: int = 0
    held_sleeping: int = 0
    anyway_s: float = 0.0
    wakes: Wakes = field(default_factory=Wakes)
    listed: bool = False
    look: asyncio.TimerHandle | None = None
    waiting: dict[Stage, deque[Waiter]] = field(default_factory=lambda: {stage: deque() for stage in Stage})
    number: int = 0
    in_a_row: int = 0

    @property
    def waits(self) -> bool:
        """Whether somebody waits, who may have given up meanwhile."""
        return any(self.waiting.values())

    def may_start(self, stage: Stage) -> bool:
        """Whether a free place is for it.

        One that will sleep is, however much is owed, where none begins and none has lately, or many that continue have
        passed by: the one may take long, and lanes that wake for ever owe for ever.
        """
        if stage is not Stage.SLEEPS or self.in_a_row >= BEGUN_IN_A_ROW_MAX:
            return True
        # A timer may be early by what its loop cannot tell apart.
        return self._sleeping_opens_s() - asyncio.get_running_loop().time() <= CLOCK_S

    def _sleeping_opens_s(self) -> float:
        """From when on one that will sleep may begin."""
        if self.held_sleeping:
            return self.wakes.opens_s
        return min(self.wakes.opens_s, self.anyway_s)

    def gathers(self, sharing: Sharing) -> bool:
        """Whether a lane that could have a place waits for companions: it loses little, and an invocation is saved.

        Not for the last place, which others might take for long meanwhile.
        """
        return sharing.beside and GATHER_FROM <= self.held < self.most - 1 and self.gather_s > 0

    def opens_s(self) -> float:
        """When the next one of those may begin who wait for nothing but time."""
        return min(
            queue[0][3] if self.may_start(stage) else self._sleeping_opens_s()
            for stage, queue in self.waiting.items()
            if queue
        )

    def enqueue(self, stage: Stage, sharing: Sharing) -> Waiter:
        """Wait for a place behind those of the same stage."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.gather_s if sharing.beside else 0.0
        entry: Waiter = self.number, loop.create_future(), sharing, until_s
        self.waiting[stage].append(entry)
        self.number += 1
        return entry

    def next_stage(self) -> Stage | None:
        """Whose turn is next: what continues, unless it has passed by new work for long; then who came first."""
        for queue in self.waiting.values():
            while queue and queue[0][1].cancelled():
                queue.popleft()
        begins, sleeps = self.waiting[Stage.BEGINS], self.waiting[Stage.SLEEPS]
        new: Stage | None = Stage.BEGINS if self._gathered(begins) else None
        opens = self.may_start(Stage.SLEEPS) and self._gathered(sleeps)
        if opens and (new is None or sleeps[0][0] < begins[0][0]):
            new = Stage.SLEEPS
        if self._gathered(self.waiting[Stage.CONTINUES]) and (new is None or self.in_a_row < BEGUN_IN_A_ROW_MAX):
            return Stage.CONTINUES
        return new

    def _gathered(self, queue: deque[Waiter]) -> bool:
        """Whether the first of these begins, if there is a place: alone, or with as many companions as may be."""
        if not queue:
            return False
        _, _, sharing, until_s = queue[0]
        if not self.gathers(sharing) or until_s - asyncio.get_running_loop().time() <= CLOCK_S:
            return True
        alike = (one for one in queue if one[2] == sharing and not one[1].done())
        return sum(1 for _ in islice(alike, sharing.most)) == sharing.most

    def start(self, stage: Stage) -> None:
        """Give a place to the first of these, who has not given up."""
        begins = bool(self.waiting[Stage.BEGINS] or self.waiting[Stage.SLEEPS])
        self.in_a_row = self.in_a_row + 1 if begins and stage is Stage.CONTINUES else 0
        _, turn, sharing, _ = self.waiting[stage].popleft()
        others = self._companions(stage, sharing) if sharing.most > 1 else ()
        self.hold(stage, 1 + len(others))
        pool = Pool(1 + len(others)) if others else None
        turn.set_result(pool)
        for other in others:
            other.set_result(pool)

    def _companions(self, stage: Stage, sharing: Sharing) -> list[asyncio.Future[Pool | None]]:
        """Others that share a place with the first of these, in the same way.

        Side by side they are as many as may be. One after the other they leave each place its part.
        """
        queue = self.waiting[stage]
        part = sharing.most if sharing.beside else -(-(len(queue) + 1) // self.most)
        wanted = min(sharing.most, part) - 1
        found = [one for one in queue if one[2] == sharing and not one[1].done()][:wanted] if wanted else []
        for one in found:
            queue.remove(one)
        return [one[1] for one in found]

    def hold(self, stage: Stage, lanes: int) -> None:
        """Hold a place, for so many lanes."""
        self.held += 1
        if stage is Stage.SLEEPS:
            self.held_sleeping += 1
            self.anyway_s = asyncio.get_running_loop().time() + lanes * ANYWAY_S

    def let_go(self, stage: Stage) -> None:
        self.held -= 1
        self.held_sleeping -= stage is Stage.SLEEPS


class SharedRoom:
    """A number that functions, or others, share: bytes or places, each one's in the order in which they are asked for.

    A function takes of it by `core.shares`. A request that is larger than what is kept for its function might find no
    room for as long as others hold theirs: one such request at a time, whose function holds nothing else, goes beyond
    the bound.
    """

    def __init__(self, bytes_max: int, functions: int) -> None:
        self._bytes_max = bytes_max
        self._functions = functions
        self._held: dict[str, int] = {}
        self._large: str | None = None
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[bool]]]] = {}

    async def take(self, function: str, size: int) -> bool:
        """Wait until there is room for that much, and hold it. Returns whether it is held beyond the bound."""
        if function not in self._waiting and self._fits(function, size):
            return self._hold(function, size)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(function, deque()).append((size, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # The room came at the moment of giving up.
                self.give(function, size, large=turn.result())
            else:
                self._go_on()
            raise

    def give(self, function: str, size: int, *, large: bool) -> None:
        """Give room back."""
        if large:
            self._large = None
        else:
            held = self._held.get(function, 0) - size
            if held:
                self._held[function] = held
            else:
                self._held.pop(function, None)
        self._go_on()

    def _hold(self, function: str, size: int) -> bool:
        if self._within(function, size):
            self._held[function] = self._held.get(function, 0) + size
            return False
        self._large = function
        return True

    def _within(self, function: str, size: int) -> bool:
        """Whether it fits beside what others hold."""
        others = (held for other, held in self._held.items() if other != function)
        own = self._held.get(function, 0)
        alone = not self._held and self._large is None
        return alone or may_take(size, own, others, self._bytes_max, self._functions)

    def _fits(self, function: str, size: int) -> bool:
        if self._within(function, size):
            return True
        return self._large is None and function not in self._held

    def _go_on(self) -> None:
        for function, waiting in list(self._waiting.items()):
            before = len(waiting)
            while waiting:
                size, turn = waiting[0]
                if not turn.cancelled():
                    if not self._fits(function, size):
                        break
                    turn.set_result(self._hold(function, size))
                waiting.popleft()
            if len(waiting) < before:
                # The next one that goes beyond the bound is another function's, if any waits.
                del self._waiting[function]
                if waiting:
                    self._waiting[function] = waiting
