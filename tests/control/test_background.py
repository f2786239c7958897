"""Tasks that nobody waits for to their end: they go on, and their errors are told or raised where somebody waits.

Owns `dispatcher.background`. Does not own what is done in the background.
"""

from __future__ import annotations

import asyncio
import logging
import warnings

import pytest

from tenuto_control.dispatcher.background import AT_ONCE_MAX, WAITING_MAX, Background, Kind
from tenuto_control.ports import UndecidedError
from tests.support.virtual_time import run_virtual


def test_what_takes_longer_than_its_caller_waits_goes_on() -> None:
    done: list[str] = []

    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        done.append("work")
        return "answer"

    async def scenario() -> None:
        background = Background()
        assert await background.in_time(work(1), 2_000) == "answer"
        with pytest.raises(UndecidedError, match="did not answer in time"):
            await background.in_time(work(5), 2_000)
        assert (len(done), len(background.tasks)) == (1, 1)
        await background.ended(1)
        assert (len(done), len(background.tasks)) == (1, 1)
        await background.ended(10)
        assert (len(done), background.tasks) == (2, ())

    run_virtual(scenario())


def test_what_the_work_raises_reaches_whoever_waits_and_else_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise LookupError("gone")

    async def scenario() -> None:
        background = Background()
        with pytest.raises(LookupError):
            await background.in_time(fails(), 1_000)
        background.spawn(fails())
        await background.ended(1)

    with caplog.at_level(logging.ERROR, "tenuto.dispatcher"):
        run_virtual(scenario())
    (record,) = caplog.records
    assert record.getMessage() == "a background task failed; the sweep repeats what it was for"
    assert record.exc_info is not None


def test_work_that_is_cancelled_before_it_begins_leaves_no_complaint() -> None:
    async def work() -> None:
        await asyncio.sleep(1)

    async def scenario() -> None:
        background = Background()
        background.spawn(work())
        for task in background.tasks:
            task.cancel()
        await background.ended(1)
        assert background.tasks == ()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_virtual(scenario())


@pytest.mark.parametrize("kind", Kind)
def test_what_one_kind_waits_for_without_an_end_keeps_no_other_from_its_places(kind: Kind) -> None:
    async def scenario() -> None:
        background, never, done = Background(), asyncio.Event(), set()

        async def hang() -> None:
            await never.wait()

        async def work(other: Kind) -> None:
            done.add(other)

        for _ in range(AT_ONCE_MAX + WAITING_MAX // 2):
            background.spawn(hang(), kind)
        for other in Kind:
            background.spawn(work(other), other)
        await asyncio.sleep(1)
        assert done == set(Kind) - {kind}
        for task in background.halt():
            task.cancel()
        await background.ended(1)

    run_virtual(scenario())


def test_what_is_too_much_is_left_to_the_sweep_whatever_its_kind() -> None:
    async def scenario() -> None:
        background, never, begun = Background(), asyncio.Event(), []

        async def hang() -> None:
            begun.append(1)
            await never.wait()

        for number in range(WAITING_MAX + 10 * AT_ONCE_MAX):
            background.spawn(hang(), list(Kind)[number % len(Kind)])
        await asyncio.sleep(1)
        assert len(begun) == len(Kind) * AT_ONCE_MAX
        assert sum(map(len, background._waiting.values())) == WAITING_MAX
        for task in background.halt():
            task.cancel()
        await background.ended(1)
        assert background.tasks == ()

    run_virtual(scenario())
