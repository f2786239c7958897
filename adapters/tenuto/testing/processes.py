"""The processes of an environment, their writes, and their end in the middle of one.

Owns the number of each durable write, the table as one process reaches it, and functions that run in this process.
Does not own the control plane (`world`) nor which write a process ends at (`crashes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from tenuto.lane.tombstones import is_tombstone
from tenuto.lane.writes import Answer, Delete, Item, Key, Put, Update, Write
from tenuto.protocol.ids import InvocationId
from tenuto.protocol.messages import Activation, decode_request, encode
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop, ProcessEnded
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Page
from tenuto.testing.courses import WatchedServices
from tenuto_control.ports import AnswerHolder, FunctionFailedError

FUNCTION_TIMEOUT_MS: Final = 60_000
"""How long a function of an environment may run, in its own time."""

Role: TypeAlias = Literal["function", "control plane"]


class Killed(ProcessEnded):
    """The end of a function's process, where it stood."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of whatever process makes the `write`-th durable write (from 1), before or after it is applied."""

    write: int
    applied: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A durable write: who made it, what it did, and where the handler was."""

    role: Role
    name: str
    at: str

    def __str__(self) -> str:
        return f"{self.name} by the {self.role}{self.at}"


@dataclass(slots=True)
class Process:
    """One process. `die` is called when it ends; `at` returns the place of its handler."""

    role: Role
    name: str
    die: Callable[[], None] = lambda: None
    at: Callable[[], str] = lambda: ""
    alive: bool = True

    def kill(self) -> None:
        """End the process: it has no effect any more."""
        if self.alive:
            self.alive = False
            self.die()


@dataclass(slots=True)
class Gate:
    """Numbers the writes of all processes, and ends the one that makes the write of `crash`."""

    crash: Crash | None = None
    writes: list[Written] = field(default_factory=list)
    crashed: bool = False

    def begins(self, process: Process, name: str) -> int:
        """The number of a write that is about to be applied."""
        self.writes.append(Written(process.role, name, process.at()))
        number = len(self.writes)
        self._end(process, number, applied=False)
        return number

    def ends(self, process: Process, number: int) -> None:
        """A write has been applied."""
        self._end(process, number, applied=True)

    def _end(self, process: Process, number: int, *, applied: bool) -> None:
        if self.crash == Crash(number, applied):
            self.crashed = True
            process.kill()


class ProcessTable:
    """The table as one process reaches it: after its end, a function's requests fail and others never return."""

    def __init__(self, table: MemoryTable, gate: Gate, process: Process) -> None:
        self._table = table
        self._gate = gate
        self._process = process

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        number = await self._begins(name_of(write))
        answer = await self._table.write(write)
        await self._ends(number)
        return answer

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        await self._living()
        return await self._table.get(key)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        await self._living()
        return await self._table.get_all(keys)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        await self._living()
        return await self._table.query(pk, low, high, limit=limit, after=after)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        if not puts:
            return
        number = await self._begins(f"{len(puts)} x {name_of(puts[0])}")
        await self._table.put_all(puts)
        await self._ends(number)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        if not deletes:
            return
        number = await self._begins(f"delete {len(deletes)} x {name_of(deletes[0]).removeprefix('delete ')}")
        await self._table.delete_all(deletes)
        await self._ends(number)

    async def _begins(self, name: str) -> int:
        await self._living()
        # As any request does, so that what waits can happen meanwhile.
        await asyncio.sleep(0)
        await self._living()
        number = self._gate.begins(self._process, name)
        await self._living()
        return number

    async def _ends(self, number: int) -> None:
        self._gate.ends(self._process, number)
        await self._living()

    async def _living(self) -> None:
        if self._process.alive:
            return
        if self._process.role == "function":
            raise Killed
        await asyncio.get_running_loop().create_future()


def name_of(write: Write) -> str:
    """A write in words: what it does to which kind of item."""
    match write:
        case Update(key, sets, removes, conditions):
            label = conditions[0].label if conditions else ",".join([*sets, *(f"-{r}" for r in removes)])
            return f"head {label}" if key.sk == "H" else f"update {key.sk}"
        case Put(key, attributes):
            if is_tombstone(attributes):
                return "put tombstone"
            return f"put timer {attributes['kind']!r}" if "due" in attributes else f"put {key.sk.partition('#')[0]}"
        case Delete(key):
            return f"delete {key.pk.partition('#')[0]}"


class Functions:
    """The functions (`tenuto_control.ports.FunctionInvoker`), each invocation in its own process."""

    def __init__(self, table: MemoryTable, gate: Gate, services: WatchedServices, now_ms: Callable[[], int]) -> None:
        self.running: set[asyncio.Task[bytes]] = set()
        self.invocations = 0
        self._table = table
        self._gate = gate
        self._services = services
        self._now_ms = now_ms

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`. The function continues when its caller ends."""
        del function, room  # There is one, and no bound on what it answers.
        request = decode_request(payload)
        assert isinstance(request, Activation)
        self.invocations += 1
        process = Process("function", f"function-{self.invocations}", at=lambda: self._place_of(request))
        task = asyncio.get_running_loop().create_task(self._serve(process, request))
        self.running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self.running.discard(task)
        if not task.cancelled():
            task.exception()  # Its caller may have ended before it.

    async def _serve(self, process: Process, request: Activation) -> bytes:
        env = Environment(
            table=ProcessTable(self._table, self._gate, process),
            now_ms=self._now_ms,
            deadline_ms=self._now_ms() + FUNCTION_TIMEOUT_MS,
            writes=InlineWriteLoop(),
            thread=in_place,
            random_bytes=bytes,
            nonce=process.name,
        )
        work = asyncio.ensure_future(activate(request, self._services, env))
        try:
            await asyncio.wait([work], timeout=FUNCTION_TIMEOUT_MS / 1000)
            if work.done():
                return encode(work.result())
        except Killed:
            raise FunctionFailedError("the process ended") from None
        except Exception as e:
            # Lambda answers any error of a handler with its text.
            raise FunctionFailedError(f"{type(e).__name__}: {e}") from e
        finally:
            process.alive = False
            work.cancel()
        raise FunctionFailedError(self._timed_out(process, request))

    def _timed_out(self, process: Process, request: Activation) -> str:
        """Note of every invocation at work that its function's time is over, and say so."""
        seconds = FUNCTION_TIMEOUT_MS // 1000
        for invocation in _invocations(request):
            course = self._services.courses.get(invocation)
            if course is not None and course.steps:
                steps = ", ".join(map(repr, course.steps))
                course.failed(TimeoutError(f"step {steps} of {course.target} has not ended after {seconds} s"))
        return f"{process.name} timed out after {seconds} s"

    def _place_of(self, request: Activation) -> str:
        for invocation in _invocations(request):
            course = self._services.courses.get(invocation)
            if course is not None and course.work is not None and (line := course.line()) is not None:
                return f", {course.target} at {line}"
        return f" at the end of {request.service}/{_handlers(request)}"


def _invocations(request: Activation) -> list[str]:
    run = request.head.run
    return [event.id for event in request.events] or ([run.event.id] if run is not None else [])


def _handlers(request: Activation) -> str:
    run = request.head.run
    events = request.events or ((run.event,) if run is not None else ())
    return ", ".join(dict.fromkeys(event.handler for event in events))


async def in_place(call: Callable[[], Any]) -> Any:
    """A step that is no coroutine, in this thread: so that steps come in an order that each run repeats.

    Without a running loop, as in the worker thread that it has elsewhere: it may start one.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    if task is not None:
        asyncio.tasks._leave_task(loop, task)  # noqa: SLF001 - documented for event loops
    asyncio._set_running_loop(None)  # noqa: SLF001 - documented for event loops
    try:
        return call()
    finally:
        asyncio._set_running_loop(loop)  # noqa: SLF001 - documented for event loops
        if task is not None:
            asyncio.tasks._enter_task(loop, task)  # noqa: SLF001 - documented for event loops


def lane_name(invocation: str) -> str:
    """The lane of an invocation, for messages."""
    lane = InvocationId.parse(invocation).lane
    return f"{lane.service} of key {lane.key!r}"
