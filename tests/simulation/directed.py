"""Schedules written by hand, for clauses that random ones rarely miss: each shows what the clause prevents.

Owns one schedule a clause, with its own law. Does not own the hunts over random schedules (`mutants`).

A schedule takes the labels that are left out and raises AssertionError when the law is broken.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from msgspec import structs

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.lane.head import head_key, parse_head
from tenuto.lane.naps import Nap, nap
from tenuto.lane.timers import GuardTimer, timer_put
from tenuto.lane.transitions import (
    Effects,
    Progress,
    WakeCondition,
    claim,
    inbox_put,
    mark_pend,
    suspend,
    takeover,
)
from tenuto.lane.writes import Answer, Applied, Delete, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce, message_nonce
from tenuto.protocol.limits import AWAKEABLES_BYTES_MAX
from tenuto.protocol.messages import Activation, ClaimedRun, Head, NapLeave
from tenuto.protocol.records import Event, KafkaSource, MessageSource, RunSlot, Success, unpack_slot
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.port import Page, TableUnavailableError
from tenuto_control.admin.dead_letters import REDRIVE_MS_MAX, DeadLetterOffice, RedriveUncertainError
from tenuto_control.core.sightings import TOLD_MS
from tenuto_control.ports import Resolution
from tests.costs.meter import CountingTable, Meter
from tests.simulation.directed_continuations import begun_twice, handed_on_late
from tests.support.virtual_time import VirtualClock, run_virtual

chain = VirtualObject("chain")
LANE = Lane("chain", "k")

LOST_TRIES = 3
"""Tries of a suspension whose responses are lost: by the last one, what the first has sent is delivered."""

ANSWERS, ANSWER_BYTES = 12, 30_000
"""Several times what the head has room for."""


asker = VirtualObject("asker")


@asker.handler()
async def ask(ctx: ObjectContext) -> None:
    """Wait for an answer."""
    await ctx.awakeable(int)[1]


caller = VirtualObject("caller")


@caller.handler()
async def double(_ctx: ObjectContext, n: int) -> int:
    """A result to ask for."""
    return 2 * n


teller = VirtualObject("teller")


@teller.handler()
async def count(ctx: ObjectContext) -> None:
    """Count up."""
    ctx.set("count", (await ctx.get("count", int) or 0) + 1)


@teller.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
async def fail(_ctx: ObjectContext) -> None:
    """Fail for good."""
    raise RuntimeError("this message never works")


@chain.handler()
async def tell(ctx: ObjectContext) -> None:
    """Publish, then wait for an answer."""
    ctx.publish("told", {"n": 1})
    await ctx.awakeable(int)[1]


@chain.handler()
async def note(ctx: ObjectContext) -> None:
    """Append the offset to the key's list."""
    await _append(ctx)


@chain.handler()
async def step(ctx: ObjectContext) -> None:
    """As note, with a durable step."""
    await ctx.run("step", int)
    await _append(ctx)


async def _append(ctx: ObjectContext) -> None:
    origin = ctx.request().kafka
    assert origin is not None
    ctx.set("seen", [*(await ctx.get("seen") or []), origin.offset])


class Table(CountingTable):
    """Leaves clauses out, and lets a schedule act between a query and its answer."""

    def __init__(self, without: frozenset[str]) -> None:
        super().__init__()
        self.without = without
        self.after_query: Callable[[], None] | None = None
        self.heads: list[Head] = []
        self.dies_after: str | None = None
        self.dies_at: str | None = None
        self.silent: Callable[[Write], bool] | None = None

    def apply(self, write: Write) -> Answer:
        """See `MemoryTable.apply`."""
        if not isinstance(write, Delete):
            kept = tuple(c for c in write.conditions if c.label not in self.without)
            write = structs.replace(write, conditions=kept)
        return super().apply(write)

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        answer = await super().write(write)
        if self.silent is not None and self.silent(write):
            raise TableUnavailableError("the response was lost")
        if self.dies_at is not None and write.key.pk.startswith(self.dies_at):
            self.dies_at = None
            await asyncio.Event().wait()
        if write.key == head_key(LANE) and isinstance(answer, Applied):
            self.heads.append(parse_head(self.items[LANE.pk, "H"]))
            if isinstance(write, Update) and self.dies_after in write.removes:
                self.dies_after = None
                await asyncio.Event().wait()
        return answer

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`."""
        page = await super().query(pk, low, high, limit=limit, after=after)
        if pk == LANE.pk and self.after_query is not None:
            act, self.after_query = self.after_query, None
            act()
        return page

    def keys_of(self, prefix: str) -> list[str]:
        """Sort keys of what is in partitions whose name begins so."""
        return [sk for pk, sk in self.items if pk.startswith(prefix)]

    def spill(self, offset: int, handler: str, mark: str) -> None:
        """What another control plane does with an event it cannot run: item, guard, mark."""
        nonce = kafka_nonce("0", "t", 0, offset)
        event = Event(str(InvocationId(LANE, nonce)), handler, KafkaSource("0", "t", 0, offset, 0), b"1")
        self.apply(inbox_put(LANE, event))
        self.apply(timer_put(GuardTimer(LANE, nonce, 10**15, mark)))
        self.apply(mark_pend(LANE, mark))


def overtaking(handler_name: str) -> Callable[[frozenset[str]], None]:
    """An event was spilled elsewhere; a control plane with an older head in memory gets the event behind it."""

    def schedule(without: frozenset[str]) -> None:
        handler = {"note": note, "step": step}[handler_name]

        async def scenario() -> None:
            table = Table(without)
            meter = Meter(Services([chain]), table=table)
            meter.deliver(handler, "k")
            await meter.quiet()
            table.spill(1, handler_name, "elsewhere.1")
            meter._offset += 1
            meter.deliver(handler, "k")
            await meter.quiet()
            _in_order(table, [0, 1, 2])

        run_virtual(scenario())

    return schedule


def mark_lost_at_clearing(without: frozenset[str]) -> None:
    """The inbox is found empty; before its mark is cleared, an item and a new mark arrive."""

    async def scenario() -> None:
        table = Table(without)
        meter = Meter(Services([chain]), table=table)
        meter.deliver(note, "k")
        await meter.quiet()
        table.apply(mark_pend(LANE, "stale"))
        table.after_query = lambda: table.spill(1, "note", "elsewhere.1")
        meter.dispatcher.look(LANE)
        await meter.quiet()
        meter._offset += 1
        meter.deliver(note, "k")
        await meter.quiet()
        _in_order(table, [0, 1, 2])

    run_virtual(scenario())


def mark_lost_at_commit(without: frozenset[str]) -> None:
    """All the inbox holds is drained; before the commit that clears the mark more arrives, then the process dies."""

    async def scenario() -> None:
        table = Table(without)
        meter = Meter(Services([chain]), table=table)
        meter.deliver(note, "k")
        await meter.quiet()
        table.spill(1, "note", "elsewhere.1")
        table.after_query = lambda: table.spill(2, "note", "elsewhere.2")
        table.dies_after = "pend"
        meter.dispatcher.look(LANE)
        await asyncio.sleep(1)
        other = Meter(Services([chain]), table=table, clock=meter.clock)
        other._offset = 2
        other.deliver(note, "k")
        await other.quiet()
        _in_order(table, [0, 1, 2, 3])

    run_virtual(scenario())


def woken_for_nothing(without: frozenset[str]) -> None:
    """A run is seen running; it is suspended before its lease ends, and nothing has come that it waits for."""

    async def scenario() -> None:
        table = Table(without)
        meter = Meter(Services([asker]), table=table)
        lane = Lane("asker", "k")
        event = meter.event_of_call(ask, "k", "c1")
        run = ClaimedRun(event, 1, 0, 0, 1, "another", meter.clock.now_ms() + 1_000)
        claimed = table.apply(claim(lane, Head(), Effects(), run, "t", drain=False))
        assert isinstance(claimed, Applied)
        meter.dispatcher.look(lane)
        await asyncio.sleep(0.2)
        table.apply(suspend(lane, 1, run, Progress(), {}, {}, WakeCondition(("0a",), None), "another"))
        await asyncio.sleep(30)
        left = meter.head("asker", "k").run
        assert left is not None
        assert left.attempt == 1, "a sleeping run was taken over for nothing"

    run_virtual(scenario())


def result_forgotten(without: frozenset[str]) -> None:
    """A call has its result, and then a delayed message comes with the same idempotency key."""

    async def scenario() -> None:
        meter = Meter(Services([caller]), table=Table(without))
        event = meter.event_of_call(double, "k", "c1", keep=True)
        await meter.dispatcher.call(event, 1_000)
        await meter.quiet()
        await meter.dispatcher.send(event, 60_000)
        answer = await meter.dispatcher.result(event.id, 1_000)
        assert answer == Success(b"2"), f"who asks for the result is told {answer}"

    run_virtual(scenario())


def message_replaced(without: frozenset[str]) -> None:
    """A call joins a delayed message that another control plane has accepted, with an input of its own."""

    async def scenario() -> None:
        table = Table(without)
        first, second = (Meter(Services([caller]), table=table) for _ in range(2))
        event = first.event_of_call(double, "k", "c1", keep=True)
        await first.dispatcher.send(event, 1_000)
        await first.dispatcher.stop()
        answer = await second.dispatcher.call(structs.replace(event, input=b"5"), 5_000)
        assert answer == Success(b"2"), f"the message that was accepted has given way to one with the result {answer}"

    run_virtual(scenario())


def suspended_twice(without: frozenset[str]) -> None:
    """A suspension's response is lost; what it sends is delivered, and its run comes to wait for an answer alone.

    Then the function tries again, of whose end nobody hears: its control plane has died.
    """

    async def scenario() -> None:
        table = Table(without)
        meter = Meter(Services([chain]), table=table)
        source = KafkaSource("0", "t", 0, 0, 0)
        event = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "tell", source, b"1")
        suspensions = itertools.count()

        def lost(write: Write) -> bool:
            suspends = isinstance(write, Update) and "awaits" in write.sets
            return suspends and next(suspensions) < LOST_TRIES

        table.silent = lost
        env = Environment(
            table, meter.clock.now_ms, meter.clock.now_ms() + 60_000, InlineWriteLoop(), _inline, nonce="function"
        )
        request = Activation("chain", "k", "speculate", Head(), "h", (event,))
        attempt = asyncio.create_task(activate(request, Services([chain]), env))
        await asyncio.sleep(0.1)
        assert meter.head("chain", "k").out, "the suspension was applied"
        meter.dispatcher.look(LANE)
        await meter.quiet()
        assert meter.published == ["told"]
        assert not meter.head("chain", "k").out
        await attempt
        assert next(suspensions) == LOST_TRIES + 1, "the function has tried again"
        left = meter.head("chain", "k").out
        assert not left, f"delivered, and in the outbox again, where nothing leads: {list(left)}"

    run_virtual(scenario())


def answered_at_once(without: frozenset[str]) -> None:
    """More large answers than a head has room for are put at the same time, each by another process."""

    async def scenario() -> None:
        names: list[str] = []
        box = VirtualObject("asker")

        @box.handler()
        async def ask_many(ctx: ObjectContext) -> None:
            asked = [ctx.awakeable(str) for _ in range(ANSWERS)]
            names.extend(name for name, _ in asked)
            await ctx.gather(*(future for _, future in asked))

        table = Table(without)
        meter = Meter(Services([box]), table=table)
        # The answers that one process has go into one write.
        others = [
            Meter(Services([box]), table=table, clock=meter.clock, process=f"meter-{number}")
            for number in range(ANSWERS)
        ]
        meter.deliver(ask_many, "k")
        await meter.quiet()
        heaviest = 0

        async def answer(process: Meter, name: str) -> None:
            nonlocal heaviest
            resolution = await process.dispatcher.resolve(name, Success(b'"' + b"x" * ANSWER_BYTES + b'"'))
            heaviest = max(heaviest, sum(len(data) for data in meter.head("asker", "k").slots.values()))
            assert resolution is Resolution.ACCEPTED

        await asyncio.gather(*map(answer, others, names))
        for process in others:
            await process.quiet()
        assert meter.head("asker", "k").run is None
        assert heaviest <= AWAKEABLES_BYTES_MAX, f"answers of {heaviest} bytes sit in the head"

    run_virtual(scenario())


def shipped_again(without: frozenset[str]) -> None:
    """A message was shipped by two processes: one of them puts it once the other's has been run."""

    async def scenario() -> None:
        table = Table(without)
        lane = Lane("teller", "k")
        nonce = message_nonce("sender", 0)
        event = Event(str(InvocationId(lane, nonce)), "count", MessageSource("sender", "1.0"), b"1")
        for partition, mark in enumerate(("first", "second")):
            # Another process, which remembers nothing of the first one's messages.
            meter = Meter(Services([teller]), table=table)
            table.apply(inbox_put(lane, event))
            table.apply(timer_put(GuardTimer(lane, nonce, 10**15, mark)))
            table.apply(mark_pend(lane, mark))
            meter.dispatcher.look(lane)
            await meter.quiet()
            # What the head remembers of finished messages goes with a later write: the tombstone is there.
            for _ in range(2):
                await asyncio.sleep(2 * TOLD_MS / 1_000)
                meter.deliver(count, "k", partition=partition)
                await meter.quiet()
        assert parse_head(table.items["teller/k", "H"]).state["count"] == b"5", "one message was run twice"

    run_virtual(scenario())


async def _buried(table: Table) -> Meter:
    """A control plane that has put a message among the dead letters, and died before it said so."""
    meter = Meter(Services([teller]), table=table)
    lane = Lane("teller", "k")
    nonce = message_nonce("sender", 0)
    event = Event(str(InvocationId(lane, nonce)), "fail", MessageSource("sender", "1.0"), b"1")
    table.apply(inbox_put(lane, event))
    table.apply(timer_put(GuardTimer(lane, nonce, 10**15, "mark")))
    table.apply(mark_pend(lane, "mark"))
    table.dies_at = "D#"
    meter.dispatcher.look(lane)
    await asyncio.sleep(5)
    assert len(table.keys_of("D#")) == 1
    assert meter.head("teller", "k").out, "what was delivered is in the outbox still"
    return meter


def _office(meter: Meter) -> DeadLetterOffice:
    tokens = itertools.count()
    return DeadLetterOffice(meter.table, meter, meter.clock, meter.limits, lambda: f"office {next(tokens)}")


def letter_put_again(without: frozenset[str]) -> None:
    """A dead letter is thrown away before its outbox entry is cleared; another control plane ships that again."""

    async def scenario() -> None:
        table = Table(without)
        first = await _buried(table)
        office = _office(first)
        [letter] = await office.listed()
        await office.discard(letter.id)
        second = Meter(Services([teller]), table=table, clock=first.clock)
        second.dispatcher.look(Lane("teller", "k"))
        await second.quiet()
        assert not second.head("teller", "k").out
        assert not await office.listed(), "a dead letter that was thrown away is back"

    run_virtual(scenario())


def redriven_late(without: frozenset[str]) -> None:
    """A redrive breaks off, is repeated in time, breaks off again, and is repeated when the tombstone may be gone."""

    async def scenario() -> None:
        table = Table(without)
        meter = await _buried(table)
        office = _office(meter)
        [letter] = await office.listed()
        for _ in range(2):
            table.dies_at = "D#"
            broken_off = asyncio.create_task(office.redrive(letter.id))
            await asyncio.sleep(1)
            broken_off.cancel()
            await asyncio.sleep(REDRIVE_MS_MAX * 0.6 / 1000)
        try:
            await office.redrive(letter.id)
        except RedriveUncertainError:
            return
        raise AssertionError("a redrive that began too long ago was repeated")

    run_virtual(scenario())


def woken_from_a_nap(without: frozenset[str]) -> None:
    """A run is seen running; it naps before its lease ends, for longer than that."""

    async def scenario() -> None:
        table = Table(without)
        meter = Meter(Services([asker]), table=table)
        lane = Lane("asker", "k")
        event = meter.event_of_call(ask, "k", "c1")
        now_ms = meter.clock.now_ms()
        run = ClaimedRun(event, 1, 0, 0, 1, "another.1", now_ms + 1_000)
        assert isinstance(table.apply(claim(lane, Head(), Effects(), run, "t", drain=False)), Applied)
        meter.dispatcher.look(lane)
        await asyncio.sleep(0.2)
        sleep = Nap(now_ms + 60_000, "another.2", now_ms + 75_000, {})
        assert isinstance(table.apply(nap(lane, 1, run, Progress(), {}, {}, sleep, "tok", "another")), Applied)
        await asyncio.sleep(30)
        left = meter.head("asker", "k").run
        assert left is not None
        assert left.holder == "another.2", "a run was taken over in the middle of its nap"

    run_virtual(scenario())


def napping_late(without: frozenset[str]) -> None:
    """A run is taken over while a function works on it, which then has it nap."""

    async def scenario() -> None:
        table, clock = Table(without), VirtualClock()
        box = VirtualObject("chain")

        @box.handler()
        async def naps(ctx: ObjectContext) -> None:
            await ctx.run("step", asyncio.sleep, 0.5)
            await ctx.sleep(timedelta(seconds=2))

        def resumed(head: Head, holder: str, leave: NapLeave | None) -> Activation:
            return Activation("chain", "k", "resume", head, holder, nap=leave)

        def surroundings(nonce: str) -> Environment:
            return Environment(table, clock.now_ms, clock.now_ms() + 10_000, InlineWriteLoop(), _inline, nonce=nonce)

        event = Event(str(InvocationId(LANE, kafka_nonce("0", "t", 0, 0))), "naps", KafkaSource("0", "t", 0, 0, 0), b"")
        heads: list[Head] = []
        claimed = table.apply(claim(LANE, Head(), Effects(), ClaimedRun(event, 1, 0, 0, 1, "h1", 0), "t", drain=False))
        for holder in ("h2", "h3"):
            assert isinstance(claimed, Applied)
            claimed = table.apply(takeover(LANE, parse_head(claimed.item), holder, clock.now_ms() + 10_000, {}, holder))
            heads.append(parse_head(claimed.item))
        request = resumed(heads[0], "h2", NapLeave(5_000, 15_000, "h2 next"))
        outcome = await activate(request, Services([box]), surroundings("late"))
        left = parse_head(table.items[LANE.pk, "H"]).run
        assert left is not None
        assert (left.holder, left.napping) == ("h3", False), f"the lane of h3 was given to {left.holder}: {outcome}"

    run_virtual(scenario())


def joined_late(without: frozenset[str]) -> None:
    """A run is taken over while a function works on it, which then ends it and claims the next event."""

    async def scenario() -> None:
        table, clock = Table(without), VirtualClock()
        box = VirtualObject("chain")

        @box.handler()
        async def slow(ctx: ObjectContext) -> None:
            await ctx.run("step", asyncio.sleep, 0.5)

        events = _record("slow", 0), _record("slow", 1)
        env = Environment(table, clock.now_ms, clock.now_ms() + 10_000, InlineWriteLoop(), _inline, nonce="late")
        attempt = asyncio.create_task(
            activate(Activation("chain", "k", "speculate", Head(), "h1", events), Services([box]), env)
        )
        await asyncio.sleep(0.1)
        claimed = parse_head(table.items[LANE.pk, "H"])
        assert isinstance(table.apply(takeover(LANE, claimed, "h2", clock.now_ms() + 10_000, {}, "h2")), Applied)
        outcome = await attempt
        left = parse_head(table.items[LANE.pk, "H"]).run
        assert left is not None, f"the lane of h2 was used: {outcome}"
        assert left.holder == "h2", f"the lane of h2 was given to {left.holder}: {outcome}"

    run_virtual(scenario())


@dataclass(frozen=True, slots=True)
class Twin:
    """How one of two twins behaves: what its step answers, how long that takes, how long the next one takes then."""

    answer: int
    step_s: float = 0.0
    after_s: float = 0.0

    async def keep(self, ctx: ObjectContext) -> None:
        """Take the step, keep its answer in state, and dawdle."""
        ctx.set("kept", await ctx.run("step", self._step))
        if self.after_s:
            await ctx.run("dawdle", asyncio.sleep, self.after_s)

    async def _step(self) -> int:
        await asyncio.sleep(self.step_s)
        return self.answer


def twins(handler_name: str, first: Twin, second: Twin, *, joined: bool = False) -> Callable[[frozenset[str]], None]:
    """The invocation that resumes a run is delivered twice: both hold it, by the same fencing token.

    `joined`: an event comes with it that is to follow the run.
    """

    async def attempt(table: Table, clock: VirtualClock, head: Head, twin: Twin) -> None:
        box = VirtualObject("chain")

        @box.handler()
        async def checkpoints(ctx: ObjectContext) -> None:
            await twin.keep(ctx)
            await ctx.run("next", int)

        @box.handler()
        async def suspends(ctx: ObjectContext) -> None:
            await twin.keep(ctx)
            await ctx.sleep(timedelta(seconds=5))

        @box.handler()
        async def naps(ctx: ObjectContext) -> None:
            await twin.keep(ctx)
            await ctx.sleep(timedelta(seconds=5))

        @box.handler()
        async def commits(ctx: ObjectContext) -> None:
            await twin.keep(ctx)

        nonce = f"twin {twin.answer}"
        env = Environment(table, clock.now_ms, clock.now_ms() + 10_000, InlineWriteLoop(), _inline, nonce=nonce)
        leave = NapLeave(5_000, 15_000, "h3") if handler_name == "naps" else None
        behind = (_record(handler_name, 1),) if joined else ()
        await activate(Activation("chain", "k", "resume", head, "h2", behind, nap=leave), Services([box]), env)

    def schedule(without: frozenset[str]) -> None:
        async def scenario() -> None:
            table = Table(without)
            clock = VirtualClock()
            run = ClaimedRun(_record(handler_name, 0), 1, 0, 0, 1, "h", 0)
            claimed = table.apply(claim(LANE, Head(), Effects(), run, "t", drain=False))
            assert isinstance(claimed, Applied)
            answer = table.apply(takeover(LANE, parse_head(claimed.item), "h2", clock.now_ms() + 10_000, {}, "t"))
            assert isinstance(answer, Applied)
            both = [attempt(table, clock, parse_head(answer.item), twin) for twin in (first, second)]
            await asyncio.gather(*both, return_exceptions=True)
            seen = [str(head.state["kept"], "ascii") for head in table.heads if "kept" in head.state]
            for head in table.heads:
                if (data := head.slots.get("0")) is not None:
                    slot = unpack_slot(data)
                    assert isinstance(slot, RunSlot)
                    assert isinstance(slot.result, Success)
                    seen.append(str(slot.result.value or b"", "ascii"))
            assert len(set(seen)) == 1, f"a finished step has the results {seen}"

        run_virtual(scenario())

    return schedule


def _record(handler: str, offset: int) -> Event:
    nonce = kafka_nonce("0", "t", 0, offset)
    return Event(str(InvocationId(LANE, nonce)), handler, KafkaSource("0", "t", 0, offset, 0), b"1")


async def _inline(call: Callable[[], object]) -> object:
    return call()


def _in_order(table: Table, offsets: list[int]) -> None:
    head = parse_head(table.items[LANE.pk, "H"])
    seen = head.state.get("seen", b"[]").decode()
    assert seen == str(offsets).replace(" ", ""), f"the key saw {seen}"


DIRECTED: dict[str, Callable[[frozenset[str]], None]] = {
    "spec.pend": overtaking("note"),
    "claim.pend": overtaking("step"),
    "clear.pend": mark_lost_at_clearing,
    "spec.clear": mark_lost_at_commit,
    "takeover.ver": woken_from_a_nap,
    "join.ver": joined_late,
    "join.own": twins("commits", Twin(1, after_s=1), Twin(2, step_s=0.5), joined=True),
    "nap.ver": napping_late,
    "takeover.awake": woken_for_nothing,
    "suspend.awake": suspended_twice,
    "slot.ans": answered_at_once,
    "inbox.absent": shipped_again,
    "letter.absent": letter_put_again,
    "redrive.first": redriven_late,
    "result.absent": result_forgotten,
    "timer.absent": message_replaced,
    "checkpoint.own": twins("checkpoints", Twin(1, after_s=1), Twin(2, after_s=1)),
    "suspend.own": twins("suspends", Twin(1, after_s=1), Twin(2, step_s=0.5)),
    "nap.own": twins("naps", Twin(1, after_s=1), Twin(2, step_s=0.5)),
    "continuation.over": lambda without: begun_twice(Table(without)),
    "continuation.own": lambda without: handed_on_late(Table(without)),
    "commit.own": twins("commits", Twin(1, after_s=1), Twin(2, step_s=0.5)),
}
"""What each clause prevents, as a schedule that breaks without it and only then."""
