"""What a handler's result and its messages may weigh, and what becomes of those that weigh more.

Owns the bounds of a result on its way out of the runtime. Does not own state (`test_context`), steps
(`test_step_limits`) or Lambda's own limit (`tests/contract/test_function_invoker`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tenuto import ObjectContext, TerminalError, VirtualObject
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import OUT_WAITING_BYTES_MAX, PAYLOAD_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.messages import Activation, Committed, Head, Outcome, Speculated, encode
from tenuto.protocol.records import CallSource, Event, Failed, KafkaSource, PublishOut, SendOut, Source, Success
from tenuto.runtime.activation import CALL_OUTPUT_BYTES_MAX, activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tests.support.in_process import InProcess
from tests.support.virtual_time import VirtualClock, run_virtual

LANE = Lane("box", "k")
NAP = timedelta(seconds=30)
"""Long enough that a sleep suspends."""

box = VirtualObject("box")
paid: list[str] = []


async def _count(ctx: ObjectContext) -> None:
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)


@box.handler()
async def small(ctx: ObjectContext) -> int:
    """One more, and how many there are."""
    await _count(ctx)
    return await ctx.get("count", int) or 0


@box.handler()
async def large(ctx: ObjectContext, size: int) -> bytes:
    """One more, with a result of so many bytes."""
    await _count(ctx)
    return b"x" * size


@box.handler()
async def large_at_last(ctx: ObjectContext, size: int) -> bytes:
    """The same after a step and a suspension."""
    await ctx.run("pay", lambda: paid.append("paid"))
    await ctx.sleep(NAP)
    return b"x" * size


@box.handler()
async def talks(ctx: ObjectContext, messages: int) -> None:
    """One more, and messages of 4 KB each."""
    await _count(ctx)
    for _ in range(messages):
        ctx.publish("out", b"m" * 4_000)
        ctx.object_send(small, "other")


def of_kafka(name: str, offset: int, value: bytes) -> Event:
    source = KafkaSource("0", "t", 0, offset, 0, dead_letter="t.dead-letter")
    return Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, offset))), name, source, value)


def of_call(name: str, source: Source, value: bytes | None = None) -> Event:
    return Event(str(InvocationId(LANE, "c1")), name, source, value)


def speculate(*events: Event) -> Outcome:
    """What a function answers to these events of one key that did nothing yet."""

    async def scenario() -> Outcome:
        clock = VirtualClock()
        env = Environment(MemoryTable(), clock.now_ms, clock.now_ms() + 10_000, InlineWriteLoop())
        return await activate(Activation("box", "k", "speculate", Head(), "h", events), Services([box]), env)

    return run_virtual(scenario())


@pytest.mark.parametrize(
    ("source", "most"),
    [
        pytest.param(CallSource(), CALL_OUTPUT_BYTES_MAX, id="only answered"),
        pytest.param(CallSource(keep_result=True), VALUE_BYTES_MAX, id="kept to be attached to"),
    ],
)
def test_a_result_above_its_bound_is_answered_with_an_error_and_changes_nothing(source: Source, most: int) -> None:
    fits = speculate(of_call("large", source, str(most - 1_000).encode()))
    assert isinstance(fits, Speculated | Committed)
    assert isinstance(fits.results[0].result, Success)
    assert (fits.state if isinstance(fits, Speculated) else fits.head.state) == {"count": b"1"}
    assert len(encode(fits)) < PAYLOAD_BYTES_MAX, "the largest result there is fits into an answer"

    outcome = speculate(of_call("large", source, str(most + 1).encode()))
    assert isinstance(outcome, Speculated)
    assert outcome.stopped is None, "tried again, it would be too large again"
    assert outcome.state == {}
    (ended,) = outcome.results
    assert isinstance(ended.result, Failed)
    assert (ended.result.failure.status_code, "size limit" in ended.result.failure.message) == (413, True)


def test_a_result_that_nobody_waits_for_may_be_large() -> None:
    outcome = speculate(of_kafka("large", 0, str(CALL_OUTPUT_BYTES_MAX + 1).encode()))
    assert isinstance(outcome, Speculated)
    assert [entry.result for entry in outcome.results] == [Success()]
    assert outcome.state == {"count": b"1"}
    assert outcome.out == ()


def test_messages_beyond_a_head_leave_as_bundles_all_of_them_and_once() -> None:
    async def scenario() -> None:
        local = InProcess(box)
        await local.deliver("t", "k", talks, b"500")
        assert [entry.value for _, entry in local.published] == [b"m" * 4_000] * 500
        assert local.state(box, "k") == {"count": 1}
        await local.advance(timedelta())
        assert local.state(box, "other") == {"count": 500}

    asyncio.run(scenario())


def test_messages_above_the_bound_send_their_event_to_the_dead_letters_and_leave_its_neighbours_alone() -> None:
    too_many = str(OUT_WAITING_BYTES_MAX // 4_000 + 1).encode()
    outcome = speculate(of_kafka("talks", 0, b"1"), of_kafka("talks", 1, too_many), of_kafka("talks", 2, b"1"))
    assert isinstance(outcome, Speculated)
    assert [isinstance(entry.result, Failed) for entry in outcome.results] == [False, True, False]
    assert outcome.state == {"count": b"2"}, "the changes of the refused event are dropped, no others"
    letters = [entry for entry in outcome.out if isinstance(entry, PublishOut) and entry.dead]
    ((topic, value, headers),) = [(letter.topic, letter.value, dict(letter.headers)) for letter in letters]
    assert (topic, value) == ("t.dead-letter", too_many)
    assert b"the limit is 4,000,000 bytes" in headers["tenuto-reason"]
    assert (headers["tenuto-source-offset"], headers["tenuto-source-topic"]) == (b"1", b"t")
    assert sum(isinstance(entry, SendOut) for entry in outcome.out) == 2
    assert sum(isinstance(entry, PublishOut) for entry in outcome.out) == 2 + 1


def test_the_caller_hears_of_it_and_the_key_goes_on() -> None:
    async def scenario() -> None:
        local = InProcess(box)
        assert await local.call(small, "k") == 1
        with pytest.raises(TerminalError, match="size limit") as refused:
            await local.call(large, "k", VALUE_BYTES_MAX + 1)
        assert refused.value.status_code == 413
        assert await local.call(small, "k") == 2

    asyncio.run(scenario())


def test_an_invocation_that_owned_its_lane_lets_go_of_it_and_its_caller_can_ask_why() -> None:
    async def scenario() -> None:
        paid.clear()
        local = InProcess(box)
        with pytest.raises(TimeoutError) as waiting:
            await local.call(large_at_last, "k", VALUE_BYTES_MAX + 1)
        invocation = str(waiting.value).split()[0]
        await local.advance(NAP)
        assert local.head(box, "k").run is None
        stored = local.table.items[f"R#{invocation}", "R"]["res"]
        assert isinstance(stored, bytes)
        assert b"size limit" in stored
        assert paid == ["paid"], "what its step did stays done, once"
        assert await local.call(small, "k") == 1

    asyncio.run(scenario())
