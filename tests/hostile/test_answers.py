"""Answers to awakeables, in any number and of any allowed size: no key stands still, and no sender is held."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.protocol.limits import AWAKEABLES_BYTES_MAX
from tenuto.protocol.records import Success
from tenuto_control.ports import OverloadedError, Resolution
from tests.costs.meter import Meter, meter_of
from tests.support.virtual_time import run_virtual


class Asker:
    """An object that asks, one that answers, and what was asked."""

    def __init__(self) -> None:
        self.box = VirtualObject("box")
        self.driver = VirtualObject("driver")
        self.ids: list[str] = []
        self.ran: list[int] = []

        @self.box.handler()
        async def gathers(ctx: ObjectContext, number: int) -> None:
            asked = [ctx.awakeable(str) for _ in range(number)]
            await ctx.run("hand out", self.hand_out, [name for name, _ in asked])
            answers = await ctx.gather(*(answer for _, answer in asked))
            ctx.set("sizes", sorted({len(answer) for answer in answers}))
            ctx.set("answers", len(answers))

        @self.box.handler()
        async def loops(ctx: ObjectContext, number: int) -> None:
            for turn in range(number):
                name, answer = ctx.awakeable(str)
                await ctx.run("hand out", self.hand_out, [name])
                await answer
                if turn % 10 == 0:
                    await ctx.sleep(1)
            ctx.set("answers", number)

        @self.box.handler()
        async def only_waits(ctx: ObjectContext, number: int) -> None:
            asked = [ctx.awakeable(str) for _ in range(number)]
            await ctx.run("hand out", self.hand_out, [name for name, _ in asked])
            for _, answer in asked:
                await answer
            ctx.set("answers", number)

        @self.driver.handler()
        async def answers(ctx: ObjectContext, size: int) -> None:
            ctx.resolve_awakeable(self.ids[int(ctx.key)], "x" * size)
            ctx.set("answered", 1)

        self.gathers, self.loops, self.only_waits, self.answers = gathers, loops, only_waits, answers

    def hand_out(self, names: list[str]) -> None:
        """A step."""
        self.ran.append(len(names))
        self.ids += [name for name in names if name not in self.ids]


async def until_done(meter: Meter, number: int) -> None:
    """Let the run end, which takes as many turns as it has answers at the most."""
    for _ in range(60):
        if meter.head("box", "k").run is None:
            break
        await asyncio.sleep(1)
    head = meter.head("box", "k")
    assert head.run is None
    assert head.state["answers"] == str(number).encode()
    assert not [sk for pk, sk in meter.table.items if pk == "box/k" and sk[:2] in {"Q#", "J#", "V#"}]


@pytest.mark.parametrize("size", [0, 100, 2_000, 4_000, 30_000])
@pytest.mark.parametrize("number", [1, 20, 60])
@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
def test_a_gather_takes_as_many_answers_as_it_has_awakeables(number: int, size: int, at_once: bool) -> None:
    async def scenario() -> None:
        asker = Asker()
        meter = meter_of(asker.box, asker.driver)
        meter.deliver(asker.gathers, "k", str(number).encode())
        await meter.quiet()
        answer = Success(b'"' + b"x" * size + b'"')

        async def resolve(name: str) -> None:
            for _ in range(100):
                try:
                    assert await meter.dispatcher.resolve(name, answer) is Resolution.ACCEPTED
                except OverloadedError:
                    # As a caller over HTTP does, who is told to come again after a second.
                    await asyncio.sleep(1)
                else:
                    return
            raise AssertionError("refused for ever")

        if at_once:
            await asyncio.gather(*(resolve(name) for name in asker.ids))
        else:
            for name in asker.ids:
                await resolve(name)
        await until_done(meter, number)
        assert asker.ran == [number]
        assert meter.head("box", "k").state["sizes"] == b"[%d]" % size

    run_virtual(scenario())


@pytest.mark.parametrize("size", [2_000, 4_000, 30_000])
@pytest.mark.parametrize("handler", ["loops", "only_waits"])
def test_a_loop_of_awakeables_makes_room_as_it_goes(handler: str, size: int) -> None:
    async def scenario() -> None:
        asker, number = Asker(), 50
        meter = meter_of(asker.box, asker.driver)
        meter.deliver(getattr(asker, handler), "k", str(number).encode())
        heaviest = 0
        for turn in range(number):
            for _ in range(200):
                if len(asker.ids) > turn:
                    break
                await asyncio.sleep(0.1)
            answer = Success(b'"' + b"x" * size + b'"')
            assert await meter.dispatcher.resolve(asker.ids[turn], answer) is Resolution.ACCEPTED
            heaviest = max(heaviest, sum(map(len, meter.head("box", "k").slots.values())))
            await asyncio.sleep(0.05)
        await until_done(meter, number)
        assert heaviest <= AWAKEABLES_BYTES_MAX + 4_096
        assert len(asker.ran) == (number if handler == "loops" else 1)

    run_virtual(scenario())


@pytest.mark.parametrize("size", [2_000, 30_000])
def test_no_sender_is_held_by_a_receiver_that_is_full(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers come from other keys; those go on at once, whether or not the receiver has room."""
    monkeypatch.setattr("tenuto_control.dispatcher.answers.AWAKEABLES_INLINE_BYTES_MAX", 3_000)
    monkeypatch.setattr("tenuto_control.dispatcher.answers.AWAKEABLES_BYTES_MAX", 3_200)

    async def scenario() -> None:
        asker, number = Asker(), 12
        meter = meter_of(asker.box, asker.driver)
        meter.deliver(asker.gathers, "k", str(number).encode())
        await meter.quiet()
        for n in range(number):
            meter.deliver(asker.answers, str(n), str(size).encode())
        await asyncio.sleep(3)
        assert all(meter.head("driver", str(n)).out == {} for n in range(number))
        await until_done(meter, number)

    run_virtual(scenario())


def sizes() -> Iterator[int]:
    """Around what an answer may weigh."""
    yield from (0, 1, 2_047, 2_048, 32_000)


@pytest.mark.parametrize("size", list(sizes()))
def test_the_same_answer_again_is_known_and_another_refused_wherever_the_first_has_gone(size: int) -> None:
    async def scenario() -> None:
        asker, number = Asker(), 10
        meter = meter_of(asker.box, asker.driver)
        meter.deliver(asker.gathers, "k", str(number).encode())
        await meter.quiet()
        first = Success(b'"' + b"x" * size + b'"')
        for name in asker.ids[:-1]:
            assert await meter.dispatcher.resolve(name, first) is Resolution.ACCEPTED
            await meter.quiet()
        for name in asker.ids[:-1]:
            assert await meter.dispatcher.resolve(name, first) is Resolution.REPEATED
            assert await meter.dispatcher.resolve(name, Success(b'"other"')) is Resolution.CONFLICT
        assert await meter.dispatcher.resolve(asker.ids[-1], first) is Resolution.ACCEPTED
        await until_done(meter, number)

    run_virtual(scenario())
