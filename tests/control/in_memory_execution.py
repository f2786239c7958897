"""An `Execution` that runs plain Python callables in this process, and the catalogue that goes with it.

Owns lanes, results, awakeables and delays in memory, so that the ingress meets real handlers. Does not own
durability.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from tenuto.errors import TerminalError
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane
from tenuto.protocol.messages import HandlerManifest, ServiceManifest
from tenuto.protocol.records import CallSource, Event, Failed, Failure, PublishOut, Result, Success
from tenuto_control.ports import Answer, Pending, Resolution, Target, TopicPartition, Unknown

Kind = Literal["exclusive", "shared", "stateless"]


@dataclass
class Context:
    """What a handler of these tests sees: its event, its lane's state, awakeables."""

    event: Event
    lane: Lane
    state: dict[str, Any]
    awakeables: dict[str, asyncio.Future[Result]]
    awaiting: asyncio.Event

    async def awakeable(self, slot: str) -> Any:
        """Wait until somebody resolves this slot."""
        name = str(AwakeableId(InvocationId.parse(self.event.id), slot, "0" * 32))
        self.awakeables[name] = asyncio.get_running_loop().create_future()
        self.awaiting.set()
        result = await self.awakeables[name]
        del self.awakeables[name]
        if isinstance(result, Failed):
            raise TerminalError(result.failure.message, result.failure.status_code)
        return None if result.value is None else msgspec.json.decode(result.value)


Handler = Callable[[Context, Any], Awaitable[Any]]


class Services:
    """Registered handlers, and the catalogue the ingress looks them up in."""

    def __init__(self) -> None:
        self.handlers: dict[str, dict[str, tuple[Kind, Handler]]] = defaultdict(dict)
        self.keyed: set[str] = set()

    def register(self, service: str, kind: Kind, handler: Handler, *, name: str | None = None) -> None:
        """Serve `service/name` with a callable; every kind but stateless makes the service keyed."""
        self.handlers[service][name or handler.__name__] = (kind, handler)
        if kind != "stateless":
            self.keyed.add(service)

    def find(self, service: str) -> Target | None:
        manifests = {manifest.name: manifest for manifest in self.listed()}
        return Target("function", manifests[service]) if service in manifests else None

    def listed(self) -> Sequence[ServiceManifest]:
        return [
            ServiceManifest(
                service,
                service in self.keyed,
                tuple(HandlerManifest(name, kind) for name, (kind, _) in handlers.items()),
            )
            for service, handlers in sorted(self.handlers.items())
        ]


@dataclass
class InMemoryExecution:
    """Runs each lane's invocations in order. `fault` is raised by every method while it is set."""

    services: Services
    fault: Exception | None = None
    state: dict[Lane, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    turns: dict[Lane, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    runs: dict[str, asyncio.Task[Result]] = field(default_factory=dict)
    awakeables: dict[str, asyncio.Future[Result]] = field(default_factory=dict)
    awaiting: asyncio.Event = field(default_factory=asyncio.Event)
    events: list[Event] = field(default_factory=list)
    delays_ms: list[int] = field(default_factory=list)
    kept: dict[tuple[str, ...], tuple[PublishOut, str]] = field(default_factory=dict)

    async def set_aside(self, record: PublishOut, identity: Sequence[str], reason: str) -> None:
        self.kept[tuple(identity)] = (record, reason)

    async def call(self, event: Event, wait_ms: int) -> Answer:
        return await self._wait(self._start(event, 0), wait_ms)

    async def call_shared(self, event: Event) -> Result:
        self._check()
        return await self._run(event)

    async def send(self, event: Event, delay_ms: int) -> None:
        self.delays_ms.append(delay_ms)
        self._start(event, delay_ms)

    async def result(self, invocation: str, wait_ms: int) -> Answer:
        self._check()
        run = self.runs.get(invocation)
        return Unknown() if run is None else await self._wait(run, wait_ms)

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        self._check()
        waiting = self.awakeables.get(awakeable)
        if waiting is None:
            return Resolution.UNKNOWN
        if waiting.done():
            return Resolution.REPEATED if waiting.result() == result else Resolution.CONFLICT
        waiting.set_result(result)
        return Resolution.ACCEPTED

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        self._start(event, 0).add_done_callback(lambda _: released())

    def relieve(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Execution.relieve`: nothing waits here."""

    async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End what still runs."""
        for run in self.runs.values():
            run.cancel()
        await asyncio.gather(*self.runs.values(), return_exceptions=True)

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def _start(self, event: Event, delay_ms: int) -> asyncio.Task[Result]:
        self._check()
        if event.id not in self.runs:
            self.events.append(event)
            task = asyncio.create_task(self._take_turn(event, delay_ms))
            self.runs[event.id] = task
            if event.source == CallSource(keep_result=False):
                task.add_done_callback(lambda _: self.runs.pop(event.id))
        return self.runs[event.id]

    async def _take_turn(self, event: Event, delay_ms: int) -> Result:
        await asyncio.sleep(delay_ms / 1_000)
        async with self.turns[InvocationId.parse(event.id).lane]:
            return await self._run(event)

    async def _run(self, event: Event) -> Result:
        lane = InvocationId.parse(event.id).lane
        _, handler = self.services.handlers[lane.service][event.handler]
        value = None if event.input is None else msgspec.json.decode(event.input)
        try:
            output = await handler(Context(event, lane, self.state[lane], self.awakeables, self.awaiting), value)
        except TerminalError as e:
            return Failed(Failure(e.message, e.status_code, e.metadata))
        assert not inspect.isawaitable(output)
        if output is None or isinstance(output, bytes):
            return Success(output)
        return Success(msgspec.json.encode(output))

    async def _wait(self, run: asyncio.Task[Result], wait_ms: int) -> Answer:
        done, _ = await asyncio.wait({run}, timeout=wait_ms / 1_000)
        return run.result() if done else Pending()
