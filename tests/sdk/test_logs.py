"""Lines of handlers: a replay says nothing twice, and each line names its invocation."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest
from aws_lambda_powertools import Logger

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


def test_the_logger_of_powertools_takes_the_filter() -> None:
    stream = io.StringIO()
    logger = Logger(service="tests.sdk.logs.powertools", stream=stream)
    logger.addFilter(InvocationLogFilter())
    box = VirtualObject("box")

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        logger.info("begins", extra={"basket": 3})
        await ctx.run("a", int)
        await ctx.sleep(LONG)
        logger.info("after")

    async def main() -> None:
        local = InProcess(box)
        logger.info("outside")
        await local.deliver("t", "ann", act, b"1")
        await local.advance(LONG)

    asyncio.run(main())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["outside", "begins", "after"]
    assert [line["service"] for line in lines] == ["tests.sdk.logs.powertools", "box", "box"]
    assert [(line["key"], line["handler"], line["attempt"]) for line in lines[1:]] == [
        ("ann", "act", 1),
        ("ann", "act", 2),
    ]
    assert lines[1]["basket"] == 3


def test_a_line_about_a_failed_attempt_names_it(caplog: pytest.LogCaptureFixture) -> None:
    box = VirtualObject("box")
    tries: list[int] = []

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("once")

    async def main() -> str:
        return await InProcess(box).deliver("t", "ann", act, b"1")

    with caplog.at_level(logging.INFO, "tenuto.handler"):
        invocation = asyncio.run(main())
    (record,) = caplog.records
    fields = [record.__dict__[name] for name in ("invocation_id", "service", "key", "handler", "attempt")]
    assert fields == [invocation, "box", "ann", "act", 1]


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
