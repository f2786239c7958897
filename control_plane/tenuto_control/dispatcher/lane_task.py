"""When a lane works: its task, which it has while it does anything but wait, and its rests.

Owns the vocabulary of how a lane continues after one action, and who hears of it when that takes a place or gives it
back. Does not own the actions (`lane_worker`), what is decided (`core.lane_policy`), nor the places (`lane_places`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, assert_never

from tenuto.protocol.ids import Lane
from tenuto_control.dispatcher.lane_rests import Ending, Rests
from tenuto_control.ports import Clock


@dataclass(frozen=True, slots=True)
class Continue:
    """The next action is decided at once."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The next action is decided at `until_ms`, or when something arrives."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class Sleeps:
    """The lane is idle until `wake_ms`, or (None) until something arrives: its worker ends."""

    wake_ms: int | None


@dataclass(frozen=True, slots=True)
class GiveWay:
    """New work is next, and the place is for lanes that continue: this one queues for another."""


Onward: TypeAlias = Continue | Rest | Sleeps | GiveWay
"""How a lane continues after one action."""

CONTINUE = Continue()


class Owner(Protocol):
    """Who has lanes work, one after the other when they are many."""

    @property
    def alarms(self) -> Rests:
        """What ends the rests of all lanes."""
        ...

    def ready(self, worker: Any) -> None:
        """The worker's rest is over: it is to be started again."""
        ...

    def starts(self, worker: Any) -> None:
        """The worker has a place, and begins to work, or continues."""
        ...

    def may_begin(self, worker: Any) -> bool:
        """Whether the worker may begin new work in the place that it holds."""
        ...

    def gives_way(self, worker: Any) -> None:
        """The worker has new work, and is to be started again in a place for that."""
        ...

    def rests(self, worker: Any) -> None:
        """The worker has come to rest, and needs no place meanwhile."""
        ...

    def idle(self, worker: Any, wake_ms: int | None) -> None:
        """Nothing is left to do until `wake_ms`, or (None) until something arrives."""
        ...

    def unneeded(self, worker: Any) -> None:
        """The worker has nothing to do any more, before it has begun."""
        ...


class LaneTask:
    """A lane that works in turns until it is idle.

    Thousands may wait for their place, or for a pause to end, and none of these has a task.
    """

    __slots__ = ("_begun_ms", "_clock", "_ending", "_hinted", "_nudged", "_owner", "_resting_until_ms", "lane", "task")

    def __init__(self, lane: Lane, clock: Clock, owner: Owner) -> None:
        self.lane = lane
        self.task: asyncio.Task[None] | None = None
        self._clock = clock
        self._owner = owner
        # From the beginning there is something to do; `_hinted`: not the works in a queue alone.
        self._nudged = True
        self._hinted = False
        self._begun_ms: int | None = None
        self._resting_until_ms: int | None = None
        self._ending: Ending | None = None

    async def turn(self) -> Onward:
        """Carry out one action, with all its errors."""
        raise NotImplementedError

    @property
    def service(self) -> str:
        """The service of the lane."""
        return self.lane.service

    def start(self) -> bool:
        """Begin to work, or go on after a rest. False when the lane was dropped, or its work withdrawn, meanwhile."""
        if not self._nudged:
            self._owner.unneeded(self)
            return False
        if self._begun_ms is None:
            self._begun_ms = self._clock.now_ms()
        self._owner.starts(self)
        self.task = asyncio.get_running_loop().create_task(
            self._work(), name=f"lane {self.lane.service}/{self.lane.key}"
        )
        return True

    def halt(self) -> asyncio.Task[None] | None:
        """Never start again. Returns the task of what is in progress."""
        self._nudged = False
        self._end_rest()
        return self.task

    def busy_before(self, time_ms: int) -> bool:
        """Whether there is something to do before a time: it works, or a rest ends by then."""
        return self._resting_until_ms is None or self._resting_until_ms <= time_ms

    def _nudge(self) -> None:
        self._nudged = True
        if self._ending is not None:
            self.awake()

    async def _work(self) -> None:
        onward: Onward = CONTINUE
        while isinstance(onward, Continue):
            self._nudged = False
            onward = await self.turn()
            if isinstance(onward, Rest) and self._nudged:
                onward = CONTINUE
        # Nothing has been awaited since the decision, so no work can have slipped in between.
        self.task = None
        match onward:
            case Rest(until_ms):
                self._rest(until_ms)
                self.unburden()
                self._owner.rests(self)
            case Sleeps(wake_ms):
                self._owner.idle(self, wake_ms)
            case GiveWay():
                # It waits for a place as before it had begun, and is started whatever becomes of its queue.
                self._nudged = self._hinted = True
                self._begun_ms = None
                self.unburden()
                self._owner.gives_way(self)
            case _:
                assert_never(onward)

    def _rest(self, until_ms: int) -> None:
        """Do nothing until a time, or until something arrives."""
        seconds = max(1, until_ms - self._clock.now_ms()) / 1000
        self._resting_until_ms = until_ms
        self._ending = self._owner.alarms.begin(self, seconds)

    def unburden(self) -> None:
        """Let go of what only a lane at work needs: it rests, perhaps for long, as thousands may."""

    def awake(self) -> None:
        """The rest is over: the lane continues as soon as there is a place for it."""
        self._nudged = True
        self._end_rest()
        self._owner.ready(self)

    def _end_rest(self) -> None:
        self._resting_until_ms = None
        if self._ending is not None:
            self._owner.alarms.end(self._ending)
            self._ending = None
