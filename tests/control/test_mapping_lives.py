"""Offsets that count from zero again, where a mapping delivers the records: the dispatcher asks which life they are of.

Owns what an invocation does with records of any life of their topic. Does not own the brokers' word
(`tests/contract/test_topic_lives.py`) nor the consumer's way (`test_topic_lives.py`).
"""

from __future__ import annotations

import asyncio

import pytest

from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto_control.core.routing import Subscription
from tenuto_control.loops.consume import Consumer
from tenuto_control.ports import LogUnavailableError
from tests.control.test_serverless import Function, adding, function
from tests.support.virtual_time import run_virtual


def produce(f: Function, *values: int, key: str = "k") -> list[SourceRecord]:
    """Records that are in the topic, as the mapping hands them over: without its id."""
    appended = [f.kafka.append("t", b"%d" % value, key.encode()) for value in values]
    return [SourceRecord(r.topic, r.partition, r.offset, 0, r.key, r.value) for r in appended]


def create_again(f: Function) -> str:
    """The name of the topic's new life in watermarks."""
    f.kafka.delete_topic("t")
    f.kafka.create_topic("t")
    return f"0.{f.kafka.topic_id('t')[:8]}|t|0"


def total(f: Function) -> bytes:
    return f.head("box", "k").state["total"]


def test_a_warm_process_runs_the_events_of_a_topic_that_was_created_again() -> None:
    async def scenario() -> None:
        f = function(adding())
        assert await f.serverless.records(produce(f, 1, 2, 3), f.deadline()) == []
        for _ in range(2):
            name = create_again(f)
            batch = produce(f, 10, 20)
            for _ in range(2):
                assert await f.serverless.records(batch, f.deadline()) == []
            assert f.head("box", "k").watermarks[name] == 2
        assert total(f) == b"66"

    run_virtual(scenario())


def test_a_batch_of_the_life_before_hides_nothing_of_the_new_one() -> None:
    async def scenario() -> None:
        f = function(adding())
        create_again(f)
        late = produce(f, 1, 2, 3)
        name = create_again(f)
        # Read before the topic was deleted, handed over after: as when its first invocation failed.
        assert await f.serverless.records(late, f.deadline()) == []
        assert await f.serverless.records(late, f.deadline()) == []
        assert total(f) == b"6"
        for value in (10, 20, 30, 40):
            assert await f.serverless.records(produce(f, value), f.deadline()) == []
        assert total(f) == b"106"
        assert f.head("box", "k").watermarks[name] == 4

    run_virtual(scenario())


def test_a_batch_whose_life_nobody_tells_fails_before_anything_of_it_is_run() -> None:
    async def scenario() -> None:
        f = function(adding())
        batch = produce(f, 1, 2)
        f.lives.reachable = False
        with pytest.raises(LogUnavailableError):
            await f.serverless.records(batch, f.deadline())
        assert f.invocations == 0
        f.lives.reachable = True
        assert await f.serverless.records(batch, f.deadline()) == []
        assert total(f) == b"3"

    run_virtual(scenario())


def test_a_topic_moves_between_a_consumer_and_a_mapping_and_nothing_runs_twice() -> None:
    async def scenario() -> None:
        f = function(adding())
        name = create_again(f)
        batch = produce(f, 1, 2)
        subscriptions = [Subscription("t", "box", "event")]
        consumer = Consumer(f.kafka.member(), f, f.dispatcher, subscriptions, f.limits, f.clock)
        running = asyncio.create_task(consumer.run())
        await asyncio.sleep(1)
        consumer.stop()
        await running
        assert (total(f), f.head("box", "k").watermarks) == (b"3", {name: 2})
        # The mapping begins where it likes; what the consumer has handled is recognised.
        assert await f.serverless.records([*batch, *produce(f, 4)], f.deadline()) == []
        assert (total(f), f.head("box", "k").watermarks) == (b"7", {name: 3})

    run_virtual(scenario())
