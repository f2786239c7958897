"""Events that wait in an inbox, or in a queue, for a handler that their function does not have any more.

Owns what becomes of these events and of what is behind them. Messages that have not been delivered yet are
`test_outboxes`'s.
"""

from __future__ import annotations

import asyncio

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.dead_letters import letter_partitions, parse_letter
from tenuto.lane.head import head_key
from tenuto.lane.transitions import inbox_put
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.records import CallSource, Event, Failed, MessageSource, Success
from tenuto.service import Services
from tenuto_control.limits import Limits
from tenuto_control.ports import Pending, Target
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

LANE = Lane("box", "k")
PATIENCE_S = Limits().handler_patience_ms / 1_000
KINDS = ("message", "call")


def box_of(*more: str) -> VirtualObject:
    """A service with `note`, and with these handlers besides."""
    box = VirtualObject("box")

    @box.handler()
    async def note(ctx: ObjectContext) -> int:
        n = (await ctx.get("n", int) or 0) + 1
        ctx.set("n", n)
        return n

    for name in more:

        @box.handler(name)
        async def other(ctx: ObjectContext) -> str:
            ctx.set("late", "yes")
            return "late"

    return box


def event(kind: str, handler: str = "gone", number: int = 1) -> Event:
    if kind == "call":
        return Event(str(InvocationId(LANE, f"c{number}")), handler, CallSource(keep_result=True), b"null")
    return Event(
        str(InvocationId(LANE, f"m{number}")), handler, MessageSource("other/x", f"000000000001.00000{number}"), b"null"
    )


def waiting(meter: Meter, kind: str, *events: Event) -> None:
    """Put these into the inbox, in front of one that is for `note`."""
    for number, one in enumerate((*events, event(kind, "note", 9))):
        meter.table.apply(inbox_put(LANE, one, at_ms=meter.clock.now_ms() + number))
    place = head_key(LANE)
    head = meter.table.items.get((place.pk, place.sk)) or {"pk": place.pk, "sk": place.sk, "ver": 1}
    meter.table.items[place.pk, place.sk] = {**head, "pend": f"p{meter.clock.now_ms()}"}
    meter.dispatcher.look(LANE)


def noted(meter: Meter) -> bytes | None:
    return meter.head("box", "k").state.get("n")


def letters(meter: Meter) -> list[tuple[str, str, int]]:
    partitions = set(letter_partitions())
    found = [parse_letter(item) for (pk, _), item in meter.table.items.items() if pk in partitions]
    return [(one.lane, one.handler, one.status_code) for one in found if one is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_for_a_handler_that_is_gone_ends_after_a_while_and_its_key_continues(kind: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box_of()]))
        waiting(meter, kind, event(kind))
        await asyncio.sleep(PATIENCE_S - 10)
        assert noted(meter) is None, "a key's events keep their order"
        assert not letters(meter)
        await asyncio.sleep(30)
        assert noted(meter) == b"1"
        await meter.quiet()
        if kind == "message":
            assert letters(meter) == [("box/k", "gone", 404)]
        else:
            assert not letters(meter)
            ended = await meter.dispatcher.result(event(kind).id, 1_000)
            assert isinstance(ended, Failed)
            assert (ended.failure.status_code, ended.failure.message) == (404, "no function serves box/gone")
            assert await meter.dispatcher.result(event(kind, "note", 9).id, 1_000) == Success(b"1")
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_what_is_in_front_of_it_runs_at_once_and_others_for_that_handler_wait_no_longer() -> None:
    async def scenario() -> None:
        meter = Meter(Services([box_of()]))
        waiting(meter, "call", event("call", "note", 0), *(event("call", number=n) for n in range(1, 6)))
        await asyncio.sleep(5)
        assert noted(meter) == b"1"
        await asyncio.sleep(PATIENCE_S + 15)
        assert noted(meter) == b"2", "the patience is the handler's, not each event's"
        await meter.dispatcher.kill()

    run_virtual(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_is_deployed_meanwhile_gets_its_events(kind: str) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box_of()]))
        waiting(meter, kind, event(kind))
        await asyncio.sleep(PATIENCE_S / 2)
        meter.services = Services([box_of("gone")])
        await asyncio.sleep(15)
        assert meter.head("box", "k").state == {"n": b"1", "late": b'"yes"'}
        # Gone once more, it is waited for as long once more.
        meter.services = Services([box_of()])
        waiting(meter, kind, event(kind, number=2))
        await asyncio.sleep(PATIENCE_S - 10)
        assert noted(meter) == b"1"
        assert not letters(meter)
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_a_function_that_has_the_handler_before_the_control_plane_has_heard_of_it_runs_it() -> None:
    class Behind(Meter):
        """Its control plane goes by the manifest of before."""

        def find(self, service: str) -> Target | None:
            now, self.services = self.services, Services([box_of()])
            try:
                return Meter.find(self, service)
            finally:
                self.services = now

    async def scenario() -> None:
        meter = Behind(Services([box_of("gone")]))
        waiting(meter, "message", event("message"))
        await asyncio.sleep(1)
        assert meter.head("box", "k").state == {"n": b"1", "late": b'"yes"'}
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_a_caller_hears_of_it_and_so_does_who_asks_later() -> None:
    """The call was taken while there was such a handler."""

    async def scenario() -> None:
        meter = Meter(Services([box_of()]))
        call = asyncio.create_task(meter.dispatcher.call(event("call"), 20_000))
        await asyncio.sleep(25)
        assert isinstance(call.result(), Pending)
        await asyncio.sleep(PATIENCE_S)
        ended = await meter.dispatcher.result(event("call").id, 1_000)
        assert isinstance(ended, Failed)
        assert ended.failure.status_code == 404
        again = event("call", number=7)
        told = await meter.dispatcher.call(again, 20_000)
        assert isinstance(told, Failed)
        assert told.failure.status_code == 404
        await meter.quiet()
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_a_record_waits_for_its_handler_as_its_offset_does() -> None:
    """A subscription names its handler: that it is missing is a mistake of the deployment, not of the record."""
    full, without = box_of("gone"), box_of()

    async def scenario() -> None:
        meter = Meter(Services([without]))
        meter.deliver(full.handlers["gone"], "k")
        await asyncio.sleep(PATIENCE_S * 5)
        assert not meter.published
        assert not letters(meter)
        meter.services = Services([full])
        await asyncio.sleep(15)
        assert meter.head("box", "k").state == {"late": b'"yes"'}
        assert meter.released == [0]
        await meter.dispatcher.kill()

    run_virtual(scenario())
