"""An environment over a real system: Kafka, DynamoDB, function processes and a control plane on this machine.

Owns the system of one environment and how each request reaches it: calls over HTTP, records through Kafka, state from
the table. Does not own the embedded stack (`tenuto_local`), which the extras `control` and `local` install.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote

from tenuto.handler import Handler
from tenuto.lane.head import head_key, parse_head
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import Event, Failed, Failure, Result, Success
from tenuto.service import Service, VirtualObject
from tenuto.testing.errors import HarnessError, NothingWaitsError, StillWaitingError
from tenuto.testing.face import Face
from tenuto.testing.letters import dead_letters
from tenuto.testing.operations import Operation
from tenuto.testing.real_topics import RealTopics
from tenuto.testing.targets import Targets
from tenuto.testing.topics import Topics
from tenuto.testing.views import DeadLetter, Record
from tenuto.testing.virtual_loop import LoopThread, RealTimeLoop
from tenuto_control.core.routing import Subscription

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from tenuto.store.port import Table
    from tenuto_local.system import System

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
START_S_MAX: Final = 600.0
"""The first start on a machine fetches what it runs."""

LOOK_S: Final = 0.05
OVER_S: Final = 5.0
"""Seconds beyond the timeout of a request, after which it is given up wherever it is: before, it says more itself."""

PARTITIONS: Final = 4
FUNCTION: Final = "tests"


class RealEnvironment(Face):
    """Services and virtual objects on the embedded stack, in real time. Use it with `async with` or `with`.

        with RealEnvironment(orders, handler="shop.handlers:handler", topics={"orders": place}) as env:
            env.event("orders", "order-7", order).result()
            env.eventually(lambda: env.state(orders, "order-7", "status"), "paid").result()

    It takes seconds to start, so share one between the tests of a module. It needs the extras `control` and `local`.
    `handler` is the import path of the Lambda handler, in the folder `root`. `topics` routes the records of a topic to
    a handler; `publishes` names the topics that handlers publish to. `timeout` is the longest duration of a request, in
    seconds. It has the methods of `Environment` that need no virtual time, and `eventually`.

    The constructor raises TypeError for anything other than services and virtual objects.
    """

    def __init__(
        self,
        *services: Service | VirtualObject,
        handler: str,
        root: str | PathLike[str] = ".",
        topics: Mapping[str, Handler[Any, Any] | str] | None = None,
        publishes: Sequence[str] = (),
        timeout: float = TIMEOUT_S,
    ) -> None:
        self._targets = Targets(services)
        self._led = self._targets.subscriptions(topics or {}, None)
        self._make = _Making(handler, Path(root), self._led, tuple(publishes))
        self._timeout_s = timeout
        self._entered: tuple[LoopThread, _Running, AsyncExitStack] | None = None

    def __enter__(self) -> Self:
        """Start the system. Raises HarnessError if a part that it needs is not installed."""
        thread = LoopThread("tenuto-testing", RealTimeLoop())
        closing = AsyncExitStack()
        starting = thread.submit(lambda: closing.enter_async_context(_running(self._make, self._timeout_s)))
        try:
            running = starting.result(START_S_MAX)
        except BaseException:
            thread.close()
            raise
        self._entered = (thread, running, closing)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop the system."""
        if self._entered is not None:
            thread, _running_now, closing = self._entered
            self._entered = None
            thread.submit(closing.aclose).result(START_S_MAX)
            thread.close()

    async def __aenter__(self) -> Self:
        """See `__enter__`."""
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `__exit__`."""
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def eventually(self, look: Callable[[], Operation[T]], expected: T) -> Operation[T]:
        """Repeat an operation until its result equals `expected`, and return the result.

        `look` returns a new operation each time, such as `lambda: env.state(orders, "order-7")`. Raises
        StillWaitingError with the last result after the timeout of the environment.
        """

        async def work() -> T:
            until_s = time.monotonic() + self._timeout_s
            while (found := await look()) != expected:
                if time.monotonic() > until_s:
                    raise StillWaitingError(f"expected {expected!r}, and found {found!r} after {self._timeout_s:g} s")
                await asyncio.sleep(LOOK_S)
            return found

        return self._submit(work, "env.eventually(...)")

    def eventually_one(self, look: Callable[[], Operation[list[T]]]) -> Operation[T]:
        """Repeat an operation until its result has exactly one element, such as a dead letter, and return the element.

        Raises StillWaitingError with the last result after the timeout of the environment.
        """

        async def work() -> T:
            until_s = time.monotonic() + self._timeout_s
            while len(found := await look()) != 1:
                if time.monotonic() > until_s:
                    raise StillWaitingError(f"expected one element, and found {found!r} after {self._timeout_s:g} s")
                await asyncio.sleep(LOOK_S)
            return found[0]

        return self._submit(work, "env.eventually_one(...)")

    @property
    def _living(self) -> tuple[LoopThread, _Running, AsyncExitStack]:
        if self._entered is None:
            raise HarnessError("this environment is not in use: async with RealEnvironment(...) as env")
        return self._entered

    @property
    def _behind(self) -> _Running:
        return self._living[1]

    @property
    def _subscriptions(self) -> tuple[Subscription, ...]:
        return self._led

    @property
    def _inside(self) -> bool:
        return False

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> Operation[T]:
        running = self._behind
        return self._submit(lambda: running.in_time(work, what), what)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> Operation[T]:
        thread = self._living[0]
        return Operation(thread.submit(work), thread, None, what)


@dataclass(frozen=True, slots=True)
class _Making:
    """What a system is made from."""

    handler: str
    root: Path
    subscriptions: tuple[Subscription, ...]
    publishes: tuple[str, ...]

    def config(self) -> str:
        """Its tenuto.toml."""
        sections = [f"[functions.{FUNCTION}]"]
        for one in self.subscriptions:
            target = json.dumps(f"{one.service}/{one.handler}")
            ordering = json.dumps(one.ordering)
            sections.append(
                f"[[subscriptions]]\ntopic = {json.dumps(one.topic)}\ntarget = {target}\nordering = {ordering}"
            )
        return "\n\n".join(sections) + "\n"

    def topics(self) -> dict[str, int]:
        """The topics of the broker, and their partitions."""
        own = [topic for one in self.subscriptions for topic in (one.topic, one.dead_letter_topic)]
        return dict.fromkeys((*own, *self.publishes), PARTITIONS)

    def system(self) -> System:
        """The system. Raises HarnessError when an extra is missing."""
        try:
            from tenuto_local.lambda_service.function_spec import FunctionSpec
            from tenuto_local.system import System
        except ModuleNotFoundError as e:
            way = 'pip install "tenuto[control,local]"'
            raise HarnessError(f"RealEnvironment needs the package {e.name}, which is not installed: {way}") from e
        function = FunctionSpec(name=FUNCTION, handler=self.handler.replace(":", "."), root=str(self.root))
        return System([function], topics=self.topics(), config_text=self.config())


@asynccontextmanager
async def _running(make: _Making, timeout_s: float) -> AsyncIterator[_Running]:
    """A running system, and the clients that reach it."""
    system = make.system()
    from aiobotocore.session import get_session
    from aiohttp import ClientSession, ClientTimeout

    from tenuto.store.dynamodb import DynamoTable

    async with AsyncExitStack() as parts:
        await parts.enter_async_context(system)
        own = system.environment()
        client: Any = await parts.enter_async_context(
            get_session().create_client(
                "dynamodb",
                region_name=own["AWS_REGION"],
                endpoint_url=system.stack.dynamodb_endpoint_url,
                aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
                aws_session_token=own.get("AWS_SESSION_TOKEN"),
            )
        )
        http = await parts.enter_async_context(ClientSession(timeout=ClientTimeout(total=timeout_s)))
        topics = RealTopics(system.bootstrap_servers, make.topics())
        yield _Running(system, make, http, DynamoTable(client, own["TENUTO_TABLE"]), timeout_s, topics)


@dataclass(slots=True)
class _Running:
    """A running system, as `face.Behind`."""

    system: System
    make: _Making
    http: ClientSession
    table: Table
    timeout_s: float
    topics: RealTopics
    _own: str = field(default_factory=lambda: secrets.token_hex(4))
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def in_time(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> T:
        """Do what was asked for. Raises StillWaitingError after the timeout, HarnessError for a part that is gone."""
        from aiohttp import ClientError
        from aiokafka.errors import KafkaError
        from botocore.exceptions import BotoCoreError

        try:
            async with asyncio.timeout(self.timeout_s + OVER_S):
                return await work()
        except TimeoutError as e:
            raise StillWaitingError(
                f"{what} has not ended after {self.timeout_s:g} s. The last lines of the system's log:\n"
                f"{self.system.log_tail()}"
            ) from e
        except (BotoCoreError, ClientError, KafkaError, OSError) as e:
            raise HarnessError(
                f"{what}: a part of the system does not answer ({type(e).__name__}: {e}). The last lines of its log:\n"
                f"{self.system.log_tail()}"
            ) from e

    async def call(self, event: Event, idempotency_key: str, *, shared: bool) -> Result:
        """See `Behind.call`."""
        found = await self._asked("call", event, None if shared else idempotency_key)
        return found if found is not None else await self.result(event.id, event.handler)

    async def send(self, event: Event, idempotency_key: str, delay_ms: int) -> None:
        """See `Behind.send`."""
        refused = await self._asked("send", event, idempotency_key, f"?delay={delay_ms}ms" if delay_ms else "")
        if isinstance(refused, Failed):
            raise HarnessError(f"the control plane refuses this: {refused.failure.message}")

    async def result(self, invocation: str, handler: str) -> Result:
        """See `Behind.result`. Raises StillWaitingError."""
        until_s = time.monotonic() + self.timeout_s
        while time.monotonic() < until_s:
            async with self.http.get(f"{self.system.ingress}/invocations/{invocation}/output") as answer:
                found = _result_of(answer.status, await answer.read())
            if found is not None and answer.status != HTTPStatus.NOT_FOUND:
                return found
            await asyncio.sleep(LOOK_S)
        raise StillWaitingError(f"{handler or 'the invocation'} has not ended after {self.timeout_s:g} s")

    async def event(
        self, topic: str, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]
    ) -> Event | None:
        """See `Behind.event`. What the record becomes is not known here."""
        await self.topics.produce(topic, key, value, headers)
        return None

    async def resolve(self, awakeable: str, result: Result) -> None:
        """See `Behind.resolve`."""
        if isinstance(result, Failed):
            verb, data, kind = "reject", result.failure.message.encode(), "text/plain"
        else:
            verb, data, kind = "resolve", result.value or b"", "application/json"
        url = f"{self.system.ingress}/awakeables/{awakeable}/{verb}"
        async with self.http.post(url, data=data, headers={"content-type": kind}) as answer:
            body = await answer.read()
            if answer.status in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                raise NothingWaitsError(_message(body))
            _require(answer.status, body)

    async def state(self, lane: Lane) -> Mapping[str, bytes]:
        """See `Behind.state`."""
        return parse_head(await self.table.get(head_key(lane))).state

    async def published(self, topic: str) -> list[Record]:
        """See `Behind.published`: everything from the oldest record to the current end."""
        return await self.topics.published(topic)

    async def dead_letters(self) -> list[DeadLetter]:
        """See `Behind.dead_letters`."""
        names = sorted({one.dead_letter_topic for one in self.make.subscriptions})
        return await dead_letters(
            self.table, Topics(self.event, ()), self, [await self.published(name) for name in names]
        )

    async def settled(self) -> None:
        """See `Behind.settled`: nobody knows, so this returns at once."""

    def place(self, _invocation: str) -> str | None:
        """See `Behind.place`: the log of the function knows."""
        return None

    def idempotency_key(self) -> str:
        """See `Behind.idempotency_key`."""
        return f"{self._own}-{next(self._numbers)}"

    def now_ms(self) -> int:
        """Milliseconds since the epoch (the Clock port)."""
        return time.time_ns() // 1_000_000

    async def _asked(self, verb: str, event: Event, key: str | None, query: str = "") -> Result | None:
        lane, nonce = event.invocation
        path = [lane.service, *([] if lane.key == nonce else [lane.key]), event.handler]
        headers = [(name, value.decode()) for name, value in event.headers]
        if key is not None:
            headers.append(("idempotency-key", key))
        url = f"{self.system.ingress}/{verb}/{'/'.join(quote(part, safe='') for part in path)}{query}"
        async with self.http.post(url, data=event.input or b"", headers=headers) as answer:
            body = await answer.read()
            if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                raise HarnessError(f"the control plane cannot take this: {_message(body)}\n{self.system.log_tail()}")
            return _result_of(answer.status, body)


def _result_of(status: int, body: bytes) -> Result | None:
    """The result in an answer; None for one that is still to come."""
    if status == HTTPStatus.ACCEPTED:
        return None
    if status == HTTPStatus.NO_CONTENT:
        return Success(None)
    if status == HTTPStatus.OK:
        return Success(body)
    error = _error(body)
    return Failed(Failure(str(error.get("message")), status, dict(error.get("metadata") or {})))


def _require(status: int, body: bytes) -> None:
    if status >= HTTPStatus.BAD_REQUEST:
        raise HarnessError(f"the control plane refuses this ({status}): {_message(body)}")


def _message(body: bytes) -> str:
    return str(_error(body).get("message"))


def _error(body: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return {"message": body.decode(errors="replace")}
