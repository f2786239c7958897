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
from dataclasses import dataclass
from typing import Any

import aiokafka
from aiokafka.errors import KafkaError

from tenuto_control.core.routing import Start
from tenuto_control.drivers.kafka_batches import Fetched
from tenuto_control.drivers.kafka_consumer import NEXT, OLDEST, GroupConsumer
from tenuto_control.drivers.kafka_fetcher import Bounds, now_s
from tenuto_control.ports import AssignmentListener, TopicPartition, Unreadable

TOPIC_MARK = "tenuto-topic="
"""In the metadata of a committed offset, before the id of the topic whose offset it is."""

BOUNDS_AGE_S = 2.0
"""What is not fetched, because it is paused or cannot be, is asked for its bounds this often."""

_log = logging.getLogger("tenuto_control.kafka")
# Timeouts are among the operating system's errors.
_ERRORS = (KafkaError, OSError)


@dataclass(slots=True)
class _Held:
    """A partition that the listener has.

    Everything below `next` was delivered or holds no record. `delivered` is the offset behind the last record that was,
    None before the first.
    """

    next: int
    delivered: int | None = None


class Membership(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc] # the base class carries no types
    """This member's partitions.

    A new one stays paused until its topic's id and its position are known; then the listener hears of it.
    """

    def __init__(
        self,
        consumer: GroupConsumer,
        listener: AssignmentListener,
        starts: Mapping[str, Start],
        timeout_s: float,
        patience_s: float,
        absent: Iterable[str] = (),
    ) -> None:
        """`absent` are topics that were subscribed to before they existed: none of what they hold was there before."""
        self._consumer = consumer
        self._listener = listener
        self._starts = starts
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        # Rebalances come from aiokafka and recreated topics from `check`: one of them at a time.
        self._changing = asyncio.Lock()
        self._waiting: dict[Any, float] = {}
        self._held: dict[Any, _Held] = {}
        self._ids: dict[str, str] = {}
        self._anew: set[str] = set(absent)
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
        return [tp for tp in map(of_client, partitions) if tp in self._held]

    def lag(self) -> int:
        """Offsets that have not been read yet, between what retention has left and the end of what is committed."""
        known = {tp: self._consumer.bounds(tp) for tp in self._held}
        return sum(
            max(0, bounds.end - max(bounds.start, self._held[tp].next))
            for tp, bounds in known.items()
            if bounds is not None
        )

    def unreadable(self) -> list[Unreadable]:
        """Partitions that cannot be read, and those whose first offset is not told."""
        at_s = now_s()
        assigned = self._consumer.assignment()
        found = {tp: (offset, reason) for tp, offset, reason in self._consumer.troubles(assigned)}
        for tp, since_s in self._waiting.items():
            if tp in assigned and at_s - since_s >= self._patience_s:
                found.setdefault(tp, (-1, "no broker tells where it begins"))
        return [Unreadable(TopicPartition(*tp), *found[tp]) for tp in sorted(found)]

    def committable(self, tp: TopicPartition, offset: int) -> int:
        """What to commit in place of an offset: behind the last record delivered may lie what holds none."""
        held = self._held.get(of_client(tp))
        return held.next if held is not None and held.delivered == offset else offset

    def rewind(self) -> None:
        """Have the next fetch of each partition begin behind what was delivered, wherever the client has got to.

        The one answer to every error between fetching and delivery.
        """
        assigned = self._consumer.assignment()
        for tp, held in self._held.items():
            position = self._consumer.read_to(tp) if tp in assigned else None
            if position is not None and position > held.next:
                self._consumer.seek(tp, held.next)

    async def admit(self, batches: Mapping[Any, Sequence[Fetched]]) -> list[tuple[Any, Sequence[Fetched]]]:
        """The records that may be handed out now, of those that were just read. Raises KafkaError and OSError.

        Offsets that fall back come from a log that was truncated, or from the topic's next life. After an error, the
        records have not been delivered: `rewind`.
        """
        if any(self._falls_back(tp, records[0].offset) for tp, records in batches.items()):
            lives, rebalances = dict(self._ids), self._rebalances
            # Raises while it is not known which life they are of: they are read, and asked about, once more.
            await self.check()
            if rebalances != self._rebalances:
                return []
            # What started over is read again from where it begins.
            batches = {
                tp: records
                for tp, records in batches.items()
                if tp in self._held and self.topic_id(tp.topic) == lives.get(tp.topic, "")
            }
        for tp, records in batches.items():
            held = self._held[tp]
            held.next = held.delivered = records[-1].offset + 1
        for tp, held in self._held.items():
            # Transaction markers and what compaction and retention have removed are passed without a record.
            held.next = max(held.next, self._consumer.read_to(tp) or 0)
        return list(batches.items())

    async def check(self) -> None:
        """Ask for topic ids again: hand over what waits, and start over with topics that were recreated.

        Raises KafkaError and OSError.
        """
        async with self._changing:
            ids = await self._ask({tp.topic for tp in (*self._held, *self._waiting)})
            anew = sorted(tp for tp in self._held if self._is_recreated(tp.topic, ids))
            if anew:
                for topic in sorted({tp.topic for tp in anew}):
                    _log.warning('topic "%s" was deleted and created again; reading it from its beginning', topic)
                self._pause(anew)
                await self._listener.revoked(_ours(anew))
                for tp in anew:
                    # A rebalance in the meantime waits for this one; nothing else removes partitions.
                    del self._held[tp]
                self._wait_for(anew)
            if self._waiting:
                await self._hand_over(ids)

    async def learn_bounds(self) -> None:
        """Ask for the ends of partitions that are paused or cannot be read: no answer to a fetch tells them.

        Raises KafkaError and OSError.
        """
        old_s = now_s() - BOUNDS_AGE_S
        known = {tp: self._consumer.bounds(tp) for tp in self._held}
        stale = [tp for tp, bounds in known.items() if bounds is None or bounds.told_s < old_s]
        if not stale:
            return
        async with asyncio.timeout(self._timeout_s):
            starts, ends = await self._consumer.offsets(stale, OLDEST), await self._consumer.offsets(stale, NEXT)
        for tp in starts.keys() & ends.keys():
            self._consumer.learn(tp, Bounds(starts[tp], ends[tp], now_s()))

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """The group takes these partitions back."""
        async with self._changing:
            self._rebalances += 1
            for tp in revoked:
                self._waiting.pop(tp, None)
            held = sorted(tp for tp in revoked if tp in self._held)
            if held:
                await self._listener.revoked(_ours(held))
                for tp in held:
                    del self._held[tp]

    async def let_go(self) -> None:
        """Give back everything: this member is over."""
        await self.on_partitions_revoked({*self._held, *self._waiting})

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """The group gives these partitions to this member."""
        partitions = sorted(assigned)
        if not partitions:
            return
        self._consumer.pause(*partitions)
        async with self._changing:
            self._wait_for(partitions)
            try:
                await self._hand_over(await self._ask({tp.topic for tp in partitions}))
            except _ERRORS as e:
                _log.warning("the topics and offsets to begin with are not known yet (%s); asking again", e)

    async def _ask(self, topics: Iterable[str]) -> dict[str, str]:
        """Ids of the topics that exist, as far as they are news: a broker may lag behind what another one told."""
        async with asyncio.timeout(self._timeout_s):
            told = await self._consumer.topic_ids(topics)
        return {topic: one or self.topic_id(topic) for topic, one in told.items() if one not in self._former_ids}

    def _wait_for(self, partitions: Iterable[Any]) -> None:
        self._waiting |= dict.fromkeys(partitions, now_s())

    async def _hand_over(self, ids: Mapping[str, str]) -> None:
        """Give the listener those waiting partitions whose topics exist and whose positions are known."""
        assigned = self._consumer.assignment()
        self._waiting = {tp: since_s for tp, since_s in self._waiting.items() if tp in assigned}
        asked = sorted(tp for tp in self._waiting if tp.topic in ids)
        if not asked:
            return
        recreated = {tp.topic for tp in asked if self._is_recreated(tp.topic, ids)}
        self._anew.update(recreated)
        async with asyncio.timeout(self._timeout_s):
            positions = await self._positions(asked, ids)
        ready = sorted(positions)
        self._former_ids.update(self._ids[topic] for topic in recreated)
        self._ids.update((tp.topic, ids[tp.topic]) for tp in asked)
        for tp in ready:
            del self._waiting[tp]
            self._held[tp] = _Held(positions[tp])
        if not ready:
            return
        await self._listener.assigned(_ours(ready))
        still = self._consumer.assignment()
        self._consumer.resume(*(tp for tp in ready if tp in still))

    async def _positions(self, partitions: Sequence[Any], ids: Mapping[str, str]) -> dict[Any, int]:
        """Where each partition begins, of those where that can be told.

        What the next member could not know is committed at once: that a topic started over, and where `latest` was.
        """
        late = {tp.topic for tp in partitions if self._starts.get(tp.topic) == "latest"}
        siblings = {tp for topic in late for tp in self._all_of(topic)} | {tp for tp in partitions if tp.topic in late}
        commits = await self._consumer.commits({*partitions, *siblings})
        known = {
            tp: one.offset
            for tp, one in commits.items()
            if not self._is_recreated(tp.topic, ids) and not _another(_life(one.metadata), ids.get(tp.topic, ""))
        }
        # `latest` is meant for what a topic held before the group read any of it: not for a new life of it, and not for
        # a partition that came later, when the others had offsets.
        begun = {tp.topic for tp in commits} | self._anew
        first = {tp for tp in partitions if tp not in known and (tp.topic not in late or tp.topic in begun)}
        last = {tp for tp in siblings if tp.topic not in begun}
        oldest = await self._consumer.offsets(first, OLDEST)
        # All members begin with a topic at the same time. One of them speaks for all of its partitions, or else the
        # others would take theirs for later ones.
        ends = await self._consumer.offsets(last, NEXT)
        stored = ends | {tp: offset for tp, offset in oldest.items() if tp in commits or tp.topic in late}
        if stored:
            await self._consumer.commit_for_all({tp: (at, mark(ids[tp.topic])) for tp, at in stored.items()})
        told = known | oldest | ends
        positions = {tp: told[tp] for tp in partitions if tp in told}
        assigned = self._consumer.assignment()
        for tp, offset in positions.items():
            if tp in assigned:
                self._consumer.seek(tp, offset)
        return positions

    def _all_of(self, topic: str) -> list[Any]:
        return [aiokafka.TopicPartition(topic, one) for one in self._consumer.partitions_for_topic(topic) or ()]

    def _is_recreated(self, topic: str, ids: Mapping[str, str]) -> bool:
        return _another(self._ids.get(topic, ""), ids.get(topic, ""))

    def _falls_back(self, tp: Any, offset: int) -> bool:
        return tp not in self._held or offset < self._held[tp].next

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
