"""What the handler's side knows of its hold on the lane, and how it asks for writes.

Owns the journal of the invocation at work, the facts of its claim as values, and what the writing side has told of
storage. Never looks into that side (`lane_writer`), which may be at work in another thread: each request carries values
there and returns one. `here` says that it need not be: nothing else wants this thread until the request is answered.
Slots that have finished go to that side through one queue, and its news comes back through another. Does not own the
writes, nor when a handler needs one (`attempt`).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping
from typing import assert_never

from tenuto.errors import FencedError
from tenuto.lane.naps import Nap
from tenuto.lane.transitions import Effects, WakeCondition
from tenuto.machine.journal import Journal
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import FLUSH_DELAY_MS_MAX, SECRET_BYTES
from tenuto.protocol.messages import Activation, ClaimedRun
from tenuto.protocol.records import Event
from tenuto.runtime.environment import Environment
from tenuto.runtime.lane_news import Found, Left, NewRun, News, Stored
from tenuto.runtime.lane_writer import NO_MESSAGES, LaneWriter, Messages


class Lease:
    """One activation's hold on its lane: first none, then a claim under a fencing token, until it ends."""

    def __init__(self, request: Activation, env: Environment) -> None:
        self.lane = Lane(request.service, request.key)
        self.journal = Journal()
        self._attempt = request.attempt
        # From a takeover or a claim to the commit or suspension.
        self._run: ClaimedRun | None = request.head.run if request.mode == "resume" else None
        self._event: Event | None = None
        self._before: Callable[[], Effects] = Effects
        self._secret: bytes | None = None if self._run is None else self._run.secret
        self._left = Left(request.head, 0)
        # The next event's run, should it have been claimed with the commit of the last one.
        self._ahead: tuple[Journal, ClaimedRun] | None = None
        # Whether the other side may have a flush in progress.
        self._open = self._run is not None
        self._stored = 0
        self._heard: list[str] = []
        self._heard_count = 0
        self._news: deque[News] = deque()
        self._env = env
        self._writes = env.writes
        self._request = request

    # --- what is known here -----------------------------------------------------------------------------------------

    @property
    def owning(self) -> bool:
        """Whether the lease is held, as far as is known here: only a write finds out that it is lost."""
        return self._run is not None

    @property
    def run(self) -> ClaimedRun:
        """The invocation that the lease is held for, as it was claimed or taken over. Raises FencedError."""
        if self._run is None:
            raise FencedError("no run is owned")
        return self._run

    @property
    def ahead(self) -> bool:
        """Whether the next event has been claimed already."""
        return self._ahead is not None

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._attempt if self._run is None else self._run.attempt

    def log_fields(self, event: Event) -> dict[str, str | int]:
        """What names an invocation and its attempt in a line of log."""
        return {
            "invocation_id": event.id,
            "service": self.lane.service,
            "key": self.lane.key,
            "handler": event.handler,
            "attempt": self.attempt,
        }

    @property
    def durable(self) -> bool:
        """Whether everything that has finished is stored. It may be so already when this says no."""
        self._take_news()
        return self._stored >= self.journal.finished

    def run_secret(self) -> bytes:
        """What only this run knows; made, at the latest, before its claim."""
        if self._secret is None:
            self._secret = self._env.random_bytes(SECRET_BYTES)
        return self._secret

    def begin(self, event: Event, journal: Journal, before: Callable[[], Effects]) -> None:
        """Work on an invocation from here on. `before` makes the effects of the events that a claim commits along."""
        # What is told of the invocation before is none of this one's business.
        self._take_news()
        self._heard_count += len(self._heard)
        self._heard.clear()
        self._stored = 0
        self._secret = None
        self._event, self._before, self.journal = event, before, journal
        if self._ahead is not None:
            self.journal, self._run = self._ahead
            self._secret, self._open, self._ahead = self._run.secret, True, None

    def hear(self) -> list[str]:
        """The names of slots that were found in storage since the last call; the journal knows them from here on."""
        self._take_news()
        heard, self._heard = self._heard, []
        # Counted only now: news may be taken in for other reasons, and what the handler has not been told is unheard.
        self._heard_count += len(heard)
        return heard

    def _take_news(self) -> None:
        while self._news:
            match self._news.popleft():
                case Found(name, slot):
                    self.journal.hear(name, slot)
                    self._heard.append(name)
                case Stored(count):
                    self._stored = count
                case news:
                    assert_never(news)

    # --- what is asked of the other side ----------------------------------------------------------------------------

    @functools.cached_property
    def _writer(self) -> LaneWriter:
        """The other side; most activations write nothing, and need none."""
        return LaneWriter(self._request, self._env, self._news)

    async def load(self) -> Event:
        """Read what is stored of a resumed run. Returns its event. Raises FencedError when the run is over."""
        queue = self.journal.new
        loaded = await self._writes.run(self._writer.load(queue), here=True)
        self.journal = Journal.load(loaded.slots, self.run.first_out, queue)
        return loaded.event

    async def claim(self, start_ms: int, *, here: bool = True) -> None:
        """Hold the lease for the event at work, which began at that time. Raises FencedError."""
        if self._run is not None:
            return
        if self._env.pooled:
            raise FencedError("a pooled invocation claims nothing")
        if self._event is None:
            raise AssertionError("a claim is for an event")
        new = NewRun(self._event, start_ms, self.journal.first_out, self.run_secret(), self.journal.new)
        self._open = True
        self._run = await self._writes.run(self._writer.claim(new, self._before()), here=here)
        self._calm()

    async def flush(self, out: Messages = NO_MESSAGES, *, here: bool = True, learns: bool = True) -> None:
        """Make every finished step, and these messages, durable. Raises FencedError.

        `learns`: answers may have come, which are told with it.
        """
        await self._writes.run(self._writer.flush(out, learns=learns), here=here)
        self._calm()

    def flush_soon(self) -> None:
        """Have what has finished stored soon, whatever the handler does meanwhile."""
        self._writes.flush_within(FLUSH_DELAY_MS_MAX, self._writer.flush_quietly)

    def _calm(self) -> None:
        """Need no flush any more, if everything is stored."""
        if self.durable:
            self._writes.flushed()

    async def look(self) -> None:
        """Look whether results of awakeables have come, while steps run. Raises FencedError."""
        await self._writes.run(self._writer.look(), here=False)

    async def suspend(
        self,
        state: Mapping[str, bytes | None],
        initial: Mapping[str, bytes | None],
        wakes: WakeCondition,
        out: Messages = NO_MESSAGES,
        *,
        here: bool = True,
    ) -> bool:
        """Let the invocation wait. False when a result has come that it has not heard of: then it continues with that.

        `initial` is what the attempt found of each name in `state`. Raises FencedError.
        """
        work = self._writer.suspend(state, initial, wakes, out, self._heard_count)
        left = await self._writes.run(work, here=here)
        if left is None:
            return False
        self._ended(left)
        return True

    async def nap(
        self,
        state: Mapping[str, bytes | None],
        initial: Mapping[str, bytes | None],
        sleep: Nap,
        out: Messages,
    ) -> None:
        """Let the invocation sleep while the control plane keeps the lease. Raises FencedError.

        `initial` is as in `suspend`.
        """
        work = self._writer.nap(state, initial, sleep, out)
        self._ended(await self._writes.run(work, here=True))

    async def commit(self, effects: Effects, following: Event | None = None) -> Left:
        """End the invocation, if possible with the claim of the event that is to follow. Raises FencedError."""
        journal, new = Journal(), None
        if following is not None:
            secret = self._env.random_bytes(SECRET_BYTES)
            new = NewRun(following, self._env.now_ms(), journal.first_out, secret, journal.new)
        left = self._ended(await self._writes.run(self._writer.commit(effects, new), here=True))
        if left.head.run is not None:
            self._ahead = journal, left.head.run
        return left

    async def commit_speculation(self, effects: Effects) -> None:
        """Write 1, by a function that has written already. Raises FencedError."""
        self._open = True
        self._ended(await self._writes.run(self._writer.commit_speculation(effects), here=True))

    async def close(self) -> Left:
        """End what is in progress. Returns what the activation leaves of the lane."""
        # Where nothing can be in progress, asking would only cost time.
        if self._open:
            self._writes.flushed()
            self._left, self._open = await self._writes.run(self._writer.close(), here=True), False
        return self._left

    def _ended(self, left: Left) -> Left:
        self._writes.flushed()
        self._run, self._left, self._open = None, left, False
        return left
