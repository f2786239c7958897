"""What a broker may answer to a fetch: an error, or nonsense, for one partition costs the other one nothing.

The driver's fetcher runs as it is, in virtual time, against answers that no real broker gives on demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import aiokafka
import pytest
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError
from aiokafka.protocol.offset import OffsetRequest

from tenuto_control.drivers.kafka_fetcher import KEPT_PART, PartitionFetcher
from tenuto_control.limits import Limits
from tests.support.raw_batches import Raw, batch
from tests.support.virtual_time import run_virtual

BAD, GOOD = aiokafka.TopicPartition("t", 0), aiokafka.TopicPartition("t", 1)
VERSION = 11
EMPTY_S = 0.25
CODES = (-1, 1, 2, 3, 4, 5, 6, 7, 9, 13, 29, 31, 35, 41, 56, 57, 70, 74, 75, 76, 78, 88, 100, 103, 106, 119, 129)
"""Errors that brokers answer with."""

LIMITS = Limits()
TOLD_WITHIN_S = LIMITS.unreadable_after_ms / 1_000 + 3


@dataclass
class Broker:
    """Answers as aiokafka's client does. `spoil` turns what is true into what is told of the bad partition."""

    records: dict[Any, list[bytes]]
    spoil: Callable[[list[Any]], list[Any]] | None = None
    fail: Exception | None = None
    leaders: dict[Any, int | None] = field(default_factory=dict)
    requests: list[set[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._metadata_max_age_ms = 1_000
        self.cluster = SimpleNamespace(leader_for_partition=lambda tp: self.leaders.get(tp, 0))

    def force_metadata_update(self) -> asyncio.Future[bool]:
        found = self._loop.create_future()
        self._loop.call_later(0.1, _done, found)
        return found

    async def send(self, _node: int, request: Any) -> Any:
        if isinstance(request, OffsetRequest):
            await asyncio.sleep(0.01)
            return SimpleNamespace(API_VERSION=3, topics=[("t", [(BAD.partition, 0, -1, 0)])])
        asked = {
            aiokafka.TopicPartition(topic, partition): offset
            for topic, partitions in request.topics
            for partition, offset, *_ in partitions
        }
        self.requests.append(set(asked))
        await asyncio.sleep(0.01)
        if self.fail is not None and BAD in asked:
            raise self.fail
        told = [self._told(tp, offset) for tp, offset in asked.items()]
        if not any(one[-1] for one in told) and not (self.spoil and BAD in asked):
            await asyncio.sleep(EMPTY_S)
        return SimpleNamespace(API_VERSION=VERSION, topics=[("t", told)])

    def _told(self, tp: Any, offset: int) -> list[Any]:
        records = self.records[tp]
        raw = b"".join(batch([Raw(value)], base=at) for at, value in enumerate(records) if at >= offset)
        told = [tp.partition, 0, len(records), len(records), 0, [], -1, raw]
        return self.spoil(told) if self.spoil and tp == BAD else told


def _done(found: asyncio.Future[bool]) -> None:
    if not found.done():
        found.set_result(True)


class Reader:
    """The fetcher with two partitions, and what it handed out."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.subscriptions = SubscriptionState()
        self.subscriptions.assign_from_user({BAD, GOOD})
        for tp in (BAD, GOOD):
            self.subscriptions.seek(tp, 0)
        self.fetcher = PartitionFetcher(
            broker, self.subscriptions, LIMITS, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        self.read: dict[Any, list[bytes | None]] = {BAD: [], GOOD: []}

    async def poll_for(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        while loop.time() < end_s:
            for tp, records in (await self.fetcher.fetched_records((), 0.2, 50)).items():
                self.read[tp] += [one.value for one in records]

    @property
    def troubles(self) -> list[tuple[Any, int, str]]:
        return list(self.fetcher.troubles({BAD, GOOD}))


def changed(place: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """Another value at a place: partition, code, end, stable end, start, aborted, replica, records."""
    return lambda told: [*told[:place], value, *told[place + 1 :]]


NONSENSE: dict[str, Callable[[list[Any]], list[Any]]] = {
    **{f"error {code}": changed(1, code) for code in CODES},
    "an error nobody knows": changed(1, 31_000),
    "garbage": changed(7, b"\xff" * 100),
    "a batch with another checksum": lambda told: [*told[:7], told[7][:17] + bytes([told[7][17] ^ 1]) + told[7][18:]],
    "a batch cut off": lambda told: [*told[:7], told[7][:40]],
    "too few fields": lambda told: told[:2],
    "no end": changed(3, None),
    "aborted transactions that are none": changed(5, [None]),
    "records that are no bytes": changed(7, "text"),
}


@pytest.mark.parametrize("spoil", NONSENSE.values(), ids=NONSENSE.keys())
def test_what_is_told_of_one_partition_costs_the_other_nothing(spoil: Callable[[list[Any]], list[Any]]) -> None:
    async def scenario() -> None:
        broker = Broker({BAD: [b"0", b"1"], GOOD: [b"a"]}, spoil)
        reader = Reader(broker)
        try:
            await reader.poll_for(1)
            broker.records[GOOD].append(b"b")
            await reader.poll_for(TOLD_WITHIN_S)
            assert reader.read == {BAD: [], GOOD: [b"a", b"b"]}
            assert [(tp, offset) for tp, offset, _ in reader.troubles] == [(BAD, 0)]
            (reason,) = [one[2] for one in reader.troubles]
            assert reason.isprintable()
            asked = sum(BAD in one for one in broker.requests)
            assert asked < 20, "it is asked again and again"
            broker.spoil = None
            await reader.poll_for(LIMITS.unreadable_retry_max_ms / 1_000)
            assert reader.read == {BAD: [b"0", b"1"], GOOD: [b"a", b"b"]}
            assert reader.troubles == []
            assert not reader.fetcher.ended
        finally:
            await reader.fetcher.close()

    run_virtual(scenario())


@pytest.mark.parametrize(
    "error",
    [KafkaConnectionError("gone"), NodeNotReadyError("1"), OSError("reset"), ValueError("?"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_a_request_that_fails_is_told_after_a_while_and_then_over(error: Exception) -> None:
    async def scenario() -> None:
        broker = Broker({BAD: [b"0"], GOOD: [b"a"]}, fail=error)
        reader = Reader(broker)
        try:
            await reader.poll_for(1)
            assert reader.troubles == []
            await reader.poll_for(TOLD_WITHIN_S)
            assert {tp for tp, _, _ in reader.troubles} == {BAD, GOOD}
            assert all("does not answer" in reason for _, _, reason in reader.troubles)
            broker.fail = None
            await reader.poll_for(2)
            assert reader.read == {BAD: [b"0"], GOOD: [b"a"]}
            assert reader.troubles == []
        finally:
            await reader.fetcher.close()

    run_virtual(scenario())


@pytest.mark.parametrize("leader", [None, -1])
def test_a_partition_that_no_broker_leads_is_named(leader: int | None) -> None:
    async def scenario() -> None:
        broker = Broker({BAD: [b"0"], GOOD: [b"a"]}, leaders={BAD: leader})
        reader = Reader(broker)
        try:
            await reader.poll_for(1)
            assert reader.troubles == []
            await reader.poll_for(TOLD_WITHIN_S)
            assert [(tp, reason) for tp, _, reason in reader.troubles] == [(BAD, "no broker leads it at present")]
            assert reader.read[GOOD] == [b"a"]
            broker.leaders.clear()
            await reader.poll_for(2)
            assert reader.read[BAD] == [b"0"]
            assert reader.troubles == []
        finally:
            await reader.fetcher.close()

    run_virtual(scenario())


def test_pauses_between_tries_grow_and_stay_bounded() -> None:
    async def scenario() -> Sequence[float]:
        tries: list[float] = []
        loop = asyncio.get_running_loop()

        def spoil(told: list[Any]) -> list[Any]:
            tries.append(loop.time())
            return [*told[:7], b"\xff" * 100]

        reader = Reader(Broker({BAD: [b"0"], GOOD: []}, spoil))
        try:
            await reader.poll_for(300)
        finally:
            await reader.fetcher.close()
        return [later - earlier for earlier, later in pairwise(tries)]

    pauses = run_virtual(scenario())
    assert 1.0 <= pauses[0] < 2.0
    assert all(earlier < later + 0.5 for earlier, later in pairwise(pauses))
    assert 60.0 <= pauses[-1] < 62.0


def test_what_was_fetched_of_a_paused_partition_is_kept_and_holds_up_no_other() -> None:
    async def scenario() -> None:
        broker = Broker({BAD: [str(n).encode() for n in range(120)], GOOD: []})
        reader = Reader(broker)
        try:
            loop = asyncio.get_running_loop()
            assert len((await reader.fetcher.fetched_records((), 0.2, 50))[BAD]) == 50
            reader.subscriptions.pause(BAD)
            broker.records[GOOD].append(b"a")
            paused_s = loop.time()
            assert [one.value for one in (await reader.fetcher.fetched_records((), 0.2, 50))[GOOD]] == [b"a"]
            assert loop.time() - paused_s < 0.05, "the pause of one partition does not delay the other"
            asked = len(broker.requests)
            loop.call_later(0.05, reader.subscriptions.resume, BAD)
            loop.call_later(0.05, reader.fetcher.resumed)
            resumed_s = loop.time() + 0.05
            assert len((await reader.fetcher.fetched_records((), 0.2, 500))[BAD]) == 70
            assert loop.time() == pytest.approx(resumed_s)
            assert not any(BAD in request for request in broker.requests[asked:])
        finally:
            await reader.fetcher.close()

    run_virtual(scenario())


def test_of_paused_partitions_no_more_is_kept_than_a_part_of_an_answer() -> None:
    async def scenario() -> None:
        large = bytes(LIMITS.fetch_bytes_max // KEPT_PART // 2)
        broker = Broker({BAD: [large] * 3, GOOD: []})
        reader = Reader(broker)
        try:
            assert len((await reader.fetcher.fetched_records((), 0.2, 1))[BAD]) == 1
            reader.subscriptions.pause(BAD)
            broker.records[GOOD] += [b"a", b"b"]
            await reader.poll_for(0.1)
            assert reader.read[GOOD] == [b"a", b"b"]
            asked = len(broker.requests)
            reader.subscriptions.resume(BAD)
            await reader.poll_for(0.5)
            assert len(reader.read[BAD]) == 2
            assert any(BAD in request for request in broker.requests[asked:])
        finally:
            await reader.fetcher.close()

    run_virtual(scenario())
