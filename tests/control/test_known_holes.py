"""The holes that an earlier protocol had, one test each: what once lost, repeated or reordered work.

Owns schedules of one hole each, over dispatcher and runtime on virtual time. Does not own holes that another suite
tests; `docs/internals/invariants.md` lists them all. Random schedules are the simulation's.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.handler import ObjectHandler
from tenuto.lane.head import parse_head
from tenuto.lane.transitions import inbox_key
from tenuto.lane.writes import Answer, Applied, Put, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.records import Event, KafkaSource, SendOut
from tenuto.service import Services
from tenuto.store.port import TableUnavailableError
from tenuto_control.dispatcher.delivery import message
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import VirtualClock, run_virtual

LANE = Lane("box", "k")
NAP = timedelta(seconds=30)
"""Long enough that what waits behind it is spilled."""

SLOW_S = 4.0
"""What a slow step takes, within its function's time."""


class Shifted(VirtualClock):
    """A clock that is ahead of the truth, or behind it."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead_ms = round(ahead.total_seconds() * 1_000)

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return super().now_ms() + self._ahead_ms


@dataclass
class Box:
    """An object that notes the offsets it has seen, and what its steps did outside."""

    box: VirtualObject = field(default_factory=lambda: VirtualObject("box"))
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Declare the handlers."""

        async def note(ctx: ObjectContext) -> None:
            ctx.set("seen", [*(await ctx.get("seen") or []), _offset(ctx)])

        async def step(ctx: ObjectContext) -> None:
            await ctx.run("step", self._do, f"step {_offset(ctx)}")
            await note(ctx)

        async def steps(ctx: ObjectContext) -> None:
            await ctx.run("first", self._do, f"first {_offset(ctx)}")
            await ctx.run("last", self._do, f"last {_offset(ctx)}")
            await note(ctx)

        async def nap(ctx: ObjectContext) -> None:
            await ctx.run("before", self._do, f"before {_offset(ctx)}")
            await ctx.sleep(NAP)
            await ctx.run("after", self._do, f"after {_offset(ctx)}")
            await note(ctx)

        async def slow(ctx: ObjectContext) -> None:
            await ctx.run("slow", self._do, f"slow {_offset(ctx)}", SLOW_S)
            await note(ctx)

        async def told(ctx: ObjectContext) -> None:
            ctx.set("told", (await ctx.get("told", int) or 0) + 1)

        async def tell(ctx: ObjectContext) -> None:
            ctx.object_send(self.handler("told"), "k", None)

        for handler in (note, step, steps, nap, slow, told, tell):
            self.box.handler()(handler)

    async def _do(self, what: str, seconds: float = 0.0) -> None:
        self.done.append(what)
        await asyncio.sleep(seconds)

    def handler(self, name: str) -> ObjectHandler[Any, Any]:
        """A handler by its name."""
        found: ObjectHandler[Any, Any] = self.box.handlers[name]
        return found

    def meter(self, table: CountingTable | None = None) -> Meter:
        """A control plane and its function."""
        return Meter(Services([self.box]), table=table or CountingTable())

    def other(self, meter: Meter, ahead: timedelta = timedelta(0)) -> Meter:
        """A second control plane on the same table, whose clock may be ahead."""
        # No two processes may share a name: it tells whose attempts have ended.
        return Meter(meter.services, table=meter.table, clock=Shifted(ahead), process="other")


def _offset(ctx: ObjectContext) -> int:
    origin = ctx.request().kafka
    assert origin is not None
    return origin.offset


def event_at(offset: int, handler: str, epoch: str = "0") -> Event:
    nonce = kafka_nonce(epoch, "t", 0, offset)
    return Event(str(InvocationId(LANE, nonce)), handler, KafkaSource(epoch, "t", 0, offset, 0), b"1")


def seen(meter: Meter) -> str:
    return meter.head("box", "k").state.get("seen", b"[]").decode()


def inbox(meter: Meter) -> list[str]:
    return [sk for pk, sk in meter.table.items if pk == LANE.pk and sk.startswith("I#")]


# --- a zombie puts a drained item back -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["note", "step"])
@pytest.mark.parametrize("found_by", ["a hint", "the sweep", "the next event"])
def test_a_drained_item_that_a_zombie_puts_back_is_deleted_and_does_not_run_again(name: str, found_by: str) -> None:
    async def scenario() -> None:
        box = Box()
        meter = box.meter()
        zombie = box.other(meter)
        meter.deliver(box.handler("nap"), "k")
        meter.deliver(box.handler(name), "k")
        await asyncio.sleep(NAP.total_seconds() / 2)
        key = inbox_key(LANE, event_at(1, name))
        assert inbox(meter) == [key.sk], "what waits behind a sleep is spilled"
        assert meter.released == [0, 1]
        await asyncio.sleep(NAP.total_seconds())
        await meter.quiet()
        assert (seen(meter), inbox(meter), meter.head("box", "k").pend) == ("[0,1]", [], None)
        done = list(box.done)

        # A process that had the event before a rebalance, and was held up ever since, spills it now.
        await zombie.dispatcher._parts.delivery.accept(LANE, [event_at(1, name)])
        await zombie.dispatcher.stop()
        assert inbox(meter) == [key.sk]
        assert meter.head("box", "k").pend is not None
        meter.count()
        match found_by:
            case "a hint":
                meter.dispatcher.look(LANE)
            case "the sweep":
                await asyncio.sleep(60)
                await meter.sweeper.sweep()
            case _:
                meter.deliver(box.handler("note"), "k")
        await meter.quiet()

        later = found_by == "the next event"
        assert inbox(meter) == []
        assert meter.head("box", "k").pend is None
        assert seen(meter) == ("[0,1,2]" if later else "[0,1]")
        assert box.done == done
        # An event behind it is tried once more: first on a head from before the mark, whose commit the mark refuses.
        assert meter.invocations == (2 if later else 0), "what the watermark refuses is not even tried"

    run_virtual(scenario())


# --- messages --------------------------------------------------------------------------------------------------------


class Slow(CountingTable):
    """Answers the put of an inbox item only when the lane has come to the end of its run."""

    def __init__(self) -> None:
        super().__init__()
        self.overlapped = False

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        answer = await super().write(write)
        if (
            isinstance(write, Put)
            and write.key.pk == LANE.pk
            and write.key.sk.startswith("I#")
            and "ev" in write.attributes
        ):
            while parse_head(self.items[LANE.pk, "H"]).run is not None:
                self.overlapped = True
                await asyncio.sleep(0.1)
        return answer


def test_a_message_is_found_though_the_lanes_owner_finished_while_it_was_put() -> None:
    async def scenario() -> None:
        box = Box()
        table = Slow()
        meter = box.meter(table)
        meter.deliver(box.handler("slow"), "k")
        await asyncio.sleep(SLOW_S / 2)
        meter.deliver(box.handler("tell"), "sender")
        await asyncio.sleep(2 * SLOW_S)
        await meter.quiet()
        assert table.overlapped
        assert meter.head("box", "k").state == {"seen": b"[0]", "told": b"1"}
        assert meter.head("box", "k").pend is None
        assert sorted(meter.released) == [0, 1]

    run_virtual(scenario())


def test_an_outbox_that_is_delivered_again_finds_a_tombstone() -> None:
    async def scenario() -> None:
        box = Box()
        meter = box.meter()
        entry = SendOut("box", "k", str(InvocationId(LANE, "m1")), "told", b"null")
        letter = message("box/sender", "0000000000", entry)
        for _ in range(2):
            meter.count()
            await meter.dispatcher._parts.delivery.accept(LANE, [letter])
            meter.dispatcher.look(LANE)
            await meter.quiet()
        assert meter.invocations == 0, "the second delivery is no work"
        assert meter.head("box", "k").state == {"told": b"1"}
        assert ["done" in meter.table.items[LANE.pk, sk] for sk in inbox(meter)] == [True]

    run_virtual(scenario())


# --- a response is lost ----------------------------------------------------------------------------------------------


class Forgetful(CountingTable):
    """Applies the first write that carries a clause, and loses its response."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label: str | None = label
        self.repeats = 0
        self._lost: Write | None = None

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        answer = await super().write(write)
        labels = {clause.label for clause in write.conditions} if isinstance(write, Update) else set()
        if self.label in labels and isinstance(answer, Applied):
            self.label = None
            self._lost = write
            raise TableUnavailableError("the response was lost")
        self.repeats += write == self._lost
        return answer


@pytest.mark.parametrize(
    ("label", "name", "done"),
    [
        pytest.param("spec.ver", "note", [], id="speculative commit"),
        pytest.param("claim.ver", "step", ["step 0"], id="claim"),
        pytest.param("commit.ver", "step", ["step 0"], id="final commit"),
        pytest.param("checkpoint.ver", "steps", ["first 0", "last 0"], id="checkpoint"),
        pytest.param("suspend.ver", "nap", ["before 0", "after 0"], id="suspension"),
        pytest.param("takeover.ver", "nap", ["before 0", "after 0"], id="resume"),
    ],
)
def test_a_writer_recognises_its_own_write_when_the_response_was_lost(label: str, name: str, done: list[str]) -> None:
    async def scenario() -> None:
        box = Box()
        table = Forgetful(label)
        meter = box.meter(table)
        meter.deliver(box.handler(name), "k")
        await asyncio.sleep(2 * NAP.total_seconds())
        await meter.quiet()
        assert table.label is None, f"no write carried {label}"
        assert table.repeats == 1
        assert (seen(meter), box.done, meter.released) == ("[0]", done, [0])
        assert meter.invocations == (2 if name == "nap" else 1), "nobody took over from a healthy attempt"
        assert table.log.count("head takeover.ver") == (name == "nap"), "nor from oneself, once the lease was over"

    run_virtual(scenario())


# --- offsets that start over -----------------------------------------------------------------------------------------


def test_an_offset_that_comes_again_counts_only_in_another_epoch_of_its_topic() -> None:
    async def scenario() -> None:
        box = Box()
        meter = box.meter()
        released: list[tuple[str, int]] = []

        came = [("0", 7), ("0", 8), ("0", 3), ("1", 3), ("1", 3), ("0", 9)]
        for one in came:
            meter.dispatcher.deliver(event_at(one[1], "note", one[0]), functools.partial(released.append, one))
            await meter.quiet()
        assert seen(meter) == "[7,8,3,9]"
        assert released == came
        assert sorted(meter.head("box", "k").watermarks.values()) == [4, 10]

    run_virtual(scenario())


# --- clocks that differ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [timedelta(hours=-1), timedelta(hours=1)], ids=["an hour behind", "an hour ahead"])
def test_a_process_whose_clock_is_far_off_may_take_over_early_or_late_but_nothing_takes_effect_twice(
    ahead: timedelta,
) -> None:
    async def scenario() -> None:
        box = Box()
        meter = box.meter()
        other = box.other(meter, ahead)
        meter.deliver(box.handler("slow"), "k")
        await asyncio.sleep(SLOW_S / 2)
        other._offset = 0
        other.deliver(box.handler("note"), "k")
        await asyncio.sleep(2 * 3_600)
        for one in (meter, other):
            await one.quiet()
        # Whoever is ahead takes a healthy run over: its step in flight is repeated, and the first attempt is fenced.
        assert box.done == ["slow 0"] * (2 if ahead > timedelta(0) else 1)
        assert seen(meter) == "[0,1]"
        assert (meter.released, other.released) == ([0], [1])

    run_virtual(scenario())
