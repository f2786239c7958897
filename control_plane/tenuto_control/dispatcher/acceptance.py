"""Acceptance of what comes over HTTP or was delayed: of all requests with one idempotency key, one is what runs.

Owns where an invocation is looked for before it is accepted, and what a later request joins instead. Does not own
running it, nor how inbox items and timers are written (`delivery`).

An invocation without delay is accepted by its inbox item or its commit, a delayed one by its result item, which says
when it is due before there is anything to say of its result. That item comes before the timer that carries the message:
a process that dies in between has told no caller anything, and whoever asks again puts the timer. Whoever finds the
item joins the invocation. A result that a call had meanwhile is kept until a delayed message with its id is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tenuto.lane.head import head_key, parse_head
from tenuto.lane.timers import HTTP_SENDER, SendTimer, timer_delete
from tenuto.lane.transitions import inbox_again, outgoing_results, result_expected, result_key
from tenuto.lane.writes import Item
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import CallSource, Event, ResolveOut, SendOut, unpack_out
from tenuto_control.core.lane_policy import finished
from tenuto_control.dispatcher.delivery import Delivery, message
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.ports import Clock


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Accepts messages, and calls whose callers stop waiting."""

    writer: Writer
    delivery: Delivery
    clock: Clock

    async def accept(self, event: Event, delay_ms: int = 0) -> None:
        """Make sure that the invocation of an event runs, once: this event, or the one accepted before it."""
        lane, nonce = event.invocation
        due_ms = self.clock.now_ms() + delay_ms
        if not _kept(event):
            # Its id was made for this request, so there is nothing to look for.
            if delay_ms > 0:
                await self.delivery.postpone(HTTP_SENDER, nonce, _delayed(lane, event, due_ms))
            else:
                await self._into_inbox(lane, [event])
            return
        if delay_ms > 0:
            found = (await self.writer.write(result_expected(event.id, due_ms))).answer.item
        else:
            found = await self._result_item(event)
        if found is None:
            await self._into_inbox(lane, [event])
        else:
            await self._join_found(event, found)

    async def take_in(self, lane: Lane, events: Sequence[Event]) -> tuple[Item | None, frozenset[str]]:
        """Make events of one lane durable in its inbox, but for calls whose invocation was accepted before.

        Returns the lane's head as the mark has left it, if there was one, and the ids of those whose results are there.
        This process is not told to look.
        """
        kept = [event for event in events if _kept(event)]
        found = await self.writer.read_all([result_key(event.id) for event in kept])
        known = {event.id: item for event, item in zip(kept, found, strict=True) if item is not None}
        head = await self._into_inbox(lane, [event for event in events if event.id not in known], hint=False)
        for event in events:
            if event.id in known:
                await self._join_found(event, known[event.id])
        return head, frozenset(event_id for event_id, item in known.items() if "res" in item)

    async def _join_found(self, event: Event, result_item: Item) -> None:
        due_ms = result_item.get("begins")
        if "res" not in result_item and isinstance(due_ms, int):
            await self.join(event, due_ms)

    async def join(self, event: Event, due_ms: int) -> None:
        """Make sure that a delayed invocation, whose acceptance was found, has what carries it.

        Its timer is missing if the process that accepted it died. A timer that is due is not put again: in a bucket
        that has been swept nobody would find it.
        """
        lane, nonce = event.invocation
        if due_ms > self.clock.now_ms():
            await self.delivery.postpone(HTTP_SENDER, nonce, _delayed(lane, event, due_ms), again=True)
        else:
            await self._into_inbox(lane, [event])

    async def deliver_delayed(self, timer: SendTimer) -> None:
        """The time of a delayed message has come: move it to where it goes, then forget its timer.

        It may have been run by a call that came before it. Raises TypeError for a timer that carries no message.
        """
        match unpack_out(timer.message):
            case SendOut() as entry:
                # What came by HTTP was for a handler that there was, and its caller may ask for its result.
                if timer.sender != HTTP_SENDER:
                    kept = await self.delivery.unhandled(timer.sender, timer.sequence, entry)
                    if kept is None:
                        await self.delivery.put_off(timer)
                    if kept is not False:
                        await self.writer.write(timer_delete(timer))
                        return
                event = message(timer.sender, timer.sequence, entry)
                if not _kept(event) or not await self._has_result(event):
                    await self._into_inbox(event.invocation.lane, [event])
            case ResolveOut() as entry:
                await self.delivery.answer(timer.sender, timer.sequence, entry)
            case entry:
                raise TypeError(f"a send timer carries a message, not {type(entry).__name__}")
        await self.writer.write(timer_delete(timer))

    async def _into_inbox(self, lane: Lane, events: Sequence[Event], *, hint: bool = True) -> Item | None:
        """Put events into the inbox: once more where a tombstone has outlived the result that it stands for."""
        accepted = await self.delivery.accept(lane, events, hint=hint)
        for event in events:
            if event.nonce not in accepted.buried or not _kept(event) or not await self._is_over(lane, event):
                continue
            # The table removes a tombstone and a result whose time is over when it likes, and the result went first.
            await self.writer.write(inbox_again(lane, event, accepted.buried[event.nonce]))
            accepted = replace(await self.delivery.accept(lane, [event], hint=hint), buried=accepted.buried)
        return accepted.head

    async def _is_over(self, lane: Lane, event: Event) -> bool:
        """Whether a tombstone is of an invocation whose result is no longer kept.

        A result is stored before the head forgets it, so the head is read first.
        """
        table = self.writer.table
        head = parse_head(await self.writer.patiently(lambda: table.get(head_key(lane))))
        if finished(head, event, self.clock.now_ms()) or (head.run is not None and head.run.event.id == event.id):
            return False
        if event.id in outgoing_results(head):
            return False
        return not await self._has_result(event)

    async def _has_result(self, event: Event) -> bool:
        return "res" in (await self._result_item(event) or {})

    async def _result_item(self, event: Event) -> Item | None:
        table, key = self.writer.table, result_key(event.id)
        return await self.writer.patiently(lambda: table.get(key))


def _kept(event: Event) -> bool:
    return isinstance(event.source, CallSource) and event.source.keep_result


def _delayed(lane: Lane, event: Event, due_ms: int) -> SendOut:
    return SendOut(lane.service, lane.key, event.id, event.handler, event.input, event.headers, due_ms, _kept(event))
