"""The always-on control plane: `tenuto run --config tenuto.toml`.

Owns the command line and the wiring of drivers, dispatcher, loops and ingress in one process. Does not own anything
they do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, cast

import uvicorn

from tenuto.store.dynamodb import DynamoTable
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control.admin.deployments import Deployments
from tenuto_control.config import DEFAULT_FILE, Config, ConfigError, load
from tenuto_control.dispatcher import Dispatcher
from tenuto_control.drivers.aws import AwsClients, open_clients
from tenuto_control.drivers.event_scheduler import EventBridgeScheduler, NoScheduler
from tenuto_control.drivers.kafka import KafkaEventLog, KafkaSink
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.drivers.system import SystemClock
from tenuto_control.ingress import create_app
from tenuto_control.ingress.readiness import probe
from tenuto_control.loops.consume import Consumer
from tenuto_control.loops.sweep import CURSOR, Sweeper

log = logging.getLogger("tenuto")

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status; a user's mistake is one line on standard error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    # A line per HTTP request or credential lookup is the libraries' business.
    for noisy in ("aiobotocore", "botocore", "uvicorn", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config = load(options.config)
        if options.command == "check":
            print(f"{options.config}: {len(config.functions)} functions, {len(config.subscriptions)} subscriptions")
            return 0
        return _run(config)
    except ConfigError as e:
        print(f"tenuto: {e}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tenuto", description="Durable handlers for Kafka events and calls.")
    parser.add_argument("--log-level", default=os.environ.get("TENUTO_LOG_LEVEL", "info"), help="default: info")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "run a control plane: consume, dispatch, sweep and serve HTTP"),
        ("check", "read the configuration and say what is wrong with it"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", default=DEFAULT_FILE, help=f"default: {DEFAULT_FILE}")
    return parser


def _run(config: Config) -> int:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(config))
    else:
        uvloop.run(serve(config))
    return 0


async def serve(config: Config) -> None:
    """Run a control plane until SIGTERM or SIGINT, then drain. Raises ConfigError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_clients(config) as clients:
        table = DynamoTable(cast("Any", clients.dynamodb), config.table.name)
        await _check_table(table)
        invoker = LambdaInvoker(clients.lambda_, config.functions)
        deployments = Deployments(config, invoker)
        await deployments.discover()
        await _work(config, clients, table, invoker, deployments, stop)


async def _work(  # one wiring, from parts that are independent
    config: Config,
    clients: AwsClients,
    table: DynamoTable,
    invoker: LambdaInvoker,
    deployments: Deployments,
    stop: asyncio.Event,
) -> None:
    clock, limits = SystemClock(), config.limits
    rng = random.Random()
    sink = KafkaSink(config.kafka, limits)
    scheduler = NoScheduler() if config.scheduler is None else EventBridgeScheduler(clients.scheduler, config.scheduler)
    process = f"{os.uname().nodename[:20]}.{os.getpid()}.{secrets.token_hex(4)}"
    dispatcher = Dispatcher(
        table, invoker, sink, deployments, scheduler, clock, rng, limits, process, config.table.name
    )
    sweeper = Sweeper(table, dispatcher, clock, rng, limits)
    listener = _listen(config)
    server = _server(config, dispatcher, deployments, table)
    tasks = [
        asyncio.create_task(sweeper.run(), name="sweep"),
        asyncio.create_task(deployments.refresh(), name="discovery"),
        asyncio.create_task(server.serve([listener]), name="http"),
    ]
    consumer = None
    if config.subscriptions:
        starts = {s.topic: s.start for s in config.subscriptions}
        events = KafkaEventLog(config.kafka, limits, starts)
        consumer = Consumer(events, sink, dispatcher, config.subscriptions, limits, clock)
        tasks.append(asyncio.create_task(consumer.run(), name="consume"))
    for service in deployments.listed():
        log.info("serving %s: %s", service.name, ", ".join(h.name for h in service.handlers))
    log.info("listening on http://%s:%s", config.http.host, config.http.port)
    waiting = asyncio.create_task(stop.wait(), name="stop")
    ended, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping: what runs may end, then the rest is left to Kafka and the table")
    server.should_exit = True
    if consumer is not None:
        consumer.stop()
        await asyncio.wait([tasks[-1]], timeout=limits.drain_timeout_ms / 1000)
    for task in (waiting, *tasks):
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await dispatcher.stop()
    await sink.stop()
    failed = [r for r in results if isinstance(r, Exception)]
    if failed and waiting not in ended:
        raise failed[0]


def _listen(config: Config) -> socket.socket:
    """Take the address. uvicorn would end the process in the middle of its start when that cannot be had."""
    host, port = config.http.host, config.http.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {e.strerror}; set [http] or TENUTO_HTTP_PORT") from e
    return listener


def _server(config: Config, dispatcher: Dispatcher, deployments: Deployments, table: DynamoTable) -> uvicorn.Server:
    app = create_app(dispatcher, deployments, ready=probe(table), wait_ms_max=config.limits.http_wait_ms_max)
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, config.limits.drain_timeout_ms // 1000),
    )
    server = uvicorn.Server(settings)
    # Signals are this module's: uvicorn would take them for itself and stop before the lanes have drained.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # no setting does it
    return server


async def _check_table(table: DynamoTable) -> None:
    """Fail early on a table that is not there; wait for one that does not answer."""
    pause_s = 0.2
    while True:
        try:
            await table.get(CURSOR)
        except TableRefusedError as e:
            raise ConfigError(f"table {table.name!r} cannot be used: {e}") from e
        except TableUnavailableError as e:
            log.warning("table %s does not answer, trying on: %s", table.name, e)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
