"""The dispatcher as a Lambda function: `tenuto_control.lambda_entry.handler`.

Owns the function's process: its event loop and clients, opened at the first invocation and kept while it is warm, and
which part answers which event. Kafka event source mappings, API Gateway, EventBridge Scheduler and the sweeper's rule
all call this one handler. The configuration is the file that TENUTO_CONFIG names (default: `tenuto.toml` beside the
code), with the environment laid over it. Does not own what an event leads to (`loops.serverless`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar, assert_never

from botocore.exceptions import BotoCoreError

from tenuto.errors import ProtocolError
from tenuto.hosts import api_gateway, event_scheduler, kafka_event_source
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto.wire.errors import ServiceError, WireError
from tenuto_control.assembly import Assembly, assembled, quiet_libraries
from tenuto_control.config import DEFAULT_FILE, ConfigError, load
from tenuto_control.core.log_fields import shown
from tenuto_control.drivers import log_lines
from tenuto_control.drivers.topic_lives import KafkaTopicLives
from tenuto_control.limits import SERVERLESS
from tenuto_control.loops.serverless import Serverless

log = logging.getLogger("tenuto")

T = TypeVar("T")

CONFIG_VARIABLE = "TENUTO_CONFIG"
PARTIAL_VARIABLE = "TENUTO_PARTIAL_BATCHES"
"""`true` where the event source mapping takes partial batch responses: elsewhere Lambda would take one for success, and
commit the records it names."""

DISCOVERY_AGE_MS_MAX = 300_000
"""How old what is known of the functions may be: a warm process outlives deployments."""

UNANSWERED_AGE_MS_MIN = 5_000
"""The same while a function has not answered; doubled each time that it does not."""

DOUBLINGS_MAX = 10

DISCOVERY_S_MAX = 5.0
"""How long an invocation waits for functions to say what they serve; then only work for those that did not waits."""

LEAVE_MARGIN_MS = 2_000
"""How long before the deadline an invocation begins to leave: halting and handing over take requests of their own."""


class LambdaContext(Protocol):
    """The part of Lambda's context object that is used."""

    invoked_function_arn: str
    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda stops this invocation."""
        ...


@dataclass(slots=True)
class _Parts:
    """What is opened once and kept."""

    assembly: Assembly
    serverless: Serverless
    serve_http: Callable[[Any, Any], dict[str, Any]]
    discovered_ms: int
    asked_in_vain: int = 0


class DispatcherFunction:
    """One function process. Instances are Lambda handlers."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._parts: _Parts | None = None
        self._arn = ""
        self._logs = False

    def __call__(self, event: Any, context: LambdaContext) -> Any:
        """Serve one event. Raises ProtocolError for one of another shape, ConfigError when it cannot start."""
        self._arn = context.invoked_function_arn
        self._begin_log(context.aws_request_id)
        asyncio.set_event_loop(self._loop)
        try:
            parts = self._parts or self._run(self._start())
        except Exception:
            if not api_gateway.is_request(event):
                raise
            # Raised, it would be answered in the gateway's own words, with nothing said of trying again.
            log.exception("the dispatcher cannot start")
            return api_gateway.failed(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the dispatcher cannot start, and its log has the reason; nothing was accepted",
            )
        self._run(self._discover_again(parts))
        try:
            return self._serve(parts, event, context)
        finally:
            parts.assembly.report()
            parts.assembly.flush()

    def _serve(self, parts: _Parts, event: Any, context: LambdaContext) -> Any:
        deadline_ms = parts.assembly.clock.now_ms() + context.get_remaining_time_in_millis() - LEAVE_MARGIN_MS
        if kafka_event_source.is_batch(event):
            records = kafka_event_source.read(event)
            return _answered(records, self._run(parts.serverless.records(records, deadline_ms)))
        if event_scheduler.is_payload(event):
            match event_scheduler.read(event):
                case event_scheduler.WakeUp() as wake:
                    return self._run(parts.serverless.woken(wake, deadline_ms))
                case event_scheduler.SweepTick() as tick:
                    return self._run(parts.serverless.tick(tick, deadline_ms))
                case event_scheduler.Continue() as handed:
                    return self._run(parts.serverless.carried_on(handed, deadline_ms))
                case payload:
                    assert_never(payload)
        if api_gateway.is_request(event):
            answer = parts.serve_http(event, context)
            self._run(parts.serverless.answered())
            return answer
        shape = sorted(event) if isinstance(event, dict) else type(event).__name__
        raise ProtocolError(
            f"the dispatcher takes batches of a Kafka event source mapping, API Gateway requests, and wake-ups, not "
            f"{shape}; activations go to the functions that hold handlers"
        )

    def _begin_log(self, request_id: str) -> None:
        """Have all lines name this invocation; at the first one, set up how they look. Raises ConfigError."""
        if not self._logs:
            environment = os.environ
            form, level = environment.get(log_lines.FORMAT_VARIABLE), environment.get(log_lines.LEVEL_VARIABLE)
            log_lines.set_up(form or "json", level or "info", in_function=True)
            quiet_libraries()
            self._logs = True
        log_lines.begin_request(request_id)

    def close(self) -> None:
        """End the process's clients. Lambda never asks for it; tests do."""
        parts, self._parts = self._parts, None
        if parts is not None:
            self._run(parts.assembly.dispatcher.stop())
            self._run(self._stack.aclose())
        self._loop.close()

    async def _start(self) -> _Parts:
        config = load(os.environ.get(CONFIG_VARIABLE, DEFAULT_FILE), limits=SERVERLESS)
        self._stack = AsyncExitStack()
        try:
            assembly = await self._stack.enter_async_context(assembled(config))
            await assembly.deployments.discover(DISCOVERY_S_MAX)
        except BaseException:
            # The next invocation starts over: what was missing may be there by then.
            await self._stack.aclose()
            raise
        lives = KafkaTopicLives(config.kafka, config.limits)
        self._stack.push_async_callback(lives.stop)
        serverless = Serverless(
            assembly.dispatcher,
            assembly.sweeper,
            assembly.table,
            assembly.sink,
            lives,
            config.subscriptions,
            assembly.clock,
            config.limits,
            self._hand_on,
        )
        serve_http = api_gateway.bridge(assembly.app, self._loop)
        self._parts = _Parts(assembly, serverless, serve_http, assembly.clock.now_ms())
        return self._parts

    async def _discover_again(self, parts: _Parts) -> None:
        """Ask the functions again when that was long ago, and sooner when one has not answered.

        What is known stays when one does not answer.
        """
        now_ms = parts.assembly.clock.now_ms()
        age_ms_max = DISCOVERY_AGE_MS_MAX
        if parts.assembly.deployments.unanswered:
            # At growing intervals: each time, an invocation waits for a function that may be broken for good.
            age_ms_max = min(UNANSWERED_AGE_MS_MIN * 2 ** min(parts.asked_in_vain, DOUBLINGS_MAX), DISCOVERY_AGE_MS_MAX)
        if now_ms - parts.discovered_ms < age_ms_max:
            return
        parts.discovered_ms = now_ms
        try:
            await parts.assembly.deployments.discover(DISCOVERY_S_MAX)
        except ConfigError as e:
            log.warning("discovery failed; its last result stays in use: %s", shown(str(e)))
        parts.asked_in_vain = parts.asked_in_vain + 1 if parts.assembly.deployments.unanswered else 0

    async def _hand_on(self, payload: event_scheduler.Continue | event_scheduler.SweepTick) -> None:
        """Invoke this function, without waiting for it."""
        assert self._parts is not None, "what is handed on comes of events"
        try:
            await self._parts.assembly.clients.lambda_.post(self._arn, event_scheduler.encode(payload))
        except (ServiceError, WireError, BotoCoreError) as e:
            lanes = payload.lanes if isinstance(payload, event_scheduler.Continue) else ()
            log.warning("%d lanes are left to the sweep, not handed on: %s", len(lanes), shown(str(e)))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


class BatchUnfinishedError(Exception):
    """Fails an invocation, so that all of its batch is delivered again; what is finished is recognised then."""


def _answered(records: Sequence[SourceRecord], left: Sequence[SourceRecord]) -> dict[str, Any]:
    if left and os.environ.get(PARTIAL_VARIABLE) != "true":
        raise BatchUnfinishedError(
            f"{len(left)} of {len(records)} records are not finished: the batch must be delivered again"
        )
    return kafka_event_source.answer(left)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


handler = DispatcherFunction()
