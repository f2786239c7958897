"""What a Kafka record costs the control plane until it is durable behind a key that sleeps: microseconds of CPU time.

    python -m tests.costs.intake [records]

Owns the measurement: the production consumer, decoder, dispatcher and spill, over a table and a log in this process. It
is the floor of what records wait that come behind a burst in their partition. Does not own what that comes to on a
machine with a broker and a table (`tests.stack.slow_key`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import uvloop

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.writes import Answer, Write
from tenuto.service import Services
from tenuto_control.core.routing import Subscription
from tenuto_control.drivers.kafka import _record
from tenuto_control.drivers.kafka_batches import Answer as Fetch
from tenuto_control.loops.consume import Consumer
from tenuto_control.ports import AssignmentListener, LogRecord, TopicPartition, Unreadable
from tests.costs.meter import CountingTable, Meter
from tests.support.raw_batches import Raw, batch

RECORDS: Final = 20_000
ROUNDS: Final = 5
BATCH_RECORDS: Final = 150
TP: Final = TopicPartition("t", 0)
TOPIC_ID: Final = "AAAAAAAAAAAAAAAAAAAAAQ"
WRITE_S: Final = 0.002
LOOK_S: Final = 0.002
LOOKS_MAX: Final = 30_000
ASLEEP: Final = timedelta(hours=1)
KEY, VALUE = b"customer-1", b'{"kind":"follow","text":"12345"}'

sleeper = VirtualObject("sleeper")


@sleeper.handler()
async def note(ctx: ObjectContext, _: object) -> None:
    """Sleep, with the records of the key behind it."""
    await ctx.sleep(ASLEEP)


class SlowTable(CountingTable):
    """A table that takes its time, as one at the other end of a connection does."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await asyncio.sleep(WRITE_S)
        return await super().write(write)


class Log:
    """An event log with one partition, whose records are there, encoded, once it is `opened` (the EventLog port)."""

    def __init__(self, raw: bytes) -> None:
        self.opened = asyncio.Event()
        self._fetch = Fetch(raw, (), 1)
        self._first = True
        self._resumed = asyncio.Event()
        self._resumed.set()

    async def start(self, topics: Sequence[str], listener: AssignmentListener) -> None:
        """See `EventLog.start`."""
        await listener.assigned([TP])

    async def poll(self, max_records: int, timeout_ms: int) -> list[LogRecord]:
        """See `EventLog.poll`. The first record is that of the event that sleeps."""
        if self._first:
            self._first = False
            return [LogRecord(*TP, 0, 0, KEY, VALUE, topic_id=TOPIC_ID)]
        await self.opened.wait()
        await self._resumed.wait()
        if self._fetch.exhausted:
            await asyncio.sleep(timeout_ms / 1_000)
        return [_record(TP, one, TOPIC_ID) for one in self._fetch.take(max_records)]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """See `EventLog.pause`."""
        self._resumed.clear()

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """See `EventLog.resume`."""
        self._resumed.set()

    def lag(self) -> int:
        """See `EventLog.lag`."""
        return 0

    def unreadable(self) -> list[Unreadable]:
        """See `EventLog.unreadable`."""
        return []

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See `EventLog.commit`."""

    async def stop(self) -> None:
        """See `EventLog.stop`."""


def encoded(records: int) -> bytes:
    """So many records of one key, from offset 1 on, as a broker hands them out."""
    counts = [min(BATCH_RECORDS, records - at) for at in range(0, records, BATCH_RECORDS)]
    return b"".join(
        batch([Raw(VALUE, key=KEY)] * count, base=1 + at * BATCH_RECORDS) for at, count in enumerate(counts)
    )


async def measure(records: int) -> tuple[float, float]:
    """The CPU time of a record (µs) and how long all of them took (s)."""
    meter = Meter(Services([sleeper]), table=SlowTable())
    log = Log(encoded(records))
    consumer = Consumer(log, meter, meter.dispatcher, [Subscription("t", "sleeper", "note")], meter.limits, meter.clock)
    running = asyncio.create_task(consumer.run())
    await until(lambda: meter.head("sleeper", KEY.decode()).run is not None)
    window = consumer._partitions[TP].window
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    log.opened.set()
    await until(lambda: window.committable == records + 1)
    taken = (time.process_time() - cpu_s) / records * 1e6, time.perf_counter() - wall_s
    consumer.stop()
    await running
    await meter.dispatcher.stop()
    return taken


async def until(look: Callable[[], bool]) -> None:
    """Wait for something. Raises AssertionError when it takes too long."""
    for _ in range(LOOKS_MAX):
        if look():
            return
        await asyncio.sleep(LOOK_S)
    raise AssertionError(f"not within {LOOKS_MAX * LOOK_S:.0f} s")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    records = int(arguments[0]) if arguments else RECORDS
    rounds = [uvloop.run(measure(records)) for _ in range(ROUNDS)]
    print(
        f"{records:,} records behind a key that sleeps, the best of {ROUNDS} rounds: "
        f"{min(cpu for cpu, _ in rounds):.1f} µs of CPU time each until they are in its inbox; "
        f"{min(wall for _, wall in rounds):.2f} s in all, with writes of {WRITE_S * 1_000:.0f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
