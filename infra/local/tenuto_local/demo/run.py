"""One demo from start to end: bring the system up, send the stream, watch, compare.

Owns the sequence and its time limits. Does not own what is sent (`workload`), who acts (`actors`), how it looks
(`screen`), nor what is right (`outcome`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec
from aiobotocore.session import get_session
from rich.console import Console

from examples.ledger import DIRECTORY_VARIABLE
from examples.profile_enricher.events import Record
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tenuto_local.commands import repository
from tenuto_local.demo import actors, outcome
from tenuto_local.demo.observe import LaneView, Observer, Position
from tenuto_local.demo.screen import LiveScreen, Picture, PlainScreen, Screen, clock
from tenuto_local.demo.workload import (
    ORDERS_SERVICE,
    TOPICS,
    UPDATES_SERVICE,
    Workload,
    config_text,
    functions,
    workload,
)
from tenuto_local.system import TABLE, System
from tenuto_local.workdir import Workdir

EVENTS_PER_S = 30.0
SETTLE_TIMEOUT_S = 60.0
"""How long after the last event the stream may take to end; sleeps of ten seconds are part of it."""

LOOK_INTERVAL_S = 0.3
QUIET_S = 1.0
"""How long nothing may happen before the outcome counts as final: what comes twice would come in this time."""

SHOWN_DIFFERENCES_MAX = 20
CANDIDATES = 3


@dataclass(slots=True)
class Stream:
    """What is known while the stream runs."""

    work: Workload
    progress: actors.Progress
    sent: dict[Lane, list[Position]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    heads: dict[Lane, Head] = field(default_factory=dict)
    kill: actors.Kill | None = None
    sleepers: set[Lane] = field(default_factory=set)


async def demo(events: int, seed: int, *, live: bool) -> int:
    """Run it; the exit status. Raises `LocalStackError` when something cannot be started."""
    console = Console(highlight=False)
    root = repository()
    work = workload(seed, events)
    started = time.monotonic()
    directory = Workdir()
    try:
        ledgers = directory.path / "ledgers"
        ledgers.mkdir()
        os.environ[DIRECTORY_VARIABLE] = str(ledgers)
        async with System(
            functions(root, ledgers),
            topics=TOPICS,
            config_text=config_text(root),
            workdir=directory.path / "stack",
            progress=_tell,
            count_requests=True,
        ) as system:
            print(f"up after {time.monotonic() - started:.1f} s:", flush=True)
            for name, address in addresses(system).items():
                print(f"  {name:<14} {address}", flush=True)
            status = await _stream(system, work, console, live=live)
        print(f"all processes have stopped, {time.monotonic() - started:.0f} s after the start")
        _next_steps(root)
        return status
    finally:
        directory.close()


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def addresses(system: System) -> dict[str, str]:
    """Where a person reaches the parts of a system."""
    return {
        "Kafka": system.bootstrap_servers,
        "DynamoDB": system.stack.dynamodb_endpoint_url,
        "Lambda": system.stack.aws_endpoint_url,
        "control plane": ", ".join(system.ingresses),
    }


async def _stream(system: System, work: Workload, console: Console, *, live: bool) -> int:
    stream = Stream(work, actors.Progress(len(work.deliveries)))
    screen: Screen = LiveScreen(console) if live else PlainScreen()
    timeout = aiohttp.ClientTimeout(total=actors.HTTP_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            _table_reader(system, stream) as observer,
        ):
            outside = actors.Outside(session, system.ingress)
            started = time.monotonic()
            await _watch(system, stream, observer, outside, screen)
            duration_s = time.monotonic() - started
            counts = await system.request_counts()
            status = await _order_status(stream, outside)
    except ExceptionGroup as errors:
        screen.close()
        print(system.log_tail())
        raise errors.exceptions[0] from None
    finally:
        screen.close()
    return _report(console, system, stream, status, counts, duration_s)


async def _watch(system: System, stream: Stream, observer: Observer, outside: actors.Outside, screen: Screen) -> None:
    """Send, act and show until all is done or the time is over."""
    candidates = _busiest_users(stream.work)
    duration_s = len(stream.work.deliveries) / EVENTS_PER_S
    deadline = time.monotonic() + duration_s + SETTLE_TIMEOUT_S
    servers = system.bootstrap_servers

    async def assassin() -> None:
        stream.kill = await actors.kill_after_step_two(candidates, system.stack, observer, screen.say)

    async with asyncio.TaskGroup() as group:
        sender = group.create_task(
            actors.send(stream.work.deliveries, servers, outside, stream.sent, stream.progress, duration_s)
        )
        background = [
            group.create_task(actors.drive(stream.work.orders, outside, screen.say)),
            group.create_task(actors.collect(servers, stream.records)),
            group.create_task(assassin()),
        ]
        quiet_since = told_kill = None
        while time.monotonic() < deadline:
            stream.heads = await observer.heads()
            views = observer.views(stream.heads)
            progress = stream.progress
            watched = stream.kill.event.rpartition("/")[0] if stream.kill else candidates[0]
            screen.show(Picture(progress.sent, progress.total, progress.over_http, views, watched))
            _tell_sleepers(stream, views, screen)
            if told_kill is None and stream.kill and stream.kill.verdict() is None:
                told_kill = stream.kill
                screen.say(f"{told_kill.event}: went on at step 3 in another process; step 2 ran once")
            if sender.done() and not views and not _differences(stream):
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since >= QUIET_S:
                    break
            else:
                quiet_since = None
            await asyncio.sleep(LOOK_INTERVAL_S)
        for task in (sender, *background):
            task.cancel()


def _tell_sleepers(stream: Stream, views: list[LaneView], screen: Screen) -> None:
    """The story of a user who is not ready: once for each, as soon as something waits behind."""
    for view in views:
        asleep = view.doing == "sleeping" and view.lane.service == UPDATES_SERVICE
        if not asleep or not view.queue or view.lane in stream.sleepers:
            continue
        stream.sleepers.add(view.lane)
        neighbours = sum(v.doing == "running" for v in views)
        until = clock(view.wake_ms)
        screen.say(
            f"{view.lane.key}: not ready, sleeps until {until} with {view.queue} later events queued; "
            f"{neighbours} neighbours run"
        )


def _busiest_users(work: Workload) -> list[str]:
    """Whose function may be killed: users that never sleep, with the most events, so that there are many chances."""
    users = Counter(key for _, key, _ in work.updates if not key.endswith("-new"))
    return [user for user, _ in users.most_common(CANDIDATES)]


def _differences(stream: Stream) -> list[str]:
    status = {lane.key: _status(head) for lane, head in stream.heads.items() if lane.service == ORDERS_SERVICE}
    return [line for found in outcome.outcomes(stream.work, stream.records, status) for line in found.differences]


def _status(head: Head) -> str | None:
    stored = head.state.get("status")
    return None if stored is None else msgspec.json.decode(stored, type=str)


async def _order_status(stream: Stream, outside: actors.Outside) -> dict[str, str | None]:
    """Each order's status, as its shared handler tells it over HTTP."""
    status: dict[str, str | None] = {}
    for _, order, _ in stream.work.orders:
        answer = await outside.post(f"/call/{ORDERS_SERVICE}/{quote(order, safe='')}/status")
        status[order] = answer if isinstance(answer, str) else None
    return status


def _report(
    console: Console,
    system: System,
    stream: Stream,
    status: Mapping[str, str | None],
    counts: Mapping[str, int],
    duration_s: float,
) -> int:
    found = outcome.outcomes(stream.work, stream.records, status)
    problems = [line for row in found for line in row.differences][:SHOWN_DIFFERENCES_MAX]
    verdict = stream.kill.verdict() if stream.kill else "no function was killed: no event was met between its steps"
    problems += [verdict] if verdict else []
    events = stream.progress.total
    writes = sum(counts.get(operation, 0) for operation in outcome.WRITE_OPERATIONS)
    table = outcome.writes_by_table(stream.work, stream.progress.over_http)
    operations = ", ".join(f"{counts.get(name, 0)} {name}" for name in (*outcome.WRITE_OPERATIONS, "GetItem", "Query"))
    costs = [
        f"{events} events in {duration_s:.1f} s, {stream.progress.over_http} of them over HTTP",
        outcome.writes_line(writes, table, events),
        f"  requests as counted at its door: {operations}",
    ]
    outcome.report(console, found, problems, costs)
    if problems:
        console.print(system.log_tail(), markup=False, soft_wrap=True)
        return 1
    console.print("no difference: every event took effect once, in order, and nothing was lost", style="bold green")
    return 0


@contextlib.asynccontextmanager
async def _table_reader(system: System, stream: Stream) -> AsyncIterator[Observer]:
    own = system.stack.environment()
    async with get_session().create_client(
        "dynamodb",
        region_name=own["AWS_REGION"],
        endpoint_url=system.stack.dynamodb_endpoint_url,
        aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
    ) as client:
        yield Observer(client, TABLE, stream.sent)


def _next_steps(root: Path) -> None:
    handler = root / "examples" / "user_updates" / "handler.py"
    print(f"""
The handler you watched: {handler}
Send your own events: start one example,
  make dev APP=examples/user_updates
then, in a second terminal in this folder,
  . .venv/bin/activate && cd examples/user_updates
  tenuto send user-updates ann \\
    '{{"user": "ann", "version": 1, "name": "Ann", "permissions": ["read"], "resources": ["inbox"]}}'
  tenuto call userUpdates ann update_user_event \\
    '{{"user": "ann", "version": 2, "name": "Ann", "permissions": ["write"], "resources": []}}'""")
