"""`python -m bench.micro_table`: the CPU time that a write takes inside a table engine, by the form of the write.

Sends writes as a lane makes them, and variants of them, one after the other over one connection, each to an item that
it has not changed yet. Owns the writes and the clock. Does not own what a write costs its client (`micro`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from aiobotocore.session import get_session
from msgspec.structs import replace

from bench.micro_function import CREDENTIALS, TABLE
from bench.resources import PROC
from tenuto.lane.head import RUN_ATTRIBUTES, head_key, pack_run, parse_head
from tenuto.lane.naps import Nap, nap
from tenuto.lane.transitions import Effects, Progress, checkpoint, claim, effects_of, final_commit
from tenuto.lane.writes import Applied, Item, Put, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import ClaimedRun
from tenuto.protocol.records import Event, KafkaSource
from tenuto.store.dynamodb import BlockingDynamoTable
from tenuto_local.table import TableAdminClient, create_table
from tenuto_local.table_engine import ENGINES, NATIVE, TableEngine, chosen_engine

KEYS: Final = 100
ROUNDS: Final = 5
OWN: Final = "a" * 16
SLOT: Final = b"s" * 40
EVENT_BYTES: Final = 200

Make = Callable[[Lane, ClaimedRun], Write]


def event_of(lane: Lane) -> Event:
    """A small event of a lane."""
    source = KafkaSource("0", "topic", 3, 123, 0)
    return Event(str(InvocationId(lane, kafka_nonce("0", "topic", 3, 123))), "steps", source, b"x" * EVENT_BYTES)


def run_of(lane: Lane) -> ClaimedRun:
    """The run of that event, claimed at version 4."""
    return ClaimedRun(event_of(lane), 4, 0, 0, 1, f"{OWN}.1", 1_700_000_000_000, secret=b"s" * 16)


def idle(_lane: Lane) -> Item:
    """A lane at rest."""
    return {"ver": 3, "tok": f"{OWN}.0", "s.count": b"12", "w.0|topic|3": 123}


def owned(lane: Lane) -> Item:
    """The same while its run is active, with one step done."""
    run = run_of(lane)
    held: Item = {"rid": run.event.nonce, "run": pack_run(run), "att": 1, "holder": run.holder, "lease": run.lease_ms}
    return {**idle(lane), "ver": 4, **held, "own": OWN, "j.4.0": SLOT}


def _cpu_ns(pid: int) -> int:
    """CPU time of a process so far, finer than its own count: that moves on by ten milliseconds."""
    tasks = (PROC / str(pid) / "task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


def _checkpoint(lane: Lane, run: ClaimedRun, slots: int = 1, size: int = len(SLOT)) -> Update:
    progress = Progress({str(n + 1): b"s" * size for n in range(slots)})
    return checkpoint(lane, 4, run, progress, OWN, quiet=True)


def _commit(lane: Lane, run: ClaimedRun) -> Update:
    effects = effects_of([run.event], {"count": b"13"}, {}, 0)
    return final_commit(lane, parse_head(owned(lane)), effects, f"{OWN}.commit", OWN)


def _commit_all(lane: Lane, run: ClaimedRun) -> Update:
    write = _commit(lane, run)
    return replace(write, removes=tuple(dict.fromkeys((*write.removes, *RUN_ATTRIBUTES))))


def _claim(lane: Lane, run: ClaimedRun) -> Update:
    return claim(lane, parse_head(idle(lane)), Effects(), run, f"{OWN}.claim", drain=False, quiet=True)


def _nap(lane: Lane, run: ClaimedRun) -> Update:
    sleep = Nap(1_700_000_000_000, f"{OWN}.2", 1_700_000_000_000, {"2": SLOT})
    return nap(lane, 4, run, Progress({"1": SLOT}), {}, {}, sleep, f"{OWN}.nap", OWN)


SHAPES: Final[Mapping[str, tuple[Callable[[Lane], Item], Make]]] = {
    "put of an item of four attributes": (owned, lambda lane, _: Put(head_key(lane), {"ver": 4, "s.count": b"12"})),
    "put of an item of fifteen attributes": (owned, lambda lane, _: Put(head_key(lane), owned(lane))),
    "checkpoint of one step": (owned, _checkpoint),
    "the same, answered with the item": (owned, lambda lane, run: replace(_checkpoint(lane, run), quiet=False)),
    "the same without conditions": (owned, lambda lane, run: replace(_checkpoint(lane, run), conditions=())),
    "the same, ten times as large": (owned, lambda lane, run: _checkpoint(lane, run, size=400)),
    "checkpoint of eight steps": (owned, lambda lane, run: _checkpoint(lane, run, slots=8)),
    "claim": (idle, _claim),
    "the same, answered with the item ": (idle, lambda lane, run: replace(_claim(lane, run), quiet=False)),
    "nap": (owned, _nap),
    "commit": (owned, _commit),
    "the same, removing all that any run can have": (owned, _commit_all),
}
"""By what it is: the item that is there, and the write."""


async def measure(engine: TableEngine, table: BlockingDynamoTable, requests: int) -> dict[str, float]:
    """The engine's CPU time of each write, in microseconds: the least of some rounds."""
    least: dict[str, float] = {}
    lanes = [Lane("bench", f"key-{n}") for n in range(KEYS)]
    for _ in range(ROUNDS):
        for name, (before, make) in SHAPES.items():
            took_ns = 0
            for _ in range(max(1, requests // KEYS)):
                for lane in lanes:
                    await table.write(Put(head_key(lane), before(lane)))
                began_ns = _cpu_ns(engine.pid)
                for lane in lanes:
                    answer = await table.write(make(lane, run_of(lane)))
                    assert isinstance(answer, Applied), f"{name} is refused"
                took_ns += _cpu_ns(engine.pid) - began_ns
            each_us = took_ns / 1000 / (KEYS * max(1, requests // KEYS))
            least[name] = min(each_us, least.get(name, each_us))
    return least


async def _run(engine_name: str, requests: int) -> None:
    with tempfile.TemporaryDirectory() as workdir:
        engine = chosen_engine(engine_name).make(Path(workdir))
        await engine.start()
        table = BlockingDynamoTable(TABLE)
        try:
            os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL_DYNAMODB": engine.endpoint_url}
            async with get_session().create_client("dynamodb", region_name=CREDENTIALS["AWS_REGION"]) as client:
                await create_table(cast("TableAdminClient", client), TABLE)
            print(f"{chosen_engine(engine_name).title()}, CPU µs of the table for one write, least of {ROUNDS} rounds")
            for name, each_us in (await measure(engine, table, requests)).items():
                print(f"{name.strip():45} {each_us:6.0f}")
        finally:
            table.close()
            await engine.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser: Any = argparse.ArgumentParser(prog="python -m bench.micro_table", description="CPU time of a table engine.")
    parser.add_argument("--table", choices=list(ENGINES), default=NATIVE.name)
    parser.add_argument("--requests", type=int, default=1_000, help="of each kind and round, default 1,000")
    options = parser.parse_args(arguments)
    if not PROC.is_dir():
        parser.error("the CPU time of another process is read from /proc, which this system does not have")
    asyncio.run(_run(options.table, options.requests))
    return 0


if __name__ == "__main__":
    sys.exit(main())
