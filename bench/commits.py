"""When events were committed, observed from outside while the workload runs.

A handler cannot know when its effects are committed, so two things are looked at, at short intervals and little cost:

- The heads of a few *sampled* keys. A head says exactly up to which offset its lane's events are done, so their
  events give the latencies. An event counts as committed when a read first shows it so: late by up to one interval,
  never early.
- The consumer group's committed offsets, which pass an event only when it and all before it are done. They tell when
  the first events were done and when all of them were, late by up to the commit interval (200 ms) at both ends.

Owns the looking and what follows from it. Does not own the load.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient

from bench.figures import Latency, latency
from tenuto.lane.head import HEAD_SK, WATERMARK, parse_head
from tenuto.protocol.ids import Lane, source_of_partition
from tenuto.protocol.messages import Head
from tenuto.store.expressions import unmarshal_item
from tenuto_control.core.routing import source_epoch
from tenuto_control.drivers.topic_ids import topic_ids

SAMPLED_KEYS: Final = 20
"""Reading one head costs DynamoDB Local 0.1 to 0.2 ms: so many, ten times a second, take some 3 % of one core."""

INTERVAL_MS: Final = 100
FEW_KEYS: Final = 5
FEW_INTERVAL_MS: Final = 20
"""Reading a handful of heads is cheap, so it happens more often."""

KEYS_MAX: Final = 100
"""Keys in one BatchGetItem (DynamoDB's limit)."""

STALLED_S: Final = 60.0
"""Without any progress for so long, a run has failed."""

GROUP: Final = "tenuto"
EPOCH: Final = "0"
"""The control plane's defaults."""


class StalledError(Exception):
    """No event was committed for a minute; the message says how many are missing."""


@dataclass(frozen=True, slots=True)
class Published:
    """Where an event is in the log, and when it was produced (ms since the epoch)."""

    key: str
    partition: int
    offset: int
    produced_ms: float


@dataclass(frozen=True, slots=True)
class Observed:
    """First and last completion (seconds, monotonic clock), and the latency of the sampled keys' events."""

    first_s: float
    last_s: float
    latency: Latency


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The watermark of a key as one read showed it. Its two clocks: wall in ms, monotonic in s."""

    wall_ms: float
    at_s: float
    key: str
    watermark: int


class CommitWatch:
    """Watches one topic's events of `keys`, from when it is made. A key's events are in one partition."""

    def __init__(
        self,
        dynamodb: Any,
        admin: Any,
        table: str,
        service: str,
        topic: str,
        topic_id: str,
        partitions: int,
        keys: Sequence[str],
    ) -> None:
        self._dynamodb = dynamodb
        self._admin = admin
        self._table = table
        self._sampled = {Lane(service, key).pk: key for key in keys[:: -(-len(keys) // SAMPLED_KEYS)]}
        self._all_sampled = len(self._sampled) == len(keys)
        self._topic = topic
        epoch = source_epoch(EPOCH, topic_id)
        self._sources = {f"#w{p}": WATERMARK + source_of_partition(epoch, topic, p) for p in range(partitions)}
        self._interval_ms = FEW_INTERVAL_MS if len(self._sampled) <= FEW_KEYS else INTERVAL_MS
        self._sightings: list[_Sighting] = []
        self._reached: dict[str, int] = {}
        self._begin: dict[int, int] | None = None
        self._committed: dict[int, int] = {}
        self._first_s: float | None = None
        self._done_s: float | None = None
        self._end: dict[int, int] | None = None
        self._last: dict[str, int] = {}

    async def watch(self) -> None:
        """Look until everything that was published is committed. Raises StalledError."""
        moved_s = time.monotonic()
        while self._done_s is None:
            started_s = time.monotonic()
            moved = await self._read_offsets()
            moved = await self._read_sampled() or moved
            now_s = time.monotonic()
            if moved or self._end is None:
                moved_s = now_s
            elif now_s - moved_s > STALLED_S:
                raise StalledError(f"nothing was committed for {STALLED_S:.0f} s: {self.progress()}")
            await asyncio.sleep(max(0.0, started_s + self._interval_ms / 1000 - now_s))

    def expect(self, published: Sequence[Published]) -> None:
        """Everything is published: from now on it is known what the end is."""
        self._end = {}
        for event in published:
            self._end[event.partition] = max(self._end.get(event.partition, 0), event.offset + 1)
            self._last[event.key] = max(self._last.get(event.key, -1), event.offset)

    def progress(self) -> str:
        """How far it is, in a few words."""
        end = self._end or {}
        left = sum(max(0, offset - self._committed.get(p, 0)) for p, offset in end.items())
        return f"{left:,} events above the committed offsets"

    def observed(self, published: Sequence[Published]) -> Observed:
        """What was seen, once `watch` has returned."""
        committed: list[float] = []
        waiting: dict[str, deque[Published]] = {key: deque() for key in self._sampled.values()}
        for event in published:
            if event.key in waiting:
                waiting[event.key].append(event)
        for sighting in self._sightings:
            events = waiting[sighting.key]
            while events and events[0].offset < sighting.watermark:
                committed.append(sighting.wall_ms - events.popleft().produced_ms)
        assert self._first_s is not None, "what is done has begun"
        assert self._done_s is not None, "what is done has ended"
        first_s = min(self._first_s, *(sighting.at_s for sighting in self._sightings))
        # Where every head is read, the heads know the end sooner than the committed offsets do.
        last_s = max(sighting.at_s for sighting in self._sightings) if self._all_sampled else self._done_s
        # What begins and ends between two looks took no longer than the time between them.
        last_s = max(last_s, first_s + self._interval_ms / 1000)
        return Observed(first_s, last_s, latency(committed, self._interval_ms))

    async def _read_offsets(self) -> bool:
        offsets = await self._admin.list_consumer_group_offsets(GROUP)
        at_s = time.monotonic()
        seen = {tp.partition: max(0, at.offset) for tp, at in offsets.items() if tp.topic == self._topic}
        if self._begin is None:
            self._begin = seen
        moved = seen != self._committed
        self._committed = seen
        if self._first_s is None and seen != self._begin:
            self._first_s = at_s
        if self._end is not None and all(seen.get(p, 0) >= offset for p, offset in self._end.items()):
            # A run of one poll's length was never seen beginning.
            self._first_s = self._first_s or at_s
            if not self._open():
                self._done_s = at_s
        return moved

    async def _read_sampled(self) -> bool:
        pks = self._open()
        if not pks:
            return False
        names = {"#pk": "pk", **self._sources}
        wanted = {
            "Keys": [{"pk": {"S": pk}, "sk": {"S": HEAD_SK}} for pk in pks],
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
            # What is measured is when the write took place, not when a replica learned of it.
            "ConsistentRead": True,
        }
        response = await self._dynamodb.batch_get_item(RequestItems={self._table: wanted})
        wall_ms, at_s = time.time() * 1000, time.monotonic()
        before = len(self._sightings)
        for item in response["Responses"].get(self._table, []):
            watermark = max((int(value["N"]) for name, value in item.items() if name != "pk"), default=0)
            key = self._sampled[item["pk"]["S"]]
            if watermark > self._reached.get(key, 0):
                self._reached[key] = watermark
                self._sightings.append(_Sighting(wall_ms, at_s, key, watermark))
        return len(self._sightings) > before

    def _open(self) -> list[str]:
        """Sampled lanes that have not reached their last event, as far as that is known."""
        if self._end is None:
            return list(self._sampled)
        return [pk for pk, key in self._sampled.items() if self._reached.get(key, 0) <= self._last.get(key, -1)]


@asynccontextmanager
async def group_admin(bootstrap_servers: str) -> AsyncIterator[Any]:
    """A client that reads committed offsets."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def topic_id(admin: Any, topic: str) -> str:
    """The id by which the control plane tells this topic from others of its name."""
    ids = await topic_ids(admin._client, [topic])  # noqa: SLF001 - aiokafka's admin client cannot ask for it
    return ids[topic]


async def read_heads(dynamodb: Any, table: str, service: str, keys: Sequence[str]) -> dict[str, Head]:
    """The whole heads of lanes, by key."""
    heads: dict[str, Head] = {}
    for start in range(0, len(keys), KEYS_MAX):
        wanted = [{"pk": {"S": Lane(service, key).pk}, "sk": {"S": HEAD_SK}} for key in keys[start : start + KEYS_MAX]]
        response = await dynamodb.batch_get_item(RequestItems={table: {"Keys": wanted, "ConsistentRead": True}})
        for attributes in response["Responses"].get(table, []):
            item = unmarshal_item(attributes)
            heads[Lane.from_pk(str(item["pk"])).key] = parse_head(item)
    return heads
