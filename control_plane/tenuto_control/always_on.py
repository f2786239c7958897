"""The always-on control plane: one process that consumes, dispatches, sweeps and serves HTTP until it is told to stop.

Owns the life of such a process: its start, its loops, and the drain at its end. Does not own its parts (`assembly`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Awaitable, Callable

import uvicorn

from tenuto.lane.timers import SWEEP_CURSOR
from tenuto.store.data_keys import DataKeys
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError
from tenuto_control.admin.deployments import DISCOVERY_S_MAX
from tenuto_control.assembly import Assembly, assembled, quiet_libraries
from tenuto_control.config import Config, ConfigError, HttpConfig
from tenuto_control.core.log_fields import shown
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher.outages import watched
from tenuto_control.drivers.health_server import Pulse, serving_health
from tenuto_control.drivers.http_connections import Connections, connections_possible
from tenuto_control.drivers.http_protocol import json_errors
from tenuto_control.drivers.kafka import KafkaEventLog
from tenuto_control.garbage import collected_rarely
from tenuto_control.loops.consume import Consumer
from tenuto_control.memory import memory_of_task, memory_problem

log = logging.getLogger("tenuto")


ACCEPTS_PER_TURN = 32
"""How many connections are accepted in one turn of the event loop: as many as the listening socket has handles.

uvloop takes one from each. With a single one, a health check waits a turn for every connection before it.
"""


class UnexpectedEndError(Exception):
    """A part of the process ended that never does by itself, and without its own error."""


async def serve(config: Config) -> None:
    """Run a control plane until SIGTERM or SIGINT, then drain. SIGHUP has it ask the functions at once what they serve.

    Raises ConfigError, and what ended a part of it.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    quiet_libraries()
    task = memory_of_task()
    too_much = None if task is None else memory_problem(config.limits, task)
    if too_much is not None:
        log.warning("%s", too_much)
    async with assembled(config) as parts:
        loop.add_signal_handler(signal.SIGHUP, parts.deployments.look_again)
        starting = asyncio.create_task(_start(parts), name="start")
        if await _unless(stop, starting):
            with collected_rarely():
                await _work(parts, stop)


async def _start(parts: Assembly) -> None:
    """What has to be there before anything is served. Raises ConfigError for what never will be."""
    await check_table(parts.table, parts.config.table.name)
    if parts.data_keys is not None:
        await check_data_keys(parts.data_keys)
    await parts.deployments.discover(DISCOVERY_S_MAX)


async def _unless(stop: asyncio.Event, work: asyncio.Task[None]) -> bool:
    """Wait for work, however long it takes; False when told to stop first. Raises what the work does."""
    waiting = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return True
        return False
    finally:
        for task in (work, waiting):
            task.cancel()
        await asyncio.gather(work, waiting, return_exceptions=True)


async def _work(parts: Assembly, stop: asyncio.Event) -> None:
    config = parts.config
    listener = listening(config.http, config.http.port)
    with contextlib.ExitStack() as stack:
        if config.http.health_port:
            health = listening(config.http, config.http.health_port)
            stack.enter_context(serving_health(health, Pulse(lambda: parts.lateness.worst_ms)))
        await _work_at(parts, stop, listener)


async def _work_at(parts: Assembly, stop: asyncio.Event, listener: socket.socket) -> None:
    config, limits, loops = parts.config, parts.config.limits, parts.loops
    server = _server(parts)
    kept = {"sweep": parts.sweeper.run, "discovery": parts.deployments.refresh, "metrics": lambda: _report(parts)}
    kept["lateness"] = parts.lateness.run
    tasks = [asyncio.create_task(loops.keep(name, run), name=name) for name, run in kept.items()]
    listeners = [listener, *(listener.dup() for _ in range(ACCEPTS_PER_TURN - 1))]
    tasks.append(asyncio.create_task(server.serve(listeners), name="http"))
    consuming = Consuming(parts)
    consume = None
    if config.subscriptions:
        consume = asyncio.create_task(loops.keep("consume", consuming.run), name="consume")
        tasks.append(consume)
    for service in parts.deployments.listed():
        log.info("serving %s: %s", service.name, ", ".join(h.name for h in service.handlers))
    log.info("listening on http://%s:%s", config.http.host, config.http.port)
    waiting = asyncio.create_task(stop.wait(), name="stop")
    ended, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in ended - {waiting}:
        # Not one of them does so by itself, so somebody will want to know which one it was.
        log.critical("%s has ended, so this process stops", task.get_name())
    log.info("stopping: letting running work finish; the rest stays in Kafka and the table")
    server.should_exit = True
    if consume is not None:
        consuming.stop()
        await asyncio.wait([consume], timeout=limits.drain_timeout_ms / 1000)
    for task in (waiting, *tasks):
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await parts.dispatcher.stop()
    parts.report()
    if waiting not in ended:
        failed = [r for r in results if isinstance(r, Exception)]
        names = ", ".join(sorted(task.get_name() for task in ended))
        raise failed[0] if failed else UnexpectedEndError(f"{names} ended by itself")


class Consuming:
    """The consumer of a process. One that failed is left behind, and the next one joins the group again."""

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts
        self._consumer: Consumer | None = None
        self._stopping = False

    async def run(self) -> None:
        """Consume until told to stop. Raises ConfigError, and whatever ends a consumer."""
        if self._stopping:
            return
        parts, config = self._parts, self._parts.config
        starts = {s.topic: s.start for s in config.subscriptions}
        self._consumer = Consumer(
            KafkaEventLog(config.kafka, config.limits, starts),
            parts.sink,
            parts.dispatcher,
            config.subscriptions,
            config.limits,
            parts.clock,
            parts.tally,
            parts.unreadable,
        )
        await self._consumer.run()

    def stop(self) -> None:
        """Ask for an orderly end; returns at once."""
        self._stopping = True
        if self._consumer is not None:
            self._consumer.stop()


async def _report(parts: Assembly) -> None:
    """Write metrics at intervals, indefinitely."""
    while True:
        await asyncio.sleep(parts.config.limits.metrics_interval_ms / 1000)
        parts.report()


def listening(http: HttpConfig, port: int) -> socket.socket:
    """Take the address. uvicorn would end the process in the middle of its start when that cannot be had."""
    host = http.host
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, ValueError, TypeError, OverflowError) as e:
        # All but the first are about a host or port that can never be one.
        listener.close()
        variable = "TENUTO_HTTP_PORT" if port == http.port else "TENUTO_HTTP_HEALTH_PORT"
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise ConfigError(f"cannot listen on {host}:{port}: {why}; set [http] or {variable}") from e
    return listener


def _server(parts: Assembly) -> uvicorn.Server:
    limits = parts.config.limits
    places = Connections(connections_possible(limits.http_connections_max))
    settings = uvicorn.Config(
        parts.app,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=functools.partial(json_errors, open_connections=places),  # type: ignore[arg-type]  # as a class
        ws="none",
        server_header=False,
        # Beyond it the system drops what comes, and a health check among it waits for a second or more.
        backlog=limits.http_connections_max,
        timeout_keep_alive=limits.http_keep_alive_ms // 1000,
        timeout_graceful_shutdown=max(1, limits.drain_timeout_ms // 1000),
    )
    server = uvicorn.Server(settings)
    # Signals are this module's: uvicorn would take them for itself and stop before the lanes have drained.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # no setting does it
    return server


async def check_table(table: Table, name: str) -> None:
    """Fail early on a table that is not there; wait for one that does not answer. Raises ConfigError."""
    asked = watched(table, Uncounted())
    with asked.outages.asking():
        await _answered(lambda: asked.get(SWEEP_CURSOR), None, f"table {name!r} cannot be used")


async def check_data_keys(keys: DataKeys) -> None:
    """Fail early without the right to use the KMS key; wait for KMS to answer. Raises ConfigError."""
    await _answered(keys.current, "KMS", "[encryption] kms_key_id cannot be used")


async def _answered(ask: Callable[[], Awaitable[object]], who: str | None, refusal: str) -> None:
    """Ask until there is an answer. `who` is None when another process says that there is none."""
    pause_s = 0.2
    while True:
        try:
            await ask()
        except TableRefusedError as e:
            raise ConfigError(f"{refusal}: {e}") from e
        except TableUnavailableError as e:
            if who is not None:
                log.warning("%s does not answer, still trying: %s", who, shown(str(e)))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)
        else:
            return
