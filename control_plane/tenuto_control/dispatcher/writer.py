"""The dispatcher's conditional writes: repeated after lost responses, recognised by their `tok`.

Owns patience with a table that does not answer. Does not own what is written, nor the lines about a table that is away
(`outages`).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tenuto.lane.head import parse_head
from tenuto.lane.writes import Answer, Applied, Item, Key, Put, Refused, Write
from tenuto.protocol.messages import Head
from tenuto.store.port import TableUnavailableError, UnopenedError
from tenuto_control.core.metrics import Metrics
from tenuto_control.dispatcher.outages import WatchedTable
from tenuto_control.limits import Limits
from tenuto_control.tasks import all_of

T = TypeVar("T")

REQUESTS_AT_ONCE = 16
"""Requests of one lane in progress at the same time: enough to hide their latency, too few to crowd others out."""


@dataclass(frozen=True, slots=True)
class Written:
    """A write's answer; `lost` says that an earlier response was, so that a refusal may be our own write's doing."""

    answer: Answer
    lost: bool = False

    def left(self, head: Head) -> Head:
        """The head that a write from this head has left, or has met.

        Raises ValueError when it was refused though nothing has changed: tried again at once it would be refused again.
        """
        left = parse_head(self.answer.item)
        if isinstance(self.answer, Refused) and left == head:
            raise ValueError(f"a write is refused by a head that has not changed: ver {head.ver}")
        return left


class Writer:
    """Applies writes until the table answers. A lane waits meanwhile: its events stay in Kafka."""

    def __init__(self, table: WatchedTable, limits: Limits, metrics: Metrics) -> None:
        self.table = table
        self._limits = limits
        self._metrics = metrics

    async def write(self, write: Write, tok: str | None = None, patience_ms: int | None = None) -> Written:
        """Apply a write. With `tok`, a refusal by our own earlier write counts as applied.

        With `patience_ms`, raises TableUnavailableError when the table has not answered by then.
        """
        lost = 0

        async def once() -> Answer:
            nonlocal lost
            self._metrics.count("Writes")
            try:
                return await self.table.write(write)
            except TableUnavailableError:
                lost += 1
                raise

        answer = await self.patiently(once, patience_ms)
        if lost and tok is not None and isinstance(answer, Refused) and answer.item and answer.item.get("tok") == tok:
            return Written(Applied(answer.item), lost=True)
        return Written(answer, lost=lost > 0)

    async def write_all(self, writes: Sequence[Write]) -> list[Written]:
        """Apply writes that do not depend on each other, several at a time. Their answers, in the same order."""
        return await at_once([functools.partial(self.write, write) for write in writes])

    async def put_all(self, puts: Sequence[Put]) -> None:
        """Put items that need no condition, in as few requests as possible."""
        if len(puts) == 1:
            await self.write(puts[0])
        elif puts:
            self._metrics.count("Writes", len(puts))
            await self.patiently(functools.partial(self.table.put_all, puts))

    async def read_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """Read items, in the same order and in as few requests as possible."""
        if len(keys) == 1:
            return [await self.patiently(functools.partial(self.table.get, keys[0]))]
        return await self.patiently(functools.partial(self.table.get_all, keys)) if keys else []

    async def read_apart(self, key: Key) -> Item | None:
        """Read an item. Values of it that do not open under their data keys are in it as they are, as Foreign."""
        try:
            return await self.patiently(functools.partial(self.table.get, key))
        except UnopenedError:
            page = await self.patiently(functools.partial(self.table.query, key.pk, key.sk, key.sk))
            return page.items[0] if page.items else None

    async def patiently(self, ask: Callable[[], Awaitable[T]], patience_ms: int | None = None) -> T:
        """Repeat until the table answers, with growing pauses. Raises TableRefusedError at once."""
        pause_ms = self._limits.table_retry_initial_ms
        loop = asyncio.get_running_loop()
        begun = loop.time()
        until = None if patience_ms is None else begun + patience_ms / 1000
        outages = self.table.outages
        with outages.asking():
            while True:
                try:
                    return await ask()
                except TableUnavailableError as e:
                    if until is not None and loop.time() >= until:
                        raise
                    outages.kept_waiting(loop.time() - begun, e)
                    await asyncio.sleep(pause_ms / 1000)
                    pause_ms = min(pause_ms * 2, self._limits.table_retry_max_ms)


async def at_once(requests: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """Make requests, so many at a time; their answers in the same order. Raises the first error of those under way."""
    answers: list[T] = []
    for begin in range(0, len(requests), REQUESTS_AT_ONCE):
        answers += await all_of((request() for request in requests[begin : begin + REQUESTS_AT_ONCE]), "request")
    return answers
