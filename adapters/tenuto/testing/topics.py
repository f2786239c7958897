"""The topics of an environment: what handlers have published, and dead letters.

Owns records by topic (`tenuto_control.ports.RecordSink`). Does not own what happens with a record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from tenuto.protocol.topics import topic_problem
from tenuto.testing.views import Record
from tenuto_control.ports import RecordRefusedError


class Topics:
    """Every topic there could be. What is produced to one of `subscribed` is taken as a record that arrives."""

    def __init__(self, take: Callable[..., Awaitable[Any]], subscribed: Collection[str]) -> None:
        self.published: dict[str, list[Record]] = {}
        self._take = take
        self._subscribed = subscribed
        self._offsets: dict[str, int] = {}

    def next_offset(self, topic: str) -> int:
        """The offset of the next record of a topic, which counts as taken."""
        self._offsets[topic] = self._offsets.get(topic, -1) + 1
        return self._offsets[topic]

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """See `RecordSink.produce`. A topic begins with its first record."""
        problem = topic_problem(topic)
        if problem is not None:
            raise RecordRefusedError(problem)
        self.published.setdefault(topic, []).append(Record(topic, key, value, tuple(headers)))
        if topic in self._subscribed:
            await self._take(topic, key, value, tuple(headers))
