"""Lines of handlers: a replay says nothing twice, and each line names its invocation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tenuto import InvocationLogFilter, ObjectContext, VirtualObject
from tests.support.in_process import InProcess

LONG = timedelta(seconds=30)


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, Kept]]:
    logger, kept, only = logging.getLogger("tests.sdk.logs"), Kept(), InvocationLogFilter()
    logger.setLevel("INFO")
    logger.addHandler(kept)
    logger.addFilter(only)
    try:
        yield logger, kept
    finally:
        logger.removeHandler(kept)
        logger.removeFilter(only)


def test_a_replay_says_nothing_twice_and_each_line_names_its_invocation(log: tuple[logging.Logger, Kept]) -> None:
    logger, kept = log
    box = VirtualObject("box")

    def step(name: str) -> None:
        logger.info("in %s", name)

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        logger.info("begins")
        await ctx.run("a", step, "a")
        logger.info("between")
        await ctx.sleep(LONG)
        logger.info("after")
        await ctx.run("b", step, "b")

    async def main() -> None:
        local = InProcess(box)
        await local.deliver("t", "ann", act, b"1")
        await local.advance(LONG)

    asyncio.run(main())
    assert [r.getMessage() for r in kept.records] == ["begins", "in a", "between", "after", "in b"]
    fields = [tuple(getattr(r, n) for n in ("service", "key", "handler", "attempt")) for r in kept.records]
    assert fields == [("box", "ann", "act", 1)] * 3 + [("box", "ann", "act", 2)] * 2
    assert len({r.invocation_id for r in kept.records}) == 1  # type: ignore[attr-defined]  # the filter adds it


def test_lines_from_outside_of_handlers_pass(log: tuple[logging.Logger, Kept]) -> None:
    logger, kept = log
    logger.info("outside")
    assert [r.getMessage() for r in kept.records] == ["outside"]


def test_a_line_behind_the_last_finished_step_appears_in_each_attempt(log: tuple[logging.Logger, Kept]) -> None:
    logger, kept = log
    box = VirtualObject("box")
    tries: list[int] = []

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        logger.info("begins")
        await ctx.run("a", int)
        logger.info("behind the step")
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("once")

    async def main() -> None:
        await InProcess(box).deliver("t", "ann", act, b"1")

    asyncio.run(main())
    assert [r.getMessage() for r in kept.records] == ["begins", "behind the step", "behind the step"]
