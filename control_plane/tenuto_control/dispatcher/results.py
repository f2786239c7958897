"""Results of invocations: where they are looked up, and who waits for one in this process.

Owns the order of places to look, the polling, and how many may wait. Does not own how a result comes to be stored
(`delivery`).
"""

from __future__ import annotations

import asyncio

from tenuto.lane.head import UnreadableHeadError, head_key, parse_head
from tenuto.lane.transitions import inbox_key, outgoing_results, result_key, stored_result
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import CallSource, Event, Result
from tenuto.store.port import Table
from tenuto_control.dispatcher.lanes import Lanes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.room import Room
from tenuto_control.ports import Answer, OverloadedError, Pending, Unknown


class Results:
    """Results, for whoever asks by an invocation's id."""

    def __init__(self, table: Table, parts: Parts, lanes: Lanes) -> None:
        self._table = table
        self._clock = parts.clock
        self._limits = parts.limits
        self._parts = parts
        self._lanes = lanes
        self._waiters: dict[str, set[asyncio.Future[Result]]] = {}
        self._room = Room(parts.limits.results_awaited_max, 1, parts.functions)

    async def of(self, invocation: InvocationId, wait_ms: int) -> Answer:
        """See `Execution.result`. Each that waits asks the table at intervals: beyond a bound, nobody waits."""
        name = str(invocation)
        held = self._room.held(self._parts.function(invocation.lane.service))
        try:
            held.enter()
        except OverloadedError:
            wait_ms = 0
        deadline = self._clock.now_ms() + wait_ms
        pause_ms = self._limits.result_poll_initial_ms
        told: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(name, set()).add(told)
        try:
            while True:
                answer = await self._stored(invocation.lane, name)
                left_ms = deadline - self._clock.now_ms()
                if not isinstance(answer, Pending) or left_ms <= 0:
                    return answer
                done, _ = await asyncio.wait([told], timeout=min(pause_ms, left_ms) / 1000)
                if done:
                    return told.result()
                pause_ms = min(pause_ms * 2, self._limits.result_poll_max_ms)
        finally:
            held.release()
            waiting = self._waiters[name]
            waiting.discard(told)
            if not waiting:
                del self._waiters[name]

    def told(self, invocation: str, result: Result) -> None:
        """A result was stored: whoever waits for it here has it at once."""
        for future in self._waiters.get(invocation, ()):
            if not future.done():
                future.set_result(result)

    async def _stored(self, lane: Lane, invocation: str) -> Answer:
        """What storage knows of an invocation."""
        found = await self._looked_up(lane, invocation)
        # Its item was buried between two reads, or its result is no longer kept: a second look tells.
        return await self._looked_up(lane, invocation) or Unknown() if found is None else found

    async def _looked_up(self, lane: Lane, invocation: str) -> Answer | None:
        """The head first, then the result item, then the inbox. None when that has a tombstone alone."""
        try:
            head, readable = parse_head(await self._table.get(head_key(lane))), True
        except UnreadableHeadError:
            head, readable = Head(), False
        outgoing = outgoing_results(head).get(invocation)
        if outgoing is not None:
            return outgoing
        item = await self._table.get(result_key(invocation))
        result = stored_result(item)
        if result is not None:
            return result
        if head.run is not None and head.run.event.id == invocation:
            return Pending()
        worker = self._lanes.find(lane)
        if worker is not None and worker.call_in_queue(invocation) is not None:
            return Pending()
        if item is not None:
            # Its message waits for its time.
            return Pending()
        waits = await self._table.get(inbox_key(lane, Event(invocation, "", CallSource())))
        if waits is None:
            return Unknown() if readable else Pending()
        return Pending() if "ev" in waits else None
