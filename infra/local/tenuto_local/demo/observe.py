"""What the lanes are doing, read from their heads.

Owns the scan of the table and its translation into what a person wants to know. Writes nothing; takes DynamoDB's own
address, so that looking is not counted as work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tenuto.lane.head import HEAD_SK, head_key, parse_head
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import KafkaSource, RunSlot, unpack_slot
from tenuto.store.expressions import render_get, unmarshal_item

PAGES_MAX = 50
Doing: TypeAlias = Literal["running", "sleeping", "waiting", "retrying", "queued"]
Position: TypeAlias = tuple[str, int]
"""A source (see `source_of_partition`) and an offset in it."""


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane that has something to do. `wake_ms` is when it continues by itself; `queue` counts later events."""

    lane: Lane
    doing: Doing
    steps: tuple[str, ...]
    attempt: int
    wake_ms: int | None
    queue: int


class Observer:
    """Reads the heads of a table. `sent` tells for each lane the positions of the records sent to it so far."""

    def __init__(self, client: Any, table: str, sent: Mapping[Lane, Sequence[Position]]) -> None:
        self._client = client
        self._table = table
        self._sent = sent

    async def head(self, lane: Lane) -> Head:
        """One lane's head."""
        answer = await self._client.get_item(**render_get(self._table, head_key(lane)))
        return parse_head(unmarshal_item(answer["Item"]) if "Item" in answer else None)

    async def heads(self) -> dict[Lane, Head]:
        """Every lane's head."""
        arguments: dict[str, Any] = {
            "TableName": self._table,
            "FilterExpression": "sk = :head",
            "ExpressionAttributeValues": {":head": {"S": HEAD_SK}},
            "ConsistentRead": True,
        }
        heads: dict[Lane, Head] = {}
        for _ in range(PAGES_MAX):
            page = await self._client.scan(**arguments)
            for attributes in page["Items"]:
                item = unmarshal_item(attributes)
                heads[Lane.from_pk(str(item["pk"]))] = parse_head(item)
            if "LastEvaluatedKey" not in page:
                break
            arguments["ExclusiveStartKey"] = page["LastEvaluatedKey"]
        return heads

    def views(self, heads: Mapping[Lane, Head]) -> list[LaneView]:
        """The lanes that are not idle."""
        now_ms = time.time_ns() // 1_000_000
        lanes = dict.fromkeys([*self._sent, *heads])
        views = (_view(lane, heads.get(lane) or Head(), self._sent.get(lane, ()), now_ms) for lane in lanes)
        return [view for view in views if view is not None]


def steps_of(head: Head) -> tuple[str, ...]:
    """The names of the active invocation's finished steps, in order. Steps rolled into segments are left out."""
    finished = sorted(head.slots.items(), key=lambda slot: int("".join(filter(str.isdigit, slot[0])) or "0"))
    slots = [unpack_slot(data) for _, data in finished]
    return tuple(slot.name for slot in slots if isinstance(slot, RunSlot))


def _view(lane: Lane, head: Head, sent: Sequence[Position], now_ms: int) -> LaneView | None:
    run = head.run
    own = run.event.source if run is not None else None
    running = (own.watermark, own.offset) if isinstance(own, KafkaSource) else None
    waiting = [
        (source, offset)
        for source, offset in sent
        if offset >= head.watermarks.get(source, 0) and (source, offset) != running
    ]
    if run is None:
        return LaneView(lane, "queued", (), 1, None, len(waiting)) if waiting else None
    doing: Doing = "running"
    if run.awaits is not None:
        doing = "sleeping" if not _awaits_answer(run.awaits) else "waiting"
        if run.wake_ms is not None and run.wake_ms <= now_ms:
            doing = "running"
    elif run.wake_ms is not None and run.wake_ms > now_ms:
        doing = "sleeping"
    elif run.failures:
        doing = "retrying"
    return LaneView(lane, doing, steps_of(head), run.attempt, run.wake_ms, len(waiting))


def _awaits_answer(awaits: Sequence[str]) -> bool:
    return any(slot.endswith("a") for slot in awaits)
