"""The real control plane in the memory of a small task, under what would fill it: it lives, answers, and runs all once.

    python -m tests.stack.soak_memory                      # every scenario
    python -m tests.stack.soak_memory backlog --keys 1000000
    python -m tests.stack.soak_memory heads --heads 100000 --table-on-disk
    python -m tests.stack.soak_memory bombs large

Owns the scenarios, the memory group and the judgement. Does not own the bounds (`tenuto_control.limits`). Where the
machine lets it, the process runs in a memory group of that size, which ends it when it takes more; its peak (VmHWM) is
judged in any case. The figures that it prints are those of the operations guide.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as Place

from tenuto.lane.head import HEAD_SK
from tenuto.protocol.ids import Lane
from tenuto.store.expressions import unmarshal_item
from tenuto_control.arguments import real, whole
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.ports import LOOPBACK, free_port
from tenuto_local.system import TABLE, System
from tests.stack import observe
from tests.stack.soak_watch import Seen, peak_bytes
from tests.support import raw_batches
from tests.support.raw_batches import Raw, batch

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000
MIB = 1024 * 1024
PARTITIONS = 8
TOPICS = {"notes": PARTITIONS, "heavies": PARTITIONS, "bombs": 2, "bombs.dead-letter": 1}
CONFIG = """
[functions.soak]
concurrency = 16

[[subscriptions]]
topic = "notes"
target = "tally/note"

[[subscriptions]]
topic = "heavies"
target = "tally/heavy"

[[subscriptions]]
topic = "bombs"
target = "tally/note"
"""

MEMORY_MIB = 512
"""What infra/control_plane.yaml gives a task."""

HEALTH_P99_MS_MAX = 100
LOOK_EVERY_S = 2.0
STANDSTILL_S = 120.0
PRODUCED_AT_ONCE = 5_000
READ_AT_ONCE = 100
GROUPS = Path("/sys/fs/cgroup")

Say = Callable[[str], None]


# --- the process ------------------------------------------------------------------------------------------------------


@contextmanager
def memory_group(size_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """A memory group of that size: what puts a process into it; None where the machine lets nobody make one.

    What a process had before counts for the group that it came from, so it is taken off the size.
    """
    name = f"tenuto-soak-{os.getpid()}"
    first = (GROUPS / "memory" / name, "memory.limit_in_bytes") if (GROUPS / "memory").is_dir() else None
    folder, limit = first or (GROUPS / name, "memory.max")
    try:
        folder.mkdir()
        (folder / limit).write_text(str(size_bytes))
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        yield None
        return

    def put(pid: int) -> None:
        (folder / limit).write_text(str(size_bytes - peak_bytes(pid)))
        (folder / "cgroup.procs").write_text(str(pid))

    try:
        yield put
    finally:
        for _ in range(50):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


@dataclass(slots=True)
class Watched:
    """What was seen of a process; filled in when the watching ends."""

    seen: Seen = field(default_factory=Seen)

    def percentile_ms(self, share: float) -> float:
        """How long `/health` took at most in this share of all answers, in milliseconds."""
        ordered = sorted(self.seen.health_s) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1_000


@asynccontextmanager
async def watching(system: System, health_port: int) -> AsyncIterator[Watched]:
    """Watch the control plane while the context lasts."""
    pid, watched = system.control_planes[0].pid, Watched()
    watcher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.stack.soak_watch", f"http://{LOOPBACK}:{health_port}", str(pid)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield watched
    finally:
        told, _ = await watcher.communicate(b"")
        watched.seen = Seen(**json.loads(told))


# --- scenarios --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """How much of everything."""

    keys: int
    heads: int
    calls: int
    large_calls: int
    memory_mib: int
    seconds: float
    table_on_disk: bool


async def backlog(system: System, options: Options, say: Say) -> list[str]:
    """Records with a key each, all there before the first is read."""
    return await _drained(system, "notes", {f"key-{n}": b"" for n in range(options.keys)}, options.seconds, say)


async def heads(system: System, options: Options, say: Say) -> list[str]:
    """Keys whose state takes 100 KB."""
    return await _drained(system, "heavies", {f"heavy-{n}": b"" for n in range(options.heads)}, options.seconds, say)


async def bombs(system: System, options: Options, say: Say) -> list[str]:
    """Small batches that stand for much, with ordinary records around them and on another partition."""
    for kind, size in (("gzip", 150 * MIB), ("gzip", 400 * MIB), ("zstd", 400 * MIB), ("lz4", 150 * MIB)):
        bomb = batch([Raw(bytes(size))], compression=kind)
        if len(bomb) < MIB:  # What a topic takes by default.
            await raw_batches.produce(system.bootstrap_servers, "bombs", 0, bomb)
            say(f"a bomb of {len(bomb):,} bytes of {kind}, {size // MIB} MiB when inflated")
    wrong = await _drained(system, "bombs", {f"beside-{n}": b"" for n in range(200)}, options.seconds, say)
    letters = await observe.records(system, "bombs.dead-letter", 1)
    reasons = [dict(one.headers).get("tenuto-reason", b"") for one in letters]
    if not reasons or not all(b"batch_inflated_bytes_max" in reason for reason in reasons):
        wrong.append(f"the dead letters say {reasons}")
    return wrong


async def calls(system: System, options: Options, say: Say) -> list[str]:
    """Callers that wait, each for a key of its own."""
    return await _called(system, "dwell", options.calls, b"", options.seconds, say)


async def large(system: System, options: Options, say: Say) -> list[str]:
    """Calls of 4 MB, all at once."""
    return await _called(system, "weigh", options.large_calls, b'"' + b"x" * (4 * MB) + b'"', options.seconds, say)


SCENARIOS: dict[str, Callable[[System, Options, Say], Awaitable[list[str]]]] = {
    one.__name__: one for one in (backlog, heads, bombs, calls, large)
}


async def _drained(system: System, topic: str, records: dict[str, bytes], seconds: float, say: Say) -> list[str]:
    """Produce, wait until all is committed, and compare: each key has counted one event, or none yet."""
    began = time.monotonic()
    await _produce(system, topic, records)
    behind, moved = -1, began
    while behind != 0 and time.monotonic() - began < seconds:
        before, behind = behind, await _lag(system, topic)
        if behind != before:
            moved = time.monotonic()
        if time.monotonic() - moved > STANDSTILL_S:
            return [f"{topic}: nothing has moved for {STANDSTILL_S:.0f} s, {behind} offsets behind"]
        if not system.control_planes[0].running:
            return [f"{topic}: the control plane has ended, {behind} offsets behind"]
        await asyncio.sleep(LOOK_EVERY_S)
    took = time.monotonic() - began
    counted = await _counted(system, records)
    wrong = Counter(counted.get(key, 0) for key in records)
    say(f"{wrong[1]:,} of {len(records):,} records of {topic} in {took:.0f} s ({wrong[1] / took:.0f}/s)")
    del wrong[1]
    if behind != 0:
        del wrong[0]  # There was no time for these.
    return [f"{topic}: {keys} keys ran {times} times" for times, keys in sorted(wrong.items())]


async def _produce(system: System, topic: str, records: dict[str, bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=system.bootstrap_servers, linger_ms=20)
    await producer.start()
    try:
        pending = []
        for key, value in records.items():
            pending.append(await producer.send(topic, value, key=key.encode()))
            if len(pending) >= PRODUCED_AT_ONCE:
                await asyncio.gather(*pending)
                pending.clear()
        await asyncio.gather(*pending)
    finally:
        await producer.stop()


async def _lag(system: System, topic: str) -> int:
    """Offsets that are not committed. Markers and dead letters count as any other."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=system.bootstrap_servers, group_id=observe.GROUP, enable_auto_commit=False
    )
    await consumer.start()
    try:
        places = [Place(topic, n) for n in range(TOPICS[topic])]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        return sum([ends[place] - (await consumer.committed(place) or 0) for place in places])
    finally:
        await consumer.stop()


async def _counted(system: System, keys: Iterable[str]) -> dict[str, int]:
    """What each key has counted.

    Asked for by name, and for nothing else: a scan of ten gigabytes takes a local table more than an hour.
    """
    counted: dict[str, int] = {}
    asked = ({"pk": {"S": Lane("tally", key).pk}, "sk": {"S": HEAD_SK}} for key in keys)
    async with observe.dynamodb(system) as client:
        while batch := list(itertools.islice(asked, READ_AT_ONCE)):
            wanted: dict[str, Any] = {TABLE: {"Keys": batch, "ProjectionExpression": "pk, #n"}}
            while wanted:
                wanted[TABLE]["ExpressionAttributeNames"] = {"#n": "s.n"}
                found = await client.batch_get_item(RequestItems=wanted)
                for item in map(unmarshal_item, found["Responses"][TABLE]):
                    number = item.get("s.n")
                    if isinstance(number, bytes):
                        counted[Lane.from_pk(str(item["pk"])).key] = int(number)
                wanted = found.get("UnprocessedKeys") or {}
    return counted


async def _called(system: System, handler: str, count: int, body: bytes, seconds: float, say: Say) -> list[str]:
    """Call at once, again after each 503, until there is a result, or for so many seconds.

    Any other answer is a mistake of this scenario, which repeating would not mend: the first one ends it.
    """
    statuses: Counter[int | str] = Counter()
    refused: list[str] = []
    answered: set[int] = set()
    began = time.monotonic()
    gate = asyncio.Semaphore(count)

    async def one(session: aiohttp.ClientSession, n: int) -> None:
        url = f"{system.ingress}/call/tally/{handler}-{n}/{handler}"
        headers = {"idempotency-key": f"call-{n}", "content-type": "application/json"}
        for attempt in range(1_000):
            if time.monotonic() - began > seconds or refused:
                return
            try:
                async with gate, session.post(url, data=body or None, headers=headers) as answer:
                    statuses[answer.status] += 1
                    said = await answer.read()
                    if answer.status == 200:
                        answered.add(n)
                        return
                    if answer.status not in (202, 503):
                        refused.append(f"{handler}: answered {answer.status}: {said[:200]!r}")
                        return
                    pause_s = float(answer.headers.get("retry-after", 0.5))
            except (aiohttp.ClientError, TimeoutError) as e:
                statuses[type(e).__name__] += 1
                pause_s = 0.5
                if not system.control_planes[0].running:
                    return
            await asyncio.sleep(pause_s * (0.5 + (n + attempt) % 100 / 100))

    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(one(session, n) for n in range(count)))
    took = time.monotonic() - began
    say(f"{len(answered):,} of {count:,} calls of {len(body):,} bytes in {took:.0f} s: {dict(statuses)}")
    counted = await _counted(system, [f"{handler}-{n}" for n in range(count)])
    times = {n: counted.get(f"{handler}-{n}", 0) for n in range(count)}
    # Who was given up may have run or not; who was answered has.
    wrong = Counter(ran for n, ran in times.items() if ran != 1 and (ran or n in answered))
    return [*refused[:1], *(f"{handler}: {keys} keys ran {times} times" for times, keys in sorted(wrong.items()))]


# --- the run ----------------------------------------------------------------------------------------------------------


async def soak(names: Sequence[str], options: Options, say: Say) -> list[str]:
    """Each scenario with a system of its own. What is wrong."""
    wrong: list[str] = []
    for name in names:
        function = FunctionSpec(
            name="soak",
            handler="tests.stack.soak_app.handler",
            root=str(ROOT),
            timeout_s=30.0,
            concurrency=16,
            queue_limit=100,
        )
        with memory_group(options.memory_mib * MIB) as put, tempfile.TemporaryDirectory(prefix="tenuto-soak-") as data:
            port = free_port()
            async with System(
                [function],
                topics=TOPICS,
                config_text=CONFIG,
                plane_environment={"TENUTO_HTTP_HEALTH_PORT": str(port)},
                table_data=Path(data) if options.table_on_disk else None,
            ) as system:
                if put is None:
                    say("no memory group can be made here: the peak alone is judged")
                else:
                    put(system.control_planes[0].pid)
                problems = await _judged(system, port, name, options, say)
                if problems:
                    say(system.log_tail())
        wrong += [f"{name}: {problem}" for problem in problems]
    return wrong


async def _judged(system: System, port: int, name: str, options: Options, say: Say) -> list[str]:
    async with watching(system, port) as watched:
        problems = await SCENARIOS[name](system, options, say)
    if not system.control_planes[0].running:
        problems.append("the control plane has ended")
    seen, p99 = watched.seen, watched.percentile_ms(0.99)
    health = f"/health p50 {watched.percentile_ms(0.5):.0f} ms, p90 {watched.percentile_ms(0.9):.0f} ms"
    own = sorted(seen.late_ms) or [0]
    late = f"the loop was late by {own[len(own) // 2]} ms in the median ten seconds, {own[-1]} ms in the worst"
    say(f"{name}: peak {seen.peak / MIB:.0f} MiB, {health}, p99 {p99:.0f} ms ({len(seen.health_s)} asked); {late}")
    if seen.peak > options.memory_mib * MIB:
        problems.append(f"a peak of {seen.peak / MIB:.0f} MiB")
    if p99 > HEALTH_P99_MS_MAX:
        problems.append(f"/health took {p99:.0f} ms at p99")
    return problems


def main() -> int:
    """The command line; 1 when a scenario took too much memory, hung, or lost or repeated anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack.soak_memory", description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="default: all")
    parser.add_argument(
        "--keys", type=whole(1, 10_000_000), default=40_000, help="records of the backlog; default: 40000"
    )
    parser.add_argument(
        "--heads", type=whole(1, 10_000_000), default=2_000, help="keys with 100 KB of state; default: 2000"
    )
    parser.add_argument("--calls", type=whole(1, 10_000_000), default=10_000, help="callers that wait; default: 10000")
    parser.add_argument("--large-calls", type=whole(1, 10_000_000), default=150, help="calls of 4 MB; default: 150")
    text = "end a scenario after so long, with what was done by then; default: when all is done"
    parser.add_argument("--seconds", type=real(0, 1_000_000), default=float("inf"), help=text)
    text = "keep the table in a file: for more than it can hold in memory"
    parser.add_argument("--table-on-disk", action="store_true", help=text)
    parser.add_argument("--memory-mib", type=whole(1, 10_000_000), default=MEMORY_MIB, help=f"default: {MEMORY_MIB}")
    given = vars(parser.parse_args())
    names = given.pop("scenarios") or list(SCENARIOS)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        wrong = asyncio.run(soak(names, Options(**given), lambda line: print(line, flush=True)))
    except KeyboardInterrupt:
        return 130
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
