"""The Lambda entry point: `handler = aws.handler(my_object)`.

Owns the wiring of the runtime in a function: event loop, clock, table and deadline. Imports no AWS client; the first
durable write does (`tenuto.store.dynamodb`).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, assert_never

from msgspec import structs

from tenuto import checks, tracing
from tenuto.declarations import declaring
from tenuto.hosts import activation
from tenuto.protocol.limits import BESIDE_MAX, BESIDE_MS_MAX, POOLED_MAX
from tenuto.protocol.messages import Activation, Answer, Discover, Outcome, Outcomes, Pooled, Request
from tenuto.runtime.activation import activate
from tenuto.runtime.at_once import run_at_once
from tenuto.runtime.beside import run_beside
from tenuto.runtime.environment import Beside, Environment, InlineWriteLoop, WriteLoop, step_threads
from tenuto.runtime.placement import QuickSteps
from tenuto.runtime.pool import run_pooled
from tenuto.runtime.signals import note_interrupts
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.service import Service, Services, VirtualObject
from tenuto.store.aws_client import wants_botocore
from tenuto.store.data_keys import BlockingKms, StoredDataKeys, require_cryptography
from tenuto.store.dynamodb import BlockingDynamoTable, DynamoTable
from tenuto.store.encrypted import EncryptedTable
from tenuto.store.port import Table
from tenuto.store.senders import open_loop_client

if TYPE_CHECKING:
    from tenuto.wire.dynamodb import WireDynamo

T = TypeVar("T")

Drive: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end."""

PAYLOAD_KEY_VARIABLE: Final = "TENUTO_KMS_KEY_ID"
"""If set, the function encrypts what it writes, even if the control plane does not ask for it."""


class LambdaContext(Protocol):
    """The part of Lambda's context object that the handler uses."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda stops the invocation."""
        ...


def handler(*services: Service | VirtualObject, concurrent_keys: int = 1) -> Callable[[Any, LambdaContext], Any]:
    """Return a Lambda handler that serves the given services and virtual objects.

        handler = aws.handler(account, mailer)

    Name it as the handler of the Lambda function. Declare all handlers above it, and define all types that their hints
    name.

    An invocation works on one key at a time. With `concurrent_keys`, 2 to 8, it may work on so many at the same time
    while others of the function are running: handlers then take turns where they await, and steps of different
    keys run in threads beside each other. Ask for it if what your steps share, such as a connection, may be used so.

    Raises TypeError for anything other than a service or virtual object and for a hint that cannot be resolved, and
    ValueError if there is no service, one has no handlers, two have the same name, or for another number of keys.
    """
    at_once = checks.concurrent_keys(concurrent_keys)
    with declaring():
        served = Services(services)
        if not services:
            raise ValueError("aws.handler() serves nothing: give it the function's services, aws.handler(orders)")
        for service in served.declared:
            if not service.handlers:
                name = service.name
                raise ValueError(f"aws.handler: {name} has no handlers: declare them above, or import their module")
    return _Function(served, at_once)


class _Function:
    """One function process: keeps its loop and its table client between invocations. `services` are what it serves."""

    def __init__(self, services: Services, concurrent_keys: int) -> None:
        self.services = services
        self._concurrent_keys = concurrent_keys
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writes = BlockingWriteLoop()
        self._tables: dict[tuple[str, bool, bool], Table] = {}
        self._asked_client = False
        self._client: WireDynamo | None = None
        self._quick = QuickSteps()

    def __call__(self, event: Any, context: LambdaContext) -> Any:
        """Serve an activation or a discovery request of the control plane. Raises ProtocolError for other payloads."""
        note_interrupts()
        request = activation.read(event)
        refusal = activation.refusal(request)
        if refusal is not None:
            return activation.answer(refusal)
        return activation.answer(self._serve(request, context.get_remaining_time_in_millis()))

    def _serve(self, request: Request, remaining_ms: int) -> Answer:
        match request:
            case Discover():
                beside = self._concurrent_keys if self._may_open() else 0
                return structs.replace(self.services.manifest(remaining_ms), pools=POOLED_MAX, beside=beside)
            case Activation():
                deadline_ms, table = _now_ms() + remaining_ms, self._table(request)
                work = activate(request, self.services, self._environment(request, table, deadline_ms, self._writes))
                # A shared handler runs in the task of its activation, and may ask for it.
                if request.mode == "shared":
                    return self._driven(self._event_loop.run_until_complete, work, request.trace)
                return self._driven(partial(run_at_once, self._event_loop), work, request.trace)
            case Pooled():
                traced = next((one.trace for one in request.activations if one.trace is not None), None)
                drive, together = self._together(request, _now_ms() + remaining_ms)
                outcomes: Outcomes = self._driven(drive, together, traced)
                return outcomes
            case _:
                assert_never(request)

    def _together(self, request: Pooled, deadline_ms: int) -> tuple[Drive, Coroutine[Any, Any, Outcomes]]:
        """The work for several lanes, and what drives it."""
        client = self._opened() if request.beside and self._concurrent_keys > 1 else None
        if client is None:

            def alone(one: Activation) -> Awaitable[Outcome]:
                env = self._environment(one, self._table(one), deadline_ms, self._writes)
                return activate(one, self.services, replace(env, pooled=True))

            return partial(run_at_once, self._event_loop), run_pooled(request, alone, _now_ms)
        beside = Beside(_now_ms() + BESIDE_MS_MAX, self._quick)

        def together(one: Activation) -> Awaitable[Outcome]:
            env = self._environment(one, self._table(one, client), deadline_ms, InlineWriteLoop())
            return activate(one, self.services, replace(env, beside=beside))

        return self._event_loop.run_until_complete, run_beside(request, together)

    def _may_open(self) -> bool:
        """Whether there may be such a client, as far as is known without opening one."""
        try:
            return not wants_botocore() and not (self._asked_client and self._client is None)
        except ValueError:
            return False

    def _opened(self) -> WireDynamo | None:
        """A client for requests at the same time, if there can be one."""
        if not self._asked_client:
            try:
                self._client = open_loop_client(2 * BESIDE_MAX)
            except Exception:  # noqa: BLE001 - whoever writes alone meets it again, and tells
                return None
            self._asked_client = True
        return self._client

    @property
    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # By itself it would have four more than processors, for the steps of all lanes and for looking up names.
            self._loop.set_default_executor(step_threads())
        return self._loop

    def _driven(self, run: Callable[[Coroutine[Any, Any, T]], T], work: Coroutine[Any, Any, T], trace: str | None) -> T:
        try:
            return run(work)
        finally:
            tracing.flush(trace)

    def _environment(self, request: Activation, table: Table, deadline_ms: int, writes: WriteLoop) -> Environment:
        return Environment(
            table=table,
            now_ms=_now_ms,
            deadline_ms=deadline_ms,
            writes=writes,
            jitter=random.random,
            nonce=os.urandom(4).hex(),
            trace=request.trace,
        )

    def _table(self, request: Activation, client: WireDynamo | None = None) -> Table:
        """The table of a request, which sends nothing before its first use. Raises MissingCryptographyError."""
        encrypted = request.encrypted or PAYLOAD_KEY_VARIABLE in os.environ
        at = request.table, encrypted, client is not None
        if at not in self._tables:
            table: Table = BlockingDynamoTable(request.table) if client is None else DynamoTable(client, request.table)
            if encrypted:
                require_cryptography()
                table = EncryptedTable(table, StoredDataKeys(table, BlockingKms(), makes=False))
            self._tables[at] = table
        return self._tables[at]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
