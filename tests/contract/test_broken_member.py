"""A consumer group member whose client breaks down inside: another one takes its place, and nothing is lost.

Owns the fault that no broker and no network can cause, on the real broker. Does not own what members promise otherwise
(`test_event_log`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tenuto_control.drivers.kafka import KafkaEventLog
from tenuto_control.ports import LogUnavailableError
from tenuto_local.kafka_broker import KafkaBroker
from tests.contract.test_event_log import SETTLE_S, Member, Scene, alone, numbered

pytestmark = pytest.mark.stack


def play(tmp_path: Path, scenario: Callable[[Scene, KafkaBroker], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a broker of its own."""

    async def whole() -> None:
        async with alone(tmp_path) as (scene, broker):
            await scenario(scene, broker)

    asyncio.run(whole())


def break_down(member: Member) -> None:
    """End the task by which the client takes part in its group, as an error that nobody foresaw in it would."""
    assert isinstance(member.log, KafkaEventLog)
    member.log._consumer._coordinator._coordination_task.cancel()


async def poll_until(member: Member, done: Callable[[], bool]) -> None:
    """Poll as the consumer does: what is unavailable is asked for again."""
    async with asyncio.timeout(SETTLE_S):
        while not done():
            try:
                await member.poll()
            except LogUnavailableError:
                await asyncio.sleep(0.1)


def test_another_member_takes_the_place_of_one_that_broke_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(scene: Scene, _broker: KafkaBroker) -> None:
        member = await scene.join()
        await scene.produce(*numbered(5))
        await member.poll_until(lambda: len(member.records) == 5)
        await member.log.commit({scene.tp(): 3})
        break_down(member)
        await scene.produce(*numbered(5, first=5))
        await poll_until(member, lambda: b"9" in member.values)
        # What was not committed comes again, in order, after the listener gave everything back.
        assert member.revocations == [{scene.tp()}]
        assert member.values[-7:] == numbered(7, first=3)
        await member.log.commit({scene.tp(): 10})

    with caplog.at_level(logging.ERROR, "tenuto_control.kafka"):
        play(tmp_path, scenario)
    (line,) = [one.getMessage() for one in caplog.records if one.name == "tenuto_control.kafka"]
    assert line.endswith("failed; a new one replaces it")


def test_it_is_replaced_once_a_broker_is_there_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene, broker: KafkaBroker) -> None:
        member = await scene.join()
        await scene.produce(*numbered(3))
        await member.poll_until(lambda: len(member.records) == 3)
        await broker.kill()
        break_down(member)
        async with asyncio.timeout(SETTLE_S):
            while True:
                try:
                    await member.poll()
                except LogUnavailableError as e:
                    if "cannot be reached" in str(e):
                        break
        # Between two members there is none; who asks meanwhile is told so.
        with pytest.raises(LogUnavailableError, match="joining"):
            await member.log.commit({scene.tp(): 3})
        member.log.pause([scene.tp()])
        member.log.resume([scene.tp()])
        assert member.log.lag() == 0
        await broker.restart()
        await poll_until(member, lambda: member.values[-3:] == numbered(3) and len(member.records) == 6)

    play(tmp_path, scenario)
