"""Answers of functions that are all large at once: what they hold together is bounded, and each is dealt with.

Owns the room for answers, the driver that reads them, and the dispatcher that lets go of them. Does not own what an
answer says (`test_outcomes`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto_control.config import FunctionConfig
from tenuto_control.dispatcher.answer_room import ANSWER_COPIES, ANSWER_FREE_BYTES, AnswerRoom
from tenuto_control.dispatcher.lane_places import WORKING_BYTES
from tenuto_control.drivers.invoke_client import BotocoreLambda
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.limits import ANSWER_BYTES_MAX, MIB, Limits
from tenuto_control.ports import AnswerHolder, FunctionFailedError, Target
from tests.attack.examples import examples
from tests.attack.test_memory import virtually
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

# --- the room ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(20_000, 100_000),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 120_000), st.booleans()), max_size=30),
)
@settings(max_examples=examples(80), deadline=None)
def test_answers_hold_no_more_than_they_may_and_each_has_its_turn(
    bytes_max: int, asked: list[tuple[str, int, bool]]
) -> None:
    async def scenario() -> None:
        room = AnswerRoom(bytes_max)
        done: list[int] = []
        most = max([bytes_max, *(ANSWER_COPIES * size for _, size, _ in asked)])

        async def one(number: int, function: str, size: int) -> None:
            with room.answer(function) as answer:
                await answer.hold(size)
                await answer.hold(size)
                assert room.held <= most
                await asyncio.sleep(1)
            done.append(number)

        tasks = [asyncio.create_task(one(n, function, size)) for n, (function, size, _) in enumerate(asked)]
        await asyncio.sleep(0.5)
        for task, (_, _, leaves) in zip(tasks, asked, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert room.held == 0
        assert set(done) == {n for n, (_, _, leaves) in enumerate(asked) if not leaves}

    run_virtual(scenario())


@virtually
async def test_functions_take_turns() -> None:
    room = AnswerRoom(MIB)
    order: list[str] = []

    async def one(function: str) -> None:
        with room.answer(function) as answer:
            await answer.hold(MIB)
            order.append(function)
            await asyncio.sleep(1)

    await asyncio.gather(*(one(function) for function in [*"aaaaaaaaaa", "d", "d"]))
    assert order[:4] == ["a", "a", "d", "a"]


# --- the driver -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lambda:
    """A client of Lambda whose answers are read piece by piece, and what of them has been read and not let go of."""

    size: int
    told: str | None = None
    read: int = 0
    peak: int = 0

    async def invoke(self, **_: Any) -> dict[str, Any]:
        left = self.size

        async def read(most: int) -> bytes:
            nonlocal left
            await asyncio.sleep(0.001)
            piece = min(most, left, 65_536)
            left -= piece
            self.read += piece
            self.peak = max(self.peak, self.read)
            return bytes(piece)

        headers = {} if self.told is None else {"content-length": self.told}
        payload = SimpleNamespace(read=read, close=lambda: None)
        return {"Payload": payload, "ResponseMetadata": {"HTTPHeaders": headers}}


@pytest.mark.parametrize("told", [True, False])
def test_of_many_large_answers_no_more_is_read_than_there_is_room_for(*, told: bool) -> None:
    async def scenario() -> None:
        size = 2 * MIB
        client = Lambda(size, str(size) if told else None)
        invoker = LambdaInvoker(BotocoreLambda(cast("Any", client)), {"f": FunctionConfig()})
        room = AnswerRoom(12 * MIB)

        async def one() -> None:
            with room.answer("f") as answer:
                assert len(await invoker.invoke("f", b"{}", answer)) == size
                client.read -= size

        await asyncio.gather(*(one() for _ in range(40)))
        assert client.peak <= 12 * MIB // ANSWER_COPIES
        assert client.peak >= (3 * size if told else size)

    run_virtual(scenario())


@pytest.mark.parametrize("told", [str(ANSWER_BYTES_MAX + 1), "9" * 17, "9" * 5_000, "-1", "²", "1e9", ""])
def test_what_headers_tell_of_an_answer_is_not_believed(told: str) -> None:
    async def scenario() -> None:
        client = Lambda(ANSWER_BYTES_MAX + 1, told)
        invoker = LambdaInvoker(BotocoreLambda(cast("Any", client)), {"f": FunctionConfig()})
        room = AnswerRoom(MIB)
        with room.answer("f") as answer, pytest.raises(FunctionFailedError, match="answered more than"):
            await invoker.invoke("f", b"{}", answer)
        assert room.held == 0

    run_virtual(scenario())


# --- the dispatcher ---------------------------------------------------------------------------------------------------

box = VirtualObject("box")


@box.handler()
async def large(_ctx: ObjectContext) -> str:
    return "x" * 2_000_000


@dataclass(slots=True)
class Weighed(Meter):
    """What the answers in this process hold together, whenever one more has come."""

    peak: int = 0

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        answer = await Meter.invoke(self, function, payload, room)
        assert room is not None
        await room.hold(len(answer))
        self.peak = max(self.peak, self.dispatcher._parts.capacity._answers.held)
        return answer


@virtually
async def test_large_results_are_committed_a_few_at_a_time_and_nothing_stays_held() -> None:
    meter = Weighed(Services([box]))
    calls = [meter.event_of_call(large, f"k{n}", f"c{n}") for n in range(20)]
    answers = await asyncio.gather(*(meter.dispatcher.call(call, 20_000) for call in calls))
    assert all(isinstance(answer, Success) and len(answer.value or b"") > 2_000_000 for answer in answers)
    assert 8_000_000 < meter.peak <= Limits().answers_bytes_max
    assert meter.dispatcher._parts.capacity._answers.held == 0


SERVICES = [VirtualObject(f"s{n}") for n in range(5)]


async def _six_megabytes(_ctx: ObjectContext) -> str:
    """As much as a result may have. It travels as base64: four characters for three bytes."""
    return "x" * 3_990_000


LARGE = [service.handler(name="large")(_six_megabytes) for service in SERVICES]


@SERVICES[0].handler()
async def small(_ctx: ObjectContext) -> int:
    return 1


@dataclass(slots=True)
class Apart(Weighed):
    """Each service has a function of its own."""

    def find(self, service: str) -> Target | None:
        found = Meter.find(self, service)
        return None if found is None else replace(found, function=service)


@virtually
async def test_several_functions_that_all_answer_as_much_as_they_can_leave_a_small_key_alone() -> None:
    meter = Apart(Services(SERVICES))
    calls = [meter.event_of_call(LARGE[n % 5], f"k{n}", f"c{n}") for n in range(15)]
    large = [asyncio.create_task(meter.dispatcher.call(call, 20_000)) for call in calls]
    await asyncio.sleep(0)
    for n in range(20):
        answer = await meter.dispatcher.call(meter.event_of_call(small, f"small{n}", f"s{n}"), 1_000)
        assert answer == Success(b"1")
    answers = await asyncio.gather(*large)
    assert all(isinstance(answer, Success) and len(answer.value or b"") > 3_990_000 for answer in answers)
    assert meter.peak <= Limits().answers_bytes_max
    assert meter.dispatcher._parts.capacity._answers.held == 0


def test_one_answer_of_the_largest_fits() -> None:
    assert Limits().answers_bytes_max >= ANSWER_COPIES * ANSWER_BYTES_MAX
    assert ANSWER_FREE_BYTES < WORKING_BYTES
