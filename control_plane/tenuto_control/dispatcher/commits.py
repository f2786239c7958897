"""The commit of what ran without a lease, and the end of a run whose function never answers: writes 1 and 7.

Owns these writes with what is around them: dead letters, kept results, the guard that comes before. Does not own
whether something is committed, nor what follows (`core.verdicts`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenuto.lane.dead_letters import dead_letter
from tenuto.lane.head import parse_head
from tenuto.lane.transitions import Effects, effects_of, final_commit, spec_commit
from tenuto.lane.writes import Applied, Refused
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import OWN_POSITIONS
from tenuto.protocol.messages import Head, Speculated, Trim
from tenuto.protocol.modes import Drain
from tenuto.protocol.records import CallSource, Event, Failed, Failure, Out, ResultOut
from tenuto_control.core import log_fields
from tenuto_control.core.flights import Flight
from tenuto_control.core.lane_memory import SPECULATION
from tenuto_control.core.log_fields import shown
from tenuto_control.core.verdicts import Commit, Overtaken, Stored, Traceless
from tenuto_control.dispatcher.ends import Ends
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.work import CallWork, Work

log = logging.getLogger("tenuto.lane")


@dataclass(slots=True)
class Commits:
    """Writes the commits of one lane."""

    lane: Lane
    services: Parts
    ends: Ends

    async def store(self, flight: Flight, works: Sequence[Work], commit: Commit) -> Stored | Traceless | Overtaken:
        """Write 1, for `works` that ended; a batch of inbox items has none here. Raises UnstorableError."""
        outcome, head, drain = commit.outcome, flight.head, isinstance(flight.mode, Drain)
        events = flight.events[: len(outcome.results)]
        out = _with_kept_results(works, outcome)
        out = self.ends.with_letters(flight.tried, out, events, outcome.results)
        every = tuple(out.values())
        if not drain and self._leaves_nothing(outcome, out):
            self.ends.tell(flight.tried, events, outcome.results, every)
            return Traceless()
        patience_ms = None
        if _needs_guard(events, out):
            # The guard may be swept once it is due, so the commit it protects is given up well before.
            patience_ms = self.services.limits.commit_guard_ms // 2
            delay_ms = self.services.limits.commit_guard_ms
            await self.services.delivery.guard(self.lane, events[0].nonce, delay_ms, head.ver)
        out = await self.ends.past_the_outbox(out)
        effects = self._effects(events, outcome.state, out)
        tok = f"{self.services.token()}{SPECULATION}"
        clears = _clears(flight, commit)
        write = spec_commit(self.lane, head, effects, tok, drain=drain, clears=clears, trim=flight.trim)
        written = await self.services.writer.write(write, tok, patience_ms)
        left = parse_head(written.answer.item)
        if isinstance(written.answer, Refused) and clears and _marked_again(head, left):
            # What has come since waits for the next look. What ran is not thrown away for it.
            write = spec_commit(self.lane, head, effects, tok, drain=drain, trim=flight.trim)
            written = await self.services.writer.write(write, tok, patience_ms)
            left = parse_head(written.answer.item)
        if isinstance(written.answer, Applied):
            self.ends.tell(flight.tried, events, outcome.results, every)
            return Stored(left)
        if (left.ver, left.pend) == (head.ver, head.pend) and left.run is None:
            # Tried again from the same head it would be refused again: the lane pauses and says so.
            raise AssertionError(f"a commit is refused on a head that has not changed: ver {head.ver}")
        for work in works:
            if isinstance(work, CallWork):
                work.unkept = False
        return Overtaken(left)

    async def bury(self, head: Head, reason: str, trim: Trim) -> Head:
        """Write 7 for a run whose function never answers: it ends as failed. Returns the head that the write met."""
        if head.run is None:
            raise AssertionError("there is no run to end")
        event, item = head.run.event, head.run.input_item
        failure = Failure(reason)
        letter = dead_letter(
            event,
            reason,
            item,
            at_ms=self.services.clock.now_ms(),
            first_ms=head.run.start_ms,
            attempts=head.run.attempt,
        )
        out: dict[int, Out] = {} if letter is None else {OWN_POSITIONS: letter}
        if isinstance(event.source, CallSource):
            out[OWN_POSITIONS + 1] = ResultOut(event.id, Failed(failure))
        effects = self._effects([event], {}, out)
        tok = f"{self.services.token()}.bury"
        if letter is None:
            fields = log_fields.of_event(self.lane, event, head.run.attempt)
            log.error("%s: %s ends as failed: %s", self.lane.pk, event.handler, shown(reason), extra=fields)
        write = final_commit(self.lane, head, effects, tok, head.run.holder, trim=trim)
        written = await self.services.writer.write(write, tok)
        return parse_head(written.answer.item)

    def _leaves_nothing(self, outcome: Speculated, out: Mapping[int, Out]) -> bool:
        """An unkeyed invocation that took no durable action and sent nothing leaves no record."""
        return not out and not outcome.state and not self.services.keyed(self.lane.service)

    def _effects(self, events: Sequence[Event], state: Mapping[str, bytes | None], out: Mapping[int, Out]) -> Effects:
        expires = not self.services.keyed(self.lane.service)
        return effects_of(events, state, out, self.services.clock.now_ms(), expires=expires)


def _with_kept_results(works: Sequence[Work], outcome: Speculated) -> dict[int, Out]:
    """Outgoing entries, with the results of calls whose callers have gone away while they ran.

    A call whose caller waits is told its result only after the commit, which may take place unnoticed.
    """
    out: dict[int, Out] = dict(enumerate(outcome.out))
    for work, result in zip(works, outcome.results, strict=False):
        if not isinstance(work, CallWork):
            continue
        if not work.stores:
            # One whose result is stored has it from there: under its id, another process may run it as well.
            work.tentative = result.result
            work.unkept = not work.keep
            if work.keep:
                out[len(out)] = ResultOut(work.event.id, result.result)
    return out


def _needs_guard(events: Sequence[Event], out: Mapping[int, Out]) -> bool:
    """Calls alone that send messages: no Kafka offset or inbox item would bring anyone back to ship them."""
    only_calls = all(isinstance(event.source, CallSource) for event in events)
    return only_calls and any(not isinstance(entry, ResultOut) for entry in out.values())


def _marked_again(head: Head, left: Head) -> bool:
    """Whether nothing has happened to a head but that its inbox was marked once more."""
    return left.run is None and (left.ver, left.tok) == (head.ver, head.tok) and left.pend != head.pend


def _clears(flight: Flight, commit: Commit) -> bool:
    """Whether a commit may clear the mark: every item that the inbox held has ended with it."""
    match flight.mode:
        case Drain(events, clears=clears):
            return clears and not commit.last_resort and len(commit.outcome.results) == len(events)
        case _:
            return False
