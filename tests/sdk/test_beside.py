"""Several activations side by side in one invocation of a function: each writes for itself, and holds up no other."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject, aws
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.writes import Answer, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import BESIDE_BYTES_MAX, BESIDE_MAX, BESIDE_MS_MAX
from tenuto.protocol.messages import (
    Activation,
    Broken,
    Committed,
    Discover,
    Fenced,
    Head,
    NapLeave,
    Outcome,
    Pooled,
    Rejected,
    Speculated,
    Suspended,
    decode_outcomes,
    encode,
)
from tenuto.protocol.modes import Speculate, activation_of
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime import beside
from tenuto.runtime.activation import activate
from tenuto.runtime.beside import outcome_bytes, run_beside
from tenuto.runtime.environment import STEP_THREADS_MAX, Beside, Environment, InlineWriteLoop, ProcessEnded
from tenuto.runtime.placement import QUICK_IN_A_ROW, QUICK_MS, QuickSteps
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableRefusedError

FUNCTION_MS = 60_000
WAIT_S = 20
HERE = threading.main_thread().name

box = VirtualObject("box")
RAN: list[str] = []
THREADS: list[str] = []
MEET = threading.Barrier(3)


@box.handler()
async def steps(ctx: ObjectContext, number: int) -> None:
    """Two steps and a set."""
    await ctx.run("first", RAN.append, f"{ctx.key} first")
    await ctx.run("second", RAN.append, f"{ctx.key} second")
    ctx.set("number", number)


@box.handler()
async def meets(ctx: ObjectContext, number: int) -> None:
    """A step that ends when those of two other lanes are at work."""
    await ctx.run("meet", MEET.wait, WAIT_S)


@box.handler()
async def where(ctx: ObjectContext, number: int) -> None:
    """A step that tells its thread."""
    await ctx.run("where", lambda: THREADS.append(threading.current_thread().name))


@box.handler()
async def sleeps(ctx: ObjectContext, number: int) -> None:
    """A step and a nap."""
    await ctx.run("first", RAN.append, f"{ctx.key} first")
    await ctx.sleep(timedelta(seconds=5))


@box.handler(retry_policy=InvocationRetryPolicy(initial_interval=timedelta(milliseconds=400)))
async def fails(ctx: ObjectContext, number: int) -> None:
    """Fails behind a step."""
    await ctx.run("first", RAN.append, f"{ctx.key} first")
    raise ValueError("not today")


@box.handler()
async def bulky(ctx: ObjectContext, number: int) -> None:
    """Leaves much state behind a step."""
    await ctx.run("first", RAN.append, f"{ctx.key} first")
    ctx.set("text", "x" * number)


class Refusing(MemoryTable):
    """A table that refuses what is for one lane."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await asyncio.sleep(0)
        if write.key.pk.endswith("refused"):
            raise TableRefusedError("not this key")
        return await super().write(write)


@dataclass
class Process:
    """A function process over an in-memory table."""

    table: Refusing = field(default_factory=Refusing)
    quick: QuickSteps = field(default_factory=QuickSteps)
    until_ms: int = BESIDE_MS_MAX

    def asked(self, *activations: Activation) -> tuple[Outcome | Broken | None, ...]:
        """The outcomes of these activations, in one invocation."""
        RAN.clear()
        THREADS.clear()
        services = Services([box])

        async def run(one: Activation) -> Outcome:
            env = Environment(self.table, now_ms, now_ms() + FUNCTION_MS, InlineWriteLoop())
            env = replace(env, beside=Beside(now_ms() + self.until_ms, self.quick))
            return await activate(one, services, env)

        return asyncio.run(run_beside(Pooled(activations, beside=True), run)).outcomes

    def head(self, key: str) -> Head:
        """What a lane holds."""
        at = head_key(Lane("box", key))
        return parse_head(self.table.items.get((at.pk, at.sk)))


@pytest.fixture
def process() -> Process:
    return Process()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def activation(handler: str, key: str, number: int = 7, *, events: int = 1) -> Activation:
    lane = Lane("box", key)
    given = tuple(
        Event.of(
            InvocationId(lane, kafka_nonce("0", "t", 0, offset)),
            handler,
            KafkaSource("0", "t", 0, offset, 0),
            str(number).encode(),
        )
        for offset in range(events)
    )
    leave = NapLeave(30_000, 40_000, "there.1")
    return activation_of(
        Speculate(given), "box", key, Head(), "here.1", table="tenuto", encrypted=False, hold_ms=0, nap=leave
    )


def test_each_commits_for_itself_and_has_its_outcome_in_order(process: Process) -> None:
    outcomes = process.asked(*(activation("steps", f"k{n}", n) for n in range(4)))
    for n, outcome in enumerate(outcomes):
        assert isinstance(outcome, Committed)
        assert outcome.head.state == {"number": b"%d" % n} == process.head(f"k{n}").state
    assert sorted(RAN) == sorted(f"k{n} {step}" for n in range(4) for step in ("first", "second"))
    # Side by side: the second step of one lane does not come before the first one of another.
    assert {line.split()[1] for line in RAN[:4]} == {"first"}


def test_steps_that_may_be_slow_run_at_the_same_time(process: Process) -> None:
    outcomes = process.asked(*(activation("meets", f"k{n}") for n in range(3)))
    assert all(isinstance(outcome, Committed) for outcome in outcomes)


def test_a_step_that_has_been_quick_changes_no_thread_until_it_is_slow_once(process: Process) -> None:
    process.asked(*(activation("where", f"k{n}") for n in range(QUICK_IN_A_ROW)))
    assert HERE not in THREADS
    for _ in range(QUICK_IN_A_ROW):
        # Other work of this machine may have delayed some of those.
        process.quick.told("where", 0)
    process.asked(activation("where", "x"), activation("where", "y"))
    assert THREADS == [HERE] * 2
    process.quick.told("where", QUICK_MS + 1)
    process.asked(activation("where", "z"))
    assert HERE not in THREADS


def test_a_lane_whose_writes_are_refused_fails_alone(process: Process) -> None:
    first, second = process.asked(activation("steps", "refused"), activation("steps", "k"))
    assert isinstance(first, Speculated)
    assert first.stopped is not None
    assert "not this key" in first.stopped.failure.message
    assert isinstance(second, Committed)


def test_what_would_fail_an_invocation_fails_one_lane_of_several(process: Process) -> None:
    without_run = structs.replace(activation("steps", "k0"), mode="resume", events=())
    first, second = process.asked(without_run, activation("steps", "k1"))
    assert isinstance(first, Broken)
    assert "its head has none" in first.reason
    assert isinstance(second, Committed)


def test_a_handler_that_is_not_there_is_refused_alone(process: Process) -> None:
    first, second = process.asked(activation("gone", "k0"), activation("steps", "k1"))
    assert isinstance(first, Rejected)
    assert isinstance(second, Committed)


def test_a_failed_attempt_is_not_waited_for(process: Process) -> None:
    began_s = time.monotonic()
    first, second = process.asked(activation("fails", "k0"), activation("steps", "k1"))
    assert isinstance(first, Suspended)
    assert first.head.run is not None
    assert "not today" in str(first.head.run.error)
    assert first.head.run.failures == 1
    assert isinstance(second, Committed)
    assert time.monotonic() - began_s < WAIT_S


def test_sleeps_nap(process: Process) -> None:
    outcomes = process.asked(activation("sleeps", "k0"), activation("sleeps", "k1"))
    for outcome in outcomes:
        assert isinstance(outcome, Suspended)
        assert outcome.head.run is not None
        assert outcome.head.run.napping


def test_when_its_time_is_over_no_lane_begins_another_event(process: Process) -> None:
    process.until_ms = 0
    first, second = process.asked(activation("steps", "k0", events=3), activation("steps", "k1", events=1))
    assert isinstance(first, Committed)
    assert len(first.results) == 1
    assert first.head.run is None
    assert isinstance(second, Committed)
    process.until_ms = FUNCTION_MS
    (third,) = process.asked(activation("steps", "k3", events=3))
    assert isinstance(third, Committed)
    assert len(third.results) == 3


def test_outcomes_that_have_no_room_are_in_the_heads(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    number, room = 100_000, 350_000
    monkeypatch.setattr(beside, "BESIDE_BYTES_MAX", room)
    outcomes = process.asked(*(activation("bulky", f"k{n}", number) for n in range(BESIDE_MAX)))
    told = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    assert sum(outcome_bytes(outcome) for outcome in told) <= room
    assert len(told) == room // number
    for n, outcome in enumerate(outcomes):
        assert isinstance(outcome, Committed | Fenced)
        assert len(process.head(f"k{n}").state["text"]) > number


class Context:
    def get_remaining_time_in_millis(self) -> int:
        return FUNCTION_MS


def test_a_function_works_on_one_key_at_a_time_unless_it_says_otherwise() -> None:
    assert aws.handler(box)(json.loads(encode(Discover())), Context())["beside"] == 1
    handler: Any = aws.handler(box, concurrent_keys=3)
    assert handler(json.loads(encode(Discover())), Context())["beside"] == 3


def test_a_function_that_is_asked_for_what_it_did_not_offer_writes_nothing() -> None:
    handler: Any = aws.handler(box)
    RAN.clear()
    answer = handler(json.loads(encode(Pooled((activation("steps", "k0"),), beside=True))), Context())
    assert decode_outcomes(json.dumps(answer).encode()).outcomes == (None,)
    assert RAN == []
    handler._loop.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, ValueError), (BESIDE_MAX + 1, ValueError), (True, TypeError), ("8", TypeError), (2.0, TypeError)],
)
def test_another_number_of_keys_is_refused_in_one_line(number: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^concurrent_keys is .*concurrent_keys=8$"):
        aws.handler(box, concurrent_keys=number)


@pytest.mark.parametrize("setting", [{"TENUTO_AWS_CLIENT": "botocore"}, {"TENUTO_AWS_CLIENT": "none"}])
def test_where_botocore_sends_what_would_write_is_to_be_asked_for_alone(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]
) -> None:
    for name, value in {"AWS_REGION": "us-east-1", **setting}.items():
        monkeypatch.setenv(name, value)
    handler: Any = aws.handler(box, concurrent_keys=2)
    request = Pooled((activation("steps", "k0"), activation("gone", "k1")), beside=True)
    RAN.clear()
    answer = handler(json.loads(encode(request)), Context())
    first, second = decode_outcomes(json.dumps(answer).encode()).outcomes
    assert first is None
    assert isinstance(second, Rejected)
    assert RAN == []
    handler._loop.close()


def test_a_speculation_without_room_is_to_be_asked_for_again() -> None:
    async def run(one: Activation) -> Outcome:
        return Speculated((), {"text": b"x" * (BESIDE_BYTES_MAX // 2 + 1)})

    request = Pooled((activation("steps", "k0"), activation("steps", "k1")), beside=True)
    first, second = asyncio.run(run_beside(request, run)).outcomes
    assert isinstance(first, Speculated)
    assert second is None


def test_none_goes_on_when_the_invocation_is_over_whatever_ends_one_of_them() -> None:
    ended: list[str] = []

    async def run(one: Activation) -> Outcome:
        if one.key == "k0":
            raise ProcessEnded
        await asyncio.sleep(0.01)
        ended.append(one.key)
        return Speculated(())

    request = Pooled((activation("steps", "k0"), activation("steps", "k1")), beside=True)
    loop = asyncio.new_event_loop()
    with pytest.raises(ProcessEnded):
        loop.run_until_complete(run_beside(request, run))
    assert ended == ["k1"]
    loop.close()


def test_a_lane_whose_task_user_code_cancels_fails_alone() -> None:
    async def run(one: Activation) -> Outcome:
        if one.key == "k0":
            raise asyncio.CancelledError
        return Speculated(())

    request = Pooled((activation("steps", "k0"), activation("steps", "k1")), beside=True)
    first, second = asyncio.run(run_beside(request, run)).outcomes
    assert isinstance(first, Broken)
    assert isinstance(second, Speculated)


def test_discovery_tells_of_no_lanes_side_by_side_where_botocore_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_AWS_CLIENT", "botocore")
    manifest = aws.handler(box)(json.loads(encode(Discover())), Context())
    assert manifest["beside"] == 0
    assert manifest["pools"] > 0


def test_steps_of_all_lanes_have_threads() -> None:
    handler: Any = aws.handler(box)
    together = threading.Barrier(STEP_THREADS_MAX)

    async def steps_of_lanes() -> None:
        await asyncio.gather(*(asyncio.to_thread(together.wait, WAIT_S) for _ in range(STEP_THREADS_MAX)))

    handler._event_loop.run_until_complete(steps_of_lanes())
    handler._loop.close()
