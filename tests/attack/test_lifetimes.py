"""What attempts leave beside a head when they are fenced off, or die between two writes: it goes, nothing else does.

Owns the lifetime of such items. Does not own what is put there (`tests/sdk`, `tests/machine`), nor that a run which
goes on keeps what it names, which an oracle of the simulation holds on every write (`Oracles._still_named`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from msgspec import structs

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import head_key
from tenuto.lane.items import BESIDE_HIGH, BESIDE_LOW, input_name, is_over
from tenuto.lane.timers import GuardTimer, timer_put
from tenuto.lane.transitions import INBOX_HIGH, INBOX_LOW, mark_pend, part_key, part_puts
from tenuto.lane.writes import Answer, Delete, Item, Put, Write
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.limits import GUARDED_WRITE_MS_MAX, OUT_PER_WRITE_MAX, TOMBSTONE_TTL_S, VALUE_BYTES_MAX
from tenuto.protocol.messages import Activation, ClaimedRun, Head, decode_request, encode
from tenuto.protocol.records import Event, KafkaSource
from tenuto.runtime.activation import activate
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto_control.limits import Limits
from tenuto_control.ports import AnswerHolder, FunctionFailedError
from tests.costs.meter import FUNCTION_TIMEOUT_MS, CountingTable, Meter, at_once
from tests.support.virtual_time import EPOCH_MS, run_virtual

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, "n1")), "work", KafkaSource("0", "t", 0, 7, 0))
GUARD = GuardTimer(LANE, "n1", 0, "holder", ver=2, since_ms=0)
RUN = ClaimedRun(EVENT, 5, 0, 0, 1, "other", 0)
HOUR_MS = GUARDED_WRITE_MS_MAX
DAY_MS = TOMBSTONE_TTL_S * 1_000
LARGE = b'"' + b"x" * 10_000 + b'"'
DAY_S = TOMBSTONE_TTL_S + 3_600.0

box = VirtualObject("box")


@box.handler()
async def work(ctx: ObjectContext, text: str) -> None:
    """Everything that has items of its own: a large input, a long journal, many messages."""
    for number in range(3):
        await ctx.run(f"step{number}", lambda: "y" * 5_000)
    for number in range(OUT_PER_WRITE_MAX + 1):
        ctx.publish("topic", number)
    await ctx.run("last", lambda: "z" * 5_000)
    await ctx.sleep(timedelta(seconds=30))
    ctx.set("length", len(text))


# --- which items are over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "run", "over"),
    [
        ("J#000000000005#000002#000000000005#own", RUN, False),
        ("J#000000000003#000001#000000000003#own", None, True),
        ("J#000000000003#000001#000000000003#own", RUN, True),
        ("J#000000000005#000001#000000000005#own", RUN, True),
        ("J#000000000005#000001#000000000003#own", None, True),
        ("J#000000000007#000001#000000000003#own", None, False),
        ("Q#000000000005#2a#mark", RUN, False),
        ("Q#000000000004#2a#mark", RUN, True),
        ("O#000000000006#000001#own", RUN, True),
        ("O#000000000007#000001#own", RUN, False),
        ("O#odd", RUN, False),
        ("J#٣#1", None, False),
        ("V#n1#holder", RUN, True),
        ("V#n1#another", None, False),
        ("V#n2#holder", None, False),
        ("J#000000000005#000001#000000000006#own", RUN, False),
        ("I#c#n1", None, False),
        ("U#c#n1", None, False),
        ("N", None, False),
    ],
)
def test_which_items_beside_a_head_are_over(name: str, run: ClaimedRun | None, *, over: bool) -> None:
    head = Head(ver=6, run=run, segments=("J#000000000005#000002#000000000005#own",))
    assert is_over({"sk": name}, head, GUARD, EPOCH_MS) is over


@pytest.mark.parametrize(
    ("name", "age_ms", "over"),
    [("V#n2#x", HOUR_MS + 1, True), ("V#n2#x", HOUR_MS, False), ("V#n2#named", HOUR_MS + 1, False)],
)
def test_an_input_is_over_when_no_claim_can_name_it(name: str, age_ms: int, *, over: bool) -> None:
    head = Head(ver=6, run=structs.replace(RUN, input_item="V#n2#named"))
    assert is_over({"sk": name, "at": EPOCH_MS - age_ms}, head, GUARD, EPOCH_MS) is over


@pytest.mark.parametrize(
    ("at_ms", "over"),
    [(EPOCH_MS - DAY_MS - 1, True), (EPOCH_MS - DAY_MS, False), (EPOCH_MS, False), (None, False), ("x", False)],
)
def test_parts_without_their_event_are_over_after_a_day(at_ms: int | str | None, *, over: bool) -> None:
    item: Item = {"sk": "P#digest#000"}
    if at_ms is not None:
        item["at"] = at_ms
    assert is_over(item, Head(ver=6), GUARD, EPOCH_MS) is over


def test_one_query_sees_the_inbox_and_all_items_beside_a_head_but_not_the_head() -> None:
    assert BESIDE_LOW <= INBOX_LOW
    assert INBOX_HIGH <= BESIDE_HIGH
    assert all(BESIDE_LOW <= f"{kind}#0" <= BESIDE_HIGH for kind in "JOPQUV")
    assert BESIDE_LOW <= input_name("\U0010ffff", "h") <= BESIDE_HIGH
    assert not BESIDE_LOW <= head_key(LANE).sk <= BESIDE_HIGH


# --- attempts that die ------------------------------------------------------------------------------------------------


class DyingTable(CountingTable):
    """The table as one function's process sees it: the `dies_at`-th write is its last, applied unless `before`."""

    def __init__(self, table: CountingTable) -> None:
        super().__init__()
        self.items, self.requests, self.log = table.items, table.requests, table.log
        self.dies_at: int | None = None
        self.before = False
        self.dead = asyncio.Event()

    async def write(self, write: Write) -> Answer:
        """See `Table.write`."""
        await self._die(before=True)
        answer = await super().write(write)
        await self._die(before=False)
        return answer

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`."""
        await self._die(before=True)
        await super().put_all(puts)
        await self._die(before=False)

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`."""
        await self._die(before=True)
        await super().delete_all(deletes)
        await self._die(before=False)

    async def _die(self, *, before: bool) -> None:
        if self.dies_at is None:
            return
        if before:
            self.dies_at -= 1
        if self.dies_at == 0 and before == self.before:
            self.dead.set()
            await asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class DyingMeter(Meter):
    """A function whose first attempts die, each at one of its writes."""

    deaths: list[tuple[int, bool]] = field(default_factory=list)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        request = decode_request(payload)
        assert isinstance(request, Activation)
        table = DyingTable(self.table)
        if self.deaths:
            table.dies_at, table.before = self.deaths.pop(0)
        deadline = self.clock.now_ms() + FUNCTION_TIMEOUT_MS
        environment = Environment(table, self.clock.now_ms, deadline, InlineWriteLoop(), at_once)
        running = asyncio.create_task(activate(request, self.services, environment))
        dying = asyncio.create_task(table.dead.wait())
        await asyncio.wait([running, dying], return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if running.done():
            return encode(running.result())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        raise FunctionFailedError("the process died")


def _beside(table: CountingTable, pk: str = LANE.pk) -> list[str]:
    return sorted(sk for at, sk in table.items if at == pk and BESIDE_LOW <= sk <= BESIDE_HIGH)


def _names_of_runs(table: CountingTable) -> list[str]:
    return [sk for sk in _beside(table) if sk[:2] in ("J#", "O#", "Q#", "V#")]


async def _lives(deaths: list[tuple[int, bool]]) -> tuple[DyingMeter, int]:
    """A run whose first attempts die so, until no timer is left. The most items that there were beside its head."""
    meter = DyingMeter(Services([box]), Limits(), deaths=deaths)
    sweeping = asyncio.create_task(meter.sweeper.run())
    meter.deliver(work, "k", LARGE)
    most = 0
    for _ in range(1_000):
        await asyncio.sleep(1)
        most = max(most, len(_names_of_runs(meter.table)))
        if meter.released and meter.head("box", "k").run is None:
            break
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    while due := [item["due"] for (pk, _), item in meter.table.items.items() if pk.startswith("T#")]:
        await asyncio.sleep((min(map(int, map(str, due))) - meter.clock.now_ms()) / 1_000 + 1)
        await meter.sweeper.sweep()
    await meter.dispatcher.kill()
    return meter, most


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_attempt_that_dies_at_any_write_leaves_nothing_for_ever(times: int, *, before: bool) -> None:
    async def scenario() -> None:
        died = 0
        for write in range(1, 40, 4):
            meter, most = await _lives([(write, before)] * times)
            assert meter.head("box", "k").state["length"] == b"10000"
            assert most > 0, "the run has items beside its head"
            assert _names_of_runs(meter.table) == [], (write, meter.table.log)
            died += not meter.deaths
            if meter.deaths and len(meter.deaths) == times:
                break
        assert died > 1

    run_virtual(scenario())


def test_what_waits_or_goes_on_is_not_touched() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]))
        sweeping = asyncio.create_task(meter.sweeper.run())
        meter.deliver(work, "k", LARGE)
        await asyncio.sleep(15)
        # Asleep, with guards of former writes around it, each of which is judged.
        names = _names_of_runs(meter.table)
        assert {name[:2] for name in names} >= {"J#", "V#"}
        for number in range(3):
            guard = GuardTimer(LANE, f"old{number}", meter.clock.now_ms(), f"h{number}", ver=0, since_ms=EPOCH_MS)
            meter.table.apply(timer_put(guard))
        await asyncio.sleep(10)
        assert _names_of_runs(meter.table) == names
        await asyncio.sleep(60)
        assert meter.head("box", "k").state["length"] == b"10000"
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    run_virtual(scenario())


def test_parts_stay_while_their_event_may_come_and_go_a_day_later() -> None:
    large = Event(str(InvocationId(LANE, "n9")), "work", KafkaSource("0", "t", 0, 9, 0), b"x" * (VALUE_BYTES_MAX + 1))

    async def scenario() -> None:
        meter = Meter(Services([box]))
        for part in part_puts(LANE, large, meter.clock.now_ms()):
            meter.table.apply(part)
        at = part_key(LANE, large, 0)

        def guard(number: int) -> None:
            now_ms = meter.clock.now_ms()
            meter.table.apply(timer_put(GuardTimer(LANE, "n", now_ms, f"g{number}", ver=3, since_ms=now_ms)))

        meter.table.apply(mark_pend(LANE, "mark"))
        guard(1)
        await asyncio.sleep(1)
        await meter.sweeper.sweep()
        assert (at.pk, at.sk) in meter.table.items, "whoever put it may be about to put its event"
        await asyncio.sleep(DAY_S)
        guard(2)
        await asyncio.sleep(1)
        await meter.sweeper.sweep()
        assert _beside(meter.table) == []

    run_virtual(scenario())
