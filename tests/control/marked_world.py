"""A control plane, its function, Kafka and a client of its HTTP side in one process, and ears for every log line.

Owns the wiring of production code over in-memory twins, what fails on demand, and how a line is searched for a marker.
Does not own what happens in it (`test_no_payload_in_logs`).
"""

from __future__ import annotations

import asyncio
import base64
import copy
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httpx
from awslambdaric.lambda_runtime_log_utils import JsonFormatter

from tenuto.lane.writes import Answer, Item, Key, Write
from tenuto_control.config import FunctionConfig
from tenuto_control.core.routing import JsonKey, Subscription
from tenuto_control.drivers.invoke_client import BotocoreLambda
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.drivers.log_lines import TEXT, json_formatter
from tenuto_control.ingress import create_app
from tenuto_control.loops.consume import Consumer
from tenuto_control.ports import AnswerHolder, SchedulerUnavailableError, Target
from tests.costs.meter import CountingTable, Meter
from tests.support.memory_kafka import MemoryKafka, MemorySink

MARK: Final = "Geheim7f3a9cK"
"""What is put into every payload. Letters and digits alone, so that no escaping changes it."""

SMALL_BYTES_MAX: Final = 2_000
OURS: Final = ("tenuto", "tenuto_control")
NOT_OURS: Final = ("httpx", "httpcore")
"""The test's own client."""

FORMATTERS: Final = (logging.Formatter(TEXT), json_formatter(), JsonFormatter())
"""Text, the control plane's JSON, and the JSON of Lambda's runtime, which shows every attribute of a record."""


def traces_of(mark: str) -> frozenset[str]:
    """The forms that a marker may take in a line: as it is, in hexadecimal, and in base64 at each of three shifts."""
    data = mark.encode()
    shifted = {base64.b64encode(b"\0" * pad + data)[(4 if pad else 0) : -4].decode() for pad in range(3)}
    return frozenset({mark, data.hex(), *shifted, *(s.translate(str.maketrans("+/", "-_")) for s in shifted)})


TRACES: Final = traces_of(MARK)


class Ears(logging.Handler):
    """Hears every record, and keeps its places, and its text where that has the marker in it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []
        self.leaks: list[str] = []
        self.places: set[tuple[str, str, int]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        if record.name.startswith(NOT_OURS):
            return
        # Formatters leave notes in a record.
        texts = [formatter.format(copy.copy(record)) for formatter in FORMATTERS]
        texts.append(repr(record.__dict__))
        self.heard.append(texts[0])
        self.places.add((record.pathname, record.funcName, record.lineno))
        self.leaks += [text for text in texts if any(trace in text for trace in TRACES)]


@contextmanager
def listening() -> Iterator[Ears]:
    """Hear all loggers, this project's at every level."""
    ears, root = Ears(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", *OURS)}
    root.addHandler(ears)
    root.setLevel(logging.INFO)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield ears
    finally:
        root.removeHandler(ears)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class FailingTable(CountingTable):
    """Raises what is in `errors`, one for each request."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: deque[Exception] = deque()

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.popleft()

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        self._fail()
        return await super().write(write)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        self._fail()
        return await super().get(key)


@dataclass(slots=True)
class Body:
    """The stream of an answer."""

    data: bytes

    async def read(self, most: int) -> bytes:
        """The next bytes of it."""
        part, self.data = self.data[:most], self.data[most:]
        return part


@dataclass(slots=True)
class MarkedWorld(Meter):
    """The whole of one process. `crashes` are what the next invocations of the function end in."""

    kafka: MemoryKafka = field(default_factory=MemoryKafka)
    crashes: deque[Mapping[str, Any] | Exception] = field(default_factory=deque)
    schedules: bool = True
    served: bool = True
    sink: MemorySink = field(init=False)
    invoker: LambdaInvoker = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        """Wire the parts."""
        Meter.__post_init__(self)
        self.sink = self.kafka.sink()
        self.invoker = LambdaInvoker(BotocoreLambda(cast("Any", _Client(self))), {"f": FunctionConfig()})
        app = create_app(self.dispatcher, self, ready=_ready, wait_ms_max=2_000)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://tenuto")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Consume, sweep, and stop both at the end."""
        for topic in ("events", "colours", "keyed", "gone", "out"):
            self.kafka.create_topic(topic)
            self.kafka.create_topic(f"{topic}.dead-letter", record_bytes_max=SMALL_BYTES_MAX)
        subscriptions = [
            Subscription("events", "box", "act"),
            Subscription("colours", "box", "paint"),
            Subscription("keyed", "box", "act", key=JsonKey(("id",))),
            Subscription("gone", "box", "gone"),
        ]
        member = self.kafka.member()
        consumer = Consumer(member, self.sink, self.dispatcher, subscriptions, self.limits, self.clock)
        tasks = [asyncio.create_task(consumer.run()), asyncio.create_task(self.sweeper.run())]
        try:
            yield
        finally:
            consumer.stop()
            tasks[1].cancel()
            await asyncio.wait(tasks)
            await self.dispatcher.stop()
            await self.http.aclose()

    # --- ports ------------------------------------------------------------------------------------------------------

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        return Meter.find(self, service) if self.served else None

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        return await self.invoker.invoke(function, payload)

    async def run_function(self, payload: bytes) -> bytes:
        """What the function makes of a payload."""
        return await Meter.invoke(self, "f", payload)

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """See `RecordSink.produce`."""
        await self.sink.produce(topic, value, key, headers)

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """See `WakeScheduler.schedule`."""
        if not self.schedules:
            raise SchedulerUnavailableError("the scheduler gave no answer")

    async def cancel(self, name: str) -> None:
        """See `WakeScheduler.cancel`."""
        if not self.schedules:
            raise SchedulerUnavailableError("the scheduler gave no answer")


class _Client:
    """What is asked of an aiobotocore client of Lambda."""

    def __init__(self, world: MarkedWorld) -> None:
        self._world = world

    async def invoke(self, **arguments: Any) -> Mapping[str, Any]:
        payload = arguments["Payload"]
        data = payload if isinstance(payload, bytes) else payload.read()
        if self._world.crashes:
            end = self._world.crashes.popleft()
            if isinstance(end, Exception):
                raise end
            return end
        return {"Payload": Body(await self._world.run_function(data))}


async def _ready() -> str | None:
    return None
