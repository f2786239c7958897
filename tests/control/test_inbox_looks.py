"""What a look into an inbox has found, and how long it is believed.

Owns the requests that looks make. Does not own what is run of them (`tests/simulation`, `test_spill`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tenuto.lane.transitions import inbox_put, result_put
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Head
from tenuto.protocol.records import CallSource, Event, KafkaSource, Success
from tenuto.store.memory import MemoryTable
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher.inbox import Inbox
from tenuto_control.dispatcher.outages import watched
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits

NOW = 1_000_000
LANE = Lane("s", "k")
CALLS = [Event(str(InvocationId(LANE, f"c{n}")), "h", CallSource(keep_result=True)) for n in range(3)]


def play(scenario: Callable[[MemoryTable, Inbox], Awaitable[None]]) -> None:
    """Run a scenario over an inbox with three calls."""

    async def main() -> None:
        table = MemoryTable()
        for at_ms, call in enumerate(CALLS):
            table.apply(inbox_put(LANE, call, at_ms=at_ms))
        await scenario(table, Inbox(LANE, Writer(watched(table, Uncounted()), Limits(), Uncounted())))

    asyncio.run(main())


def left_by(ver: int, ran: int, pend: str | None = "p") -> Head:
    """The head after so many of the calls have run."""
    return Head(ver=ver, pend=pend, fin={call.nonce: NOW for call in CALLS[:ran]})


def test_what_a_look_has_found_is_run_without_another_look_and_buried_together() -> None:
    async def scenario(table: MemoryTable, inbox: Inbox) -> None:
        for ran, call in enumerate(CALLS):
            view = await inbox.waiting(left_by(1 + ran, ran), NOW, most=1)
            assert view.events == (call,)
            assert (view.kept, view.more) == (ran > 0, ran < 2)
            buried = await inbox.ran([call], left_by(2 + ran, ran + 1), NOW)
            assert list(buried) == (CALLS if ran == 2 else [])
        assert table.requests == {"query": 1, "batch_get": 1, "batch_put": 1}
        assert (await inbox.waiting(left_by(4, 3), NOW, most=1)).events == ()

    play(scenario)


def test_who_is_not_alone_looks_again_and_finds_what_has_no_tombstone_yet() -> None:
    async def scenario(table: MemoryTable, inbox: Inbox) -> None:
        await inbox.waiting(left_by(1, 0), NOW, most=1)
        await inbox.ran(CALLS[:1], left_by(2, 1), NOW)
        view = await inbox.waiting(left_by(3, 1), NOW, most=1)
        assert (view.kept, view.events, view.done) == (False, (CALLS[1],), (CALLS[0],))
        assert table.requests["query"] == 2

    play(scenario)


def test_the_mark_is_not_to_be_cleared_when_there_is_another_one() -> None:
    async def scenario(_: MemoryTable, inbox: Inbox) -> None:
        await inbox.waiting(left_by(1, 0), NOW, most=2)
        await inbox.ran(CALLS[:2], left_by(2, 2), NOW)
        view = await inbox.waiting(left_by(2, 2, pend="another"), NOW, most=2)
        assert (view.kept, view.events, view.more) == (True, (CALLS[2],), True)

    play(scenario)


def test_a_call_that_has_its_result_is_done() -> None:
    async def scenario(table: MemoryTable, inbox: Inbox) -> None:
        table.apply(result_put(CALLS[1].id, Success(b"1"), NOW))
        view = await inbox.waiting(left_by(1, 0), NOW, most=50)
        assert (view.events, view.done) == ((CALLS[0], CALLS[2]), (CALLS[1],))

    play(scenario)


@pytest.mark.parametrize(("pend", "asked", "looks"), [("p", False, 1), ("another", False, 2), ("p", True, 2)])
def test_who_has_run_all_that_a_look_found_looks_again_for_what_came_since(pend: str, asked: bool, looks: int) -> None:
    """What came since has left another mark, or somebody says that there is something without one."""

    async def scenario(table: MemoryTable, inbox: Inbox) -> None:
        await inbox.waiting(left_by(1, 0), NOW, most=50)
        await inbox.ran(CALLS, left_by(4, 3), NOW)
        view = await inbox.waiting(left_by(4, 3, pend), NOW, most=50, asked=asked)
        assert (view.events, view.more) == ((), False)
        assert table.requests["query"] == looks

    play(scenario)


def test_who_has_not_run_all_that_a_look_found_looks_again() -> None:
    async def scenario(table: MemoryTable, inbox: Inbox) -> None:
        await inbox.waiting(left_by(1, 0), NOW, most=50)
        await inbox.ran(CALLS[:2], None, NOW)
        view = await inbox.waiting(left_by(3, 2), NOW, most=50, asked=False)
        assert (view.events, table.requests["query"]) == ((CALLS[2],), 2)

    play(scenario)


def test_items_of_finished_events_are_deleted_together_when_nothing_more_is_to_run() -> None:
    def record(partition: int) -> Event:
        return Event(str(InvocationId(LANE, f"k{partition}")), "h", KafkaSource("0", "t", partition, 0, 0))

    def passed(count: int) -> Head:
        return Head(pend="p", watermarks={f"0|t|{partition}": 1 for partition in range(count)})

    async def scenario(table: MemoryTable, inbox: Inbox) -> None:
        for partition in range(2):
            table.apply(inbox_put(LANE, record(partition), at_ms=NOW))
        first = await inbox.waiting(passed(1), NOW, most=50)
        assert (len(first.records), len(first.passed)) == (1, 1)
        await inbox.forget(first.passed, later=True)
        assert "batch_delete" not in table.requests
        await inbox.forget(first.records)
        assert table.requests["batch_delete"] == 1
        assert not [sk for pk, sk in table.items if pk == LANE.pk and sk.startswith("I#k")]

    play(scenario)
