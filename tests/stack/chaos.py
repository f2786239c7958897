"""The real stack under SIGKILL: a stream of events and calls while functions, control planes and the broker are killed.

    python -m tests.stack.chaos --events 20000 --keys 300 --seed 7 --seconds 300

Owns the plan of kills, the stream and the run. Does not own the oracles (`chaos_truth`). A seed gives the same stream
and the same plan again; when exactly a kill hits is up to the machine, so a difference may need several runs to return.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

import aiohttp
import msgspec
from aiokafka import AIOKafkaProducer

from tenuto.protocol.limits import BESIDE_MAX
from tenuto_control.arguments import real, whole
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.system import System
from tests.stack import chaos_app, observe
from tests.stack.chaos_truth import Outcome, Sent, differences, unfinished

ROOT = Path(__file__).resolve().parents[2]
TOPIC, PARTITIONS = "chaos-events", 8
TOPICS = {TOPIC: PARTITIONS, "chaos-events.dead-letter": 1, chaos_app.OUT_TOPIC: 2}
FUNCTION = "chaos"
FUNCTION_TIMEOUT_S = 5.0

CONFIG = f"""\
[functions.{FUNCTION}]
concurrency = {{places}}

[[subscriptions]]
topic = "{TOPIC}"
target = "chain/fold"

# A killed member is missed after the session timeout; the proof has no ten seconds for each kill.
[limits]
session_timeout_ms = 3000
heartbeat_interval_ms = 500
sweep_interval_ms = 2000
aws_read_timeout_ms = 2000
quick_in_a_row = {{quick}}
"""

PLACES, PLACES_TO_SHARE = 16, 2
QUICK, QUICK_AT_ONCE = 16, 2
"""Invocations at a time, and the quick ones before lanes share them: where each is alone, and where they are to."""

Victim = Literal["function", "control plane", "broker", "frozen control plane", "frozen table"]
KILLED: tuple[Victim, ...] = ("function", "control plane", "broker")
"""What a run kills unless told otherwise. What is frozen (SIGSTOP) comes back as a zombie, or answers too late."""

CADENCE_S: dict[Victim, tuple[float, float]] = {
    "function": (0.5, 1.0),
    "control plane": (10.0, 15.0),
    "broker": (30.0, 40.0),
    "frozen control plane": (15.0, 25.0),
    "frozen table": (25.0, 40.0),
}
"""The least and the greatest time between two kills of a kind."""

FIRST_S: dict[Victim, tuple[float, float]] = {
    "function": (0.2, 1.0),
    "control plane": (3.0, 8.0),
    "broker": (8.0, 14.0),
    "frozen control plane": (6.0, 10.0),
    "frozen table": (12.0, 20.0),
}
"""When the first kill of a kind comes, so that a short run has one of each."""

KINDS: tuple[chaos_app.Kind, ...] = ("fold",) * 4 + ("steps",) * 2 + ("nap", "ask", "flaky", "send", "send")
CONTROL_PLANE_DOWN_S = (0.2, 2.0)
FROZEN_S = (3.5, 8.0)
CALLS_PER_SECOND = 4
CALL_TIMEOUT_S = 30.0
CALL_ATTEMPTS_MAX = 200
STANDSTILL_S = 200.0
"""Without kills, the end is waited for as long as something changes at least so often.

The longest rest of a lane with work: a guard that has moved on is due again after 131 s at the most, and the lease of a
killed attempt comes on top.
"""

PRODUCING_SHARE = 0.6
"""The part of the time in which the stream is produced; the kills go on until it is worked off."""

PROGRESS_INTERVAL_S = 5.0
LOOK_AGAIN_S = 0.5
SHOWN_MAX = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A run: `events` over `keys` in about `seconds`, all drawn from `seed`.

    An invocation works on up to `concurrent_keys`: if on several, there are few places, for lanes to share.
    """

    events: int
    keys: int
    seconds: float
    seed: int
    control_planes: int = 2
    concurrent_keys: int = 1
    victims: tuple[Victim, ...] = KILLED


@dataclass(frozen=True, slots=True)
class Kill:
    """One planned kill, `at_s` seconds after the start; `choice` picks among what can be killed then."""

    at_s: float
    victim: Victim
    choice: float


@dataclass(slots=True)
class Report:
    """What a run did. `differences` is empty when it equals the offline truth.

    `done` is how many events had taken effect when the kills ended, after `seconds`.
    """

    differences: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    events: int = 0
    done: int = 0
    calls: int = 0
    repeated_steps: int = 0
    seconds: float = 0.0
    tracebacks: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The run in one line."""
        kills = ", ".join(f"{count} {victim}" for victim, count in sorted(self.kills.items()))
        return (
            f"{self.events} events and {self.calls} calls; {self.done} events in {self.seconds:.0f} s under kills "
            f"({self.done / max(self.seconds, 0.001):.0f} events/s): {kills or 'none'}; "
            f"{self.repeated_steps} steps in flight repeated, {len(self.differences)} differences"
        )


def plan(options: Options) -> list[Kill]:
    """The kills of a run, in order of time."""
    kills: list[Kill] = []
    for victim in options.victims:
        rng = random.Random(f"kills of a {victim} {options.seed}")
        at_s = rng.uniform(*FIRST_S[victim])
        while at_s < options.seconds:
            kills.append(Kill(at_s, victim, rng.random()))
            at_s += rng.uniform(*CADENCE_S[victim])
    return sorted(kills, key=lambda kill: kill.at_s)


def stream(options: Options) -> list[tuple[str, chaos_app.Event]]:
    """The events of a run with their keys; some keys get far more than others."""
    rng = random.Random(f"events {options.seed}")
    made: list[tuple[str, chaos_app.Event]] = []
    for number in range(options.events):
        key = f"key-{int(options.keys * rng.random() ** 1.5):04d}"
        made.append((key, chaos_app.Event(number, rng.choice(KINDS))))
    return made


class Chaos:
    """One run of a plan against a system."""

    def __init__(self, options: Options, system: System, ledger: Path, say: Say) -> None:
        self._options = options
        self._system = system
        self._ledger = ledger
        self._say = say
        self._sent: list[Sent] = []
        self._calls: dict[str, list[int]] = {}
        self._killed: set[int] = set()
        self._report = Report()
        self._started_s = 0.0
        self._produced = asyncio.Event()
        self._worked_off = asyncio.Event()
        self._calm = asyncio.Event()

    async def run(self) -> Report:
        """Produce, call and kill until all is worked off, then compare with the offline truth."""
        self._started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            async with asyncio.TaskGroup() as disturbing:
                disturbing.create_task(self._produce())
                disturbing.create_task(self._call())
                for victim in self._options.victims:
                    disturbing.create_task(self._kill_all(victim))
            self._calm.set()
        found = watch.result()
        report = self._report
        report.differences += differences(self._sent, self._calls, self._killed, found)
        report.events = len(self._sent)
        report.calls = sum(len(numbers) for numbers in self._calls.values())
        report.repeated_steps = len(found.executions) - len({(e.number, e.step) for e in found.executions})
        report.tracebacks = tracebacks(self._system)
        return report

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    # --- the stream -------------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        made = stream(self._options)
        producer = AIOKafkaProducer(bootstrap_servers=self._system.bootstrap_servers, enable_idempotence=True)
        await producer.start()
        try:
            pending = []
            for place, (key, event) in enumerate(made):
                due_s = place / len(made) * self._options.seconds * PRODUCING_SHARE
                if due_s > self._elapsed_s():
                    await asyncio.sleep(due_s - self._elapsed_s())
                taken = await producer.send(TOPIC, chaos_app.encode(event), key=key.encode())
                pending.append((key, event, taken))
            for key, event, taken in pending:
                record = await taken
                self._sent.append(Sent(key, event, record.partition, record.offset))
        finally:
            await producer.stop()
            self._produced.set()

    async def _call(self) -> None:
        """Call a handler now and then. Each call is repeated until it is answered, with one idempotency key."""
        rng = random.Random(f"calls {self._options.seed}")
        number = self._options.events
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            while not self._produced.is_set():
                key = f"key-{rng.randrange(self._options.keys):04d}"
                self._calls.setdefault(key, []).append(number)
                group.create_task(self._call_until_answered(session, key, number))
                number += 1
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._produced.wait(), 1 / CALLS_PER_SECOND)

    async def _call_until_answered(self, session: aiohttp.ClientSession, key: str, number: int) -> None:
        headers = {"idempotency-key": f"call-{number}"}
        for attempt in range(CALL_ATTEMPTS_MAX):
            ingresses = self._system.ingresses
            url = f"{ingresses[(number + attempt) % len(ingresses)]}/call/tally/{key}/call"
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(url, json=number, headers=headers) as answer:
                    if answer.status == 200:
                        if await answer.json() != number:
                            self._report.differences.append(f"call {number} was answered {await answer.text()}")
                        return
                    if answer.status not in {202, 503}:
                        raise AssertionError(f"call {number}: {answer.status} {await answer.text()}")
            await asyncio.sleep(0.2)
        raise AssertionError(f"call {number} to {key} was never answered")

    # --- the kills --------------------------------------------------------------------------------------------------

    async def _kill_all(self, victim: Victim) -> None:
        for kill in (kill for kill in plan(self._options) if kill.victim == victim):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._worked_off.wait(), max(0.0, kill.at_s - self._elapsed_s()))
            if self._worked_off.is_set():
                return
            match victim:
                case "function":
                    await self._kill_function(kill.choice)
                case "control plane":
                    await self._kill_control_plane(kill.choice)
                case "broker":
                    await self._system.stack.broker.restart()
                    self._report.kills["broker"] += 1
                case "frozen control plane":
                    await self._freeze_control_plane(kill.choice)
                case "frozen table":
                    await self._freeze_table(kill.choice)
                case _:
                    assert_never(victim)

    async def _kill_function(self, choice: float) -> None:
        workers = (await self._system.stack.describe_functions())[FUNCTION]["workers"]
        # Mostly one that is at work: an idle process has nothing to lose.
        busy = [worker for worker in workers if worker["request_id"]]
        among: list[dict[str, Any]] = busy if busy and choice < 0.9 else workers
        if not among:
            return
        pid = among[int(choice * 997) % len(among)]["pid"]
        self._killed.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._report.kills["function"] += 1

    async def _kill_control_plane(self, choice: float) -> None:
        planes = self._system.control_planes
        plane = planes[int(choice * len(planes))]
        await plane.kill()
        self._report.kills["control plane"] += 1
        low, high = CONTROL_PLANE_DOWN_S
        await asyncio.sleep(low + choice * (high - low))
        await plane.start()

    async def _freeze_control_plane(self, choice: float) -> None:
        """Stop a member for longer than its session lasts: it comes back with work that has gone to another."""
        planes = [plane for plane in self._system.control_planes if plane.running]
        if planes:
            await self._freeze("frozen control plane", planes[int(choice * len(planes))].pid, choice)

    async def _freeze_table(self, choice: float) -> None:
        """Stop the table for longer than its clients wait: they see no answer, and it applies what they sent."""
        # A function that gets no answer may be ended by its timeout, in the middle of a step.
        functions = await self._system.stack.describe_functions()
        self._killed.update(worker["pid"] for worker in functions[FUNCTION]["workers"])
        table = self._system.stack._dynamodb
        assert table is not None
        await self._freeze("frozen table", table.pid, choice)
        functions = await self._system.stack.describe_functions()
        self._killed.update(worker["pid"] for worker in functions[FUNCTION]["workers"])

    async def _freeze(self, victim: Victim, pid: int, choice: float) -> None:
        low, high = FROZEN_S
        self._report.kills[victim] += 1
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(low + choice * (high - low))
            finally:
                os.kill(pid, signal.SIGCONT)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> Outcome:
        """Show progress until all is worked off or the time is over, then wait for quiet and return what is there."""
        async with observe.dynamodb(self._system) as client:
            while self._elapsed_s() < self._options.seconds:
                await asyncio.sleep(min(PROGRESS_INTERVAL_S, self._options.seconds / 10))
                if await self._done(client):
                    break
            self._report.seconds = self._elapsed_s()
            self._worked_off.set()
            self._say(f"{self._elapsed_s():4.0f} s: no more kills, waiting for quiet")
            await self._calm.wait()
            progressed_s, before = time.monotonic(), (-1, -1)
            while True:
                found = await self._look(client)
                waiting = len(unfinished(found))
                if not waiting and _length(found) >= len(self._sent):
                    return found
                if before != (before := (_length(found), waiting)):
                    progressed_s = time.monotonic()
                if time.monotonic() > progressed_s + STANDSTILL_S:
                    return found
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _done(self, client: Any) -> bool:
        heads, _ = await observe.stored(client)
        done = self._report.done = _length(Outcome(heads))
        kills = ", ".join(f"{count} {victim}" for victim, count in sorted(self._report.kills.items()))
        self._say(f"{self._elapsed_s():4.0f} s: {done}/{self._options.events} events, killed {kills or 'nothing'}")
        return done >= self._options.events

    async def _look(self, client: Any) -> Outcome:
        heads, inbox = await observe.stored(client)
        behind = await observe.lag(self._system, {TOPIC: PARTITIONS})
        produced = await observe.records(self._system, chaos_app.OUT_TOPIC, TOPICS[chaos_app.OUT_TOPIC])
        published = [
            (dict(record.headers)["tenuto-id"].decode(), msgspec.json.decode(record.value or b"")["number"])
            for record in produced
        ]
        return Outcome(heads, inbox, behind, chaos_app.executions(self._ledger), published)


def _length(found: Outcome) -> int:
    lengths = [found.state("chain", lane.key, "length") for lane in found.heads if lane.service == "chain"]
    return sum(length for length in lengths if isinstance(length, int))


def tracebacks(system: System) -> list[str]:
    """The tracebacks in the logs of control planes: an error nobody foresaw."""
    found: list[str] = []
    for plane in system.control_planes:
        lines = plane.log_path.read_text(errors="replace").splitlines()
        found += [
            f"{plane.name}: " + "\n".join(lines[max(0, n - 1) : n + 40])
            for n, text in enumerate(lines)
            if text.startswith("Traceback")
        ]
    return found


async def run(options: Options, say: Say) -> Report:
    """Start a system, run the plan against it, stop it."""
    with tempfile.TemporaryDirectory(prefix="tenuto-chaos-") as folder:
        ledger = Path(folder) / "ledger"
        function = FunctionSpec(
            name=FUNCTION,
            handler="tests.stack.chaos_app.handler",
            root=str(ROOT),
            timeout_s=FUNCTION_TIMEOUT_S,
            environment={
                chaos_app.LEDGER_VARIABLE: str(ledger),
                chaos_app.KEYS_VARIABLE: str(options.concurrent_keys),
            },
            concurrency=4,
            queue_limit=100,
        )
        shares = options.concurrent_keys > 1
        config = CONFIG.format(places=PLACES_TO_SHARE if shares else PLACES, quick=QUICK_AT_ONCE if shares else QUICK)
        system = System([function], topics=TOPICS, config_text=config, control_planes=options.control_planes)
        async with system:
            chaos = Chaos(options, system, ledger, say)
            try:
                report = await chaos.run()
            except Exception:
                keep_logs(system, options, ledger)
                raise
            if report.differences or report.tracebacks:
                kept = keep_logs(system, options, ledger)
                async with observe.dynamodb(system) as client:
                    lines = [repr(item) async for item in observe.items(client)]
                (kept / "table").write_text("\n".join(lines))
            return report


def keep_logs(system: System, options: Options, ledger: Path) -> Path:
    """Save what the processes said and did, as the stack removes it; the folder where it is."""
    folder = Path(tempfile.gettempdir()) / f"tenuto-chaos-seed-{options.seed}"
    folder.mkdir(exist_ok=True)
    for path in (ledger, *system.stack.workdir.glob("*.log"), *system.stack.workdir.glob("functions/*.log")):
        (folder / path.name).write_bytes(path.read_bytes())
    print(f"logs: {folder}")
    return folder


def replay(options: Options) -> str:
    """How to run the same plan again."""
    only = "" if options.victims == KILLED else "".join(f" --only '{victim}'" for victim in options.victims)
    together = "" if options.concurrent_keys == 1 else f" --concurrent-keys {options.concurrent_keys}"
    return (
        f"replay the plan: python -m tests.stack.chaos --events {options.events} --keys {options.keys} "
        f"--seed {options.seed} --seconds {options.seconds:g}{together}{only}"
    )


def main() -> int:
    """The command line; 1 when anything differs from the offline truth, or a control plane logged a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=whole(1, 10_000_000), default=20_000)
    parser.add_argument("--keys", type=whole(1, 10_000_000), default=300)
    parser.add_argument("--seed", type=whole(0, 2**63), default=1)
    parser.add_argument("--seconds", type=real(0, 1_000_000), default=300.0, help="how long there are kills, at most")
    parser.add_argument(
        "--concurrent-keys", type=whole(1, BESIDE_MAX), default=1, help="that an invocation works on, default 1"
    )
    victims = tuple(CADENCE_S)
    parser.add_argument(
        "--only", choices=victims, action="append", default=None, help="strike only this; may be repeated"
    )
    given = parser.parse_args()
    options = Options(
        events=given.events,
        keys=given.keys,
        seed=given.seed,
        seconds=given.seconds,
        concurrent_keys=given.concurrent_keys,
        victims=tuple(given.only or KILLED),
    )
    # The client says again and again that the broker is away, which is the point here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        report = asyncio.run(run(options, lambda line: print(line, flush=True)))
    except KeyboardInterrupt:
        return 130
    for line in report.differences[:SHOWN_MAX]:
        print(f"  {line}")
    if len(report.differences) > SHOWN_MAX:
        print(f"  and {len(report.differences) - SHOWN_MAX} more")
    for text in report.tracebacks[:SHOWN_MAX]:
        print(text)
    print(report.line())
    if not report.differences and not report.tracebacks:
        return 0
    print(replay(options), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
