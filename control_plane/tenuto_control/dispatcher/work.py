"""Work that waits in a lane's queue in this process, and what comes of an activation of it.

Owns the kinds of work and what "finished" means for each. Does not own their order or execution.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from msgspec import Struct

from tenuto.protocol.messages import Head
from tenuto.protocol.records import CallSource, Event, KafkaSource, Result


@dataclass(slots=True, eq=False)
class KafkaWork:
    """A Kafka event whose offset is held until `released` is called; here since `since_ms`."""

    event: Event
    released: Callable[[], None]
    since_ms: int
    withdrawn: bool = False

    def to_keep(self) -> Event:
        """The event as it goes to the inbox."""
        return self.event

    def age_ms(self, now_ms: int) -> int:
        """How long ago its record was produced."""
        source = self.event.source
        return max(0, now_ms - source.timestamp_ms) if isinstance(source, KafkaSource) else 0

    def renew(self, again: KafkaWork) -> None:
        """The event was delivered again, after its partition had gone and come back."""
        self.released = again.released
        self.withdrawn = False

    def release(self) -> None:
        """Release the offset, unless the partition has gone to someone else."""
        if not self.withdrawn:
            self.released()


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A call is not run from this queue: its invocation is accepted already. `due_ms` is when a delayed one begins."""

    due_ms: int | None = None


@dataclass(slots=True, eq=False)
class CallWork:
    """A call whose caller waits in this process.

    `keep` says that the caller goes away with the id: no further attempt begins here, and one that runs stores its
    result with its commit. `unkept` is set while a commit is under way that was made without the result. `tentative` is
    a result whose commit may or may not have taken place. `checked` is the head for which the absence of a stored
    result was made sure; an `attempted` call may have one although none was asked for. No caller waits for longer than
    `wanted_until_ms`. Of a call that was handed over, the result was looked for last at `looked_ms`, beside a head of
    `looked_ver`; `behind_ver` is that of a head in which it was behind the run of another. It is `named` as finished by
    some head, or by its result; other works waited in the inbox before it when it came there (`after`).
    """

    event: Event
    since_ms: int = 0
    answer: asyncio.Future[Result | Elsewhere] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    keep: bool = False
    unkept: bool = False
    tentative: Result | None = None
    checked: Head | None = None
    attempted: bool = False
    wanted_until_ms: int = 0
    looked_ms: int = 0
    looked_ver: int | None = None
    behind_ver: int | None = None
    named: bool = False
    after: bool = False

    @property
    def over(self) -> bool:
        """Whether nobody waits for it here any more: its caller goes away, or has been answered."""
        return self.keep or self.answer.done()

    def to_keep(self) -> Event:
        """The event as it goes to the inbox: its result is kept, for whoever looks for it."""
        event = self.event
        return Event(event.id, event.handler, CallSource(keep_result=True), event.input, event.headers)

    @property
    def stores(self) -> bool:
        """Whether its function adds the result to what is committed, unasked."""
        return isinstance(self.event.source, CallSource) and self.event.source.keep_result

    def finish(self, result: Result | Elsewhere) -> None:
        """Give the caller the result, or say that it has to be looked for."""
        if not self.answer.done():
            self.answer.set_result(result)


Work: TypeAlias = KafkaWork | CallWork


class Attempted(Struct, frozen=True):
    """What came of an activation: the head it left (None: read again), the work that is finished, and what failed.

    `failed` is the event whose attempt failed; then there is a pause: `pause_ms`, or by its handler's policy. A
    `harmless` failure does not count as an attempt. `ended` are holders that certainly run no more. `nap` is the holder
    for whom the run that it left naps. `overtaken`: another process has written before.
    """

    head: Head | None
    finished: tuple[Work, ...] = ()
    failed: Event | None = None
    pause_ms: int | None = None
    harmless: bool = False
    ended: frozenset[str] = frozenset()
    nap: str | None = None
    overtaken: bool = False
