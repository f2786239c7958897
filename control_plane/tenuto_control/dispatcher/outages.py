"""A table that does not answer: said once for the whole process, and once when it is over.

Owns these lines, their wording and their pace, and counts refused requests. Does not own repeating a request
(`writer`), nor what a lane, the sweep or a caller does meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from tenuto.lane.writes import Answer, Delete, Item, Key, Put, Write
from tenuto.store.port import Page, Table, TableRefusedError, TableUnavailableError
from tenuto_control.core.metrics import Metrics
from tenuto_control.pace import Pace

T = TypeVar("T")
log = logging.getLogger("tenuto.table")

FIRST_LINE_S: Final = 2.0
"""How long nothing may be heard of the table before that is said."""

LINE_PAUSE_S_MAX: Final = 300.0
"""The pause to the next line doubles up to this."""

PARTIAL_PAUSE_S: Final = 10.0
"""The first pause between lines about requests that wait while others are answered."""

REQUESTS_PER_TURN: Final = 8
"""How many requests to the table begin in one turn of the event loop: each takes the client about a millisecond."""

STALE_S: Final = 60.0
"""A failure so long ago says nothing of now: nobody has asked since."""


class Outages:
    """What this process hears of its table.

    An outage begins with the first sign of trouble after the last answer, and ends with the next answer, whoever gets
    it: requests that only one partition refuses, because it is throttled, are no outage. It is noticed by a timer while
    somebody asks, because a request to a table that is silent takes longer to fail than two seconds.
    """

    def __init__(self) -> None:
        self._asking = 0
        self._since_s: float | None = None
        self._failed_s = 0.0
        self._owes = False
        self._error = "no answer yet"
        self._lines = 0
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._partial_next_s = 0.0
        self._partial_pause_s = PARTIAL_PAUSE_S

    def asking(self) -> Asking:
        """Somebody waits for the table, by one request or by as many as it takes, until the end of the block."""
        return Asking(self)

    def begin_asking(self) -> None:
        """One more waits for the table."""
        self._asking += 1
        if self._asking == 1:
            loop = asyncio.get_running_loop()
            now_s = loop.time()
            if self._since_s is None or (self._lines == 0 and now_s - self._failed_s > STALE_S):
                self._begin(now_s)
            self._arm(loop, max(now_s + FIRST_LINE_S if self._lines == 0 else now_s, self._next_s))

    def end_asking(self) -> None:
        """One of them waits no more."""
        self._asking -= 1
        if self._asking == 0:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._owes and not self._lines:
                self._since_s = None

    def answered(self) -> None:
        """The table gave an answer, a refusal included."""
        self._owes = False
        if self._since_s is None:
            return
        now_s = asyncio.get_running_loop().time()
        if self._lines:
            log.info("the table answers again, after %.1f s", now_s - self._since_s)
        self._lines = 0
        # Others may be waiting still; the last of them to leave ends the watch.
        self._begin(now_s)

    def failed(self, error: TableUnavailableError) -> None:
        """A request was not answered."""
        now_s = asyncio.get_running_loop().time()
        self._failed_s, self._owes = now_s, True
        self._error = str(error)
        if self._since_s is None:
            self._begin(now_s)
        self._say(now_s)

    def kept_waiting(self, waited_s: float, error: TableUnavailableError) -> None:
        """One request has been repeated for so long.

        Said only while others are answered, since a partition that is throttled is no outage; and for all such requests
        together, at growing pauses, because there may be one for each key.
        """
        now_s = asyncio.get_running_loop().time()
        if waited_s < FIRST_LINE_S or self._lines or now_s < self._partial_next_s:
            return
        log.warning("the table answers other requests, but one has waited for %.0f s: %s", waited_s, error)
        calm = now_s - self._partial_next_s > LINE_PAUSE_S_MAX
        self._partial_pause_s = PARTIAL_PAUSE_S if calm else min(2 * self._partial_pause_s, LINE_PAUSE_S_MAX)
        self._partial_next_s = now_s + self._partial_pause_s

    def _begin(self, now_s: float) -> None:
        self._since_s = now_s
        self._next_s = now_s + FIRST_LINE_S
        self._error = "no answer yet"

    def _say(self, now_s: float) -> None:
        """A line, when it is time for one."""
        if self._since_s is None or now_s < self._next_s:
            return
        log.warning("the table has not answered for %.0f s; still trying: %s", now_s - self._since_s, self._error)
        self._lines += 1
        self._next_s = now_s + min(FIRST_LINE_S * 2**self._lines, LINE_PAUSE_S_MAX)

    def _arm(self, loop: asyncio.AbstractEventLoop, at_s: float) -> None:
        if self._timer is None:
            self._timer = loop.call_at(at_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Somebody has been asking for a while."""
        self._timer = None
        now_s = loop.time()
        self._say(now_s)
        if self._asking:
            self._arm(loop, max(self._next_s, now_s + FIRST_LINE_S / 10))


class Asking:
    """Somebody who waits for the table, for as long as the block lasts."""

    __slots__ = ("_outages",)

    def __init__(self, outages: Outages) -> None:
        self._outages = outages

    def __enter__(self) -> None:
        """The wait begins."""
        self._outages.begin_asking()

    def __exit__(self, *_: object) -> None:
        """It is over."""
        self._outages.end_asking()


def watched(table: Table, metrics: Metrics) -> WatchedTable:
    """A table with somebody who hears of its outages: its own, if there is one already."""
    return table if isinstance(table, WatchedTable) else WatchedTable(table, Outages(), metrics)


class WatchedTable:
    """A table whose silence and refusals are noticed (the Table port)."""

    def __init__(self, table: Table, outages: Outages, metrics: Metrics) -> None:
        self._table = table
        self._metrics = metrics
        self._pace = Pace(REQUESTS_PER_TURN)
        self.outages = outages

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        return await self._watched(lambda: self._table.write(write))

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        return await self._watched(lambda: self._table.get(key))

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        return await self._watched(lambda: self._table.get_all(keys))

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        return await self._watched(lambda: self._table.query(pk, low, high, limit=limit, after=after))

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        await self._watched(lambda: self._table.put_all(puts))

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        await self._watched(lambda: self._table.delete_all(deletes))

    async def _watched(self, ask: Callable[[], Awaitable[T]]) -> T:
        with self.outages.asking():
            await self._pace.turn()
            try:
                answer = await ask()
            except TableUnavailableError as e:
                self.outages.failed(e)
                raise
            except TableRefusedError:
                self.outages.answered()
                self._metrics.count("WritesRefused")
                raise
            self.outages.answered()
            return answer
