"""The production dispatcher and runtime over an in-memory table, on virtual time, with every request counted.

Owns the wiring and the counting. Does not own what a row may cost (`test_costs`). Nothing fails here but handlers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenuto.handler import Handler
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.writes import Answer, Applied, Delete, Key, Put, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Activation, Head, ServiceManifest, decode_request, encode
from tenuto.protocol.records import CallSource, Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Service, Services, VirtualObject
from tenuto.store.memory import MemoryTable
from tenuto.store.sizes import item_bytes
from tenuto.testing.processes import name_of
from tenuto_control.core.clocks import TableClock, UncheckedClock
from tenuto_control.core.metrics import Metrics, Uncounted
from tenuto_control.core.traces import Tracer, Untraced
from tenuto_control.dispatcher import Dispatcher, Wiring
from tenuto_control.dispatcher.outages import watched
from tenuto_control.limits import Limits
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.ports import AnswerHolder, Target
from tests.support.virtual_time import VirtualClock

FUNCTION_TIMEOUT_MS = 10_000
WRITE_KINDS = ("update", "put", "delete", "batch_delete")
WRITE_UNIT_BYTES = 1_024
"""DynamoDB bills a write by the larger of the item's size before and after, in units of 1 KB."""

QUIET_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.05


class CountingTable(MemoryTable):
    """Also keeps every write, by name, and the write units of each item it billed."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.units = 0

    async def write(self, write: Write) -> Answer:
        """See `Table.write`. Yields, as any real request does, so that what waits can happen meanwhile."""
        before = self.items.get((write.key.pk, write.key.sk))
        await asyncio.sleep(0)
        answer = await super().write(write)
        self.log.append(f"{name_of(write)}{'' if isinstance(answer, Applied) else ' (refused)'}")
        sizes = [item_bytes(item) for item in (before, answer.item) if item is not None]
        self.units += -(-max(sizes, default=1) // WRITE_UNIT_BYTES)
        return answer

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        if puts:
            self.log.append(f"put_all {len(puts)} x {name_of(puts[0])}")
            self.units += len(puts)
        await super().put_all(puts)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        if deletes:
            self.log.append(f"delete_all {len(deletes)} x {name_of(deletes[0])}")
        await super().delete_all(deletes)


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests since the last count. `log` lists the writes, for the message of a test that finds too many."""

    writes: int
    invocations: int
    log: tuple[str, ...]

    def head(self) -> int:
        """Writes of a head item."""
        return sum(line.startswith("head ") for line in self.log)

    def timers(self) -> int:
        """Puts of timers and guards."""
        return sum(line.startswith("put timer") for line in self.log)


@dataclass(slots=True)
class Meter:
    """One control plane and its function; `deliver` and `call` are the two ways in."""

    services: Services
    limits: Limits = field(default_factory=Limits)
    table: CountingTable = field(default_factory=CountingTable)
    clock: VirtualClock = field(default_factory=VirtualClock)
    invocations: int = 0
    dead_letter: str | None = None
    metrics: Metrics | None = None
    tracer: Tracer | None = None
    process: str = "meter"
    table_clock: TableClock = field(default_factory=UncheckedClock)
    released: list[int] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    wiring: Wiring = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    sweeper: Sweeper = field(init=False)
    _offsets: dict[Lane, int] = field(default_factory=dict)
    _offset: int = -1

    def __post_init__(self) -> None:
        """Wire the parts: the meter itself plays targets, invoker, sink and scheduler."""
        metrics = self.metrics or Uncounted()
        self.wiring = Wiring(
            table=watched(self.table, metrics),
            invoker=self,
            sink=self,
            targets=self,
            scheduler=self,
            clock=self.clock,
            rng=random.Random(1),
            limits=self.limits,
            process=self.process,
            table_name="tenuto",
            metrics=metrics,
            tracer=self.tracer or Untraced(),
            table_clock=self.table_clock,
        )
        self.dispatcher = Dispatcher(self.wiring)
        self.sweeper = Sweeper(self.wiring, self.dispatcher)

    # --- ways in ----------------------------------------------------------------------------------------------------

    def deliver(self, handler: Handler[Any, Any], key: str, value: bytes = b"1", partition: int = 0) -> None:
        """A record arrives from Kafka. Offsets count over all partitions."""
        self._offset = offset = self._offset + 1
        nonce = kafka_nonce("0", "t", partition, offset)
        lane = Lane(handler.service, key or nonce)
        source = KafkaSource("0", "t", partition, offset, 0, dead_letter=self.dead_letter)
        event = Event.of(InvocationId(lane, nonce), handler.name, source, value)
        self.dispatcher.deliver(event, lambda: self.released.append(offset))

    def event_of_call(self, handler: Handler[Any, Any], key: str, nonce: str, *, keep: bool = False) -> Event:
        """What the ingress makes of a call."""
        lane = Lane(handler.service, key)
        return Event(str(InvocationId(lane, nonce)), handler.name, CallSource(keep), b"1")

    def head(self, service: str, key: str) -> Head:
        """A lane's head, read without being counted."""
        at: Key = head_key(Lane(service, key))
        return parse_head(self.table.items.get((at.pk, at.sk)))

    async def quiet(self) -> None:
        """Until every lane is idle: suspended ones are, ones with work are not."""
        for _ in range(int(QUIET_SECONDS_MAX / LOOK_SECONDS)):
            await asyncio.sleep(LOOK_SECONDS)
            if not self.dispatcher._lanes._workers:
                return
        raise AssertionError(f"not quiet after {QUIET_SECONDS_MAX} s: {list(self.dispatcher._lanes._workers)}")

    def count(self) -> Cost:
        """What was requested since the last count."""
        writes = sum(self.table.requests.get(kind, 0) for kind in WRITE_KINDS)
        cost = Cost(writes, self.invocations, tuple(self.table.log))
        self.table.requests.clear()
        self.table.log.clear()
        self.table.units = 0
        self.invocations = 0
        return cost

    # --- ports ------------------------------------------------------------------------------------------------------

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        manifest = self.services.manifest(FUNCTION_TIMEOUT_MS)
        found = next((s for s in manifest.services if s.name == service), None)
        return None if found is None else Target("f", found, FUNCTION_TIMEOUT_MS, 8)

    def listed(self) -> Sequence[ServiceManifest]:
        """See `Targets.listed`."""
        return self.services.manifest(FUNCTION_TIMEOUT_MS).services

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        self.invocations += 1
        request = decode_request(payload)
        assert isinstance(request, Activation)
        deadline = self.clock.now_ms() + FUNCTION_TIMEOUT_MS
        environment = Environment(
            self.table, self.clock.now_ms, deadline, InlineWriteLoop(), at_once, trace=request.trace
        )
        return encode(await activate(request, self.services, environment))

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """See `RecordSink.produce`."""
        self.published.append(topic)

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """See `WakeScheduler.schedule`: nobody outside."""

    async def cancel(self, name: str) -> None:
        """See `WakeScheduler.cancel`."""


async def at_once(call: Callable[[], Any]) -> Any:
    """A blocking step that takes no time: virtual time knows no threads."""
    return call()


def meter_of(*services: Service | VirtualObject) -> Meter:
    """A meter for these services."""
    return Meter(Services(services))
