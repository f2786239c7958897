"""The lanes that one invocation of the dispatcher waits for, as the only one to do so.

Owns when the item of a lane's continuation is written, and what counts as being refused. Does not own the writes
(`tenuto.lane.continuations`), nor what an invocation waits for (`loops.serverless`).

A lane that comes to rest by itself needs none of it, and costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from tenuto.lane.continuations import continuation_begin, continuation_pass, names
from tenuto.lane.writes import Applied, Update
from tenuto.store.port import TableUnavailableError
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.ports import Clock

log = logging.getLogger("tenuto.serverless")

PATIENCE_MS = 500
"""How long the table may take to say who looks after a lane; then nobody does until the sweep comes by."""

ON_THE_WAY_MS = 60_000
"""How long a lane that is handed over belongs to the invocation that is on its way; then another process may begin."""


class Continuations:
    """One invocation's. Lanes are named by their partition keys; at `until_ms` the invocation is certainly over."""

    def __init__(self, writer: Writer, clock: Clock, token: Callable[[], str], until_ms: int) -> None:
        self._writer = writer
        self._clock = clock
        self._token = token
        self._until_ms = until_ms
        self._owned: dict[str, str] = {}

    @property
    def owned(self) -> Collection[str]:
        """The lanes that this invocation looks after."""
        return self._owned.keys()

    async def has(self, pk: str) -> bool:
        """Whether this invocation may wait for a lane: it does already, or no other process does and it begins to."""
        if pk in self._owned:
            return True
        mine = self._token()
        return await self._write(pk, mine, continuation_begin(pk, mine, self._until_ms, self._clock.now_ms()))

    async def follow(self, pk: str, owner: str) -> bool:
        """Take a lane over that was handed over under a name. False when another process has done so, or begun."""
        mine = self._token()
        return await self._write(pk, mine, continuation_pass(pk, owner, mine, self._until_ms))

    async def hand_on(self, pk: str, begins_ms: int = 0) -> str | None:
        """The name under which a lane is handed over; None when another process looks after it.

        Whoever is given it begins at once, or at `begins_ms`.
        """
        if not await self.has(pk):
            return None
        successor = self._token()
        until_ms = max(begins_ms, self._clock.now_ms()) + ON_THE_WAY_MS
        handed = await self._write(pk, successor, continuation_pass(pk, self._owned[pk], successor, until_ms))
        self._owned.pop(pk, None)
        return successor if handed else None

    async def end(self, pk: str) -> None:
        """Look after a lane no more."""
        mine = self._owned.pop(pk)
        await self._write(pk, mine, continuation_pass(pk, mine, mine, 0))
        self._owned.pop(pk, None)

    async def _write(self, pk: str, owner: str, write: Update) -> bool:
        try:
            answer = (await self._writer.write(write, patience_ms=PATIENCE_MS)).answer
        except TableUnavailableError:
            return False
        # A refusal of what was applied before, with its response lost, finds the name that it has put.
        mine = isinstance(answer, Applied) or names(answer.item, owner)
        if mine:
            self._owned[pk] = owner
        return mine
