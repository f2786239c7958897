"""`python -m bench.micro_function`: the CPU time that an event takes inside a function, without Lambda around it.

Drives the production entry point (`tenuto.aws`) with activations as a control plane sends them, one event each, over
the in-memory table or, if asked, over a table engine. Several processes at a time show what the same code takes where
each write finds the processor's caches used by others. Owns the activations and the clock. Does not own the handlers
(`handlers`), nor what Lambda's runtime client takes, which `python -m bench` measures with everything else.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from aiobotocore.session import get_session

from bench.handlers import handler
from bench.resources import PROC, cpu_s
from bench.workloads import WORKLOADS
from tenuto.lane.head import parse_head
from tenuto.lane.transitions import takeover
from tenuto.lane.writes import Answer, Applied, Write, apply
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Head, Outcome, Suspended, encode
from tenuto.protocol.records import Event, KafkaSource, SleptSlot, pack
from tenuto.store.dynamodb import BlockingDynamoTable
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Table
from tenuto_control.arguments import whole
from tenuto_local.table import TableAdminClient, create_table
from tenuto_local.table_engine import ENGINES, chosen_engine

T = TypeVar("T")

NAMES: Final = ("w1", "w2", "w4")
"""State alone, three steps and a set, steps around a sleep that suspends."""

EVENTS_MAX: Final = 1_000_000
PROCESSES_MAX: Final = 64

WARM_UP: Final = 300
"""Events of each workload before the clock starts: they open connections, and Python specialises its bytecode."""

PARTS: Final = 20
TIMEOUT_MS: Final = 15_000
TABLE: Final = "micro"
MEMORY: Final = "memory"
CREDENTIALS: Final = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}

_decode_outcome = msgspec.json.Decoder(Outcome).decode


class _Invocation:
    """Lambda's context object."""

    def get_remaining_time_in_millis(self) -> int:
        """See `LambdaContext`."""
        return TIMEOUT_MS


class _Twin(MemoryTable):
    """The in-memory table without its checks of sizes: what is measured is the function."""

    def apply(self, write: Write) -> Answer:
        """See `MemoryTable.apply`."""
        at = write.key.pk, write.key.sk
        answer = apply(write, self.items.get(at))
        if isinstance(answer, Applied) and answer.item is not None:
            self.items[at] = answer.item
        return answer


class _Lanes:
    """Lanes that are given one event each. `cpu_ns` is what the function took for them, in all of its threads."""

    def __init__(self, table: Table, workload: str, name: str | None = None) -> None:
        self._table = table
        self._handler = WORKLOADS[workload].handler
        self._values = itertools.cycle(value for _, value in WORKLOADS[workload].scaled(0.1).stream())
        self._name = name or workload
        self._number = 0
        self.cpu_ns = 0
        self.wall_ns = 0
        self.writes = 0

    def run(self, events: int) -> None:
        """Give an event to each of so many lanes."""
        for _ in range(events):
            self._number += 1
            lane = Lane("bench", f"{self._name}-{self._number}")
            value = next(self._values)
            event = Event(
                str(InvocationId(lane, kafka_nonce("0", "t", 0, 0))),
                self._handler,
                KafkaSource("0", "t", 0, 0, 0),
                value,
            )
            holder = f"{self._name}.{self._number}"
            request = Activation(lane.service, lane.key, "speculate", Head(), holder, (event,), table=TABLE)
            outcome = self._invoke(request)
            while isinstance(outcome, Suspended):
                outcome = self._invoke(self._resumed(lane, outcome.head, f"{holder}.again"))

    def _resumed(self, lane: Lane, head: Head, holder: str) -> Activation:
        assert head.run is not None, "a suspension leaves a run"
        due = {slot: pack(SleptSlot()) for slot in head.run.awaits or ()}
        lease_ms = time.time_ns() // 1_000_000 + TIMEOUT_MS
        answer = _at_once(self._table.write(takeover(lane, head, holder, lease_ms, due, holder)))
        assert isinstance(answer, Applied), "nobody else is there"
        return Activation(lane.service, lane.key, "resume", parse_head(answer.item), holder, table=TABLE)

    def _invoke(self, request: Activation) -> Outcome:
        payload = msgspec.json.decode(encode(request))
        wall_ns, began = time.perf_counter_ns(), time.process_time_ns()
        answer = handler(payload, _Invocation())
        self.cpu_ns += time.process_time_ns() - began
        self.wall_ns += time.perf_counter_ns() - wall_ns
        outcome: Outcome = msgspec.convert(answer, Outcome)
        self.writes += getattr(outcome, "writes", 0)
        return outcome


def measure(table: Table, name: str, events: int) -> str:
    """A line of the report: the fastest of PARTS parts, since whatever else this machine does can only add to it."""
    lanes = _Lanes(table, name)
    lanes.run(WARM_UP)
    best: tuple[float, float, float] | None = None
    for _ in range(PARTS):
        lanes.cpu_ns = lanes.wall_ns = lanes.writes = 0
        part = max(1, events // PARTS)
        lanes.run(part)
        found = lanes.cpu_ns / part / 1000, lanes.wall_ns / part / 1000, lanes.writes / part
        best = found if best is None else min(best, found)
    assert best is not None, "there is at least one part"
    cpu_us, wall_us, writes = best
    return f"{name}: {cpu_us:7.1f} us of CPU an event, {wall_us:7.1f} us from request to answer, {writes:.2f} writes"


def measure_beside(name: str, events: int, processes: int) -> str:
    """A line of the report: the mean over processes that all run at the same time, each with so many events."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_mean_us, [name] * processes, [events] * processes))
    return f"{name}: {sum(found) / processes:7.1f} us of CPU an event, mean of {processes} processes at a time"


def _mean_us(name: str, events: int) -> float:
    table = BlockingDynamoTable(TABLE)
    handler._tables[TABLE, False, False] = table  # type: ignore[attr-defined]  # noqa: SLF001
    lanes = _Lanes(table, name, f"{name}.{os.getpid()}")
    lanes.run(WARM_UP)
    lanes.cpu_ns = 0
    lanes.run(events)
    return lanes.cpu_ns / events / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro_function", description="CPU time of events.")
    parser.add_argument("--table", choices=[MEMORY, *ENGINES], default=MEMORY)
    parser.add_argument("--events", type=whole(1, EVENTS_MAX), default=2_000, help="of each workload")
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--processes", type=whole(1, PROCESSES_MAX), default=1, help="at the same time, over a table engine"
    )
    options = parser.parse_args(arguments)
    if options.table != MEMORY:
        asyncio.run(_over_engine(options.table, options.workloads, options.events, options.processes))
    elif options.processes == 1:
        _report(_Twin(), options.workloads, options.events)
    else:
        parser.error("several processes need a table engine, such as --table dynoxide")
    return 0


def _report(table: Table, names: Sequence[str], events: int, processes: int = 1, engine: int | None = None) -> None:
    if processes > 1:
        for name in names:
            before_s = _engine_cpu_s(engine)
            line = measure_beside(name, events, processes)
            each_us = 1e6 * (_engine_cpu_s(engine) - before_s) / (processes * (events + WARM_UP))
            print(f"{line}; the table took {each_us:7.1f} us an event", flush=True)
        return
    # The entry point makes its own client for the table that a request names, unless it has one.
    handler._tables[TABLE, False, False] = table  # type: ignore[attr-defined]  # noqa: SLF001
    for name in names:
        print(measure(table, name, events), flush=True)


async def _over_engine(engine_name: str, names: Sequence[str], events: int, processes: int) -> None:
    with tempfile.TemporaryDirectory() as workdir:
        engine = chosen_engine(engine_name).make(Path(workdir))
        await engine.start()
        try:
            os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL_DYNAMODB": engine.endpoint_url}
            async with get_session().create_client("dynamodb", region_name=CREDENTIALS["AWS_REGION"]) as client:
                await create_table(cast("TableAdminClient", client), TABLE)
            # Its own loop: a function's handlers do not run on anybody else's.
            await asyncio.to_thread(_report, BlockingDynamoTable(TABLE), names, events, processes, engine.pid)
        finally:
            await engine.stop()


def _engine_cpu_s(pid: int | None) -> float:
    """CPU time of the table engine so far; 0 where there is no `/proc`."""
    return 0.0 if pid is None or not PROC.is_dir() else cpu_s(pid)


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("a blocking table does not wait")


if __name__ == "__main__":
    sys.exit(main())
