"""The in-memory twin of Kafka: topics, partitions, consumer groups with fenced generations, and a producer.

Owns what the EventLog and RecordSink ports promise, in one process and without chance: equal calls on an
equal event loop give equal histories. Faults come from outside, through the hook. Does not own replication,
retention or time-outs of requests.

Membership follows the eager protocol: whenever the members change, every member's `revoked` runs to its end,
then all join the next generation at once and every member's `assigned` runs. Members do this in a task of
their own, beside their polls.
"""

from __future__ import annotations

import asyncio
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tenuto.protocol.topics import topic_problem
from tenuto_control.core.routing import Start
from tenuto_control.ports import (
    AssignmentListener,
    LogRecord,
    LogUnavailableError,
    RecordRefusedError,
    RecordTooLargeError,
    TopicPartition,
    TopicUnusableError,
    Unreadable,
)

REBALANCE_TIMEOUT_S = 10.0
"""A member whose `revoked` takes longer is left behind; it learns so from its next commit."""

RECORD_BYTES_MAX = 1024 * 1024
"""The bound of records of a topic that is created without one, as brokers have it but for the framing."""

OperationName: TypeAlias = Literal["start", "poll", "commit", "stop", "produce"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a port: about to happen (`before`), or done without the caller knowing yet (`after`)."""

    name: OperationName
    when: Literal["before", "after"]
    member: str


Hook: TypeAlias = Callable[[Operation], Awaitable[None]]
"""Awaited around every operation.

It may wait, or raise LogUnavailableError: `after`, that is a lost response.
"""


async def no_faults(_operation: Operation) -> None:
    """The hook of a world in which nothing fails."""


@dataclass(slots=True)
class _Group:
    generation: int = 0
    members: dict[str, MemoryEventLog] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    lives: dict[TopicPartition, str] = field(default_factory=dict)


class MemoryKafka:
    """A cluster. `now_ms` stamps produced records."""

    def __init__(
        self,
        hook: Hook = no_faults,
        now_ms: Callable[[], int] = lambda: 0,
        rebalance_timeout_s: float = REBALANCE_TIMEOUT_S,
    ) -> None:
        self.hook = hook
        self.rebalance_timeout_s = rebalance_timeout_s
        self._now_ms = now_ms
        self._topics: dict[str, list[list[LogRecord]]] = {}
        self._next_offsets: dict[TopicPartition, int] = {}
        self._lives: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._damaged: dict[TopicPartition, tuple[int, str]] = {}
        self._groups: dict[str, _Group] = {}
        self._members = 0
        self._changed = asyncio.Event()
        self.delivered: Counter[str] = Counter()
        """How many records each member has been given, by its name."""

    # --- topics ---------------------------------------------------------------------------------------------

    def create_topic(self, topic: str, partitions: int = 1, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        """Create a topic; groups that wait for it rebalance."""
        assert topic not in self._topics, f"topic {topic} exists"
        self._topics[topic] = [[] for _ in range(partitions)]
        self._limits[topic] = record_bytes_max
        self._lives[topic] = self._lives.get(topic, -1) + 1
        self._rebalance_readers(topic)

    def delete_topic(self, topic: str, *, keep_commits: bool = False) -> None:
        """Delete a topic with its records and, as brokers do before long, what groups committed of it."""
        for partition in range(len(self._topics.pop(topic))):
            tp = TopicPartition(topic, partition)
            self._next_offsets.pop(tp, None)
            for group in self._groups.values():
                if not keep_commits:
                    group.committed.pop(tp, None)
        self._rebalance_readers(topic)

    def topic_id(self, topic: str) -> str:
        """The id of this life of the topic; "" in its first one, so that names of sources are plain."""
        life = self._lives.get(topic, 0)
        return f"{life:032x}"[::-1] if life else ""

    def append(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        unreadable: str = "",
    ) -> LogRecord:
        """Append a record at once. `unreadable` says why its content cannot be told.

        The partition derives from the key, so that one key stays in one partition.
        """
        partitions = self._topics[topic]
        if partition is None:
            partition = zlib.crc32(key or b"") % len(partitions)
        tp = TopicPartition(topic, partition)
        offset = self._next_offsets.get(tp, 0)
        life = self.topic_id(topic)
        record = LogRecord(topic, partition, offset, self._now_ms(), key, value, tuple(headers), life, unreadable)
        partitions[partition].append(record)
        self._next_offsets[tp] = offset + 1
        self._wake()
        return record

    def compact(self, tp: TopicPartition, keep: Callable[[LogRecord], bool]) -> None:
        """Drop the records for which `keep` is false; the others keep their offsets."""
        partitions = self._topics[tp.topic]
        partitions[tp.partition] = [record for record in partitions[tp.partition] if keep(record)]

    def add_partitions(self, topic: str, count: int) -> None:
        """Give a topic more partitions; its readers rebalance once they notice, which is now."""
        self._topics[topic] += [[] for _ in range(count)]
        self._rebalance_readers(topic)

    def damage(self, tp: TopicPartition, offset: int, reason: str = "its checksum is another one") -> None:
        """From this offset on, the partition cannot be read until it is repaired."""
        self._damaged[tp] = (offset, reason)

    def repair(self, tp: TopicPartition) -> None:
        """The partition can be read again."""
        self._damaged.pop(tp, None)
        self._wake()

    def readable(self, tp: TopicPartition, offset: int, max_records: int) -> tuple[list[LogRecord], Unreadable | None]:
        """Records of a partition from an offset on, up to where it is damaged, and how it is once that is reached."""
        records = self.read(tp, offset, max_records)
        if tp not in self._damaged:
            return records, None
        first, reason = self._damaged[tp]
        sound = [record for record in records if record.offset < first]
        stuck = not sound and any(record.offset >= first for record in records)
        return sound, Unreadable(tp, first, reason) if stuck else None

    def records(self, topic: str) -> list[LogRecord]:
        """All records of a topic, partition by partition."""
        return [record for partition in self._topics.get(topic, []) for record in partition]

    # --- groups ---------------------------------------------------------------------------------------------

    def member(self, group: str = "tenuto", starts: Mapping[str, Start] | None = None) -> MemoryEventLog:
        """A consumer that has yet to join."""
        self._members += 1
        return MemoryEventLog(self, group, f"member-{self._members}", starts or {})

    def committed(self, tp: TopicPartition, group: str = "tenuto") -> int | None:
        """The group's committed offset."""
        return self._group(group).committed.get(tp)

    def read(self, tp: TopicPartition, offset: int, max_records: int) -> list[LogRecord]:
        """Records of a partition from an offset on, as an event source mapping's poller fetches them."""
        log = self._topics[tp.topic][tp.partition]
        first = bisect_left(log, offset, key=lambda record: record.offset)
        return log[first : first + max_records]

    def count(self, tp: TopicPartition, offset: int) -> int:
        """How many records a partition has from an offset on."""
        if tp.topic not in self._topics:
            return 0
        log = self._topics[tp.topic][tp.partition]
        return len(log) - bisect_left(log, offset, key=lambda record: record.offset)

    def store(self, tp: TopicPartition, offset: int, group: str = "tenuto") -> None:
        """Store a group's offset for somebody who is no member of it: the poller of an event source mapping."""
        self._group(group).committed[tp] = offset

    def expel(self, member: MemoryEventLog) -> None:
        """The group goes on without this member, which does not know.

        A zombie, until its next commit tells it so.
        """
        group = self._group(member.group)
        if group.members.pop(member.name, None) is not None:
            self._rebalance(group)

    def _group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())

    def _join(self, member: MemoryEventLog) -> None:
        group = self._group(member.group)
        group.members[member.name] = member
        self._rebalance(group)

    def _rebalance_readers(self, topic: str) -> None:
        for group in self._groups.values():
            if any(topic in member.topics for member in group.members.values()):
                self._rebalance(group)

    def _rebalance(self, group: _Group) -> None:
        group.joined.clear()
        for member in group.members.values():
            member.rejoin.set()

    def _ready(self, member: MemoryEventLog) -> None:
        """The member has given up its partitions; the last one to do so completes the generation."""
        group = self._group(member.group)
        if group.members.get(member.name) is not member:
            return
        group.joined.add(member.name)
        if group.joined != set(group.members):
            return
        group.generation += 1
        names = sorted(group.members)
        shares: dict[str, list[TopicPartition]] = {name: [] for name in names}
        topics = {topic for one in group.members.values() for topic in one.topics}
        everything = [
            TopicPartition(topic, partition)
            for topic in sorted(topics)
            for partition in range(len(self._topics.get(topic, [])))
        ]
        for index, tp in enumerate(everything):
            shares[names[index % len(names)]].append(tp)
        for name, one in group.members.items():
            one.grant(group.generation, shares[name])

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self) -> None:
        """Return when something was produced or resumed, or a generation has begun."""
        await self._changed.wait()

    def sink(self) -> MemorySink:
        """A producer."""
        return MemorySink(self)


class MemoryEventLog:
    """One member of a group (the EventLog port). Made by `MemoryKafka.member`."""

    def __init__(self, kafka: MemoryKafka, group: str, name: str, starts: Mapping[str, Start]) -> None:
        self._kafka = kafka
        self.group = group
        self.name = name
        self.topics: frozenset[str] = frozenset()
        self.rejoin = asyncio.Event()
        self._starts = starts
        self._listener: AssignmentListener | None = None
        self._coordination: asyncio.Task[None] | None = None
        self._generation = 0
        self._granted: asyncio.Future[tuple[int, list[TopicPartition]]] | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._unreadable: dict[TopicPartition, Unreadable] = {}
        self._absent: frozenset[str] = frozenset()
        self._paused: set[TopicPartition] = set()
        self._lives: dict[TopicPartition, str] = {}
        self._turn = 0

    async def start(self, topics: Sequence[str], listener: AssignmentListener) -> None:
        """Join the group; partitions arrive through the listener."""
        await self._hook("start", "before")
        assert self._coordination is None, "the event log is started already"
        self.topics = frozenset(topics)
        self._absent = frozenset(topic for topic in topics if topic not in self._kafka._topics)
        self._listener = listener
        self._coordination = asyncio.create_task(self._coordinate(listener), name=f"coordinate {self.name}")
        self._kafka._join(self)
        await self._hook("start", "after")

    async def poll(self, max_records: int, timeout_ms: int) -> list[LogRecord]:
        """Records of an assignment that is still in force; empty after the timeout."""
        await self._hook("poll", "before")
        records = self._fetch(max_records)
        if not records:
            try:
                async with asyncio.timeout(timeout_ms / 1_000):
                    while not records:
                        await self._kafka.wait_for_change()
                        records = self._fetch(max_records)
            except TimeoutError:
                return []
        generation = self._generation
        await self._hook("poll", "after")
        if generation != self._generation:
            return []
        for record in records:
            self._positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
        self._kafka.delivered[self.name] += len(records)
        return records

    def lag(self) -> int:
        """See `EventLog.lag`. Here, where no gap has to be read to be known, records are counted and not offsets."""
        return sum(self._kafka.count(tp, at) for tp, at in self._positions.items())

    def unreadable(self) -> list[Unreadable]:
        """See `EventLog.unreadable`."""
        return [self._unreadable[tp] for tp in sorted(self._unreadable) if tp in self._positions]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Stop delivering these partitions until resumed."""
        self._paused.update(tp for tp in partitions if tp in self._positions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Deliver these partitions again."""
        self._paused.difference_update(partitions)
        self._kafka._wake()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store offsets, unless the group has moved on without this member."""
        await self._hook("commit", "before")
        group = self._kafka._group(self.group)
        known = group.members.get(self.name) is self
        if not known or self._generation != group.generation or not offsets.keys() <= self._positions.keys():
            if not known and self._coordination is not None:
                # Refused as unknown, a member joins again as a new one.
                self._kafka._join(self)
            raise LogUnavailableError(f"the partition belongs to another member of group {self.group!r} now")
        group.committed.update(offsets)
        group.lives.update((tp, self._lives[tp]) for tp in offsets)
        await self._hook("commit", "after")

    async def stop(self) -> None:
        """Leave the group, without another call of the listener."""
        await self._hook("stop", "before")
        await self._end_coordination()
        self._kafka.expel(self)
        await self._hook("stop", "after")

    def crash(self) -> None:
        """The member's process is gone.

        Its group notices when `MemoryKafka.expel` says so (its session ran out).
        """
        if self._coordination is not None:
            self._coordination.cancel()
            self._coordination = None
        self._positions.clear()

    def grant(self, generation: int, partitions: list[TopicPartition]) -> None:
        """A generation has begun with these partitions for this member."""
        if self._granted is not None and not self._granted.done():
            self._granted.set_result((generation, partitions))

    async def _coordinate(self, listener: AssignmentListener) -> None:
        while True:
            await self.rejoin.wait()
            self.rejoin.clear()
            held = sorted(self._positions)
            if held:
                await self._give_up(held, listener)
            self._positions.clear()
            self._paused.clear()
            if self.rejoin.is_set():
                continue
            self._granted = asyncio.get_running_loop().create_future()
            self._kafka._ready(self)
            again = asyncio.ensure_future(self.rejoin.wait())
            waited: list[asyncio.Future[Any]] = [self._granted, again]
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                again.cancel()
            if not self._granted.done():
                continue  # The members changed once more before the generation was complete.
            self._generation, partitions = self._granted.result()
            positions = {tp: self._first(tp) for tp in partitions}
            self._lives.update((tp, self._kafka.topic_id(tp.topic)) for tp in partitions)
            if partitions:
                await listener.assigned(partitions)
            self._positions = positions
            self._kafka._wake()

    async def _give_up(self, held: list[TopicPartition], listener: AssignmentListener) -> None:
        giving = asyncio.create_task(listener.revoked(held), name=f"revoke {self.name}")
        try:
            done, _ = await asyncio.wait([giving], timeout=self._kafka.rebalance_timeout_s)
            if not done:
                self._kafka.expel(self)
                await giving
                self._kafka._join(self)
            giving.result()
        finally:
            giving.cancel()

    async def _end_coordination(self) -> None:
        task, self._coordination = self._coordination, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._positions.clear()

    def _first(self, tp: TopicPartition) -> int:
        """Where to begin.

        At the committed offset, else where the subscription says, which is then committed. An offset of another life
        of the topic, or one that it does not have, leads to its oldest record.
        """
        group = self._kafka._group(self.group)
        life, end = self._kafka.topic_id(tp.topic), self._kafka._next_offsets.get(tp, 0)
        recreated = tp in self._lives and self._lives[tp] != life
        if tp not in group.committed:
            begun = recreated or tp.topic in self._absent or any(one.topic == tp.topic for one in group.committed)
            if self._starts.get(tp.topic) == "latest":
                # Who begins with a topic speaks for all of its partitions: what has no offset later is a later one.
                for partition in range(len(self._kafka._topics[tp.topic])):
                    one = TopicPartition(tp.topic, partition)
                    if not begun:
                        group.committed[one] = self._kafka._next_offsets.get(one, 0)
                group.committed.setdefault(tp, 0)
        elif recreated or group.lives.get(tp, life) != life or group.committed[tp] > end:
            group.committed[tp] = 0
        group.lives[tp] = life
        return group.committed.get(tp, 0)

    def _fetch(self, max_records: int) -> list[LogRecord]:
        """What could be delivered now, beginning with another partition every time."""
        # A member that knows of a rebalance delivers nothing; a zombie does not know, and goes on.
        if self.rejoin.is_set() or self._coordination is None:
            return []
        partitions = [tp for tp in sorted(self._positions) if tp not in self._paused]
        if not partitions:
            return []
        self._turn += 1
        shift = self._turn % len(partitions)
        fetched: list[LogRecord] = []
        for tp in partitions[shift:] + partitions[:shift]:
            if tp.topic not in self._kafka._topics:
                continue  # Deleted, and a zombie is not told.
            records, trouble = self._kafka.readable(tp, self._positions[tp], max_records - len(fetched))
            fetched += records
            if trouble is not None:
                self._unreadable[tp] = trouble
            elif len(fetched) < max_records:
                self._unreadable.pop(tp, None)
        return fetched

    async def _hook(self, name: OperationName, when: Literal["before", "after"]) -> None:
        await self._kafka.hook(Operation(name, when, self.name))


class MemorySink:
    """A producer (the RecordSink port)."""

    def __init__(self, kafka: MemoryKafka) -> None:
        self._kafka = kafka

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Append the record; a topic that does not exist is no place for it."""
        problem = topic_problem(topic)
        if problem is not None:
            raise RecordRefusedError(problem)
        await self._kafka.hook(Operation("produce", "before", "producer"))
        if topic not in self._kafka._topics:
            raise TopicUnusableError(f'topic "{topic}" does not exist; create it')
        size = len(value or b"") + len(key or b"") + sum(len(name) + len(content) for name, content in headers)
        if size > self._kafka._limits[topic]:
            raise RecordTooLargeError(f'topic "{topic}" takes no record of {size} bytes; raise its max.message.bytes')
        self._kafka.append(topic, value, key, headers)
        await self._kafka.hook(Operation("produce", "after", "producer"))
