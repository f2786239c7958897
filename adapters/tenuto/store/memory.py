"""The in-memory table: the reference that the DynamoDB driver is held against, and the ground of the simulation.

Owns items in a dict. Does not own durability.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Put, Update, Write, apply, check_unconditional
from tenuto.store.port import Page, UnstorableError
from tenuto.store.sizes import item_bytes

ITEM_BYTES_MAX = 409_600
"""DynamoDB's item limit (400 KB)."""


PARTITION_KEY_BYTES_MAX = 2_048
SORT_KEY_BYTES_MAX = 1_024
"""DynamoDB's limits for keys (Amazon DynamoDB developer guide, quotas)."""

BATCH_WRITES_MAX = 25
BATCH_READS_MAX = 100
"""Items of one BatchWriteItem, and of one BatchGetItem (the same)."""


class MemoryTable:
    """A `Table` in a dict. Requests are counted by kind in `requests`."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.requests: dict[str, int] = {}

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        self._count(type(write).__name__.lower())
        answer = self.apply(write)
        quiet = isinstance(write, Update) and write.quiet and isinstance(answer, Applied)
        return Applied(None) if quiet else answer

    def apply(self, write: Write) -> Answer:
        """Apply without counting."""
        at = (write.key.pk, write.key.sk)
        for name, value, limit in (("partition", at[0], PARTITION_KEY_BYTES_MAX), ("sort", at[1], SORT_KEY_BYTES_MAX)):
            if not 0 < len(value.encode()) <= limit:
                raise UnstorableError(f"a {name} key of {len(value.encode())} bytes; DynamoDB takes 1 to {limit}")
        answer = apply(write, self.items.get(at))
        if isinstance(answer, Applied):
            if answer.item is None:
                self.items.pop(at, None)
            else:
                size = item_bytes(answer.item)
                if size > ITEM_BYTES_MAX:
                    raise UnstorableError(f"item {at} of {size} bytes exceeds DynamoDB's {ITEM_BYTES_MAX}")
                self.items[at] = answer.item
        return answer

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        self._count("get")
        return self.items.get((key.pk, key.sk))

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        for _ in range(0, len(keys), BATCH_READS_MAX):
            self._count("batch_get")
        return [self.items.get((key.pk, key.sk)) for key in keys]

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        self._count("query")
        names = sorted(sk for (p, sk) in self.items if p == pk and low <= sk <= high and (after is None or sk > after))
        items = [self.items[pk, sk] for sk in names[:limit]]
        return Page(items, names[limit - 1] if len(names) > limit else None)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        check_unconditional(puts)
        for start in range(0, len(puts), BATCH_WRITES_MAX):
            self._count("batch_put")
            for put in puts[start : start + BATCH_WRITES_MAX]:
                self.apply(put)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        for start in range(0, len(deletes), BATCH_WRITES_MAX):
            self._count("batch_delete")
            for delete in deletes[start : start + BATCH_WRITES_MAX]:
                self.apply(delete)

    def _count(self, kind: str) -> None:
        self.requests[kind] = self.requests.get(kind, 0) + 1
