"""One key asleep with thousands of records behind it: how long the other keys of its partition wait meanwhile.

    python -m tests.stack.slow_key [spread|burst|awake …]

Owns the load on the embedded stack and the measurement. The followers come at an even pace, or all at once; then the
records that come behind them in their partition wait until all have been read, which no consumer can help. They are
produced by a process of their own: this one runs the function's service, which would wait for them. As many records of
a topic that nobody reads tell what producer and broker alone take of the machine's two cores. The same followers of a
key that is awake tell what such a load costs without the sleep. Does not own that nothing is lost or out of order
(`tests/control/test_spill.py`, `tests/simulation`), but looks.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from aiokafka import AIOKafkaProducer

from tests.stack import app
from tests.stack.world import World, jobs_system

FOLLOWERS = (2_000, 4_000, 20_000)
OTHER_KEYS = 100
OTHERS_PER_S = 100
LASTS_S = 15.0
"""So long the other keys' records come, and the followers among them."""

SLEEP_S = LASTS_S + 5
DRAINED_S_MAX = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Load:
    """So many records of one key, in so many seconds (0: at once); the key is `asleep`, or takes them as they come.

    Those that are not `read` go to a topic without a subscription.
    """

    followers: int = 0
    over_s: float = 0.0
    asleep: bool = True
    read: bool = True

    @property
    def name(self) -> str:
        """The load, for a person."""
        if not self.followers:
            return "no followers"
        how = f"over {self.over_s:.0f} s" if self.over_s else "at once"
        if not self.read:
            return f"{self.followers:,} records that nobody reads {how}"
        return f"{self.followers:,} followers {how}{'' if self.asleep else ', awake'}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of the other keys' records, from their producing to their handler, in ms; and what was wrong."""

    load: Load
    p50_ms: float
    p99_ms: float
    longest_ms: float
    drained_s: float
    wrong: str = ""

    def line(self, baseline: Measured | None) -> str:
        """The numbers for a person, beside those without followers."""
        times = "" if baseline is None else f" ({self.p99_ms / baseline.p99_ms:.1f} times the baseline)"
        waits = self.load.followers and self.load.read
        drained = f"; {self.drained_s:.1f} s from its waking until the key was through" if waits else ""
        return (
            f"{self.load.name:>45}: others p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f} ms{times}, longest "
            f"{self.longest_ms:.0f} ms{drained}{self.wrong}"
        )


LOADS = {
    "spread": tuple(Load(count, LASTS_S, read=read) for count in FOLLOWERS for read in (False, True)),
    "burst": tuple(Load(count) for count in FOLLOWERS),
    "awake": tuple(Load(count, LASTS_S, asleep=False) for count in FOLLOWERS),
}


async def measure(say: Say, loads: Sequence[Load]) -> list[Measured]:
    """Start a system, load it without followers, then with, stop it."""
    with tempfile.TemporaryDirectory(prefix="tenuto-slow-key-") as folder:
        notes = Path(folder) / "notes"
        async with jobs_system(notes, 20.0, partitions=1) as system:
            world = World(system, notes)
            await _measured(world, Load())  # The first events also start the functions.
            found = [await _measured(world, Load())]
            say(found[0].line(None))
            for load in loads:
                found.append(await _measured(world, load))
                say(found[-1].line(found[0]))
            return found


async def _measured(world: World, load: Load) -> Measured:
    key, began_s = world.key("slow"), time.time()
    wakes_s = began_s + 1 + SLEEP_S if load.asleep else began_s
    async with world.producer() as producer:
        if load.followers and load.asleep and load.read:
            await _send(producer, "jobs", key, app.Job("doze", str(SLEEP_S)))
            await asyncio.sleep(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(_follow_beside(world, key, load))
            sending = group.create_task(_others(world, producer))
    sent = sending.result()
    await world.eventually(lambda: sent.keys() <= {one.what for one in app.notes(world.notes_path)}, expected=True)
    at_s = {one.what: one.at_s for one in reversed(app.notes(world.notes_path)) if one.what in sent}
    took_ms = sorted((at_s[name] - sent_s) * 1_000 for name, sent_s in sent.items())
    followed = load.followers if load.read else 0
    drained_s, wrong = await _through(world, key, followed, wakes_s) if followed else (0.0, "")
    p50, p99 = (took_ms[int(len(took_ms) * share)] for share in (0.5, 0.99))
    return Measured(load, p50, p99, took_ms[-1], drained_s, wrong)


async def _send(producer: AIOKafkaProducer, topic: str, key: str, job: app.Job) -> None:
    await producer.send(topic, msgspec.json.encode(job), key=key.encode())


async def _follow_beside(world: World, key: str, load: Load) -> None:
    """Have the followers produced by another process. Raises AssertionError when it fails."""
    if not load.followers:
        return
    topic = "jobs" if load.read else app.ECHO_TOPIC
    what = (world.system.bootstrap_servers, topic, key, str(load.followers), str(load.over_s))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.stack.slow_key", "follow", *what)
    assert await process.wait() == 0, "the followers could not be produced"


async def follow(bootstrap_servers: str, topic: str, key: str, count: int, over_s: float) -> None:
    """Produce what follows the event that sleeps."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, enable_idempotence=True) as producer:
        began_s = time.monotonic()
        for n in range(count):
            due_s = began_s + n / count * over_s
            if due_s > time.monotonic():
                await asyncio.sleep(due_s - time.monotonic())
            await _send(producer, topic, key, app.Job("follow", str(n)))


async def _others(world: World, producer: AIOKafkaProducer) -> dict[str, float]:
    """Produce records of other keys. Returns when each was."""
    sent: dict[str, float] = {}
    began_s = time.monotonic()
    for n in range(int(LASTS_S * OTHERS_PER_S)):
        await asyncio.sleep(max(0.0, began_s + n / OTHERS_PER_S - time.monotonic()))
        name = world.key("stamp")
        sent[name] = time.time()
        await _send(producer, "jobs", f"other-{n % OTHER_KEYS}", app.Job("stamp", name))
    return sent


async def _through(world: World, key: str, followers: int, wakes_s: float) -> tuple[float, str]:
    """How long after its waking the key was through with its followers, and whether it missed one."""
    until_s = wakes_s + DRAINED_S_MAX
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.post(f"{world.system.control_planes[0].ingress}/call/account/{key}/show") as answer:
                state = await answer.json()
            if state.get("followed", 0) >= followers or time.time() > until_s:
                break
            await asyncio.sleep(0.1)
    wrong = "" if state == {"followed": followers, "order": [followers - 2, followers - 1]} else f"; WRONG: {state}"
    return time.time() - wakes_s, wrong


def main(arguments: Sequence[str]) -> int:
    """The command line; 1 when the key missed an event, or saw one twice, 2 for a load that there is not."""
    match arguments:
        case ["follow", bootstrap_servers, topic, key, count, over_s]:
            asyncio.run(follow(bootstrap_servers, topic, key, int(count), float(over_s)))
            return 0
        case _ if not LOADS.keys() >= set(arguments):
            print(f"there are the loads {', '.join(LOADS)}", file=sys.stderr)
            return 2
        case _:
            pass
    loads = [load for name in arguments or LOADS for load in LOADS[name]]
    found = asyncio.run(measure(lambda line: print(line, flush=True), loads))
    return 1 if any(one.wrong for one in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
