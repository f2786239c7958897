"""One idempotency key, one execution: every combination of calls and sends, at several times, over two control planes.

Owns the combinations, the ends of processes between two writes, and what must hold afterwards: the handler took effect
once, and each caller got its result or an id that leads to it. Virtual time; the production dispatcher and runtime over
one in-memory table. Does not own HTTP (`test_http`) nor random schedules (`tests/simulation`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import pytest

from tenuto import Context, ObjectContext, Service, VirtualObject
from tenuto.handler import Handler
from tenuto.lane.timers import SWEEP_CURSOR
from tenuto.lane.writes import Answer as WriteAnswer
from tenuto.lane.writes import Delete, Item, Key, Put, Write
from tenuto.protocol.ids import InvocationId, Lane, call_nonce
from tenuto.protocol.limits import RESULT_TTL_S
from tenuto.protocol.records import CallSource, Event, Success
from tenuto.service import Services
from tenuto.store.port import Page, TableUnavailableError
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher import Dispatcher, Wiring
from tenuto_control.dispatcher.outages import watched
from tenuto_control.limits import Limits
from tenuto_control.loops.sweep import Sweeper
from tenuto_control.ports import Answer, Pending, UndecidedError, Unknown
from tests.attack.examples import EVERY
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import EPOCH_MS, block, run_virtual

box = VirtualObject("box")
mailer = Service("mailer")
T = TypeVar("T")
SLOW_S: Final = 8.0
DAY_S: Final = 86_400
bodies: list[str] = []


@box.handler()
async def quick(ctx: ObjectContext, body: str) -> str:
    """State alone."""
    return await _note(ctx, body)


@box.handler()
async def slow(ctx: ObjectContext, body: str) -> str:
    """Works for long without a durable step."""
    block(SLOW_S)
    return await _note(ctx, body)


@box.handler()
async def durable(ctx: ObjectContext, body: str) -> str:
    """Claims, and suspends."""
    await ctx.run("step", int)
    await asyncio.sleep(SLOW_S)
    return await _note(ctx, body)


@box.handler()
async def counted(ctx: ObjectContext, body: str) -> None:
    """Counts for a service without state."""
    await _note(ctx, body)


@mailer.handler()
async def mail(ctx: Context, body: str) -> str:
    """A service without keys; what it sends is its effect."""
    ctx.object_send(counted, "k", body)
    return body


async def _note(ctx: ObjectContext, body: str) -> str:
    ctx.set("ran", [*(await ctx.get("ran", list[str]) or []), body])
    bodies.append(body)
    return body


class Ended(Exception):
    """The process that was asked is no more."""


@dataclass(slots=True)
class MortalTable:
    """The table as one process reaches it. After `ends_after` writes nothing comes back, and nothing goes out."""

    table: CountingTable
    ends_after: int | None = None
    away: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def _alive(self) -> None:
        if self.away:
            raise TableUnavailableError("no answer")
        if self.ended.is_set():
            await asyncio.Event().wait()

    async def write(self, write: Write) -> WriteAnswer:
        """See `Table.write`."""
        await self._alive()
        answer = await self.table.write(write)
        if self.ends_after is not None and write.key != SWEEP_CURSOR:
            self.ends_after -= 1
            if self.ends_after <= 0:
                self.ended.set()
                await asyncio.Event().wait()
        return answer

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        await self._alive()
        await asyncio.sleep(0)
        return await self.table.get(key)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        await self._alive()
        await asyncio.sleep(0)
        return await self.table.get_all(keys)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        await self._alive()
        return await self.table.query(pk, low, high, limit=limit, after=after)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        await self._alive()
        await self.table.put_all(puts)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        await self._alive()
        await self.table.delete_all(deletes)


class World:
    """Control planes over one table, each with its own sweep."""

    def __init__(self, planes: int = 2) -> None:
        bodies.clear()
        self.meter = Meter(Services([box, mailer]), limits=Limits())
        self.tables: list[MortalTable] = []
        self.dispatchers: list[Dispatcher] = []
        self.sweepers: list[Sweeper] = []
        self.sweeps: list[asyncio.Task[None]] = []
        for _ in range(planes):
            self.add()

    def add(self) -> None:
        """One more process."""
        meter, table, number = self.meter, MortalTable(self.meter.table), len(self.tables)
        wiring = Wiring(
            table=watched(table, Uncounted()),
            invoker=meter,
            sink=meter,
            targets=meter,
            scheduler=meter,
            clock=meter.clock,
            rng=random.Random(number),
            limits=meter.limits,
            process=f"plane{number}",
            table_name="tenuto",
        )
        dispatcher = Dispatcher(wiring)
        self.tables.append(table)
        self.dispatchers.append(dispatcher)
        self.sweepers.append(Sweeper(wiring, dispatcher))

    def sweep(self) -> None:
        """Have every process sweep at intervals."""
        self.sweeps = [asyncio.create_task(sweeper.run()) for sweeper in self.sweepers]

    async def close(self) -> None:
        """End all processes."""
        for task in self.sweeps:
            task.cancel()
        await asyncio.gather(*self.sweeps, return_exceptions=True)
        for dispatcher in self.dispatchers:
            await dispatcher.kill()

    def effects(self) -> list[str]:
        """The bodies whose execution took effect."""
        return msgspec.json.decode(self.meter.head("box", "k").state.get("ran", b"[]"), type=list[str])

    def expire(self) -> None:
        """Remove what has outlived its time to live."""
        now_s = self.meter.clock.now_ms() // 1000
        for at, item in list(self.meter.table.items.items()):
            if isinstance(ttl := item.get("ttl"), int) and ttl < now_s:
                del self.meter.table.items[at]


def event(handler: Handler[Any, Any], body: str, key: str = "K") -> Event:
    """What the ingress makes of a request with an idempotency key."""
    nonce = call_nonce(handler.name, key)
    lane = Lane(handler.service, nonce if handler is mail else "k")
    return Event(str(InvocationId(lane, nonce)), handler.name, CallSource(True), msgspec.json.encode(body))


@dataclass(frozen=True, slots=True)
class Op:
    """A request: when, at which process, and what. `delay_s` None: a call that waits `wait_s`."""

    at_s: float
    plane: int
    delay_s: float | None
    wait_s: float = 3.0

    def __str__(self) -> str:
        what = f"call({self.wait_s:g})" if self.delay_s is None else f"send({self.delay_s:g})"
        return f"{what}@{self.at_s:g}{'ab'[self.plane]}"

    async def ask(self, world: World, handler: Handler[Any, Any], body: str) -> Answer:
        """Ask once. Raises Ended when the process does so first."""
        dispatcher, table = world.dispatchers[self.plane], world.tables[self.plane]

        async def asked() -> Answer:
            if self.delay_s is None:
                return await dispatcher.call(event(handler, body), round(self.wait_s * 1000))
            await dispatcher.send(event(handler, body), round(self.delay_s * 1000))
            return Pending()

        task, gone = asyncio.ensure_future(asked()), asyncio.ensure_future(table.ended.wait())
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not task.done():
            task.cancel()
            raise Ended
        return task.result()


KINDS: Final = {"quick": quick, "slow": slow, "durable": durable, "unkeyed": mail}
WAYS: Final = ((None, 3.0), (None, 30.0), (0.0, 0.0), (5.0, 0.0), (20.0, 0.0))
"""Delay and wait: two calls, one of them with patience, and three sends."""


async def play(
    kind: str, ops: Sequence[Op], *, ends_after: int | None = None, repeats: bool = True
) -> tuple[list[str], list[Answer | None], Answer, World]:
    """Play requests. The first one's process may end; a caller that repeats asks another one, two seconds later."""
    world, handler = World(), KINDS[kind]
    world.tables[ops[0].plane].ends_after = ends_after
    world.sweep()

    async def person(number: int, op: Op) -> Answer | None:
        await asyncio.sleep(op.at_s)
        body = f"body {number}"
        for tries in range(3):
            try:
                asked = op if tries == 0 else Op(0, 1 - ops[0].plane, op.delay_s, op.wait_s)
                return await asked.ask(world, handler, body)
            except (Ended, UndecidedError):
                if not repeats:
                    return None
                await asyncio.sleep(2)
        raise AssertionError(f"{op} was never answered")

    answers = await asyncio.gather(*(person(number, op) for number, op in enumerate(ops)))
    await asyncio.sleep(60)
    if world.tables[0].ended.is_set() or world.tables[1].ended.is_set():
        await asyncio.sleep(120)
    alive = next(d for d, t in zip(world.dispatchers, world.tables, strict=True) if not t.ended.is_set())
    kept = await alive.result(event(handler, "").id, 1_000)
    effects = world.effects()
    await world.close()
    return effects, list(answers), kept, world


def judge(
    kind: str, ops: Sequence[Op], *, ends_after: int | None = None, repeats: bool = True
) -> tuple[list[str], Answer]:
    """Play requests, and check what must hold of every such play."""
    effects, answers, kept, world = run_virtual(play(kind, ops, ends_after=ends_after, repeats=repeats))
    story = f"{kind}: {', '.join(map(str, ops))}, ends after {ends_after}: {effects}, {answers}, {kept}"
    assert len(effects) <= 1, story
    if any(answer is not None for answer in answers):
        assert len(effects) == 1, story
        result = Success(msgspec.json.encode(effects[0]))
        assert kept == result, story
        assert all(answer in (None, result, Pending()) for answer in answers), story
    # Whatever was begun is over: no live item waits, and no timer of a message.
    left = [at for at, item in world.meter.table.items.items() if "ev" in item or item.get("kind") == "send"]
    assert not left or None in answers, f"{story}\n{left}"
    return effects, kept


def share(kind: str, combinations: Sequence[T], of: int) -> Sequence[T]:
    """One in so many of the combinations, or all of them."""
    return combinations if EVERY in os.environ else combinations[list(KINDS).index(kind) % of :: of]


def pairs() -> list[tuple[Op, Op]]:
    """All ordered pairs, at several distances, at one control plane and at two."""
    found = []
    for (d1, w1), (d2, w2), apart, plane in itertools.product(WAYS, WAYS, (0.0, 0.001, 1.0, 6.0, 30.0), (0, 1)):
        found.append((Op(0.0, 0, d1, w1 or 3.0), Op(apart, plane, d2, w2 or 3.0)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_requests_is_one_execution(kind: str) -> None:
    for first, second in share(kind, pairs(), 7):
        effects, _ = judge(kind, (first, second))
        if second.at_s >= 1 and first.delay_s is not None:
            # It was accepted before the other came: it counts, with its own input and its own time.
            assert effects == ["body 0"], f"{kind}: {first}, {second}: {effects}"


def test_triples_of_requests_are_one_execution() -> None:
    rng = random.Random(11)
    for _ in range(1_000 if EVERY in os.environ else 30):
        ops = []
        for at_s in sorted(rng.choice((0.0, 0.001, 0.5, 2.0, 4.9, 5.0, 19.0, 20.1, 40.0)) for _ in range(3)):
            delay_s, wait_s = rng.choice(WAYS)
            ops.append(Op(at_s, rng.randrange(2), delay_s, wait_s or 3.0))
        judge(rng.choice(list(KINDS)), ops)


def test_whose_execution_is_thrown_away_is_answered_with_the_one_that_counts() -> None:
    """Both run for eight seconds, beside each other, and the commit of the call comes second."""
    judge("slow", (Op(0.001, 1, None, 30.0), Op(0.001, 0, 0.0), Op(2.0, 0, 0.0)))


@pytest.mark.parametrize("repeats", [True, False], ids=["repeats", "gives up"])
def test_the_end_of_a_process_between_any_two_writes(*, repeats: bool) -> None:
    for kind in KINDS:
        for first, second, ends_after in share(kind, list(itertools.product(WAYS, WAYS, range(1, 9))), 13):
            ops = (Op(0.0, 0, first[0], first[1] or 3.0), Op(10.0, 1, second[0], second[1] or 3.0))
            judge(kind, ops, ends_after=ends_after, repeats=repeats)


def test_a_delayed_message_runs_when_it_was_accepted_for() -> None:
    async def scenario(*others: Op) -> None:
        world = World()
        world.sweep()
        await world.dispatchers[0].send(event(quick, "first"), 20_000)
        await asyncio.sleep(1)
        for op in others:
            assert await op.ask(world, quick, "other") == Pending()
        await asyncio.sleep(EPOCH_MS / 1000 + 19.9 - world.meter.clock.now_ms() / 1000)
        assert bodies == []
        await asyncio.sleep(2)
        assert set(bodies) == {"first"}
        await asyncio.sleep(30)
        assert world.effects() == ["first"]
        await world.close()

    for plane, (delay_s, wait_s) in itertools.product((0, 1), WAYS[:1] + WAYS[2:]):
        run_virtual(scenario(Op(0, plane, delay_s, wait_s)))
    run_virtual(scenario(Op(0, 1, 5.0), Op(0, 0, None, 1.0), Op(0, 1, 0.0)))


def test_a_call_that_waits_long_enough_gets_the_delayed_result() -> None:
    async def scenario() -> tuple[Answer, float]:
        world = World()
        await world.dispatchers[0].send(event(quick, "first"), 20_000)
        answer = await world.dispatchers[1].call(event(quick, "second"), 25_000)
        after_s = (world.meter.clock.now_ms() - EPOCH_MS) / 1000
        await world.close()
        return answer, after_s

    answer, after_s = run_virtual(scenario())
    assert answer == Success(b'"first"')
    assert 20 <= after_s < 21.5


@pytest.mark.parametrize("handler", [quick, mail], ids=["keyed", "unkeyed"])
@pytest.mark.parametrize("delays", [(None, 2 * DAY_S), (0, 2 * DAY_S), (2 * DAY_S, None)], ids=str)
def test_what_was_asked_within_the_retention_never_runs_again(
    handler: Handler[Any, Any], delays: tuple[int | None, int | None]
) -> None:
    """A message delayed by days, accepted beside a call: at its time the call's result must not be forgotten."""

    async def scenario() -> list[str]:
        world = World(1)
        first = world.dispatchers[0]

        async def ask(delay_s: int | None, body: str) -> None:
            if delay_s is None:
                await first.call(event(handler, body), 3_000)
            else:
                await first.send(event(handler, body), delay_s * 1000)

        await asyncio.gather(ask(delays[0], "one"), ask(delays[1], "two"))
        await asyncio.sleep(5)
        await ask(None, "three")
        for _ in range(100):
            await asyncio.sleep(3_600)
            world.expire()
            await world.sweepers[0].sweep()
            await world.sweepers[0].sweep_deep()
        effects = world.effects()
        await world.close()
        return effects

    assert len(run_virtual(scenario())) == 1


@pytest.mark.parametrize("way", ["call", "send", "send later", "handed over"])
@pytest.mark.parametrize("tombstones", ["first", "last"])
def test_a_key_is_free_again_once_its_result_is_gone(way: str, tombstones: str) -> None:
    """A quiet lane still notes the call as finished, and its tombstone may outlive the result: neither may count."""

    async def scenario() -> list[str]:
        world = World(1)
        plane = world.dispatchers[0]
        await plane.send(event(quick, "one"), 0)
        await asyncio.sleep(RESULT_TTL_S + 60)
        for at, item in list(world.meter.table.items.items()):
            if at[1] == "R" or (tombstones == "first" and "done" in item):
                del world.meter.table.items[at]
        match way:
            case "call":
                assert await plane.call(event(quick, "two"), 3_000) == Success(b'"two"')
            case "send":
                await plane.send(event(quick, "two"), 0)
            case "send later":
                await plane.send(event(quick, "two"), 5_000)
            case _:
                blocker = event(slow, "blocker", key="B")
                blocking = asyncio.ensure_future(plane.call(blocker, 20_000))
                await asyncio.sleep(1)
                assert await plane.call(event(quick, "two"), 1_000) == Pending()
                await blocking
        await asyncio.sleep(60)
        assert await plane.result(event(quick, "").id, 1_000) == Success(b'"two"')
        effects = world.effects()
        await world.close()
        return [body for body in effects if body != "blocker"]

    assert run_virtual(scenario()) == ["one", "two"]


def test_a_key_belongs_to_one_handler() -> None:
    async def scenario() -> list[str]:
        world = World(1)
        await world.dispatchers[0].send(event(quick, "later"), 20_000)
        assert await world.dispatchers[0].call(event(slow, "now"), 20_000) == Success(b'"now"')
        await asyncio.sleep(30)
        effects = world.effects()
        await world.close()
        return effects

    assert run_virtual(scenario()) == ["now", "later"]


# --- a caller's wait -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["idempotency key", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wait_s", [0, 0.5, 3, 7.99])
def test_a_wait_ends_when_its_caller_says(kind: str, wait_s: float, *, kept: bool) -> None:
    async def scenario() -> None:
        world = World()
        world.sweep()
        asked = event(KINDS[kind], "one")
        asked = msgspec.structs.replace(asked, source=CallSource(kept))
        began_ms = world.meter.clock.now_ms()
        answer = await world.dispatchers[0].call(asked, round(wait_s * 1000))
        assert world.meter.clock.now_ms() - began_ms <= wait_s * 1000 + 100
        if isinstance(answer, Pending):
            attached = await world.dispatchers[1].result(asked.id, 60_000)
            assert attached == Success(b'"one"')
        else:
            assert answer == Success(b'"one"')
        await asyncio.sleep(30)
        assert world.effects() == ["one"]
        if wait_s:
            # Without a wait the call goes to the inbox before it has begun, and its guard calls the other process.
            assert bodies == ["one"], "an attempt that ran was thrown away"
        await world.close()

    run_virtual(scenario())


@pytest.mark.parametrize("ends_after_s", [0.5, 3.5, 7.5, 8.5])
def test_a_call_that_was_promised_survives_the_process_that_ran_it(ends_after_s: float) -> None:
    async def scenario() -> None:
        world = World()
        world.sweep()
        asked = msgspec.structs.replace(event(slow, "one"), source=CallSource(keep_result=False))
        call = asyncio.ensure_future(world.dispatchers[0].call(asked, 3_000))
        await asyncio.sleep(ends_after_s)
        world.tables[0].ended.set()
        await asyncio.sleep(0.1)
        promised = call.done() and call.result() == Pending()
        call.cancel()
        await asyncio.sleep(180)
        assert promised is (ends_after_s > 3)
        assert world.effects() == (["one"] if promised else [])
        if promised:
            assert await world.dispatchers[1].result(asked.id, 1_000) == Success(b'"one"')
        await world.close()

    run_virtual(scenario())


@pytest.mark.parametrize("away_s", [0.0, 1.0, 2.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_away_is_told_in_time_and_changes_nothing(kind: str, away_s: float) -> None:
    """The caller hears 503 soon after its wait, and may repeat the call: it has run once in the end."""

    async def scenario() -> None:
        world = World(1)
        world.sweep()
        plane = world.dispatchers[0]

        async def outage() -> None:
            await asyncio.sleep(away_s)
            world.tables[0].away = True
            await asyncio.sleep(60)
            world.tables[0].away = False

        async def ask() -> Answer | None:
            began_ms = world.meter.clock.now_ms()
            try:
                return await plane.call(event(KINDS[kind], "one"), 3_000)
            except (UndecidedError, TableUnavailableError):
                return None
            finally:
                assert world.meter.clock.now_ms() - began_ms <= 4_100

        away = asyncio.ensure_future(outage())
        await asyncio.sleep(0)
        first = await ask()
        again = await ask()
        await away
        await asyncio.sleep(60)
        last = await plane.call(event(KINDS[kind], "one"), 20_000)
        assert last == Success(b'"one"')
        assert {type(first), type(again)} <= {type(None), Success, Pending}
        await asyncio.sleep(10)
        assert world.effects() == ["one"]
        await world.close()

    run_virtual(scenario())


def test_two_callers_of_one_key_are_both_answered_though_one_leaves() -> None:
    async def scenario() -> list[Answer]:
        world = World(1)
        plane = world.dispatchers[0]
        answers = await asyncio.gather(
            plane.call(event(slow, "one"), 2_000),
            plane.call(event(slow, "one"), 20_000),
            plane.call(event(slow, "x"), 0),
        )
        await asyncio.sleep(30)
        assert world.effects() in (["one"], ["x"])
        assert await plane.result(event(slow, "").id, 0) != Unknown()
        await world.close()
        return list(answers)

    first, second, third = run_virtual(scenario())
    assert first == third == Pending()
    assert isinstance(second, Success)
