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
from functools import partial
from typing import Any, Final, Protocol, TypeVar, assert_never

from msgspec import structs

from tenuto import tracing
from tenuto.declarations import declaring
from tenuto.hosts import activation
from tenuto.protocol.limits import POOLED_MAX
from tenuto.protocol.messages import Activation, Answer, Discover, Outcome, Pooled, Request
from tenuto.runtime.activation import activate
from tenuto.runtime.at_once import run_at_once
from tenuto.runtime.environment import Environment
from tenuto.runtime.pool import run_pooled
from tenuto.runtime.signals import note_interrupts
from tenuto.runtime.write_loop import BlockingWriteLoop
from tenuto.service import Service, Services, VirtualObject
from tenuto.store.data_keys import BlockingKms, StoredDataKeys, require_cryptography
from tenuto.store.dynamodb import BlockingDynamoTable
from tenuto.store.encrypted import EncryptedTable
from tenuto.store.port import Table

T = TypeVar("T")

PAYLOAD_KEY_VARIABLE: Final = "TENUTO_KMS_KEY_ID"
"""If set, the function encrypts what it writes, even if the control plane does not ask for it."""


class LambdaContext(Protocol):
    """The part of Lambda's context object that the handler uses."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda stops the invocation."""
        ...


def handler(*services: Service | VirtualObject) -> Callable[[Any, LambdaContext], Any]:
    """Return a Lambda handler that serves the given services and virtual objects.

        handler = aws.handler(account, mailer)

    Name it as the handler of the Lambda function. Declare all handlers above it, and define all types that their hints
    name. Raises TypeError for anything other than a service or virtual object and for a hint that cannot be resolved,
    and ValueError if there is no service, one has no handlers, or two have the same name.
    """
    with declaring():
        served = Services(services)
        if not services:
            raise ValueError("aws.handler() serves nothing: give it the function's services, aws.handler(orders)")
        for service in served.declared:
            if not service.handlers:
                name = service.name
                raise ValueError(f"aws.handler: {name} has no handlers: declare them above, or import their module")
    return _Function(served)


class _Function:
    """One function process: keeps its loop and its table client between invocations. `services` are what it serves."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writes = BlockingWriteLoop()
        self._tables: dict[tuple[str, bool], Table] = {}

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
                return structs.replace(self.services.manifest(remaining_ms), pools=POOLED_MAX)
            case Activation():
                work = activate(request, self.services, self._environment(request, _now_ms() + remaining_ms))
                # A shared handler runs in the task of its activation, and may ask for it.
                if request.mode == "shared":
                    return self._driven(self._event_loop.run_until_complete, work, request.trace)
                return self._driven(partial(run_at_once, self._event_loop), work, request.trace)
            case Pooled():
                deadline_ms = _now_ms() + remaining_ms

                def run(one: Activation) -> Awaitable[Outcome]:
                    return activate(one, self.services, self._environment(one, deadline_ms, pooled=True))

                traced = next((one.trace for one in request.activations if one.trace is not None), None)
                return self._driven(partial(run_at_once, self._event_loop), run_pooled(request, run, _now_ms), traced)
            case _:
                assert_never(request)

    @property
    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def _driven(self, run: Callable[[Coroutine[Any, Any, T]], T], work: Coroutine[Any, Any, T], trace: str | None) -> T:
        try:
            return run(work)
        finally:
            tracing.flush(trace)

    def _environment(self, request: Activation, deadline_ms: int, *, pooled: bool = False) -> Environment:
        return Environment(
            table=self._table(request.table, encrypted=request.encrypted or PAYLOAD_KEY_VARIABLE in os.environ),
            now_ms=_now_ms,
            deadline_ms=deadline_ms,
            writes=self._writes,
            jitter=random.random,
            nonce=os.urandom(4).hex(),
            trace=request.trace,
            pooled=pooled,
        )

    def _table(self, name: str, *, encrypted: bool) -> Table:
        """The table, which sends nothing before its first use. Raises MissingCryptographyError."""
        at = (name, encrypted)
        if at not in self._tables:
            table: Table = BlockingDynamoTable(name)
            if encrypted:
                require_cryptography()
                table = EncryptedTable(table, StoredDataKeys(table, BlockingKms(), makes=False))
            self._tables[at] = table
        return self._tables[at]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
