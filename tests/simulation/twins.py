"""In-memory twins of DynamoDB, Lambda and EventBridge Scheduler that fail by plan.

Owns what the ports promise and what they do not: lost answers, refused requests, attempts that go on unseen, wake-ups
that come late, twice or never. Does not own the plan (`faults`) nor crashes (`gate`). Kafka's twin is
`tests.support.memory_kafka`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import replace as with_fields
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from tenuto.lane.timers import SWEEP_CURSOR
from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Put, Update, Write
from tenuto.protocol import messages
from tenuto.protocol.limits import BESIDE_MS_MAX
from tenuto.protocol.messages import Activation, Pooled, decode_request, encode
from tenuto.runtime.activation import activate
from tenuto.runtime.beside import run_beside
from tenuto.runtime.environment import Beside, Environment, InlineWriteLoop
from tenuto.runtime.placement import QuickSteps
from tenuto.runtime.pool import run_pooled
from tenuto.service import Services
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Page, TableUnavailableError
from tenuto_control.ports import (
    AnswerHolder,
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    PayloadTooLargeError,
    SchedulerUnavailableError,
)
from tests.simulation.gate import Gate, Process, current

T = TypeVar("T")
Watch = Callable[[Process | None, Write, Item | None, Item | None], None]
"""Is told of every applied write: who wrote, what, the item before and after."""

FUNCTION_TIMEOUT_MS = 10_000
FUNCTION_TIMEOUT_AT_ZERO_MS = 40_000
"""As in `template.yaml`: scaled to zero, a function also waits for the sleeps that it holds."""

PAYLOAD_BYTES_MAX = 6_291_456
"""Lambda's limit of a synchronous request or response (AWS Lambda quotas: 6 MB)."""


class World(MemoryTable):
    """The one table all processes share. `without` names clauses that are left out of every condition (mutants)."""

    def __init__(self, watch: Watch, without: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.refusals = 0
        self.sweep_requests = 0
        self._watch = watch
        self._without = without

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`; those of sweeps, which come at a constant rate, are counted apart as well."""
        self.sweep_requests += pk.startswith("T#")
        return await super().query(pk, low, high, limit=limit, after=after)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`. How far each sweep has got is read and written at a constant rate, too."""
        self.sweep_requests += key == SWEEP_CURSOR
        return await super().get(key)

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        self.sweep_requests += write.key == SWEEP_CURSOR
        return await super().write(write)

    def apply(self, write: Write) -> Answer:
        """Apply and tell the watcher."""
        before = self.items.get((write.key.pk, write.key.sk))
        answer = super().apply(self._mutated(write))
        if isinstance(answer, Applied):
            self._watch(current.get(), write, before, answer.item)
        else:
            self.refusals += 1
        return answer

    def _mutated(self, write: Write) -> Write:
        if not self._without:
            return write
        match write:
            case Update() | Put():
                kept = tuple(c for c in write.conditions if c.label not in self._without)
                return replace(write, conditions=kept)
            case _:
                return write


class GatedTable:
    """The table as one process reaches it (the Table port)."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self._gate = gate

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        answer = await self._cross(f"write {_summary(write)}", lambda: self._world.write(write), write=True)
        suspends = isinstance(write, Update) and "awaits" in write.sets and isinstance(answer, Applied)
        if suspends and self._gate.faults.happens("suspend_lost"):
            await asyncio.sleep(self._gate.faults.latency_s() * SUSPEND_LOST_LATENCIES)
            raise TableUnavailableError("the answer to a suspension was lost")
        return answer

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        return await self._cross(f"get {key.pk} {key.sk}", lambda: self._world.get(key))

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        return await self._cross(f"get {len(keys)} x {keys[0].pk} {keys[0].sk}", lambda: self._world.get_all(keys))

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        return await self._cross(
            f"query {pk} {low}", lambda: self._world.query(pk, low, high, limit=limit, after=after)
        )

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        await self._cross(f"put {len(puts)}", lambda: self._world.put_all(puts), write=True)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        await self._cross("delete batch", lambda: self._world.delete_all(deletes), write=True)

    async def _cross(self, operation: str, act: Callable[[], Awaitable[T]], *, write: bool = False) -> T:
        # What belongs to no process meets no fault, no crash and only half of the network's delay.
        assert current.get() is not None, f"{operation}: a request of no process"
        return await self._gate.cross(operation, act, TableUnavailableError, write=write)


def _summary(write: Write) -> str:
    match write:
        case Update(key, sets, removes, conditions):
            marks = ",".join(sorted({c.label for c in conditions}))
            return f"{key.pk} {key.sk} set {','.join(sets)} remove {','.join(removes)} if {marks}"
        case Put(key):
            return f"{key.pk} {key.sk} put"
        case Delete(key):
            return f"{key.pk} {key.sk} delete"


SUSPEND_LOST_LATENCIES = 20
"""How long the loss of a response takes to show, in delays of one message: long enough for others to write."""

HOP_TURNS_MAX = 3
HERE_SHARE = 0.5
"""Of the writes that may be made in the handler's own thread, those that are, where the other thread is idle."""

HOP_S_MAX = 0.03
"""Longer than a flush waits: whatever is posted may come before or after it."""


class HoppingWriteLoop:
    """Durable writes beside the handler, as in a thread of their own: each way there and back takes a drawn while.

    In between either side goes on. What one of them does without waiting stays whole: for less there are real threads
    (`tests/sdk/test_journal_threads.py`).
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: asyncio.TimerHandle | None = None
        self._there_now = 0

    async def run(self, work: Coroutine[Any, Any, T], *, here: bool) -> T:
        """See `WriteLoop.run`. Here only while nothing is there, and not always then."""
        if here and not self._there_now and self._rng.random() < HERE_SHARE:
            return await work
        there = asyncio.get_running_loop().create_task(self._there(work), name="writes")
        # Cut off before it begins, its work would complain that nobody has awaited it.
        there.add_done_callback(lambda _: work.close())
        return await there

    def flush_within(self, delay_ms: int, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `WriteLoop.flush_within`."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._while_s() + delay_ms / 1_000, self._begin, flush)

    def flushed(self) -> None:
        """See `WriteLoop.flushed`."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _begin(self, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._due = None
        work = flush()
        asyncio.get_running_loop().create_task(self._there(work), name="flush").add_done_callback(
            lambda _: work.close()
        )

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        self._there_now += 1
        await self._hop()
        try:
            return await work
        finally:
            self._there_now -= 1
            await self._hop()

    async def _hop(self) -> None:
        for _ in range(self._rng.randint(0, HOP_TURNS_MAX)):
            await asyncio.sleep(0)
        if (left_s := self._while_s()) > 0:
            await asyncio.sleep(left_s)

    def _while_s(self) -> float:
        return self._rng.choice([0.0, 0.0, 0.0, self._rng.uniform(0, HOP_S_MAX)])


class SimulatedLambda:
    """Functions in processes of their own (the FunctionInvoker port). A process serves one invocation and ends."""

    def __init__(
        self,
        services: Services,
        table: GatedTable,
        gate: Gate,
        rng: random.Random,
        trace: Callable[[str], None],
        timeout_ms: int = FUNCTION_TIMEOUT_MS,
        hops: random.Random | None = None,
    ) -> None:
        self._hops = hops
        self.timeout_ms = timeout_ms
        self.concurrency_max = 64
        self.invocations = 0
        self.asked: Callable[[Activation], None] = lambda _request: None
        self._running = 0
        self._quick = QuickSteps()
        self._services = services
        self._table = table
        self._gate = gate
        self._rng = rng
        self._trace = trace

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        await self._gate.enter("invoke", write=False)
        faults = self._gate.faults
        if function != "sim":
            raise FunctionMissingError(f"no function {function!r}")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise PayloadTooLargeError("the request is too large")
        if self._running >= self.concurrency_max or faults.happens("invoke_throttled"):
            raise FunctionThrottledError("too many requests")
        if faults.happens("invoke_unreachable"):
            raise FunctionUnreachableError("connection refused")
        for request in _activations(payload):
            self.asked(request)
        answer = self._start(payload)
        if faults.happens("invoke_doubled"):
            # What a client does that retries by itself: both run, the caller hears of one.
            self._start(payload)
        if faults.happens("answer_lost"):
            # The connection breaks at some moment; the attempt knows nothing of it.
            await asyncio.wait([answer], timeout=self._rng.uniform(0, 2))
            raise FunctionUnreachableError("connection reset")
        if faults.happens("zombie"):
            # A write under way when its function is stopped may still arrive; this is the strongest form of it.
            await asyncio.wait([answer], timeout=self._rng.choice([0.005, 0.05, 0.5]))
            raise FunctionFailedError("the process ended, or so it seems")
        if faults.happens("answer_late"):
            await asyncio.sleep(self._rng.uniform(0.1, 3))
        result = await asyncio.shield(answer)
        await self._gate.leave("invoke", 0)
        if isinstance(result, str):
            raise FunctionFailedError(result)
        return result

    def _start(self, payload: bytes) -> asyncio.Future[bytes | str]:
        """Run the payload in a new process; the future holds the answer, or how the process ended without one."""
        self.invocations += 1
        self._running += 1
        loop = self._gate.loop
        process = Process(f"fn-{self.invocations}", "function", loop, self._gate.faults.skew_ms())
        answer: asyncio.Future[bytes | str] = loop.create_future()

        def end(how: bytes | str) -> None:
            if not answer.done():
                self._running -= 1
                timer.cancel()
                answer.set_result(how)

        # Timers of the platform belong to no process.
        outside = Context()
        timer = loop.call_later(self.timeout_ms / 1_000, process.kill, context=outside)
        process.last_words.append(lambda: end("the process ended: crash or time-out"))
        process.spawn(self._serve(process, payload, end), "activation")
        return answer

    async def _serve(self, process: Process, payload: bytes, end: Callable[[bytes | str], None]) -> None:
        faults = self._gate.faults
        if faults.happens("function_slow"):
            await asyncio.sleep(self._rng.uniform(0, self.timeout_ms / 500))
        request = decode_request(payload)
        for one in _activations(payload):
            self._trace(f"{process.name} {one.mode} {one.service}/{one.key} ver {one.head.ver}")
        env = Environment(
            table=self._table,
            now_ms=process.now_ms,
            deadline_ms=process.now_ms() + self.timeout_ms - (self._gate.loop.now_ms() - process.born_ms),
            writes=InlineWriteLoop() if self._hops is None else HoppingWriteLoop(self._hops),
            thread=_inline,
            jitter=self._rng.random,
            nonce=process.name,
            random_bytes=self._rng.randbytes,
            pooled=isinstance(request, Pooled) and not request.beside,
        )
        run = partial(activate, registry=self._services, env=env)

        def run_with_others(one: Activation) -> Coroutine[Any, Any, messages.Outcome]:
            beside = Beside(env.now_ms() + BESIDE_MS_MAX, self._quick)
            return activate(one, self._services, with_fields(env, writes=InlineWriteLoop(), beside=beside))

        try:
            outcome: messages.Answer
            if isinstance(request, Pooled):
                together = run_beside(request, run_with_others) if request.beside else None
                outcome = await (together or run_pooled(request, run, process.now_ms))
            else:
                assert isinstance(request, Activation)
                outcome = await run(request)
        except Exception as e:  # noqa: BLE001 - Lambda answers any error of a handler with its text
            self._trace(f"{process.name} failed: {e!r}")
            end(f"{type(e).__name__}: {e}")
            return
        self._trace(f"{process.name} answers {_named(outcome)}")
        data = encode(outcome)
        end(data if len(data) <= PAYLOAD_BYTES_MAX else "Function.ResponseSizeTooLarge")


def _activations(payload: bytes) -> Sequence[Activation]:
    request = decode_request(payload)
    if isinstance(request, Pooled):
        return request.activations
    assert isinstance(request, Activation)
    return (request,)


def _named(outcome: messages.Answer) -> str:
    text = repr(outcome)
    return text if len(text) < 240 else text[:240] + "…"


async def _inline(call: Callable[[], Any]) -> Any:
    """Steps of simulated handlers do not block, so they need no thread."""
    return call()


class SimulatedScheduler:
    """Wake-ups from outside (the WakeScheduler port), with the precision of a minute. `fire` is what receives them."""

    def __init__(self, gate: Gate, rng: random.Random, fire: Callable[[bytes], None]) -> None:
        self._gate = gate
        self._rng = rng
        self._fire = fire
        self._pending: dict[str, asyncio.TimerHandle] = {}

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """See `WakeScheduler.schedule`."""

        async def act() -> None:
            if name in self._pending:
                return
            faults = self._gate.faults
            if faults.happens("wake_lost"):
                return
            delay_s = max(0, at_ms - self._gate.loop.now_ms()) / 1_000
            if faults.happens("wake_late"):
                delay_s += self._rng.uniform(0, 60)
            self._pending[name] = self._at(delay_s, payload, name)
            if faults.happens("wake_doubled"):
                self._at(delay_s + self._rng.uniform(0, 60), payload)

        await self._gate.cross(f"schedule {name}", act, SchedulerUnavailableError, write=False)

    async def cancel(self, name: str) -> None:
        """See `WakeScheduler.cancel`."""

        async def act() -> None:
            handle = self._pending.pop(name, None)
            # A schedule that is already on its way fires although it was cancelled.
            if handle is not None and not self._gate.faults.happens("wake_doubled"):
                handle.cancel()

        await self._gate.cross(f"cancel {name}", act, SchedulerUnavailableError, write=False)

    def _at(self, delay_s: float, payload: bytes, name: str | None = None) -> asyncio.TimerHandle:
        def fire() -> None:
            # A schedule is deleted when it has fired: its name may be used again.
            if name is not None:
                self._pending.pop(name, None)
            self._fire(payload)

        return self._gate.loop.call_later(delay_s, fire, context=Context())
