"""The parts of one control plane process, wired: what every way to run one has in common.

Owns construction and its order. Does not own what drives the parts: the loops of an always-on process (`__main__`) or
Lambda's invocations (`lambda_entry`).
"""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from starlette.applications import Starlette

from tenuto.store.data_keys import Kms, MissingCryptographyError, StoredDataKeys, require_cryptography
from tenuto.store.dynamodb import DynamoTable
from tenuto.store.encrypted import EncryptedTable
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError
from tenuto_control.admin import journals
from tenuto_control.admin.deployments import Deployments, Survey
from tenuto_control.config import Config, ConfigError
from tenuto_control.core.metrics import Metrics, Tally
from tenuto_control.core.traces import Untraced
from tenuto_control.dispatcher import Dispatcher, Wiring
from tenuto_control.dispatcher.outages import WatchedTable, watched
from tenuto_control.dispatcher.room import Room
from tenuto_control.drivers.aws import AwsClients, open_clients
from tenuto_control.drivers.emf import EmfReports, reports
from tenuto_control.drivers.event_scheduler import EventBridgeScheduler, NoScheduler
from tenuto_control.drivers.kafka import KafkaSink
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.drivers.otel import OtelTracer, hand_to_xray, tracer_of
from tenuto_control.drivers.system import SystemClock
from tenuto_control.drivers.table_clock import DynamoClock
from tenuto_control.ingress import create_app
from tenuto_control.ingress.gate import is_loopback
from tenuto_control.ingress.readiness import probe
from tenuto_control.loops.lateness import Lateness
from tenuto_control.loops.restarts import Loops
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.loops.unreadable import UnreadablePartitions
from tenuto_control.ports import WakeScheduler

HOST_NAME_CHARS_MAX = 20

SURVEY_MS_MAX = 30_000
"""How long `tenuto check` waits for a function: a cold start, and not the longest that an invocation may take."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Assembly:
    """One process's parts. Nothing of it runs by itself. `data_keys` are None when payloads are not encrypted."""

    config: Config
    clients: AwsClients
    clock: SystemClock
    table: WatchedTable
    data_keys: StoredDataKeys | None
    deployments: Deployments
    sink: KafkaSink
    dispatcher: Dispatcher
    sweeper: Sweeper
    app: Starlette
    unreadable: UnreadablePartitions
    loops: Loops
    lateness: Lateness
    tally: Tally
    reports: EmfReports | None
    tracer: OtelTracer | None

    def report(self) -> None:
        """Write what was counted since the last report, where metrics are asked for."""
        if self.reports is not None:
            self.reports.write(self.tally)

    def flush(self) -> None:
        """Send the spans that have ended: before a process that may be frozen is. Blocks for a second at most."""
        if self.tracer is not None:
            self.tracer.flush()


@asynccontextmanager
async def assembled(config: Config) -> AsyncIterator[Assembly]:
    """The parts, with their clients open. Raises ConfigError when AWS settings are missing."""
    async with open_clients(config) as clients:
        clock, limits = SystemClock(), config.limits
        plain = DynamoTable(cast("Any", clients.dynamodb), config.table.name)
        data_keys = data_keys_of(config, clients, plain)
        table: Table = plain if data_keys is None else EncryptedTable(plain, data_keys)
        invoker = LambdaInvoker(clients.lambda_, config.functions)
        tally = Tally()
        deployments = Deployments(config, invoker, tally)
        sink = KafkaSink(config.kafka, limits)
        process = f"{os.uname().nodename[:HOST_NAME_CHARS_MAX]}.{os.getpid()}.{secrets.token_hex(4)}"
        table_clock = DynamoClock(clients.dynamodb, clock, limits.lease_margin_ms, tally)
        tracer = tracer_of(os.environ)
        if tracer is not None:
            hand_to_xray(clients.lambda_)
        wiring = Wiring(
            table=watched(table, tally),
            invoker=invoker,
            sink=sink,
            targets=deployments,
            scheduler=_scheduler(config, clients),
            clock=clock,
            rng=random.Random(),
            limits=limits,
            process=process,
            table_name=config.table.name,
            encrypted=data_keys is not None,
            functions=max(1, len(config.functions)),
            metrics=tally,
            tracer=tracer or Untraced(),
            table_clock=table_clock,
        )
        dispatcher = Dispatcher(wiring)
        sweeper = Sweeper(wiring, dispatcher)
        unreadable = UnreadablePartitions(clock, limits, tally)
        loops, lateness = Loops(clock, tally), Lateness()
        app = create_app(
            dispatcher,
            deployments,
            ready=probe(wiring.table),
            unreadable=lambda: unreadable.present,
            unanswered=lambda: deployments.unanswered,
            clock=lambda: table_clock.check,
            **_told(loops, lateness, clock),
            **_doors(config, tally),
        )
        try:
            yield Assembly(
                config,
                clients,
                clock,
                wiring.table,
                data_keys,
                deployments,
                sink,
                dispatcher,
                sweeper,
                app,
                unreadable,
                loops,
                lateness,
                tally,
                reports(),
                tracer,
            )
        finally:
            await sink.stop()
            if tracer is not None:
                await tracer.close()


def _scheduler(config: Config, clients: AwsClients) -> WakeScheduler:
    """What wakes a control plane from outside, if anything does."""
    return NoScheduler() if config.scheduler is None else EventBridgeScheduler(clients.scheduler, config.scheduler)


def _told(loops: Loops, lateness: Lateness, clock: SystemClock) -> dict[str, Any]:
    """What the ingress tells of the process itself, and its time."""
    return {"stopped": lambda: loops.stopped, "late_ms": lambda: lateness.worst_ms, "now_ms": clock.now_ms}


def _doors(config: Config, metrics: Metrics) -> dict[str, Any]:
    """Whom the ingress lets in, how much of them, and for how long."""
    http, limits = config.http, config.limits
    return {
        "metrics": metrics,
        "wait_ms_max": limits.http_wait_ms_max,
        "cors_origins": http.cors_origins,
        "hosts": http.hosts if http.hosts or is_loopback(http.host) else None,
        "room": Room(limits.calls_max, limits.calls_bytes_max, max(1, len(config.functions))),
    }


def data_keys_of(config: Config, clients: AwsClients, table: Table) -> StoredDataKeys | None:
    """The data keys that a table's payloads are encrypted under; None when they are not. Raises ConfigError."""
    if config.encryption is None or clients.kms is None:
        return None
    try:
        require_cryptography()
    except MissingCryptographyError as e:
        raise ConfigError(str(e)) from e
    return StoredDataKeys(table, Kms(cast("Any", clients.kms), config.encryption.kms_key_id), makes=True)


async def rotate_data_key(config: Config) -> int:
    """Make a new data key current, and return its number. Raises ConfigError when that cannot be done."""
    quiet_libraries()
    async with open_clients(config) as clients:
        keys = data_keys_of(config, clients, DynamoTable(cast("Any", clients.dynamodb), config.table.name))
        if keys is None:
            raise ConfigError("payloads are not encrypted; set [encryption] kms_key_id or TENUTO_KMS_KEY_ID")
        try:
            return await keys.rotate()
        except (TableRefusedError, TableUnavailableError) as e:
            raise ConfigError(f"no new data key: {e}") from e


async def journal(config: Config, named: str) -> bytes:
    """The journal of an invocation, by its id or by SERVICE/KEY, as a file. Raises ConfigError."""
    quiet_libraries()
    async with open_clients(config) as clients:
        table: Table = DynamoTable(cast("Any", clients.dynamodb), config.table.name)
        keys = data_keys_of(config, clients, table)
        try:
            found = await journals.read(
                table if keys is None else EncryptedTable(table, keys), named, SystemClock().now_ms()
            )
        except (journals.NoJournalError, TableRefusedError, TableUnavailableError) as e:
            raise ConfigError(f"no journal: {e}") from e
        return journals.write(found)


async def with_table(config: Config, work: Callable[[Table], Awaitable[T]]) -> T:
    """Do something with the table, its payloads in the clear. Raises ConfigError when AWS settings are missing."""
    quiet_libraries()
    async with open_clients(config) as clients:
        table: Table = DynamoTable(cast("Any", clients.dynamodb), config.table.name)
        keys = data_keys_of(config, clients, table)
        return await work(table if keys is None else EncryptedTable(table, keys))


async def survey(config: Config) -> Survey:
    """What the configured functions serve, and what is wrong. Raises ConfigError when AWS settings are missing."""
    quiet_libraries()
    limits = replace(config.limits, invoke_read_timeout_ms=min(SURVEY_MS_MAX, config.limits.invoke_read_timeout_ms))
    config = replace(config, limits=limits)
    async with open_clients(config) as clients:
        return await Deployments(config, LambdaInvoker(clients.lambda_, config.functions)).survey()


def quiet_libraries() -> None:
    """A line per HTTP request or credential lookup is the libraries' business; paths of requests hold keys and ids."""
    for noisy in ("aiobotocore", "botocore", "mangum", "uvicorn", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
