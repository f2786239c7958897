"""What no topic takes, in a batch of a mapping: it is kept with its reason, and the records behind it run.

Owns the bound on how long a batch waits for topics. Does not own what is kept (`test_too_large`,
`tests/hostile/test_failures_are_visible.py`) nor the consumer of the always-on control plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.hosts.event_scheduler import SweepTick
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto.lane.dead_letters import Letter, letter_part_key, parse_letter
from tenuto.protocol.limits import EVENT_HEADERS_BYTES_MAX
from tenuto.protocol.records import PublishOut, unpack_out
from tenuto.service import Services
from tenuto_control.limits import SERVERLESS, Limits
from tenuto_control.ports import LogUnavailableError
from tests.control.test_serverless import Function, record
from tests.support.virtual_time import run_virtual

HELD_S = 17
"""How long a batch may wait for topics: `topic_patience_ms`, and a few tries."""


@dataclass(slots=True)
class Producing(Function):
    """A dispatcher whose topics may be missing, and their brokers away."""

    away: set[str] = field(default_factory=set)

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        if topic in self.away:
            raise LogUnavailableError("the broker did not answer")
        await self.kafka.sink().produce(topic, value, key, headers)

    def letters(self) -> list[Letter]:
        """The table's dead letters."""
        found = [parse_letter(item) for item in self.table.items.values() if "letter" in item]
        return [letter for letter in found if letter is not None]


def telling() -> VirtualObject:
    box = VirtualObject("box")

    @box.handler()
    async def event(ctx: ObjectContext, n: int) -> None:
        if n == 7:
            ctx.publish("elsewhere", {"n": n})
        ctx.set("total", (await ctx.get("total", int) or 0) + n)

    return box


def producing() -> Producing:
    return Producing(Services([telling()]), limits=Limits(**SERVERLESS))


async def served(f: Producing, batch: list[SourceRecord]) -> float:
    """Serve a batch whole; returns for how long, in seconds."""
    began_ms = f.clock.now_ms()
    assert await f.serverless.records(batch, began_ms + 118_000) == []
    return (f.clock.now_ms() - began_ms) / 1_000


POISON: dict[str, Any] = {
    "null key": record(1, key=None),
    "no JSON": record(1, b"{"),
    "headers": SourceRecord("t", 0, 1, 0, b"k", b"1", (("h", bytes(420_000)),)),
    "a name that is no text": SourceRecord("t", 0, 1, 0, b"k", b"{", (("\ud800", b"x"),)),
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("how", ["missing", "away"])
def test_a_record_without_a_dead_letter_topic_is_kept_and_its_batch_ends(poison: str, how: str) -> None:
    """Found from outside: the batch failed again and again, and the record behind it never ran."""

    async def scenario() -> None:
        f = producing()
        if how == "away":
            f.away.add("t.dead-letter")
        assert await served(f, [record(0), POISON[poison], record(2)]) < HELD_S
        assert f.head("box", "k").state["total"] == b"2"
        if (poison, how) == ("no JSON", "away"):
            # It has been an event: its dead letter is in the outbox, where a topic that may come back is waited for.
            (entry,) = f.head("box", "k").out.values()
            assert isinstance(entry, PublishOut)
            assert entry.dead
            return
        (letter,) = f.letters()
        assert (letter.kind, letter.topic) == ("record", "t.dead-letter")
        assert letter.origin == "t#0#1#" or letter.origin.startswith("box/k#inv_")
        assert letter.reason

    run_virtual(scenario())


def test_420_kb_of_headers_are_kept_whole() -> None:
    async def scenario() -> None:
        f = producing()
        f.kafka.create_topic("t.dead-letter", record_bytes_max=1_000_000)
        await served(f, [POISON["headers"], record(2)])
        (dead,) = f.kafka.records("t.dead-letter")
        assert dict(dead.headers)["h"] == bytes(420_000)
        assert str(EVENT_HEADERS_BYTES_MAX)[:3].encode() in dict(dead.headers)["tenuto-reason"]
        f.kafka.delete_topic("t.dead-letter")
        await served(f, [SourceRecord("t", 0, 3, 0, b"k", b"1", (("h", bytes(420_000)),)), record(4)])
        (letter,) = f.letters()
        keys = [letter_part_key(letter.id, n) for n in range(letter.parts)]
        parts = [f.table.items[key.pk, key.sk]["input"] for key in keys]
        entry = unpack_out(b"".join(part for part in parts if isinstance(part, bytes)))
        assert isinstance(entry, PublishOut)
        assert dict(entry.headers)["h"] == bytes(420_000)
        assert f.head("box", "k").state["total"] == b"2"

    run_virtual(scenario())


def test_a_handler_that_publishes_to_a_missing_topic_holds_its_partition_for_a_bounded_time() -> None:
    async def scenario() -> None:
        f = producing()
        assert await served(f, [record(0, b"7", b"a"), record(1, b"1", b"b")]) < HELD_S
        assert f.head("box", "a").out == {}
        (letter,) = f.letters()
        assert letter.topic == "elsewhere"
        # For the next one nobody waits again.
        assert await served(f, [record(2, b"7", b"c")]) < 1

    run_virtual(scenario())


def test_what_an_unreachable_topic_is_owed_stays_in_the_outbox_and_a_timer_leads_back_to_it() -> None:
    async def scenario() -> None:
        f = producing()
        f.kafka.create_topic("elsewhere")
        f.away.add("elsewhere")
        assert await served(f, [record(0, b"7", b"a"), record(1, b"1", b"b")]) < HELD_S
        head = f.head("box", "a")
        assert (head.state["total"], len(head.out)) == (b"7", 1)
        assert [item["kind"] for item in f.table.items.values() if "due" in item] == ["guard"]
        f.away.clear()
        await asyncio.sleep(60)
        await f.serverless.tick(SweepTick(), f.deadline())
        assert [one.value for one in f.kafka.records("elsewhere")] == [b'{"n":7}']
        assert f.head("box", "a").out == {}

    run_virtual(scenario())
