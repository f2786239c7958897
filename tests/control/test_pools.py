"""Lanes that share an invocation: who does, what it saves, and that nothing of it is lost or done twice.

Owns the dispatcher's side. Does not own what a function does with such an invocation (`tests.sdk.test_pooled`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
from msgspec import structs

from tenuto.protocol.limits import POOLED_BYTES_MAX, POOLED_MAX
from tenuto.protocol.messages import Speculated
from tenuto.protocol.records import Success
from tenuto_control.dispatcher.pools import ALONE, UNSHARED, Invocation, Pool, Sharing, Told
from tenuto_control.ports import FunctionFailedError, FunctionThrottledError, InvokeError
from tests.control.pooling import KEYS, declared, delivered, pooling, shown
from tests.support.virtual_time import run_virtual

CALL_WAIT_MS = 30_000


def test_lanes_that_wait_share_invocations() -> None:
    done: list[str] = []
    box = declared(done)
    meter = pooling(box)
    run_virtual(delivered(meter, box, "quick"))
    assert sorted(done) == sorted(["first", *(f"k{number}" for number in range(KEYS))])
    assert sum(meter.asked) == KEYS
    assert max(meter.asked) == POOLED_MAX
    assert len(meter.asked) <= KEYS // POOLED_MAX + 3


def test_where_there_is_a_place_for_each_nothing_is_shared() -> None:
    box = declared([])
    meter = pooling(box, places=KEYS)
    run_virtual(delivered(meter, box, "quick"))
    assert meter.asked == [1] * KEYS


def test_a_function_that_does_not_tell_is_asked_for_one_at_a_time() -> None:
    box = declared([])
    meter = pooling(box, pools=0)
    run_virtual(delivered(meter, box, "quick"))
    assert meter.asked == [1] * KEYS


def test_what_takes_durable_steps_shares_nothing() -> None:
    done: list[str] = []
    box = declared(done)
    meter = pooling(box)
    run_virtual(delivered(meter, box, "steps"))
    assert meter.asked == [1] * KEYS
    assert len(done) == KEYS + 1


def test_a_step_in_a_pooled_invocation_runs_once_and_alone() -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = declared(done)
        meter = pooling(box)
        meter.deliver(box.handlers["quick"], "first")
        meter.deliver(box.handlers["steps"], "first")
        await meter.quiet()
        done.clear()
        # As if its work had been quick so far.
        meter.dispatcher._parts.quick.told(("box", "steps"), quick=True, wrote=False)
        for number in range(6):
            meter.deliver(box.handlers["steps" if number % 2 else "quick"], f"k{number}")
        await meter.quiet()
        assert sorted(done) == [f"k{number}" for number in range(6)]
        assert meter.sharing("steps") == UNSHARED
        await meter.dispatcher.stop()

    run_virtual(scenario())


@pytest.mark.parametrize(
    "broken",
    [FunctionFailedError("killed"), FunctionThrottledError("too many"), None],
    ids=["failed", "throttled", "garbled"],
)
def test_a_pooled_invocation_that_fails_costs_nobody_an_attempt(broken: InvokeError | None) -> None:
    async def scenario() -> None:
        done: list[str] = []
        box = declared(done)
        meter = pooling(box)
        meter.broken, meter.garbled = broken, None if broken else b'{"type":"outcomes","outcomes":[null,7]}'
        task = asyncio.create_task(delivered(meter, box, "once"))
        await asyncio.sleep(0.2)
        meter.broken = None
        await task
        assert meter.published == []
        assert set(done) == {"first", *(f"k{number}" for number in range(KEYS))}
        assert max(meter.asked) > 1

    run_virtual(scenario())


def test_throttling_keeps_nobody_from_sharing_and_unknown_handlers_are_not_remembered() -> None:
    async def scenario() -> None:
        box = declared([])
        meter = pooling(box)
        quick = meter.dispatcher._parts.quick
        meter.deliver(box.handlers["quick"], "first")
        await meter.quiet()
        meter.broken = FunctionThrottledError("too many")
        for number in range(12):
            meter.deliver(box.handlers["quick"], f"k{number}")
        await asyncio.sleep(0.05)
        assert meter.sharing("quick") == Sharing(POOLED_MAX)
        meter.broken = None
        await meter.quiet()
        await meter.dispatcher.stop()
        quick.told(("box", "gone"), quick=False, wrote=False)
        assert set(quick._paces) == {("box", "quick")}

    run_virtual(scenario())


def test_what_is_too_large_to_share_goes_alone() -> None:
    box = declared([])
    meter = pooling(box)
    run_virtual(delivered(meter, box, "bulky", value=b'"%b"' % (b"x" * POOLED_BYTES_MAX)))
    assert meter.asked == [1] * KEYS


def test_what_answers_too_much_to_share_goes_alone() -> None:
    box = declared([])
    meter = pooling(box)
    run_virtual(delivered(meter, box, "bulky", value=b'"%b"' % (b"x" * (POOLED_BYTES_MAX // 3))))
    assert 1 < meter.asked.count(1) < KEYS


def test_calls_share_invocations_with_events_and_have_their_answers() -> None:
    async def scenario() -> None:
        box = declared([])
        meter = await shown(box, "quick")
        calls = [
            structs.replace(meter.event_of_call(box.handlers["quick"], f"c{n}", f"n{n}"), input=str(n).encode())
            for n in range(12)
        ]
        answers = [asyncio.create_task(meter.dispatcher.call(call, CALL_WAIT_MS)) for call in calls]
        for number in range(12):
            meter.deliver(box.handlers["quick"], f"k{number}")
        assert await asyncio.gather(*answers) == [Success(str(n).encode()) for n in range(12)]
        await meter.quiet()
        assert max(meter.asked) > 4
        await meter.dispatcher.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("seed", range(200))
def test_everybody_who_shares_is_told_and_one_asks(seed: int) -> None:
    """However they join, withdraw or give up, who stays hears its own answer, or that nothing was done."""

    async def scenario() -> None:
        rng = random.Random(seed)
        size = rng.randint(2, 8)
        pool, asked, left = Pool(size), list[Sequence[bytes]](), list[bool]()

        async def ask(payloads: Sequence[bytes]) -> Sequence[Told]:
            asked.append(payloads)
            await asyncio.sleep(rng.choice([0, 0.01, 0.1]))
            return [Speculated((), {"": payload}) for payload in payloads]

        invocation = Invocation(ask, ALONE, nullcontext(), asyncio.create_task, lambda: left.append(True))

        async def member(number: int) -> Told | None:
            joined = False
            try:
                await asyncio.sleep(rng.choice([0, 0, 0.01, 0.05]))
                if rng.random() < 0.2:
                    return None
                joined = True
                told = await pool.answer(b"%d" % number, invocation)
                assert told in (ALONE, Speculated((), {"": b"%d" % number}))
                return told
            finally:
                # As `HeldPlace` does.
                if not joined:
                    pool.withdraw()
                left.append(pool.leave())

        members = [asyncio.create_task(member(number)) for number in range(size)]
        given_up = {number for number in range(size) if rng.random() < 0.25}

        async def give_up() -> None:
            await asyncio.sleep(rng.choice([0.011, 0.051, 0.06]))
            for number in given_up:
                members[number].cancel()

        giving = asyncio.create_task(give_up())
        results = await asyncio.gather(*members, return_exceptions=True)
        await giving
        # The task of the invocation ends by itself.
        await asyncio.sleep(0.2)
        assert len(asked) <= 1
        assert sorted(left) == [False] * (len(left) - 1) + [True]
        for number, result in enumerate(results):
            assert not isinstance(result, Exception)
            assert number in given_up or not isinstance(result, BaseException)

    run_virtual(scenario())
