"""One suite over the simulated scheduler and EventBridge's driver on the embedded stack: what WakeScheduler promises.

Owns the port's contract. Does not own names, expressions and error texts of the driver (`test_aws_drivers`) nor what a
schedule is (`tests/local`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from tenuto_control.config import SchedulerConfig
from tenuto_control.drivers.aws import AwsClients
from tenuto_control.drivers.event_scheduler import EventBridgeScheduler
from tenuto_control.drivers.system import SystemClock
from tenuto_control.ports import SchedulerUnavailableError, WakeScheduler
from tenuto_local import EmbeddedStack, FunctionSpec
from tests.contract.conftest import NOBODY, WithClients
from tests.simulation.faults import FaultPlan, Rates
from tests.simulation.gate import Gate
from tests.simulation.loop import SimulatedLoop
from tests.simulation.twins import SimulatedScheduler
from tests.support.stack import register

SOON_MS = 1_000
PRECISION_S = 2.5
"""When a schedule has certainly fired: the driver rounds up to a full second, and a function starts."""

LOOK_AGAIN_S = 0.05
NAME = "lane/with/slashes#1"
FUNCTION = '''
"""Notes when it was woken, and with what."""
import json, os, pathlib, time

def note(event, context):
    with pathlib.Path(os.environ["NOTES"]).open("a") as notes:
        notes.write(json.dumps([time.time_ns() // 1_000_000, event]) + "\\n")
'''


@dataclass(frozen=True)
class Fired:
    """A wake-up that came: when, and its payload as parsed JSON."""

    at_ms: int
    payload: Any


@dataclass
class Outside:
    """A scheduler and what it fired since the scenario began."""

    scheduler: WakeScheduler
    now_ms: Callable[[], int]
    fired: Callable[[], list[Fired]]

    async def first(self) -> Fired:
        """The first wake-up, when it has come."""
        for _ in range(round((SOON_MS / 1_000 + PRECISION_S) / LOOK_AGAIN_S)):
            if found := self.fired():
                return found[0]
            await asyncio.sleep(LOOK_AGAIN_S)
        raise AssertionError("nothing fired")


Scenario = Callable[[Outside], Coroutine[Any, Any, None]]


class Backend(Protocol):
    """Plays a scenario; the scheduler can be out of reach."""

    def __call__(self, scenario: Scenario, *, reachable: bool = True) -> None: ...


def twin() -> Backend:
    """The simulation's scheduler, on virtual time."""

    def play(scenario: Scenario, *, reachable: bool = True) -> None:
        loop = SimulatedLoop()
        fired: list[Fired] = []
        gate = Gate(loop, FaultPlan(random.Random(1), Rates(refused=0.0 if reachable else 1.0)))
        scheduler = SimulatedScheduler(
            gate, random.Random(1), lambda payload: fired.append(Fired(loop.now_ms(), json.loads(payload)))
        )
        try:
            loop.run_until_complete(scenario(Outside(scheduler, loop.now_ms, lambda: fired)))
        finally:
            loop.abandon()

    return play


@dataclass
class Notes:
    """The file in which the function on the stack notes its wake-ups."""

    file: Path
    seen: int = field(default=0)

    def news(self) -> list[Fired]:
        """What was noted since `seen`."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [Fired(*json.loads(line)) for line in lines[self.seen :]]


@pytest.fixture(scope="module")
def notes(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """The stack with a function that is there to be woken."""
    root = tmp_path_factory.mktemp("woken")
    (root / "woken.py").write_text(FUNCTION)
    file = root / "notes"
    register(
        stack,
        FunctionSpec(name="woken", handler="woken.note", root=str(root), environment={"NOTES": str(file)}),
    )
    return Notes(file)


def driver(with_clients: WithClients, notes: Notes) -> Backend:
    """EventBridge's driver, with the client that the control plane opens."""
    config = SchedulerConfig(
        role_arn="arn:aws:iam::000000000000:role/r", target_arn="arn:aws:lambda:us-east-1:000000000000:function:woken"
    )

    def play(scenario: Scenario, *, reachable: bool = True) -> None:
        notes.seen += len(notes.news())

        async def opened(clients: AwsClients) -> None:
            scheduler = EventBridgeScheduler(clients.scheduler, config)
            await scenario(Outside(scheduler, SystemClock().now_ms, notes.news))

        with_clients(opened, endpoint=None if reachable else NOBODY)

    return play


@pytest.fixture(params=["twin", pytest.param("stack", marks=pytest.mark.stack)])
def play(request: pytest.FixtureRequest) -> Backend:
    """Both backends, one after the other."""
    if request.param == "twin":
        return twin()
    return driver(request.getfixturevalue("with_clients"), request.getfixturevalue("notes"))


def test_it_fires_at_its_time_or_later_with_its_payload(play: Backend) -> None:
    async def scenario(outside: Outside) -> None:
        due_ms = outside.now_ms() + SOON_MS
        await outside.scheduler.schedule(NAME, due_ms, b'{"lane": "box/\xc3\xa9"}')
        assert outside.fired() == []
        woken = await outside.first()
        assert woken.at_ms >= due_ms
        assert woken.payload == {"lane": "box/é"}
        # Gone by itself, so there is nothing to forget; that is no error.
        await outside.scheduler.cancel(NAME)

    play(scenario)


def test_a_time_that_has_passed_is_no_reason_not_to_fire(play: Backend) -> None:
    async def scenario(outside: Outside) -> None:
        await outside.scheduler.schedule(NAME, outside.now_ms() - 3_600_000, b'{"late": true}')
        assert (await outside.first()).payload == {"late": True}

    play(scenario)


def test_one_name_fires_once_and_others_for_themselves(play: Backend) -> None:
    async def scenario(outside: Outside) -> None:
        due_ms = outside.now_ms() + SOON_MS
        for payload in (b'{"n": 1}', b'{"n": 1}'):
            await outside.scheduler.schedule(NAME, due_ms, payload)
        await outside.scheduler.schedule(NAME + "0", due_ms, b'{"n": 2}')
        await asyncio.sleep(SOON_MS / 1_000 + PRECISION_S)
        assert sorted(woken.payload["n"] for woken in outside.fired()) == [1, 2]

    play(scenario)


def test_what_is_cancelled_in_time_never_fires_and_its_name_is_free(play: Backend) -> None:
    async def scenario(outside: Outside) -> None:
        due_ms = outside.now_ms() + SOON_MS
        await outside.scheduler.schedule(NAME, due_ms, b'{"n": 1}')
        await outside.scheduler.schedule("other", due_ms, b'{"n": 2}')
        for name in (NAME, "other"):
            await outside.scheduler.cancel(name)
        await outside.scheduler.schedule("other", due_ms, b'{"n": 3}')
        await asyncio.sleep(SOON_MS / 1_000 + PRECISION_S)
        assert [woken.payload for woken in outside.fired()] == [{"n": 3}]

    play(scenario)


def test_to_cancel_what_nobody_knows_is_no_error(play: Backend) -> None:
    async def scenario(outside: Outside) -> None:
        await outside.scheduler.cancel("nobody knows this one")
        await outside.scheduler.cancel("nobody knows this one")

    play(scenario)


def test_a_scheduler_out_of_reach_is_unavailable(play: Backend) -> None:
    async def scenario(outside: Outside) -> None:
        with pytest.raises(SchedulerUnavailableError):
            await outside.scheduler.schedule(NAME, outside.now_ms(), b"{}")
        with pytest.raises(SchedulerUnavailableError):
            await outside.scheduler.cancel(NAME)
        assert outside.fired() == []

    play(scenario, reachable=False)
