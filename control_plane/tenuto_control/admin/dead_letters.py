"""The table's dead letters: listed, read, run again, thrown away.

Owns these four and their idempotence. Does not own how letters come into being nor how they are stored
(`dispatcher.dead_letters`), records in dead-letter topics, nor an operator's commands.

A message that is run again gets a new invocation, which its letter's name decides: its former position is taken by a
tombstone, and steps and messages of the former invocation must not pass for those of the new one. It goes to the end of
its lane, as a message that nobody waits for, so that it is a dead letter again should it fail again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from tenuto.lane.dead_letters import Letter
from tenuto.protocol.ids import InvocationId, digest
from tenuto.protocol.limits import TOMBSTONE_TTL_S
from tenuto.protocol.records import CallSource, Event, PublishOut
from tenuto.store.port import Table
from tenuto_control.core.metrics import Metrics, Uncounted
from tenuto_control.dispatcher.delivery import Delivery
from tenuto_control.dispatcher.hints import NoHints
from tenuto_control.dispatcher.outages import watched
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock, RecordSink

REDRIVE_MS_MAX = TOMBSTONE_TTL_S * 1000 // 2
"""How long after a redrive began it may be repeated: while the message's tombstone would refuse a second run."""


class NoSuchLetterError(Exception):
    """There is no such dead letter, or it was run again or thrown away before."""


class RedriveUncertainError(Exception):
    """A redrive began long ago and did not come to its end: whether the message ran is not known any more."""


@dataclass(slots=True)
class DeadLetterOffice:
    """Looks after the dead letters of one table. `token` gives names that no other process uses.

    All methods try on while the table does not answer.
    """

    table: Table
    sink: RecordSink
    clock: Clock
    limits: Limits
    token: Callable[[], str]
    metrics: Metrics = field(default_factory=Uncounted)
    _delivery: Delivery = field(init=False)

    def __post_init__(self) -> None:
        """Wire what moves a message. No lane runs here: a guard has one of the control planes look at it."""
        writer = Writer(watched(self.table, self.metrics), self.limits, self.metrics)
        self._delivery = Delivery(writer, self.sink, self.clock, self.limits, self.token, self.metrics, NoHints())

    def letters(self, lane: str | None = None) -> AsyncIterator[Letter]:
        """All dead letters, or those of a lane (its partition key), without their payloads; in no order."""
        return self._delivery.letters.all(lane)

    async def listed(self, lane: str | None = None) -> list[Letter]:
        """The same, oldest first."""
        return sorted([letter async for letter in self.letters(lane)], key=lambda letter: (letter.at_ms, letter.id))

    async def read(self, name: str) -> tuple[Letter, Event | PublishOut]:
        """A letter and what it holds: the event with its input and headers, or the record. Raises NoSuchLetterError."""
        found = await self._delivery.letters.read(name)
        if found is None:
            raise NoSuchLetterError(f"there is no dead letter {name!r}")
        return found

    async def redrive(self, name: str) -> str:
        """Run a message again, or produce a record; what it is called from now on.

        That is the invocation's id, or the record's `tenuto-id`. A redrive that broke off may be repeated: a message
        then still runs once, a record may be produced twice. Raises NoSuchLetterError, RedriveUncertainError, and
        LogUnavailableError for a record that its topic does not take.
        """
        letter, held = await self.read(name)
        now_ms = self.clock.now_ms()
        if letter.redriven_ms is not None and now_ms - letter.redriven_ms > REDRIVE_MS_MAX:
            raise RedriveUncertainError(
                f"a redrive of {name} began {(now_ms - letter.redriven_ms) // 60_000} minutes ago and did not end; see "
                "whether its message ran, then discard it"
            )
        await self._delivery.letters.redriving(letter, now_ms)
        if isinstance(held, PublishOut):
            identity = f"redrive#{name}"
            await self.sink.produce(held.topic, held.value, held.key, (*held.headers, ("tenuto-id", identity.encode())))
        else:
            event = redriven(held)
            await self._delivery.accept(event.invocation.lane, [event])
            identity = event.id
        await self._delivery.letters.end(letter)
        return identity

    async def discard(self, name: str) -> None:
        """Throw a letter away. Raises NoSuchLetterError."""
        letter, _ = await self.read(name)
        await self._delivery.letters.end(letter)


def redriven(event: Event) -> Event:
    """The event that a dead message becomes when it is run again; always the same one."""
    lane, former = event.invocation
    nonce = f"r{digest(event.id)}"
    keyed = lane.key != former
    # An invocation of a service without keys is its own lane.
    own = lane if keyed else lane._replace(key=nonce)
    return Event.of(InvocationId(own, nonce), event.handler, CallSource(one_way=True), event.input, event.headers)
