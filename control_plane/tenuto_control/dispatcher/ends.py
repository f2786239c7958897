"""How events of a lane end in failure: the dead letter each leaves, its history, and the line that tells of it.

Owns which ends are told, and what goes past the outbox because no head could hold it. Does not own when an event is
given up (`core.verdicts`), nor where letters go (`dead_letters`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from tenuto.lane.dead_letters import buries, dead_letter, ends_unseen, is_dead_letter, unseen
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import INLINE_BYTES_MAX
from tenuto.protocol.messages import EventResult, Speculated
from tenuto.protocol.records import (
    BuriedOut,
    CallSource,
    Event,
    Failed,
    Failure,
    Out,
    PublishOut,
    ResultOut,
    pack,
)
from tenuto_control.core import log_fields
from tenuto_control.core.flights import Tried
from tenuto_control.core.log_fields import shown, shown_reason
from tenuto_control.dispatcher.dead_letters import origin_of
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.undeliverable import DIRECT

log = logging.getLogger("tenuto.lane")

REASON_ROOM_BYTES = 4_096
"""What a dead letter adds to its event."""


@dataclass(slots=True)
class Ends:
    """The ends of one lane's events, as far as this process has tried them."""

    lane: Lane
    services: Parts

    def with_letters(
        self, tried: Tried, out: dict[int, Out], events: Sequence[Event], results: Sequence[EventResult]
    ) -> dict[int, Out]:
        """Outgoing entries with the dead letters that are due and not among them, all with their history.

        A letter holds the event as it came, whatever the function has made of it.
        """
        out = dict(out)
        for event, result in zip(events, results, strict=False):
            if isinstance(result.result, Failed) and not any(buries(entry, event.id) for entry in out.values()):
                letter = ends_unseen(event, result.result)
                if letter is not None:
                    out[max(out, default=-1) + 1] = letter
        known = {event.id: event for event in events}
        return {
            at: self._dated(tried, replace(entry, event=known.get(entry.event.id, entry.event)))
            if isinstance(entry, BuriedOut)
            else entry
            for at, entry in out.items()
        }

    async def past_the_outbox(self, out: dict[int, Out]) -> dict[int, Out]:
        """Produce large dead letters now: no head could hold them, their offsets are held, and twice does no harm.

        Of those that go to the table, only what is large goes there now.
        """
        kept: dict[int, Out] = {}
        for at, entry in out.items():
            match entry:
                case PublishOut(dead=True) if len(pack(entry)) > INLINE_BYTES_MAX + REASON_ROOM_BYTES:
                    await self.services.delivery.ship(self.lane, {f"{DIRECT}{at}": entry}, set())
                case BuriedOut():
                    kept[at] = await self.services.delivery.letters.put_ahead(entry)
                case _:
                    kept[at] = entry
        return kept

    def _dated(self, tried: Tried, entry: BuriedOut) -> BuriedOut:
        """A dead letter with what this side knows of its history: the function sees one attempt alone."""
        return replace(
            entry,
            at_ms=entry.at_ms or self.services.clock.now_ms(),
            first_ms=entry.first_ms or tried.first_ms_of(entry.event),
            attempts=max(entry.attempts, tried.attempt_at(entry.event)),
        )

    def given_up(self, tried: Tried, event: Event, reason: str, status_code: int) -> Speculated:
        """The outcome of an event that is given up here."""
        dead = dead_letter(event, reason, status_code=status_code)
        result = Failed(Failure(reason, status_code))
        out: list[Out] = [dead] if dead else []
        if dead is None:
            # A dead letter tells of itself.
            fields = log_fields.of_event(self.lane, event, tried.attempt_at(event))
            log.error("%s: %s ends as failed: %s", self.lane.pk, event.handler, shown(reason), extra=fields)
        if isinstance(event.source, CallSource) and event.source.keep_result:
            out.append(ResultOut(event.id, result))
        return Speculated((EventResult(event.id, result),), {}, tuple(out))

    def tell(self, tried: Tried, events: Sequence[Event], results: Sequence[EventResult], out: Iterable[Out]) -> None:
        """A line and a count for each event that its handler ended by a terminal error, and of which nobody else hears.

        A dead letter tells it itself, when it is where it belongs.
        """
        letters = [entry for entry in out if is_dead_letter(entry)]
        known = {event.id: event for event in events}
        for result in results:
            event = known.get(result.event_id)
            if event is None or not isinstance(result.result, Failed) or not unseen(event):
                continue
            if any(buries(entry, event.id) for entry in letters):
                continue
            self.services.metrics.count("TerminalErrors")
            failure = result.result.failure
            status, reason = failure.status_code, shown_reason(failure.message, foreign=failure.foreign)
            text = "%s: %s ended %s by a terminal error (%d): %s"
            log.warning(
                text,
                *(self.lane.pk, event.handler, origin_of(event.source), status, reason),
                extra=log_fields.of_event(self.lane, event, tried.attempt_at(event)),
            )
