"""Which partitions of a consumer group are this member's, where each begins, and which life of its topic it is of.

Owns the bridge from aiokafka's rebalances to the AssignmentListener, starting positions, and noticing that a topic was
deleted and created again: its new life is revoked, assigned and read from its oldest record, whatever the group had
committed. Does not own records nor what is committed (`kafka`).

Offsets of a recreated topic count from zero again, so two things must not happen: reading on at a position of the old
life, which skips records, and handing out records of the new life under the old one's id, which lanes would take for
finished ones. Where only one of them can be had, records are handed out twice rather than not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiokafka
from aiokafka.errors import KafkaError

from tenuto_control.core.routing import Start
from tenuto_control.drivers.topic_ids import topic_ids
from tenuto_control.ports import AssignmentListener, TopicPartition

TOPIC_MARK = "tenuto-topic="
"""In the metadata of a committed offset, before the id of the topic whose offset it is."""

_log = logging.getLogger("tenuto_control.kafka")
# Timeouts are among the operating system's errors.
_ERRORS = (KafkaError, OSError)


class GroupConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc] # the base class carries no types
    """A consumer that also tells topic ids, and what was committed along with an offset."""

    @property
    def broken(self) -> bool:
        """Whether the client's membership in its group has ended by itself, which only a fault of the client does."""
        task: asyncio.Task[None] | None = getattr(self._coordinator, "_coordination_task", None)
        return task is not None and task.done()

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """See `topic_ids.topic_ids`."""
        return await topic_ids(self._client, topics)

    async def commits(self, partitions: Iterable[Any]) -> Mapping[Any, Any]:
        """Offset and metadata last committed; the offset is negative for none."""
        found: Mapping[Any, Any] = await self._coordinator.fetch_committed_offsets(list(partitions))
        return found


class Membership(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc] # the base class carries no types
    """This member's partitions.

    A new one stays paused until its topic's id and its position are known; then the listener hears of it.
    """

    def __init__(
        self, consumer: GroupConsumer, listener: AssignmentListener, starts: Mapping[str, Start], timeout_s: float
    ) -> None:
        self._consumer = consumer
        self._listener = listener
        self._starts = starts
        self._timeout_s = timeout_s
        # Rebalances come from aiokafka and recreated topics from `check`: one of them at a time.
        self._changing = asyncio.Lock()
        self._waiting: set[Any] = set()
        # Of each partition that the listener has, the offset below which nothing new can come from this life.
        self._next: dict[Any, int] = {}
        self._ids: dict[str, str] = {}
        self._recreated: set[str] = set()
        self._former_ids: set[str] = set()
        self._rebalances = 0

    @property
    def waits(self) -> bool:
        """Whether a partition could not be handed to the listener yet, so that `check` should come soon."""
        return bool(self._waiting)

    def topic_id(self, topic: str) -> str:
        """The id of the life whose records are read."""
        return self._ids.get(topic, "")

    def owned(self, partitions: Iterable[TopicPartition]) -> list[Any]:
        """Those that the listener has, as the client names them."""
        return [tp for tp in map(of_client, partitions) if tp in self._next]

    def lag(self) -> int:
        """Records that have not been read yet, by the ends that came along with the last ones."""
        assigned = self._consumer.assignment()
        ends = {tp: self._consumer.highwater(tp) or 0 for tp in self._next if tp in assigned}
        return sum(max(0, end - self._next[tp]) for tp, end in ends.items())

    async def admit(self, batches: Mapping[Any, Sequence[Any]]) -> list[Any]:
        """The records that may be handed out now, of those that were just read. Raises KafkaError and OSError.

        Offsets that fall back come from a log that was truncated, or from the topic's next life.
        """
        fallen = {tp: records[0].offset for tp, records in batches.items() if self._falls_back(tp, records[0].offset)}
        if fallen:
            lives, rebalances = dict(self._ids), self._rebalances
            try:
                await self.check()
            except BaseException:
                # Which life they are of is not known: they are read, and asked about, once more.
                self._rewind(fallen)
                raise
            if rebalances != self._rebalances:
                return []
            # What began anew is read again from where it begins.
            batches = {
                tp: records
                for tp, records in batches.items()
                if tp in self._next and self.topic_id(tp.topic) == lives[tp.topic]
            }
        self._next.update((tp, records[-1].offset + 1) for tp, records in batches.items())
        return [record for records in batches.values() for record in records]

    async def check(self) -> None:
        """Ask for topic ids again: hand over what waits, and begin anew with topics that were recreated.

        Raises KafkaError and OSError.
        """
        async with self._changing:
            ids = await self._ask({tp.topic for tp in (*self._next, *self._waiting)})
            anew = sorted(tp for tp in self._next if self._is_recreated(tp.topic, ids))
            if anew:
                for topic in sorted({tp.topic for tp in anew}):
                    _log.warning('topic "%s" was deleted and created again; reading it from its beginning', topic)
                self._pause(anew)
                await self._listener.revoked(_ours(anew))
                for tp in anew:
                    # A rebalance in the meantime waits for this one; nobody else removes partitions.
                    del self._next[tp]
                self._waiting.update(anew)
            if self._waiting:
                await self._hand_over(ids)

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """The group takes these partitions back."""
        async with self._changing:
            self._rebalances += 1
            self._waiting.difference_update(revoked)
            held = sorted(tp for tp in revoked if tp in self._next)
            if held:
                await self._listener.revoked(_ours(held))
                for tp in held:
                    del self._next[tp]

    async def let_go(self) -> None:
        """Give back everything: this member is over."""
        await self.on_partitions_revoked(set(self._next) | self._waiting)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """The group gives these partitions to this member."""
        partitions = sorted(assigned)
        if not partitions:
            return
        self._consumer.pause(*partitions)
        async with self._changing:
            self._waiting.update(partitions)
            try:
                await self._hand_over(await self._ask({tp.topic for tp in partitions}))
            except _ERRORS as e:
                _log.warning("which topics and offsets to begin with is not known yet (%s); asking again", e)

    async def _ask(self, topics: Iterable[str]) -> dict[str, str]:
        """Ids of the topics that exist, as far as they are news: a broker may lag behind what another one told."""
        async with asyncio.timeout(self._timeout_s):
            told = await self._consumer.topic_ids(topics)
        return {topic: one or self.topic_id(topic) for topic, one in told.items() if one not in self._former_ids}

    async def _hand_over(self, ids: Mapping[str, str]) -> None:
        """Give the listener those waiting partitions whose topics exist, each at its position."""
        assigned = self._consumer.assignment()
        self._waiting &= assigned
        ready = sorted(tp for tp in self._waiting if tp.topic in ids)
        if not ready:
            return
        recreated = {tp.topic for tp in ready if self._is_recreated(tp.topic, ids)}
        self._recreated.update(recreated)
        async with asyncio.timeout(self._timeout_s):
            positions = await self._positions(ready, ids)
        self._former_ids.update(self._ids[topic] for topic in recreated)
        self._ids.update((tp.topic, ids[tp.topic]) for tp in ready)
        self._waiting.difference_update(ready)
        self._next.update(positions)
        await self._listener.assigned(_ours(ready))
        still = self._consumer.assignment()
        self._consumer.resume(*(tp for tp in ready if tp in still))

    async def _positions(self, partitions: Sequence[Any], ids: Mapping[str, str]) -> dict[Any, int]:
        """Where each partition begins; what the client would not choose by itself is committed at once."""
        commits = await self._consumer.commits(partitions)
        offsets = {tp: commits[tp].offset if tp in commits else -1 for tp in partitions}
        first: list[Any] = []
        last: list[Any] = []
        for tp, offset in offsets.items():
            if self._is_recreated(tp.topic, ids):
                first.append(tp)
            elif offset >= 0:
                if _another(_life(commits[tp].metadata), ids[tp.topic]):
                    first.append(tp)
            elif self._starts.get(tp.topic, "earliest") == "latest" and tp.topic not in self._recreated:
                # `latest` is meant for what a topic held before it was subscribed to, not for a new life of it.
                last.append(tp)
        moved = {
            **(await self._consumer.beginning_offsets(first) if first else {}),
            **(await self._consumer.end_offsets(last) if last else {}),
        }
        for tp, offset in moved.items():
            self._consumer.seek(tp, offset)
        if moved:
            await self._consumer.commit({tp: (offset, mark(ids[tp.topic])) for tp, offset in moved.items()})
        return offsets | moved

    def _is_recreated(self, topic: str, ids: Mapping[str, str]) -> bool:
        return _another(self._ids.get(topic, ""), ids.get(topic, ""))

    def _falls_back(self, tp: Any, offset: int) -> bool:
        return offset < self._next.get(tp, 0)

    def _rewind(self, offsets: Mapping[Any, int]) -> None:
        assigned = self._consumer.assignment()
        for tp, offset in offsets.items():
            if tp in assigned:
                self._consumer.seek(tp, offset)

    def _pause(self, partitions: Iterable[Any]) -> None:
        assigned = self._consumer.assignment()
        self._consumer.pause(*(tp for tp in partitions if tp in assigned))


def of_client(tp: TopicPartition) -> Any:
    """A partition as the client names it."""
    return aiokafka.TopicPartition(tp.topic, tp.partition)


def mark(topic_id: str) -> str:
    """The metadata to commit with an offset, so that it is known for one of this life of its topic."""
    return TOPIC_MARK + topic_id if topic_id else ""


def _life(metadata: str | None) -> str:
    """The topic id in a commit's metadata; "" when there is none."""
    return (metadata or "").removeprefix(TOPIC_MARK) if (metadata or "").startswith(TOPIC_MARK) else ""


def _another(known: str, told: str) -> bool:
    """Whether two ids are of different lives. One that was not told is no reason to think so."""
    return bool(known and told and known != told)


def _ours(partitions: Iterable[Any]) -> list[TopicPartition]:
    return [TopicPartition(tp.topic, tp.partition) for tp in partitions]
