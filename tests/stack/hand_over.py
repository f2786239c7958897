"""One key reached over several real control planes: how long calls and events wait for each other.

    python -m tests.stack.hand_over

Owns the load, the measurement and the judgement by one bound: no wait is as long as it would be if somebody waited for
a lease. Does not own the tight bounds, which are proven on virtual time (`tests/simulation/test_hand_over.py`).
"""

from __future__ import annotations

import asyncio
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import aiohttp

from tests.stack import app
from tests.stack.world import World, jobs_system

FUNCTION_TIMEOUT_S = 20.0
"""So long a lease is: who waits for one shows."""

WAIT_S_MAX = 5.0
"""Beyond what a busy machine explains, and far below a lease."""

PLANES = (2, 4)
STEP_MS = 500
ROUNDS = 5
LOAD_CALLS = 200
LOAD_APART_S = 0.02

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Waits:
    """What was measured, in seconds: calls behind a step of half a second at the other plane, and calls under load.

    `gap_s` is how long a key under load stood still, over one control plane and over all `planes` of them.
    """

    planes: int
    behind_a_step_s: Sequence[float]
    one_plane_s: Sequence[float]
    all_planes_s: Sequence[float]
    gap_s: tuple[float, float]
    wrong: Sequence[str]

    def line(self) -> str:
        """The numbers for a person."""
        return (
            f"a call behind a step of {STEP_MS} ms at another control plane: {_range(self.behind_a_step_s)}; "
            f"{LOAD_CALLS} calls for one key over one control plane: {_range(self.one_plane_s)}, standing still for "
            f"{self.gap_s[0]:.2f} s; over {self.planes}: {_range(self.all_planes_s)}, {self.gap_s[1]:.2f} s"
        )

    def problems(self) -> list[str]:
        """What is wrong, besides waits that only a lease explains."""
        longest = max([*self.behind_a_step_s, *self.gap_s])
        return [*self.wrong, *([f"a wait of {longest:.1f} s"] if longest > WAIT_S_MAX else [])]


async def measure(say: Say, planes: int) -> Waits:
    """Start a system with so many control planes, reach one key over all of them, stop it."""
    with tempfile.TemporaryDirectory(prefix="tenuto-hand-over-") as folder:
        notes = Path(folder) / "notes"
        async with jobs_system(notes, FUNCTION_TIMEOUT_S, partitions=4, control_planes=planes) as system:
            waits = await _measured(World(system, notes))
            say(waits.line())
            return waits


async def _measured(world: World) -> Waits:
    planes = [plane.ingress for plane in world.system.control_planes]
    behind: list[float] = []
    wrong: list[str] = []
    async with aiohttp.ClientSession() as session:
        for n in range(ROUNDS):
            key = world.key("step")
            slow = asyncio.create_task(_call(session, planes[0], key, app.Job("dwell", str(STEP_MS))))
            await world.eventually(functools.partial(_first_note, world, key), "dwelling")
            if n % 2:
                await world.produce("jobs", (key, app.Job("note", "between")))
            behind.append(await _call(session, planes[1 + n % (len(planes) - 1)], key, app.Job("note", "behind")))
            await slow
        alone_s, alone_gap_s = await _load(world, session, planes[:1], wrong)
        all_s, all_gap_s = await _load(world, session, planes, wrong)
    return Waits(len(planes), behind, alone_s, all_s, (alone_gap_s, all_gap_s), wrong)


def _first_note(world: World, key: str) -> str | None:
    return next(iter(world.notes(key)), None)


async def _load(
    world: World, session: aiohttp.ClientSession, planes: Sequence[str], wrong: list[str]
) -> tuple[list[float], float]:
    """How long calls for one key took, in turns at these planes, and the longest time between two of their steps."""
    key = world.key("load")
    calls = []
    for n in range(LOAD_CALLS):
        where = planes[n % len(planes)]
        calls.append(asyncio.create_task(_call(session, where, key, app.Job("note", f"n{n}"))))
        await asyncio.sleep(LOAD_APART_S)
    took_s = await asyncio.gather(*calls)
    noted = [one for one in app.notes(world.notes_path) if one.key == key]
    if sorted(one.what for one in noted) != sorted(f"n{n}" for n in range(LOAD_CALLS)):
        wrong.append(f"{len(noted)} notes of {LOAD_CALLS} calls, {len({one.what for one in noted})} different")
    return took_s, max(later.at_s - one.at_s for one, later in pairwise(noted))


async def _call(session: aiohttp.ClientSession, ingress: str, key: str, job: app.Job) -> float:
    """How long a call took. Raises AssertionError when it was not answered with its result."""
    began = time.monotonic()
    body = {"kind": job.kind, "text": job.text}
    async with session.post(f"{ingress}/call/account/{key}/work", json=body) as answer:
        text = await answer.text()
        assert answer.status == 200, f"{answer.status} {text}"
    return time.monotonic() - began


def _range(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"median {ordered[len(ordered) // 2]:.2f} s, longest {ordered[-1]:.2f} s"


def main() -> int:
    """The command line; 1 when somebody waited for a lease, or an event ran twice or not at all."""
    waits = [asyncio.run(measure(lambda line: print(line, flush=True), planes)) for planes in PLANES]
    problems = [problem for one in waits for problem in one.problems()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
