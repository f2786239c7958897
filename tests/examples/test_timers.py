"""The examples that live on timers: the plain course in virtual time, and a crash at every write.

Owns the claim that each ends in its offline truth. Runs them in the test kit that is shipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from examples import ledger
from examples.delivery_twin import events as twin_events
from examples.delivery_twin.handler import NOTICES, SILENCE, Delivery, Location, Place, delivered, delivery, moved, show
from examples.delivery_twin.handler import start as start_delivery
from examples.task_reminders import events as task_events
from examples.task_reminders.handler import DONE, Task, changed, task
from examples.task_reminders.outside import LEDGER
from tenuto import TerminalError
from tenuto.testing import Environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
FAR = Place(52.50, 13.40)

T = TypeVar("T")


@pytest.fixture(autouse=True)
def example_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ledger.DIRECTORY_VARIABLE, str(tmp_path))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


# --- delivery_twin -----------------------------------------------------------------------------------------------


def test_twins_end_where_their_locations_say() -> None:
    made = twin_events.events(seed=1, count=120, keys=8)

    async def scenario() -> list[str]:
        async with Environment(delivery, config=EXAMPLES / "delivery_twin" / "tenuto.toml") as env:
            for topic, key, value in made:
                await env.event(topic, key, value)
            last: dict[str, int] = {}
            notices: dict[str, list[str]] = {}
            for key in twin_events.expected(made):
                twin = await env.call(show, key)
                last[key] = 0 if twin is None or twin.last is None else twin.last.at_s
            for record in await env.published(NOTICES):
                notices.setdefault((record.key or b"").decode(), []).append(record.value)
            return twin_events.differences(made, last, notices)

    assert run(scenario()) == []


def test_silence_is_noticed_once_and_ends_with_the_next_location() -> None:
    async def scenario() -> list[Any]:
        async with Environment(delivery) as env:
            await env.call(start_delivery, "d", twin_events.GOAL)
            for at_s in (10, 20, 30):
                await env.call(moved, "d", Location(at_s, FAR))
                await env.advance(SILENCE / 2)
            await env.advance(timedelta(hours=1))
            await env.call(moved, "d", Location(40, twin_events.GOAL))
            await env.call(delivered, "d")
            with pytest.raises(TerminalError, match="no such delivery"):
                await env.call(delivered, "d")
            await env.advance(timedelta(hours=1))
            return [record.value for record in await env.published(NOTICES)]

    assert run(scenario()) == ["silent", "near", "back", "delivered"]


def test_a_twin_survives_a_crash_at_every_write() -> None:
    async def scenario(env: Environment) -> Delivery | None:
        await env.call(start_delivery, "d", twin_events.GOAL)
        await env.call(moved, "d", Location(10, FAR))
        await env.advance(SILENCE)
        await env.call(moved, "d", Location(20, twin_events.GOAL))
        return await env.call(show, "d")

    report = run(Environment(delivery).crash_everywhere(scenario))
    assert report.runs == 2 * report.writes > 0


# --- task_reminders ----------------------------------------------------------------------------------------------


def test_each_task_is_reminded_of_at_its_time_unless_a_wish_came_between() -> None:
    start_s = int(NOON.timestamp())
    made = task_events.events(seed=3, count=60, keys=9, start_s=start_s)

    async def scenario() -> dict[str, list[str]]:
        async with Environment(task, config=EXAMPLES / "task_reminders" / "tenuto.toml", now=NOON) as env:
            passed_s = 0.0
            for at_s, topic, key, value in made:
                await env.advance(at_s - passed_s)
                passed_s = at_s
                await env.event(topic, key, value)
            await env.advance(timedelta(hours=2))
            said: dict[str, list[str]] = {}
            for record in await env.published(DONE):
                said.setdefault((record.key or b"").decode(), []).append(record.value)
            return said

    truth = {name: texts for name, texts in task_events.expected(made, start_s).items() if texts}
    assert run(scenario()) == truth
    assert len(LEDGER.calls()) == sum(map(len, truth.values()))


def test_a_reminder_survives_a_crash_at_every_write() -> None:
    async def scenario(env: Environment) -> None:
        # Far enough ahead for both wishes to be known, however long a crash holds one up.
        due_s = int(NOON.timestamp()) + 3_600
        await env.call(changed, "t", Task("first", due_s))
        await env.call(changed, "t", Task("second", due_s + 60))
        await env.advance(hours=2)

    report = run(Environment(task, now=NOON).crash_everywhere(scenario))
    assert report.runs == 2 * report.writes > 0
