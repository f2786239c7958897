"""Waiting with a bound: as `asyncio.timeout` and `asyncio.wait` would, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tenuto_control.waiting import Within, settled
from tests.support.virtual_time import run_virtual


def test_a_block_that_takes_too_long_is_cancelled_at_its_time() -> None:
    async def scenario() -> float:
        with pytest.raises(TimeoutError), Within(2.0):
            await asyncio.sleep(5)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(2.0, abs=0.01)


def test_a_block_that_ends_in_time_is_left_alone_afterwards() -> None:
    async def scenario() -> None:
        with Within(2.0):
            await asyncio.sleep(1)
        await asyncio.sleep(5)

    run_virtual(scenario())


def test_an_error_of_the_block_is_its_own() -> None:
    async def scenario() -> None:
        with Within(2.0):
            raise KeyError("mine")

    with pytest.raises(KeyError):
        run_virtual(scenario())


def test_the_inner_of_two_bounds_is_told_from_the_outer_one() -> None:
    async def scenario() -> list[str]:
        said = []
        try:
            with Within(1.0):
                try:
                    with Within(3.0):
                        await asyncio.sleep(5)
                except TimeoutError:
                    said.append("inner")
        except TimeoutError:
            said.append("outer")
        return said

    assert run_virtual(scenario()) == ["outer"]


@pytest.mark.parametrize("late_s", [0.0, 1.0])
def test_a_cancellation_from_outside_is_not_taken_for_the_end_of_the_time(late_s: float) -> None:
    async def bounded() -> None:
        with Within(2.0):
            await asyncio.sleep(5)

    async def scenario() -> None:
        task = asyncio.create_task(bounded())
        await asyncio.sleep(2.0 - late_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(scenario())


@pytest.mark.parametrize(("done_s", "waited_s"), [(1.0, 1.0), (9.0, 2.0), (0.0, 0.0)])
def test_a_future_is_waited_for_no_longer_than_asked_and_stays_as_it_is(done_s: float, waited_s: float) -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_at(done_s, future.set_result, "done") if done_s else future.set_result("done")
        await settled(future, 2.0)
        at_s = loop.time()
        assert await future == "done"
        return at_s

    assert run_virtual(scenario()) == pytest.approx(waited_s, abs=0.01)


def test_a_future_whose_waiter_is_cancelled_is_not() -> None:
    async def scenario() -> bool:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = asyncio.create_task(settled(future, 2.0))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        return future.cancelled() or future.done()

    assert not run_virtual(scenario())
