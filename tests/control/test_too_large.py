"""Records that their topic finds too large, on their way out of a lane: dead letters shrink, others are set aside.

Owns what a lane makes of a refusal. Does not own the consumer's dead letters (`test_consume`) nor the sink.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.lane.dead_letters import REASON_HEADERS, dead_letter, letter_part_key, parse_letter
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.records import Event, KafkaSource, PublishOut, unpack_out
from tenuto.service import Services
from tenuto_control.core.metrics import Tally
from tenuto_control.ports import LogRecord
from tests.costs.meter import Meter
from tests.support.memory_kafka import MemoryKafka
from tests.support.virtual_time import run_virtual

DEAD = "t.dead-letter"


@dataclass(slots=True)
class Producing(Meter):
    """A meter whose records go to topics with bounds."""

    kafka: MemoryKafka = field(default_factory=MemoryKafka)
    dead_letter: str | None = DEAD

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        await self.kafka.sink().produce(topic, value, key, headers)


def box() -> VirtualObject:
    box = VirtualObject("box")

    @box.handler()
    async def tells(ctx: ObjectContext, n: int) -> None:
        ctx.publish("out", b"x" * n)
        ctx.publish("out", b"small")
        ctx.set("told", n)

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
    async def fails(_ctx: ObjectContext, _data: bytes) -> None:
        raise RuntimeError("no")

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
    async def fails_late(ctx: ObjectContext, _data: bytes) -> None:
        await ctx.run("step", int)
        raise RuntimeError("no")

    return box


def test_a_published_record_that_its_topic_never_takes_is_kept_and_holds_up_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        service, tally = box(), Tally()
        meter = Producing(Services([service]), metrics=tally)
        meter.kafka.create_topic("out", record_bytes_max=1_000)
        for size in (100, 2_000, 200):
            meter.deliver(service.handlers["tells"], "k", b"%d" % size)
        await asyncio.sleep(10)
        assert [len(record.value or b"") for record in meter.kafka.records("out")] == [100, 5, 5, 200, 5]
        assert meter.released == [0, 1, 2]
        head = meter.head("box", "k")
        assert (head.state["told"], head.out) == (b"200", {})
        assert tally.take().counts["RecordsRefused"] == 1
        (kept,) = [parse_letter(item) for item in meter.table.items.values() if "letter" in item]
        assert kept is not None
        at = letter_part_key(kept.id, 0)
        data = meter.table.items[at.pk, at.sk]["input"]
        assert isinstance(data, bytes)
        assert unpack_out(data) == PublishOut("out", b"x" * 2_000)

    with caplog.at_level(logging.WARNING, "tenuto"):
        run_virtual(scenario())
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert 'topic "out": a published record (box/k#' in line
    assert "was not produced and is kept as dead letter " in line
    assert 'topic "out" takes no record of' in line
    assert "raise its max.message.bytes" in line


@pytest.mark.parametrize("handler", ["fails", "fails_late"])
def test_a_dead_letter_of_a_handler_shrinks_to_what_its_topic_takes(
    handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def dead_letter_of(record_bytes_max: int) -> LogRecord:
        service, tally = box(), Tally()
        meter = Producing(Services([service]), metrics=tally)
        meter.kafka.create_topic(DEAD, record_bytes_max=record_bytes_max)
        meter.deliver(service.handlers[handler], "k", bytes(3_000))
        await asyncio.sleep(30)
        assert meter.released == [0]
        assert meter.head("box", "k").out == {}
        assert tally.take().counts["DeadLetters"] == 1
        (dead,) = meter.kafka.records(DEAD)
        return dead

    async def scenario() -> None:
        whole = await dead_letter_of(5_000)
        assert (whole.value, dict(whole.headers)["tenuto-reason"]) == (bytes(3_000), b"RuntimeError: no")
        (line,) = [entry.getMessage() for entry in caplog.records]
        told = f'box/k: the record t/0 offset 0 for box/{handler} ended as failed and is in "{DEAD}": '
        assert line == f"{told}RuntimeError: no"
        bare = await dead_letter_of(3_010)
        assert (bare.value, bare.headers) == (bytes(3_000), ())
        stub = await dead_letter_of(1_000)
        assert (stub.value, dict(stub.headers)["tenuto-omitted"]) == (None, b"value, headers")
        assert {"tenuto-reason", "tenuto-id", "tenuto-invocation", "tenuto-source-offset"} < dict(stub.headers).keys()

    with caplog.at_level(logging.ERROR, "tenuto"):
        run_virtual(scenario())
    lines = [entry.getMessage() for entry in caplog.records if "so it lacks" in entry.getMessage()]
    assert len(lines) == 2
    assert all(line.startswith("box/k: ") and "raise max.message.bytes there" in line for line in lines)


def test_a_dead_letter_that_its_topic_takes_in_no_form_is_kept_in_the_table() -> None:
    async def scenario() -> None:
        service = box()
        meter = Producing(Services([service]))
        meter.kafka.create_topic(DEAD, record_bytes_max=10)
        meter.deliver(service.handlers["fails"], "k", bytes(100))
        await asyncio.sleep(1)
        assert meter.released == [0]
        assert meter.kafka.records(DEAD) == []
        (kept,) = [parse_letter(item) for item in meter.table.items.values() if "letter" in item]
        assert kept is not None
        assert (kept.kind, kept.topic, kept.size) == ("record", DEAD, 100)

    run_virtual(scenario())


def test_the_headers_of_a_dead_letter_that_are_not_the_events_own_are_its_last() -> None:
    own = (("a", b"1"), ("tenuto-reason", b"of another life"))
    source = KafkaSource("0", "t", 0, 0, 0, dead_letter=DEAD)
    letter = dead_letter(Event(str(InvocationId(Lane("s", "k"), "n")), "act", source, b"", own), "why")
    assert isinstance(letter, PublishOut)
    assert letter.headers[:-REASON_HEADERS] == own
    assert all(name.startswith("tenuto-") for name, _ in letter.headers[-REASON_HEADERS:])
