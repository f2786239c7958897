"""The port: what any table of lanes can do.

Owns the protocol class and the errors a table raises. Does not own an implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tenuto.lane.writes import Answer, Delete, Item, Key, Put, Write


class TableUnavailableError(Exception):
    """The table did not answer (network, throttling, server error): whether the write took place is unknown."""


class TableRefusedError(Exception):
    """The table will never accept this request (item too large, no such table, no permission)."""


class UnstorableError(TableRefusedError):
    """The table will never accept what this write holds: an item, a key or an expression is too large."""


class UnopenedError(TableRefusedError):
    """A value does not open under its data key: the fault is its item's alone. A query shows it as Foreign."""


@dataclass(frozen=True, slots=True)
class Page:
    """Items of a query, in order of their sort key; `last` is where to continue, None at the end."""

    items: list[Item]
    last: str | None = None


class Table(Protocol):
    """One DynamoDB-shaped table: single-item conditional writes, strongly consistent reads.

    Every method raises TableUnavailableError when the outcome is unknown and TableRefusedError when trying again cannot
    help.
    """

    async def write(self, write: Write) -> Answer:
        """Apply one conditional write.

        The answer carries the item as it is after (applied) or instead (refused); none after a quiet update.
        """
        ...

    async def get(self, key: Key) -> Item | None:
        """One strongly consistent read."""
        ...

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """Strongly consistent reads in as few requests as possible (100 a request on DynamoDB), in the same order.

        They are not one read: other writes may come in between. As in a page, what does not open is Foreign.
        """
        ...

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """Items of a partition with low <= sk <= high in order, strongly consistent, at most `limit` in a page."""
        ...

    async def put_all(self, puts: Sequence[Put]) -> None:
        """Put items without conditions in as few requests as possible (25 a request on DynamoDB).

        Raises ValueError for a put with a condition. When it raises anything else, any of the items may be there.
        """
        ...

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """Delete items in as few requests as possible (25 a request on DynamoDB)."""
        ...
