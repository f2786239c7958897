"""What functions share, and what one that never answers takes of it from the others: nothing that is kept for them.

Owns every such pool: places and room for invocations, lanes at work, waiting requests and calls, callers that wait for
results. Does not own how a pool queues (`tests/control/test_capacity`, `test_lane_places`).
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject
from tenuto.handler import Handler
from tenuto.lane.transitions import result_key
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Activation, HandlerManifest, ServiceManifest, decode_request
from tenuto.protocol.records import PublishOut, Success
from tenuto.service import Services
from tenuto_control.core.metrics import Uncounted
from tenuto_control.core.shares import kept, may_take
from tenuto_control.dispatcher import Dispatcher
from tenuto_control.dispatcher.capacity import Capacity
from tenuto_control.dispatcher.room import Room
from tenuto_control.ingress.admission import Admission
from tenuto_control.limits import MIB, Limits
from tenuto_control.loops.failures import FailureLog
from tenuto_control.loops.quarantine import DeadLetters
from tenuto_control.ports import AnswerHolder, LogRecord, OverloadedError, Pending, Target
from tests.attack.asgi import asked
from tests.attack.examples import examples
from tests.attack.test_memory import virtually
from tests.costs.meter import Meter
from tests.support.virtual_time import VirtualClock, run_virtual

# --- the rule ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 9),
    st.integers(20, 400),
    st.lists(st.tuples(st.integers(0, 8), st.integers(-60, 60)), max_size=80),
)
@settings(max_examples=examples(200), deadline=None)
def test_the_bound_holds_and_what_is_kept_for_a_function_is_there(
    functions: int, most: int, steps: list[tuple[int, int]]
) -> None:
    held: Counter[int] = Counter()
    for number, size in steps:
        function = number % functions
        others = [size for other, size in held.items() if other != function and size]
        if size < 0:
            held[function] = max(0, held[function] + size)
        elif may_take(size, held[function], others, most, functions):
            held[function] += size
        assert held.total() <= most
        for each in range(functions):
            left = kept(most, functions) - held[each]
            if left > 0:
                there = [size for other, size in held.items() if other != each and size]
                assert may_take(left, held[each], there, most, functions)


def test_one_function_alone_has_everything() -> None:
    assert may_take(1, 255, (), 256, 1)
    assert not may_take(1, 256, (), 256, 1)


# --- the whole dispatcher ---------------------------------------------------------------------------------------------

HANGING = ("a", "b", "c")
d = VirtualObject("d")


@d.handler()
async def count(ctx: ObjectContext) -> int:
    n = (await ctx.get("n", int) or 0) + 1
    ctx.set("n", n)
    return n


def hangs(name: str) -> tuple[VirtualObject, Handler[Any, Any]]:
    """A service, and its handler, which never runs as its function never answers."""
    service = VirtualObject(name)

    @service.handler()
    async def run(_ctx: ObjectContext) -> None:
        raise AssertionError

    return service, run


@dataclass(slots=True)
class Tenants(Meter):
    """Each service has a function of its own, and some of these never answer."""

    hanging: Counter[str] = field(default_factory=Counter)
    concurrency: int = 90

    def __post_init__(self) -> None:
        """As many functions as services."""
        Meter.__post_init__(self)
        self.wiring = replace(self.wiring, functions=len(self.services.manifest(1_000).services))
        self.dispatcher = Dispatcher(self.wiring)

    def find(self, service: str) -> Target | None:
        found = Meter.find(self, service)
        return found and replace(found, function=service, concurrency=self.concurrency)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        if function == "d":
            return await Meter.invoke(self, function, payload, room)
        assert isinstance(decode_request(payload), Activation)
        self.hanging[function] += 1
        await asyncio.Event().wait()
        raise AssertionError


def tenants(hanging: int = 3, **limits: int) -> tuple[Tenants, list[Handler[Any, Any]]]:
    made = [hangs(f"hangs{n}") for n in range(hanging)]
    return Tenants(Services([d, *(service for service, _ in made)]), Limits(**limits)), [run for _, run in made]


@pytest.mark.parametrize("hanging", [1, 3, 12])
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_key_of_another_function_is_run_at_once(hanging: int, size: int) -> None:
    async def scenario() -> None:
        meter, slow = tenants(hanging)
        payload = bytes(size)
        for run in slow:
            for n in range(2_000 // hanging):
                meter.deliver(run, f"k{n}", payload)
        await asyncio.sleep(5)
        assert meter.hanging.total() >= min(90 * hanging, 128 if size == 1 else 20)
        call = asyncio.create_task(meter.dispatcher.call(meter.event_of_call(count, "key", "c1"), 20_000))
        meter.deliver(count, "other")
        await asyncio.sleep(0.5)
        assert call.done()
        assert call.result() == Success(b"1")
        assert meter.head("d", "other").state == {"n": b"1"}
        for n in range(100):
            meter.deliver(count, f"many-{n}")
        await asyncio.sleep(5)
        assert all(meter.head("d", f"many-{n}").state == {"n": b"1"} for n in range(100))
        await meter.dispatcher.kill()

    virtually(scenario)()


@virtually
async def test_calls_to_functions_that_hang_leave_room_for_calls_to_others() -> None:
    meter, slow = tenants(calls_max=80, calls_bytes_max=MIB)

    async def ask(run: Handler[Any, Any], n: int) -> None:
        await meter.dispatcher.call(meter.event_of_call(run, f"k{n}", f"c{n}"), 1_000_000)

    calls = [asyncio.create_task(ask(run, n)) for run in slow for n in range(200)]
    await asyncio.sleep(5)
    refused = [call for call in calls if call.done()]
    assert 600 - len(refused) == 80 - kept(80, 4)
    assert all(isinstance(call.exception(), OverloadedError) for call in refused)
    for n in range(20):
        assert await meter.dispatcher.call(meter.event_of_call(count, f"k{n}", f"c{n}"), 1_000) == Success(b"1")
    await meter.dispatcher.kill()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@virtually
async def test_callers_that_wait_for_results_of_one_function_leave_room_for_those_of_others() -> None:
    meter, slow = tenants(results_awaited_max=80)

    def awaited(service: str, n: int) -> asyncio.Task[Any]:
        name = str(InvocationId(Lane(service, f"k{n}"), f"c{n}"))
        key = result_key(name)
        meter.table.items[key.pk, key.sk] = {"pk": key.pk, "sk": key.sk, "waits": 1}
        return asyncio.create_task(meter.dispatcher.result(name, 20_000))

    waiting = [awaited(run.service, n) for run in slow for n in range(100)]
    await asyncio.sleep(0.1)
    others = [awaited("d", n) for n in range(10)]
    await asyncio.sleep(1)
    assert sum(task.done() for task in waiting) == 300 - (80 - kept(80, 4))
    assert not any(task.done() for task in others)
    assert all(isinstance(answer, Pending) for answer in await asyncio.gather(*waiting, *others))


async def hold_room(capacity: Capacity, went: list[str], function: str, size: int, seconds: float) -> None:
    """Have a function's request of so many bytes hold its room for a while, once it has it."""
    target = Target(function, ServiceManifest(function, keyed=True, handlers=()), 1_000, 100)
    async with capacity.room(target, size):
        went.append(function)
        await asyncio.sleep(seconds)


@virtually
async def test_a_request_that_is_larger_than_its_share_goes_though_all_others_hang() -> None:
    capacity = Capacity(100, 32 * MIB, functions=10)
    went: list[str] = []
    ask = functools.partial(hold_room, capacity, went)

    hanging = [asyncio.create_task(ask(f"h{n % 8}", MIB, 10_000)) for n in range(200)]
    await asyncio.sleep(1)
    held = len(went)
    assert 16 <= held <= 32
    large = [asyncio.create_task(ask(name, 18 * MIB, 1)) for name in ("x", "y", "x")]
    small = [asyncio.create_task(ask("z", 100_000, 0.1)) for _ in range(50)]
    await asyncio.wait_for(asyncio.gather(*large, *small), 60)
    assert went[held] == "x"
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert (capacity._room._held, capacity._room._large) == ({}, None)


@virtually
async def test_a_flood_of_large_requests_leaves_others_their_turn() -> None:
    capacity = Capacity(100, 16 * MIB, functions=3)
    went: list[str] = []
    ask = functools.partial(hold_room, capacity, went)

    tasks = [asyncio.create_task(ask("z", 100_000, 1_000))]
    tasks += [asyncio.create_task(ask("x", 18 * MIB, 1)) for _ in range(20)]
    await asyncio.sleep(0.5)
    tasks += [asyncio.create_task(ask("y", size, 1)) for size in (18 * MIB, 1_000)]
    await asyncio.wait_for(asyncio.gather(*tasks), 2_000)
    assert went.index("y") <= 4


# --- the ingress ------------------------------------------------------------------------------------------------------


class Served:
    """Services named after their functions."""

    def find(self, service: str) -> Target | None:
        handlers = (HandlerManifest("run", "exclusive"),)
        known = service in {*HANGING, "d"}
        return Target(service, ServiceManifest(service, keyed=True, handlers=handlers), 1_000) if known else None

    def listed(self) -> list[ServiceManifest]:
        return []


@virtually
async def test_requests_that_wait_for_functions_that_hang_leave_room_for_those_of_others() -> None:
    """Also those that name no function, and those that attach by an id."""
    room = Room(80, MIB, functions=4)

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if "/d" not in scope["path"]:
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    door = Admission(app, room, Served())
    paths = [f"/call/{name}/k/run" for name in HANGING]
    paths += [f"/invocations/{InvocationId(Lane('a', 'k'), 'c1')}/attach", "/call/nobody/run", "/%FF", "/call/%/x"]
    waiting = [asyncio.create_task(asked(door, "POST", path)) for path in paths for _ in range(100)]
    await asyncio.sleep(1)
    for _ in range(20):
        assert await asked(door, "POST", "/call/d/k/run") == (HTTPStatus.NO_CONTENT, b"")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (room.items, room.size) == (0, 0)


# --- dead-letter topics -----------------------------------------------------------------------------------------------


class HangingSink:
    """Answers nothing about the topics that hang (the RecordSink port), and notes what is in the others."""

    def __init__(self, hang: set[str]) -> None:
        self._hang = hang
        self.produced: list[str] = []
        self.under_way: Counter[str] = Counter()

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """See `RecordSink.produce`."""
        if topic in self._hang:
            self.under_way[topic] += 1
            await asyncio.Event().wait()
        self.produced.append(topic)


@pytest.mark.parametrize("hanging", [1, 3, 7])
def test_dead_letter_topics_that_do_not_answer_keep_no_other_waiting(hanging: int) -> None:
    topics = [f"t{n}.dead-letter" for n in range(hanging + 1)]
    clock, limits = VirtualClock(), Limits()

    async def nowhere(_entry: PublishOut, _identity: Sequence[str], _reason: str) -> None:
        raise AssertionError("nothing is kept in the table")

    async def scenario() -> None:
        sink = HangingSink(set(topics[:-1]))
        letters = DeadLetters(sink, nowhere, FailureLog(clock, 5_000), clock, limits, Uncounted(), len(topics))
        stuck = [
            asyncio.create_task(letters.put(_record(topic, n), topic, "bad"))
            for n in range(10 * limits.quarantine_concurrency)
            for topic in topics[:-1]
        ]
        await asyncio.sleep(1)
        assert sink.under_way.total() <= limits.quarantine_concurrency
        assert all(sink.under_way[topic] for topic in topics[:-1])
        async with asyncio.timeout(1):
            for n in range(50):
                await letters.put(_record(topics[-1], n), topics[-1], "bad")
        assert sink.produced == [topics[-1]] * 50
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)

    run_virtual(scenario())


def _record(topic: str, offset: int) -> LogRecord:
    return LogRecord(topic.partition(".")[0], 0, offset, 0, b"k", b"v", ())
