"""Bytes are counted where they enter; too large is a named error with its limit, a dead letter or a 413, and an end.

Owns that rule for the control plane: records, what waits, activations, commits. Does not own what a function refuses by
itself (`tests/sdk`), nor bodies of requests (`tests/control/test_ingress`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.lane.timers import SendTimer, timer_put
from tenuto.lane.transitions import inbox_put, part_puts
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import EVENT_HEADERS_BYTES_MAX, PAYLOAD_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.messages import EventResult, Speculated, encode
from tenuto.protocol.records import (
    CallSource,
    Event,
    Failed,
    KafkaSource,
    Out,
    PublishOut,
    SendOut,
    Success,
    headers_bytes,
    pack,
)
from tenuto.service import Services
from tenuto.store.memory import ITEM_BYTES_MAX, MemoryTable
from tenuto.store.sizes import item_bytes
from tenuto_control.core.routing import BytesKey, JsonKey, KeyRule, Quarantine, Subscription, TextKey, route
from tenuto_control.core.verdicts import COMMITS_REFUSED_MAX
from tenuto_control.dispatcher.delivery import fits
from tenuto_control.limits import Limits
from tenuto_control.ports import LogRecord, PayloadTooLargeError
from tests.hostile.world import DEAD, HostileWorld
from tests.support.virtual_time import run_virtual

Headers = tuple[tuple[str, bytes], ...]
MB = 1_000_000
FEW = InvocationRetryPolicy(initial_interval=timedelta(milliseconds=10), max_attempts=2)


def headers_of(size: int, count: int = 1) -> Headers:
    """So many headers which together weigh about this much."""
    return tuple((f"h{n}", b"x" * (size // count)) for n in range(count))


class Shop:
    """A handler that keeps what it was given, and others that do not end well."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, Headers, bytes | None]] = []
        self.box = VirtualObject("box")
        self.box.handler("keep")(self._keep)
        self.box.handler("sleep")(self._sleep)
        self.box.handler("fail", retry_policy=FEW)(self._fail)
        self.keep, self.sleep, self.fail = (self.box.handlers[name] for name in ("keep", "sleep", "fail"))

    async def _keep(self, ctx: ObjectContext, data: bytes) -> None:
        request = ctx.request()
        raw_key = request.kafka.key if request.kafka is not None else None
        self.seen.append((data, request.headers, raw_key))
        ctx.set("n", len(self.seen))

    async def _sleep(self, ctx: ObjectContext, _data: bytes) -> None:
        await ctx.run("step", int)
        await ctx.sleep(timedelta(seconds=60))

    async def _fail(self, _ctx: ObjectContext, _data: bytes) -> None:
        raise RuntimeError("no")


def world_of(shop: Shop, **limits: Any) -> HostileWorld:
    """What runs a shop."""
    return HostileWorld(Services([shop.box]), limits=Limits(**limits))


# --- records: where they enter ----------------------------------------------------------------------------------------

MANY: Headers = tuple(("", b"") for _ in range(60_000))
TOO_MUCH: dict[str, tuple[bytes | None, Headers]] = {
    "one header": (b"k", headers_of(500_000)),
    "one header of just too much": (b"k", headers_of(EVENT_HEADERS_BYTES_MAX)),
    "a header's name": (b"k", (("n" * 500_000, b""),)),
    "ten thousand headers": (b"k", headers_of(90_000, 10_000)),
    "sixty thousand headers of nothing": (b"k", MANY),
    "the raw key": (b"k" * 500_000, ()),
    "headers and raw key together": (b"k" * 60_000, headers_of(60_000)),
}
RULES: dict[str, KeyRule] = {"json": JsonKey(("id",)), "bytes": BytesKey(), "text": TextKey()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
@pytest.mark.parametrize("case", TOO_MUCH)
def test_a_record_with_too_much_beside_its_value_is_a_dead_letter_that_names_the_limit(
    case: str, ordering: Any, rule: str
) -> None:
    key, headers = TOO_MUCH[case]
    record = LogRecord("t", 0, 7, 0, key, b'{"id": "k"}', headers)
    found = route(record, Subscription("t", "box", "keep", RULES[rule], ordering))
    assert isinstance(found, Quarantine)
    assert f"{EVENT_HEADERS_BYTES_MAX:,} bytes" in found.reason
    assert len(found.reason) < 300


def test_the_limit_of_headers_is_exact_and_leaves_the_value_alone() -> None:
    subscription = Subscription("t", "box", "keep", JsonKey(("id",)))
    room = EVENT_HEADERS_BYTES_MAX - headers_bytes((("h", b"x" * 70_000),))
    value = b'{"id": "k", "much": "' + b"x" * 8 * MB + b'"}'
    for size, fine in ((room, True), (room + 1, False)):
        record = LogRecord("t", 0, 7, 0, b"r" * size, value, (("h", b"x" * 70_000),))
        assert isinstance(route(record, subscription), Event) == fine


# --- what waits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100_000, 249_000, 250_001, 349_999, VALUE_BYTES_MAX + 1, MB, 4 * MB])
@pytest.mark.parametrize("beside", ["nothing", "headers", "many headers", "raw key"])
def test_whatever_may_enter_may_wait_in_the_inbox_and_comes_out_whole(size: int, beside: str) -> None:
    headers = {"headers": headers_of(99_000), "many headers": headers_of(9_000, 9_000)}.get(beside, ())
    raw_key = b"r" * 99_000 if beside == "raw key" else b"k"
    value = b"x" * size

    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.record(shop.sleep, "k", b"")
        await asyncio.sleep(1)
        for _ in range(2):
            world.record(shop.keep, "k", value, headers=headers, raw_key=raw_key)
        await asyncio.sleep(20)
        assert world.released == [0, 1, 2]
        assert max(item_bytes(item) for item in world.table.items.values()) < ITEM_BYTES_MAX
        await asyncio.sleep(60)
        assert [(len(data), *rest) for data, *rest in shop.seen] == [(size, headers, raw_key)] * 2
        assert not [sk for _, sk in world.table.items if sk.startswith(("P#", "I#k"))]

    run_virtual(scenario())


@pytest.mark.parametrize("size", [0, 249_000, 300_000, 349_000])
def test_the_largest_key_names_and_headers_leave_an_inbox_item_that_fits(size: int) -> None:
    lane = Lane("s" * 100, "/" * 600)
    nonce = kafka_nonce("e" * 60, "t" * 249, 2**31 - 1, 2**63 - 1)
    source = KafkaSource("e" * 60, "t" * 249, 2**31 - 1, 2**63 - 1, 2**62, b"r" * 90_000, "d" * 249)
    event = Event(str(InvocationId(lane, nonce)), "h" * 200, source, b"x" * size, headers_of(9_000))
    table = MemoryTable()
    for put in (*part_puts(lane, event), inbox_put(lane, event)):
        table.apply(put)


@pytest.mark.parametrize("count", [0, 1, 1_000])
def test_the_largest_message_fits_its_items_and_one_byte_more_does_not(count: int) -> None:
    lane = Lane("s" * 100, "/" * 600)
    headers = tuple((f"h{n}", b"x" * 40) for n in range(count))
    largest = VALUE_BYTES_MAX - headers_bytes(headers)
    event = Event(str(InvocationId(lane, "c" * 30)), "h", CallSource(one_way=True), b"x" * largest, headers)
    assert fits(event)
    assert not fits(Event(event.id, "h", event.source, b"x" * (largest + 1), headers))
    table = MemoryTable()
    table.apply(inbox_put(lane, event))
    message = pack(SendOut(lane.service, lane.key, event.id, "h", event.input, headers, 2**50, keep_result=True))
    table.apply(timer_put(SendTimer(lane, "c" * 30, 2**50, "n" * 60, message, "/" * 2_000, "0" * 20)))


# --- dead letters of what is large ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["produced", "kept"])
@pytest.mark.parametrize("size", [0, 3_000, 300_000, 4 * MB])
def test_a_dead_letter_with_the_most_headers_is_produced_or_kept_whole(size: int, way: str) -> None:
    headers, raw_key = headers_of(50_000, 100), b"r" * 40_000

    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop, topic_patience_ms=1_000)
        if way == "kept":
            world.kafka.delete_topic(DEAD)
        world.record(shop.fail, "k", b"x" * size, headers=headers, raw_key=raw_key)
        world.record(shop.keep, "k", b"next")
        await asyncio.sleep(60)
        assert sorted(world.released) == [0, 1]
        assert [data for data, *_ in shop.seen] == [b"next"]
        if way == "produced":
            (found,) = world.kafka.records(DEAD)
        else:
            (letter,) = await world.office.listed()
            _, held = await world.office.read(letter.id)
            assert isinstance(held, PublishOut)
            found = LogRecord(held.topic, 0, 0, 0, held.key, held.value, held.headers)
        assert (found.key, len(found.value or b""), found.headers[:100]) == (raw_key, size, headers)

    run_virtual(scenario())


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4_600_000, 5 * MB, 9 * MB])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "from the inbox"])
def test_a_record_that_no_function_can_be_given_is_a_dead_letter_at_once(
    size: int,
    waits: bool,
) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        if waits:
            world.record(shop.sleep, "k", b"")
            await asyncio.sleep(1)
        world.record(shop.keep, "k", b"before")
        world.record(shop.keep, "k", b"x" * size)
        world.record(shop.keep, "k", b"behind")
        await asyncio.sleep(90 if waits else 2)
        assert [data for data, *_ in shop.seen] == [b"before", b"behind"]
        assert len(world.released) == 3 + waits
        (dead,) = world.kafka.records(DEAD)
        assert len(dead.value or b"") == size
        assert f"at most {PAYLOAD_BYTES_MAX:,}" in dict(dead.headers)["tenuto-reason"].decode()
        assert max(world.payloads) <= PAYLOAD_BYTES_MAX

    run_virtual(scenario())


def test_a_call_that_no_function_can_be_given_is_told_so_at_once() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        event = Event(str(InvocationId(Lane("box", "k"), "c1")), "keep", CallSource(), b"x" * 5 * MB)
        answer = await world.dispatcher.call(event, 5_000)
        assert isinstance(answer, Failed)
        assert answer.failure.status_code == 413
        assert f"{PAYLOAD_BYTES_MAX:,}" in answer.failure.message

    run_virtual(scenario())


@pytest.mark.parametrize("bound", [3, 1, 0])
def test_events_that_are_too_large_together_are_given_one_by_one(bound: int) -> None:
    """Lambda's own refusal, whatever this side has counted: of more than `bound` events at once."""

    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        refused: list[int] = []

        def narrow(payload: bytes) -> Exception | None:
            if payload.count(b'"handler":"keep"') <= bound:
                return None
            refused.append(len(payload))
            return PayloadTooLargeError("RequestTooLargeException: too large")

        world.instead = narrow
        for number in range(8):
            world.record(shop.keep, "k", b"%d" % number)
        await asyncio.sleep(20)
        assert sorted(world.released) == list(range(8))
        if bound:
            assert [data for data, *_ in shop.seen] == [b"%d" % number for number in range(8)]
            assert world.kafka.records(DEAD) == []
        else:
            assert len(world.kafka.records(DEAD)) == 8
        assert len(refused) <= 16

    run_virtual(scenario())


def test_headers_count_in_a_batch() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for _ in range(60):
            world.record(shop.keep, "k", b"1", headers=headers_of(90_000), raw_key=b"k")
        await asyncio.sleep(10)
        assert len(shop.seen) == 60
        assert max(world.payloads) < 2 * world.limits.batch_bytes_max

    run_virtual(scenario())


# --- commits ----------------------------------------------------------------------------------------------------------


def outcome(events: Sequence[str], state: dict[str, bytes | None], *out: Out) -> bytes:
    """What a function answers that has changed this much."""
    return encode(Speculated(tuple(EventResult(e, Success()) for e in events), state, out))


OTHER = str(InvocationId(Lane("box", "o"), "n"))
FAT: dict[str, tuple[dict[str, bytes | None], tuple[Out, ...]]] = {
    "state": ({"s": b"x" * 500_000}, ()),
    "many states": ({f"s{n}": b"x" * 2_000 for n in range(250)}, ()),
    "large messages": ({}, tuple(SendOut("box", "o", OTHER, "keep", b"x" * 300_000) for _ in range(2))),
    "a record": ({}, (PublishOut("out", b"x" * 450_000),)),
    "headers of a record": ({}, (PublishOut("out", b"", None, headers_of(450_000)),)),
    "many messages": ({}, tuple(SendOut("box", "o", OTHER, "keep", b"x" * 3_000) for _ in range(150))),
}


@pytest.mark.parametrize("fat", FAT)
@pytest.mark.parametrize("source", ["record", "message", "call"])
def test_what_no_table_takes_is_a_failed_attempt_and_then_the_end_of_its_event(
    source: str, fat: str, caplog: pytest.LogCaptureFixture
) -> None:
    state, out = FAT[fat]

    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        nonce = kafka_nonce("0", "t", 0, 0) if source == "record" else "c1"
        invocation = str(InvocationId(Lane("box", "k"), nonce))
        world.answers.extend([outcome([invocation], state, *out)] * COMMITS_REFUSED_MAX)
        answer: Any = None
        if source == "record":
            world.record(shop.keep, "k", b"1")
        elif source == "message":
            await world.send(shop.keep, "k", b"1")
        else:
            answer = await world.dispatcher.call(Event(invocation, "keep", CallSource(), b"1"), 20_000)
        await asyncio.sleep(20)
        if source == "record":
            assert world.released == [0]
            (dead,) = world.kafka.records(DEAD)
            reason = dict(dead.headers)["tenuto-reason"].decode()
        elif source == "message":
            (letter,) = world.letters()
            assert (letter.status_code, letter.attempts) == (413, COMMITS_REFUSED_MAX)
            reason = letter.reason
        else:
            assert isinstance(answer, Failed)
            assert answer.failure.status_code == 413
            reason = answer.failure.message
        assert str(ITEM_BYTES_MAX) in reason
        assert not world.answers
        assert world.tally.take().counts["WritesRefused"] == COMMITS_REFUSED_MAX
        # Nothing of it was applied, and the key goes on.
        world.record(shop.keep, "k", b"next")
        await asyncio.sleep(5)
        assert [data for data, *_ in shop.seen] == [b"next"]
        assert set(world.head("box", "k").state) == {"n"}

    with caplog.at_level(logging.WARNING, "tenuto"):
        run_virtual(scenario())
    assert len([line for line in caplog.messages if "does not take what the handler changed" in line]) >= 2


def test_of_a_batch_only_the_event_that_is_too_large_ends() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        ids = [str(InvocationId(Lane("box", "k"), kafka_nonce("0", "t", 0, n))) for n in range(4)]

        def fat_for_the_third(payload: bytes) -> bytes | None:
            given = [event for event in ids if event.encode() in payload]
            return outcome(given, FAT["state"][0]) if ids[2] in given else None

        world.instead = fat_for_the_third
        for number in range(4):
            world.record(shop.keep, "k", b"%d" % number)
        await asyncio.sleep(30)
        assert sorted(world.released) == [0, 1, 2, 3]
        assert [data for data, *_ in shop.seen] == [b"0", b"1", b"3"]
        assert [record.value for record in world.kafka.records(DEAD)] == [b"2"]

    run_virtual(scenario())
