"""The world around the examples while the demo runs: who sends events, who drives, and what kills a function.

Owns these three and what they did. Does not own how it is shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from examples.food_order import events as order_events
from examples.food_order.outside import DriverAnswer, Order, driver_answer, open_offers
from examples.profile_enricher.events import Record
from examples.profile_enricher.handler import PROFILES_TOPIC
from examples.user_updates.outside import LEDGER as UPDATES_LEDGER
from tenuto.protocol.ids import Lane, source_of_partition
from tenuto_control.core.routing import source_epoch
from tenuto_control.drivers.topic_ids import topic_ids
from tenuto_local.demo.observe import Observer, Position, steps_of
from tenuto_local.demo.workload import PROFILE_SERVICE, UPDATES_SERVICE, Delivery, Event
from tenuto_local.errors import ProcessFailed
from tenuto_local.stack import EmbeddedStack

EPOCH = "0"
DRIVER_PAUSE_S = 0.8
LOOK_INTERVAL_S = 0.02
HTTP_ATTEMPTS_MAX = 5
HTTP_RETRY_PAUSE_S = 0.3
HTTP_TIMEOUT_S = 30.0
HTTP_ERROR_MIN = 500
KILLED_STEP, KILLED_STEP_NAME, NEXT_STEP = "permissions", "set permissions", "resources"

Say = Callable[[str], None]
_SAID: dict[DriverAnswer, str] = {
    "accept": "a driver accepts, over HTTP",
    "refuse": "the driver refuses, over HTTP; kitchen and payment are undone",
    "silence": "no driver answers; after ten seconds the order is undone",
}


class Outside:
    """HTTP to the ingress; 5xx and lost connections are tried again with the same idempotency key."""

    def __init__(self, session: aiohttp.ClientSession, ingress: str) -> None:
        self._session = session
        self._ingress = ingress

    async def post(self, path: str, body: object = None, idempotency_key: str | None = None) -> object:
        """The JSON answer, None without one. Raises `ProcessFailed` for an answer that is no success."""
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        problem = ""
        for _ in range(HTTP_ATTEMPTS_MAX):
            try:
                async with self._session.post(self._ingress + path, json=body, headers=headers) as answer:
                    text = await answer.text()
                    if answer.ok:
                        return json.loads(text) if text else None
                    problem = f"{answer.status} {text}"
                    if answer.status < HTTP_ERROR_MIN:
                        break
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = str(error) or type(error).__name__
            await asyncio.sleep(HTTP_RETRY_PAUSE_S)
        raise ProcessFailed(f"POST {path}: {problem}")


@dataclass(slots=True)
class Progress:
    """How far the stream is."""

    total: int
    sent: int = 0
    over_http: int = 0


async def send(
    deliveries: list[Delivery],
    bootstrap_servers: str,
    outside: Outside,
    sent: dict[Lane, list[Position]],
    progress: Progress,
    duration_s: float,
) -> None:
    """Send everything, evenly over `duration_s`; returns when all is acknowledged."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with (
        AIOKafkaProducer(bootstrap_servers=bootstrap_servers, enable_idempotence=True) as producer,
        asyncio.TaskGroup() as group,
    ):
        ids = await topic_ids(producer.client, {delivery.event[0] for delivery in deliveries})
        for i, delivery in enumerate(deliveries):
            await asyncio.sleep(max(0.0, started + duration_s * i / len(deliveries) - loop.time()))
            topic, key, value = delivery.event
            if delivery.way == "http":
                path = f"/call/{PROFILE_SERVICE}/{quote(key, safe='')}/user_event"
                group.create_task(outside.post(path, json.loads(value), idempotency_key=f"registration-{key}"))
                progress.over_http += 1
            else:
                stored = await producer.send_and_wait(topic, value, key=key.encode())
                source = source_of_partition(source_epoch(EPOCH, ids[topic]), topic, stored.partition)
                sent.setdefault(delivery.lane, []).append((source, stored.offset))
            progress.sent += 1


async def drive(orders: list[Event], outside: Outside, say: Say) -> None:
    """Answer the offers of orders as their drivers do, over HTTP, indefinitely."""
    placed = {key: Order.model_validate_json(value) for _, key, value in orders}
    answered: set[str] = set()
    said: set[str] = set()
    while True:
        await asyncio.sleep(DRIVER_PAUSE_S)
        for order, offer in open_offers().items():
            if offer in answered:
                continue
            answered.add(offer)
            answer = driver_answer(placed[order].distance_km)
            try:
                match answer:
                    case "accept":
                        await outside.post(f"/awakeables/{offer}/resolve", {"driver": order_events.DRIVER})
                    case "refuse":
                        await outside.post(f"/awakeables/{offer}/reject", order_events.REFUSAL)
                    case "silence":
                        pass
            except ProcessFailed as error:
                # The comparison at the end tells what came of it.
                say(f"{order}: the driver's answer did not arrive: {error}")
            if answer not in said:
                said.add(answer)
                say(f"{order}: {_SAID[answer]}")


async def collect(bootstrap_servers: str, records: list[Record]) -> None:
    """Follow the topic downstream, indefinitely."""
    async with AIOKafkaConsumer(
        PROFILES_TOPIC, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:
        async for record in consumer:
            headers = dict(record.headers)
            records.append((headers["tenuto-id"].decode(), record.key.decode(), record.value))


@dataclass(frozen=True, slots=True)
class Kill:
    """The function process `pid` was killed when `event` had finished its second step."""

    event: str
    pid: int

    def verdict(self) -> str | None:
        """What is wrong with how the invocation continued, None when all is well."""
        calls = [call for call in UPDATES_LEDGER.calls() if call.event == self.event]
        second = [call.process for call in calls if call.system == KILLED_STEP]
        third = [call.process for call in calls if call.system == NEXT_STEP]
        if len(second) != 1:
            return f"{self.event}: step 2 ran {len(second)} times around the kill"
        if len(third) != 1 or third[0] == self.pid:
            return f"{self.event}: step 3 ran {len(third)} times after the kill"
        return None


async def kill_after_step_two(users: Sequence[str], stack: EmbeddedStack, observer: Observer, say: Say) -> Kill:
    """SIGKILL the process that serves one of `users`, once step 2 of an event is journaled and step 3 has not begun."""
    late: set[str] = set()
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        latest = {call.subject: call for call in UPDATES_LEDGER.calls()}
        for call in (latest[user] for user in users if user in latest):
            if call.system != KILLED_STEP or call.event in late:
                continue
            head = await observer.head(Lane(UPDATES_SERVICE, call.subject))
            if KILLED_STEP_NAME not in steps_of(head) or call.process not in await stack.worker_pids("user_updates"):
                continue
            os.kill(call.process, signal.SIGKILL)
            if _made_by(call.process, call.event, NEXT_STEP):
                # Looking took longer than the step: the kill came after step 3, which proves less.
                late.add(call.event)
                continue
            say(f"{call.event}: function process {call.process} killed after step 2, {KILLED_STEP_NAME!r}")
            return Kill(call.event, call.process)


def _made_by(process: int, event: str, system: str) -> bool:
    return any((c.process, c.event, c.system) == (process, event, system) for c in UPDATES_LEDGER.calls())
