"""One pass: one system, one workload, measured from outside in the same way for both.

Owns what is sent, how fast, and when it counts as done: a handler's own note at its end, the first of each event. Each
pass checks that every event took effect once. Does not own the systems (`sides`), nor medians and ratios (`summary`).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from aiokafka import AIOKafkaProducer

from bench.beside.calls import CallGenerator
from bench.beside.sides import Opening, Side
from bench.beside.summary import Found
from bench.commits import STALLED_S, StalledError
from bench.figures import latency
from bench.kafka_load import WrongOutcomeError
from bench.resources import ResourceSampler
from bench.workloads import EVENT_BYTES, SEED

WARM_UP_EVENTS: Final = 200
CONNECTIONS: Final = 64
STEADY_PER_S: Final = 100.0
WARM_NUMBER: Final = -1_000_000
"""Where the numbers of warm-up events begin: theirs are negative."""

POLL_S: Final = 0.05
LOOK_AGAIN_S: Final = 0.5
SETTLE_S: Final = 30.0
"""How long the counters may be behind the handlers' notes: a commit follows the end of a handler."""

SECONDS_MIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Pass:
    """What is sent. `events` over `keys` at once, then for `steady_s` at a steady rate, or calls for `flood_s`."""

    name: str
    handler: str
    play: Play
    events: int = 0
    keys: int = 1000
    steady_s: float = 0.0
    flood_s: float = 0.0

    def scaled(self, factor: float) -> Pass:
        """The same, shorter."""
        return replace(
            self,
            events=max(20, round(self.events * factor)),
            keys=1 if self.keys == 1 else max(20, round(self.keys * factor)),
            steady_s=max(SECONDS_MIN, self.steady_s * factor),
            flood_s=max(SECONDS_MIN, self.flood_s * factor),
        )


class Play(Protocol):
    """Plays a pass on a running side; what it found."""

    def __call__(self, side: Side, this: Pass, resources: ResourceSampler, calls: CallGenerator) -> Awaitable[Found]:
        """Play it. Raises `WrongOutcomeError` and `StalledError`."""
        ...


async def measure(opening: Opening, name: str, this: Pass, calls: CallGenerator) -> Found:
    """One pass on one side, on a system of its own. Raises WrongOutcomeError, StalledError or LocalStackError."""
    topic = f"{this.name}-{name}-{time.time_ns() // 1_000_000}"
    async with opening.open(name, this.handler, topic) as side, ResourceSampler() as resources:
        await warm_up(side)
        return await this.play(side, this, resources, calls)


async def backlog(side: Side, this: Pass, resources: ResourceSampler, calls: CallGenerator) -> Found:
    """Everything is published at once; events a second from the first that is sent to the last end."""
    del calls
    numbers = range(this.events)
    invocations = await side.invocations()
    resources.mark()
    keys = [f"key-{n % this.keys:05d}" for n in numbers]
    random.Random(SEED).shuffle(keys)
    await publish(side, list(zip(keys, numbers, strict=True)))
    await ended(side, numbers)
    usage, others = resources.usage(this.events), resources.others()
    await _check(side, this.events, this.keys)
    values = {this.name: side.readings.per_s(numbers)}
    late = side.readings.lateness_ms(numbers)
    if late:
        summed = latency(late)
        values |= {f"{this.name} wake p50": summed.p50, f"{this.name} wake p99": summed.p99}
    per_event = (await side.invocations() - invocations) / this.events
    return Found(values, usage, others, per_event, side.readings.repeats)


async def backlog_then_steady(side: Side, this: Pass, resources: ResourceSampler, calls: CallGenerator) -> Found:
    """As `backlog`, then records at 100 a second: from handing one to the producer to the end of its handler."""
    found = await backlog(side, this, resources, calls)
    numbers = range(this.events, this.events + round(STEADY_PER_S * this.steady_s))
    others = await _steadily(side, numbers, STEADY_PER_S, this.keys, resources)
    summed = latency(side.readings.latencies_ms(numbers))
    values = {"kafka p50": summed.p50, "kafka p99": summed.p99}
    return found.also(values, others)


async def backlog_then_half(side: Side, this: Pass, resources: ResourceSampler, calls: CallGenerator) -> Found:
    """As `backlog`, then at half the rate that this system reached: how late sleeps end there."""
    found = await backlog(side, this, resources, calls)
    rate = found.values[this.name] / 2
    numbers = range(this.events, this.events + max(20, round(rate * this.steady_s)))
    others = await _steadily(side, numbers, rate, this.keys, resources)
    summed = latency(side.readings.lateness_ms(numbers))
    values = {f"{this.name} half wake p50": summed.p50, f"{this.name} half wake p99": summed.p99}
    return found.also(values, others)


async def calls_then_steady(side: Side, this: Pass, resources: ResourceSampler, calls: CallGenerator) -> Found:
    """Calls over 64 connections, one after the other on each; then calls at 100 a second, whatever the answers do."""
    await calls.flood(side, this.handler, this.keys, CONNECTIONS, SECONDS_MIN)
    invocations, before = await side.invocations(), await _total(side)
    resources.mark()
    flooded = await calls.flood(side, this.handler, this.keys, CONNECTIONS, this.flood_s)
    usage, others = resources.usage(flooded.calls), resources.others()
    per_event = (await side.invocations() - invocations) / flooded.calls
    counted = await _total(side) - before
    # A call that is under way when the time is up is carried out, and its answer is not waited for.
    if not flooded.calls <= counted <= flooded.calls + CONNECTIONS:
        raise WrongOutcomeError(f"{side.name} {this.name}: {flooded.calls} calls were answered, {counted} were counted")
    resources.mark()
    steady = latency(await calls.steadily(side, this.handler, this.keys, STEADY_PER_S, this.steady_s))
    values = {this.name: flooded.per_s, "http p50": steady.p50, "http p99": steady.p99}
    return Found(values, usage, max(others, resources.others()), per_event, 0)


PASSES: Final = {
    this.name: this
    for this in (
        Pass("w1", "count", backlog_then_steady, 20_000, 1_000, steady_s=20.0),
        Pass("w2", "steps", backlog, 10_000, 1_000),
        Pass("w2s", "steps_sleep", backlog, 4_000, 2_000),
        Pass("w3", "count", backlog, 5_000, 1),
        Pass("w4", "user_update", backlog_then_half, 4_000, 2_000, steady_s=20.0),
        Pass("w5", "count", calls_then_steady, 0, 1_000, steady_s=20.0, flood_s=10.0),
    )
}


def event(number: int, **more: int) -> bytes:
    """A record's value of EVENT_BYTES bytes, which says when it was made; with `more` fields."""
    bare = json.dumps({"number": number, "at": round(time.time(), 6), **more, "pad": ""})
    return bare.replace('"pad": ""', f'"pad": "{"x" * max(0, EVENT_BYTES - len(bare))}"').encode()


async def warm_up(side: Side, **more: int) -> None:
    """Start every function process, open every connection."""
    numbers = range(WARM_NUMBER, WARM_NUMBER + WARM_UP_EVENTS)
    await publish(side, [(f"warm{number}", number) for number in numbers], **more)
    await ended(side, numbers)


async def publish(side: Side, keyed: Sequence[tuple[str, int]], **more: int) -> None:
    """Publish events, each a key and a number, as fast as Kafka takes them."""
    async with AIOKafkaProducer(bootstrap_servers=side.bootstrap_servers, acks="all", linger_ms=5) as producer:
        sent = [await producer.send(side.topic, event(number, **more), key=key.encode()) for key, number in keyed]
        await asyncio.gather(*sent)


async def _steadily(side: Side, numbers: range, rate_per_s: float, keys: int, resources: ResourceSampler) -> float:
    """Publish at a steady rate and wait for all; the share of the machine that others took meanwhile."""
    resources.mark()
    async with AIOKafkaProducer(bootstrap_servers=side.bootstrap_servers, acks="all", linger_ms=0) as producer:
        start_s, sent = time.perf_counter(), []
        for place, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, start_s + place / rate_per_s - time.perf_counter()))
            key = f"steady-{number % keys:05d}"
            sent.append(await producer.send(side.topic, event(number), key=key.encode()))
        await asyncio.gather(*sent)
    await ended(side, numbers)
    return resources.others()


async def ended(side: Side, numbers: range) -> None:
    """Wait until each of these events has ended. Raises StalledError when none ends for a minute."""
    done, moved_s = -1, time.monotonic()
    while done < len(numbers):
        side.readings.read_on()
        now = side.readings.done(numbers)
        if now > done:
            done, moved_s = now, time.monotonic()
        elif time.monotonic() - moved_s > STALLED_S:
            raise StalledError(
                f"{side.name}: no handler ended for {STALLED_S:.0f} s, {len(numbers) - done:,} are missing"
            )
        await asyncio.sleep(POLL_S)


async def _check(side: Side, events: int, keys: int) -> None:
    """Raises WrongOutcomeError when a counter is not the number of events that its key was sent."""
    expected = {f"key-{n:05d}": events // keys + (n < events % keys) for n in range(min(keys, events))}

    async def wrong() -> dict[str, int]:
        found = await side.counts(list(expected))
        return {key: found.get(key, 0) for key, count in expected.items() if found.get(key, 0) != count}

    deadline_s = time.monotonic() + SETTLE_S
    left = await wrong()
    while left and time.monotonic() < deadline_s:
        await asyncio.sleep(LOOK_AGAIN_S)
        left = await wrong()
    if left:
        key, found = next(iter(left.items()))
        raise WrongOutcomeError(f"{side.name}: {key} counted {found} events, it was sent {expected[key]}")


async def _total(side: Side) -> int:
    """The sum of the call keys' counters, once it stands still."""
    keys = [f"call-{n}" for n in range(CallGenerator.keys_max)]
    before = -1
    while True:
        counts = await side.counts(keys)
        total = sum(counts.get(key, 0) for key in keys)
        if total == before:
            return total
        before = total
        await asyncio.sleep(LOOK_AGAIN_S)
