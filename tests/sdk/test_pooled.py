"""Several activations in one invocation of a function: which of them run, and that none of them writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tenuto import ObjectContext, VirtualObject, aws
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.limits import POOLED_BYTES_MAX, POOLED_MAX, POOLED_MS_MAX
from tenuto.protocol.messages import (
    PROTOCOL_VERSION,
    Activation,
    Broken,
    Discover,
    Head,
    Outcome,
    Pooled,
    Rejected,
    Speculated,
    decode_outcomes,
    encode,
)
from tenuto.protocol.modes import Drain, Speculate, activation_of
from tenuto.protocol.records import Event, KafkaSource

box = VirtualObject("box")
RAN: list[str] = []


class Clock:
    """What the function takes for the time."""

    ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms


CLOCK = Clock()


@box.handler()
async def quick(ctx: ObjectContext, number: int) -> None:
    """Remember a number."""
    RAN.append(ctx.key)
    ctx.set("number", number)


@box.handler()
async def steps(ctx: ObjectContext, number: int) -> None:
    """Would write before its step runs."""
    RAN.append(ctx.key)
    await ctx.run("step", RAN.append, "step")


@box.handler()
async def waits(ctx: ObjectContext, number: int) -> None:
    """Waits, which is durable as well."""
    RAN.append(ctx.key)
    await asyncio.sleep(0.001)


@box.handler()
async def slow(ctx: ObjectContext, number: int) -> None:
    """Takes longer than an invocation goes on beginning others."""
    RAN.append(ctx.key)
    CLOCK.ms += POOLED_MS_MAX


@box.handler()
async def fails(ctx: ObjectContext, number: int) -> None:
    """Fails."""
    raise ValueError("not today")


@box.handler()
async def bulky(ctx: ObjectContext, number: int) -> None:
    """Leaves more state than others have room beside."""
    ctx.set("text", "x" * number)


class Context:
    def get_remaining_time_in_millis(self) -> int:
        return 10_000


class Function:
    """A function process, asked as by a control plane."""

    def __init__(self) -> None:
        self.handler: Callable[[Any, Context], Any] = aws.handler(box)

    def asked(self, *handlers: str, number: int = 7, drains: bool = False) -> list[Speculated | Rejected | None]:
        """The outcomes of activations of these handlers, each of a key of its own, in one invocation."""
        RAN.clear()
        request = Pooled(tuple(activation(name, f"k{n}", number, drains=drains) for n, name in enumerate(handlers)))
        answer = self.handler(json.loads(encode(request)), Context())
        return [alone_or(outcome) for outcome in decode_outcomes(json.dumps(answer).encode()).outcomes]


def alone_or(outcome: Outcome | Broken | None) -> Speculated | Rejected | None:
    """What an invocation that writes nothing can answer."""
    assert outcome is None or isinstance(outcome, Speculated | Rejected)
    return outcome


@pytest.fixture(scope="module")
def process() -> Iterator[Function]:
    function = Function()
    yield function
    loop: asyncio.AbstractEventLoop | None = getattr(function.handler, "_loop", None)
    if loop is not None:
        loop.close()


@pytest.fixture
def function(process: Function, monkeypatch: pytest.MonkeyPatch) -> Function:
    """Its clock stands still, since a pooled invocation goes by it, and this machine may be busy."""
    monkeypatch.setattr(aws, "_now_ms", CLOCK.now_ms)
    return process


def activation(handler: str, key: str, number: int, *, drains: bool = False) -> Activation:
    lane = Lane("box", key)
    source = KafkaSource("0", "t", 0, 1, 0)
    event = Event.of(InvocationId(lane, kafka_nonce("0", "t", 0, 1)), handler, source, str(number).encode())
    mode = Drain((event,)) if drains else Speculate((event,))
    return activation_of(mode, "box", key, Head(), "here.1", table="tenuto", encrypted=False, hold_ms=0)


def numbers(outcomes: list[Speculated | Rejected | None]) -> list[bytes | None]:
    return [outcome.state["number"] if isinstance(outcome, Speculated) else None for outcome in outcomes]


def test_each_has_its_outcome_in_order(function: Function) -> None:
    assert numbers(function.asked("quick", "quick", "quick")) == [b"7", b"7", b"7"]
    assert RAN == ["k0", "k1", "k2"]


@pytest.mark.parametrize("writes", ["steps", "waits"])
def test_what_would_write_is_to_be_asked_for_alone_and_holds_up_nobody(function: Function, writes: str) -> None:
    assert numbers(function.asked("quick", writes, "quick")) == [b"7", None, b"7"]
    assert RAN == ["k0", "k1", "k2"]


def test_behind_a_slow_one_nothing_begins(function: Function) -> None:
    outcomes = function.asked("quick", "slow", "quick")
    assert RAN == ["k0", "k1"]
    assert isinstance(outcomes[1], Speculated)
    assert outcomes[2] is None


def test_one_that_fails_is_told_as_ever(function: Function) -> None:
    first, second = function.asked("fails", "quick")
    assert isinstance(first, Speculated)
    assert first.stopped is not None
    assert "not today" in first.stopped.failure.message
    assert numbers([second]) == [b"7"]


def test_a_handler_that_is_not_there_is_refused_alone(function: Function) -> None:
    first, second = function.asked("gone", "quick")
    assert isinstance(first, Rejected)
    assert numbers([second]) == [b"7"]


def test_what_may_write_has_an_invocation_of_its_own(function: Function) -> None:
    assert function.asked("quick", drains=True) == [None]
    assert RAN == []


def test_outcomes_have_so_much_room_together(function: Function) -> None:
    outcomes = function.asked("bulky", "bulky", "bulky", number=POOLED_BYTES_MAX // 2)
    assert [isinstance(outcome, Speculated) for outcome in outcomes] == [True, False, False]
    # The first one has room in any case.
    outcomes = function.asked("bulky", "quick", number=POOLED_BYTES_MAX + 1)
    assert [isinstance(outcome, Speculated) for outcome in outcomes] == [True, False]


def test_discovery_tells_how_many_one_invocation_carries(function: Function) -> None:
    manifest = function.handler(json.loads(encode(Discover())), Context())
    assert manifest["pools"] == POOLED_MAX


def test_another_version_is_refused(function: Function) -> None:
    request = Pooled((activation("quick", "k", 1),), version=PROTOCOL_VERSION + 1)
    answer = function.handler(msgspec.to_builtins(request), Context())
    assert answer["type"] == "rejected"
