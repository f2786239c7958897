"""A control plane and its function over a broker in memory whose topics have bounds, on virtual time.

Owns the wiring, and looking at what became of events: dead letters in the table and in topics. Does not own what
happens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenuto.handler import Handler
from tenuto.lane.dead_letters import Letter, parse_letter
from tenuto.lane.writes import Answer, Delete, Item, Key, Put, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.records import CallSource, Event, KafkaSource
from tenuto.store.port import Page, TableUnavailableError
from tenuto_control.admin.dead_letters import DeadLetterOffice
from tenuto_control.core.metrics import Tally
from tenuto_control.ports import AnswerHolder
from tests.costs.meter import CountingTable, Meter
from tests.support.memory_kafka import MemoryKafka

DEAD = "t.dead-letter"


class TroubledTable(CountingTable):
    """A table that can be away, slow to say so, or refuse what a test names."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.silent_s = 0.0
        self.refuse: Callable[[Write], Exception | None] = lambda _write: None

    async def _answer(self) -> None:
        if self.away:
            await asyncio.sleep(self.silent_s)
            raise TableUnavailableError("update_item on table t: no answer")

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await self._answer()
        error = self.refuse(write)
        if error is not None:
            raise error
        return await super().write(write)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        await self._answer()
        return await super().get(key)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        await self._answer()
        return await super().get_all(keys)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        await self._answer()
        return await super().query(pk, low, high, limit=limit, after=after)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        await self._answer()
        await super().put_all(puts)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        await self._answer()
        await super().delete_all(deletes)


@dataclass(slots=True)
class HostileWorld(Meter):
    """A meter whose records go to topics of `kafka`; its function may be made to answer `answers`, or `instead`."""

    table: TroubledTable = field(default_factory=TroubledTable)
    kafka: MemoryKafka = field(default_factory=MemoryKafka)
    tally: Tally = field(default_factory=Tally)
    dead_letter: str | None = DEAD
    answers: deque[bytes | Exception] = field(default_factory=deque)
    instead: Callable[[bytes], bytes | Exception | None] = lambda _payload: None
    payloads: list[int] = field(default_factory=list)
    office: DeadLetterOffice = field(init=False)
    _names: int = 0

    def __post_init__(self) -> None:
        """Wire the parts, with a dead-letter topic."""
        self.metrics = self.tally
        Meter.__post_init__(self)
        self.office = DeadLetterOffice(self.table, self.kafka.sink(), self.clock, self.limits, self.name)
        self.kafka.create_topic(DEAD, record_bytes_max=16 * 1024 * 1024)

    def name(self) -> str:
        """A name that nobody else uses."""
        self._names += 1
        return f"operator.{self._names}"

    def record(self, handler: Handler[Any, Any], key: str, value: bytes | None, **more: Any) -> None:
        """A record arrives from Kafka; `more` are headers and raw key."""
        self._offset = offset = self._offset + 1
        nonce = kafka_nonce("0", "t", 0, offset)
        source = KafkaSource("0", "t", 0, offset, 0, more.get("raw_key"), self.dead_letter)
        event = Event(
            str(InvocationId(Lane(handler.service, key), nonce)), handler.name, source, value, more.get("headers", ())
        )
        self.dispatcher.deliver(event, lambda: self.released.append(offset))

    async def send(
        self, handler: Handler[Any, Any], key: str, value: bytes, *, nonce: str = "c1", keep: bool = False
    ) -> str:
        """A one-way message over HTTP. Returns its invocation's id."""
        lane = Lane(handler.service, key or nonce)
        invocation = str(InvocationId(lane, nonce))
        event = Event(invocation, handler.name, CallSource(keep), value, (("h", b"1"),))
        await self.dispatcher.send(event, 0)
        return invocation

    def letters(self) -> list[Letter]:
        """The table's dead letters, read without being counted."""
        found = [parse_letter(item) for item in self.table.items.values() if "letter" in item]
        return [letter for letter in found if letter is not None]

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        self.payloads.append(len(payload))
        answer = self.answers.popleft() if self.answers else self.instead(payload)
        if answer is not None:
            if isinstance(answer, Exception):
                raise answer
            return answer
        return await Meter.invoke(self, function, payload, room)

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """See `RecordSink.produce`."""
        await self.kafka.sink().produce(topic, value, key, headers)
