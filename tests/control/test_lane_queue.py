"""The queue of a lane: what joins it, what leaves it, and when a finished event's offset is released.

Owns the queue alone, with works that nobody runs. Does not own what its worker makes of it (`test_schedules`).
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.limits import VALUE_BYTES_MAX
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import CallSource, Event, KafkaSource, PublishOut, ResultOut, Success
from tenuto_control.core.lane_facts import Turn
from tenuto_control.dispatcher.lane_queue import RESULT_LOOK_MS, LaneQueue
from tenuto_control.dispatcher.work import CallWork, Elsewhere, KafkaWork
from tenuto_control.ports import TopicPartition

NOW = 10_000_000
LANE = Lane("s", "k")
MINE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)
ENTRY = PublishOut("t", None)


class Offsets:
    """Which offsets were released, in order."""

    def __init__(self) -> None:
        self.released: list[int] = []

    def work(self, offset: int, partition: int = 0, since_ms: int = NOW) -> KafkaWork:
        """An event whose release is noted here."""
        nonce = f"k{partition}.{offset}"
        event = Event(str(InvocationId(LANE, nonce)), "h", KafkaSource("0", "t", partition, offset, 0))
        return KafkaWork(event, lambda: self.released.append(offset), since_ms)


def call(nonce: str) -> CallWork:
    """A call; needs a running loop."""
    return CallWork(Event(str(InvocationId(LANE, nonce)), "h", CallSource()))


def queue_of(*works: KafkaWork | CallWork) -> LaneQueue:
    """A queue that these works have joined."""
    queue = LaneQueue()
    for work in works:
        queue.add(work, ())
    return queue


def test_the_memory_learns_of_the_first_and_how_many_there_are() -> None:
    offsets = Offsets()
    first = offsets.work(1)
    assert queue_of(first, offsets.work(2)).turn(NOW) == Turn(NOW, first.event, 2, first.since_ms, records=True)
    assert LaneQueue().turn(NOW) == Turn(NOW)


def test_the_memory_learns_which_kinds_of_work_there_are() -> None:
    async def scenario() -> None:
        offsets = Offsets()
        record, asked = offsets.work(1), call("c1")
        queue = queue_of(record, asked)
        assert (queue.turn(NOW).calls, queue.turn(NOW).records) == (True, True)
        queue.remove(record)
        assert (queue.turn(NOW).calls, queue.turn(NOW).records) == (True, False)
        queue.add(offsets.work(2), ())
        asked.keep = True
        queue.without_callers()
        assert (queue.turn(NOW).calls, queue.turn(NOW).records) == (False, True)
        queue.pop()
        assert queue.turn(NOW) == Turn(NOW)

    asyncio.run(scenario())


def test_a_finished_event_is_released_when_what_it_sent_is_trimmed() -> None:
    offsets = Offsets()
    first, second = offsets.work(1), offsets.work(2)
    queue = queue_of(first, second)
    queue.finish(first)
    assert list(queue) == [second]
    assert queue.holds
    queue.release(Head(out={"1.0": ENTRY}))
    assert offsets.released == []
    # What later events send does not hold it.
    queue.finish(second)
    queue.release(Head(out={"1.0": ENTRY, "2.0": ENTRY}))
    queue.release(Head(out={"2.0": ENTRY}))
    assert offsets.released == [1]
    queue.release(Head())
    assert offsets.released == [1, 2]
    assert not queue.holds


def test_a_partition_that_goes_takes_its_waiting_events_along() -> None:
    offsets = Offsets()
    mine, running, others = offsets.work(1), offsets.work(2), offsets.work(3, partition=1)
    queue = queue_of(mine, running, others)
    assert queue.withdraw({MINE}, (running,))
    assert list(queue) == [running, others]
    assert mine.withdrawn
    assert not running.withdrawn
    assert not queue.withdraw({MINE, OTHER}, ())
    assert len(queue) == 0


def test_an_event_that_is_held_keeps_its_partition_waiting() -> None:
    offsets = Offsets()
    queue = queue_of(work := offsets.work(1))
    queue.finish(work)
    assert queue.withdraw({MINE}, ())
    queue.cut({MINE}, ())
    queue.release(Head())
    assert offsets.released == []


def test_an_event_that_comes_again_after_its_partition_was_cut_off_gets_its_new_release() -> None:
    before, after = Offsets(), Offsets()
    held, running, waiting = before.work(1), before.work(2), before.work(3)
    queue = queue_of(held, waiting)
    queue.finish(held)
    queue.cut({MINE}, (running,))
    for offset in (1, 2, 3, 4):
        queue.add(after.work(offset), (running,))
    assert [w.event.nonce for w in queue] == ["k0.3", "k0.4"]
    for work in (running, waiting):
        queue.finish(work)
    queue.release(Head())
    assert (before.released, after.released) == ([], [1, 2, 3])


def test_an_event_waits_when_it_is_not_running_and_of_the_partition() -> None:
    offsets = Offsets()
    early, late = offsets.work(1, since_ms=NOW), offsets.work(2, since_ms=NOW + 1)
    queue = queue_of(early, late)
    assert queue.waits_since(NOW, {MINE}, ())
    assert not queue.waits_since(NOW - 1, {MINE}, ())
    assert not queue.waits_since(NOW, {OTHER}, ())
    assert not queue.waits_since(NOW, {MINE}, (early,))


def test_calls_are_answered_by_a_head_that_holds_or_confirms_their_results() -> None:
    async def scenario() -> None:
        stored, confirmed, unknown = call("c1"), call("c2"), call("c3")
        confirmed.tentative = unknown.tentative = Success(b"2")
        queue = queue_of(stored, confirmed, unknown, event := Offsets().work(1))
        head = Head(out={"1.0": ResultOut(stored.event.id, Success(b"1"))}, fin={"c2": NOW})
        assert queue.answer(head, NOW) == {"c1", "c2"}
        assert (stored.answer.result(), confirmed.answer.result()) == (Success(b"1"), Success(b"2"))
        assert list(queue) == [unknown, event]
        assert queue.answer(replace(head, fin={}), NOW) == set()

    asyncio.run(scenario())


def test_calls_leave_with_their_callers() -> None:
    async def scenario() -> None:
        kept, answered, waiting = call("c1"), call("c2"), call("c3")
        queue = queue_of(kept, answered, waiting, event := Offsets().work(1))
        kept.keep = True
        answered.finish(Success(b"1"))
        assert queue.without_callers() == [kept, answered]
        assert kept.answer.result() == Elsewhere()
        assert answered.answer.result() == Success(b"1")
        assert list(queue) == [waiting, event]
        assert queue.call(waiting.event.id, ()) is waiting
        assert queue.call(kept.event.id, ()) is None
        assert queue.call(kept.event.id, (kept,)) is kept

    asyncio.run(scenario())


# --- handed over ------------------------------------------------------------------------------------------------------


def run_of(work: CallWork) -> ClaimedRun:
    """The run of a call, in another process."""
    return ClaimedRun(work.event, ver=1, start_ms=0, first_out=0, attempt=1, holder="there.1", lease_ms=NOW)


def handed(*nonces: str, wanted_until_ms: int = NOW + 25_000) -> tuple[LaneQueue, list[CallWork]]:
    """A queue whose calls have been handed over; needs a running loop."""
    calls = [call(nonce) for nonce in nonces]
    for work in calls:
        work.wanted_until_ms = wanted_until_ms
    queue = queue_of(*calls)
    queue.hand_over(queue.movable(), NOW, None)
    return queue, calls


def test_what_is_handed_over_releases_its_offset_and_keeps_its_caller() -> None:
    async def scenario() -> None:
        offsets = Offsets()
        record, asked = offsets.work(1), call("c1")
        queue = queue_of(record, asked)
        queue.hand_over(queue.movable(), NOW, None)
        assert offsets.released == [1]
        assert not asked.answer.done()
        assert (len(queue), queue.waiting) == (0, 1)
        assert queue.turn(NOW) == Turn(NOW, handed=1, behind=2)
        assert queue.call(asked.event.id, ()) is asked

    asyncio.run(scenario())


def test_a_call_is_next_while_nothing_that_this_process_knows_of_comes_before_it() -> None:
    async def scenario() -> None:
        first, second = call("c1"), call("c2")
        first.since_ms, second.since_ms = NOW - 20, NOW - 10
        queue = queue_of(first, second)
        assert queue.turn(NOW).next_ms == NOW - 20
        queue.hand_over([first], NOW, None)
        queue.hand_over([second], NOW, None)
        assert queue.turn(NOW).next_ms == NOW - 20
        assert queue.let_go(first)
        assert queue.turn(NOW).next_ms is None

        others = queue_of(third := call("c3"))
        others.hand_over([third], NOW, None, after=True)
        assert others.turn(NOW).next_ms is None

        behind = queue_of(Offsets().work(1))
        behind.hand_over(behind.movable(), NOW, None)
        behind.add(call("c4"), ())
        assert behind.turn(NOW).next_ms is None

    asyncio.run(scenario())


def test_what_was_handed_over_is_behind_until_it_has_begun() -> None:
    async def scenario() -> None:
        offsets = Offsets()
        records, asked = [offsets.work(1), offsets.work(2)], call("c1")
        queue = queue_of(*records, asked)
        queue.hand_over(queue.movable(), NOW, None)
        assert queue.turn(NOW, Head()).behind == 3
        run = run_of(asked)
        assert queue.turn(NOW, Head(ver=1, run=run)).behind == 2
        source = records[0].event.source
        assert isinstance(source, KafkaSource)
        assert queue.turn(NOW, Head(ver=2, watermarks={source.watermark: 2})).behind == 2
        assert queue.turn(NOW, Head(ver=3, watermarks={source.watermark: 3})).behind == 1

    asyncio.run(scenario())


def test_a_call_that_is_too_large_or_that_nobody_waits_for_stays() -> None:
    async def scenario() -> None:
        large = CallWork(replace(call("c1").event, input=bytes(VALUE_BYTES_MAX + 1)))
        gone = call("c2")
        gone.keep = True
        assert queue_of(large, gone).movable() == []

    asyncio.run(scenario())


def test_a_result_is_looked_for_when_the_head_names_the_call_or_has_moved_on_for_long_enough() -> None:
    async def scenario() -> None:
        queue, (one, two) = handed("c1", "c2")
        moved = Head(ver=2, pend="p", fin={"c1": NOW})
        assert queue.to_look_for(moved, NOW + 1) == [one]
        queue.looked_for([one], [Success(b"1")], moved, NOW + 1)
        assert one.answer.result() == Success(b"1")
        assert queue.to_look_for(moved, NOW + RESULT_LOOK_MS) == [two]
        queue.looked_for([two], [None], moved, NOW + RESULT_LOOK_MS)
        assert queue.to_look_for(moved, NOW + 9_000) == []
        assert queue.waiting == 1

    asyncio.run(scenario())


def test_a_call_that_some_head_has_named_is_looked_for_when_the_next_one_names_it_no_more() -> None:
    """Of a busy lane, a head forgets what has finished within a quarter of a second."""

    async def scenario() -> None:
        queue, (first, second) = handed("c1", "c2")
        queue.answer(Head(ver=9, pend="p", fin={second.event.nonce: NOW}), NOW)
        assert queue.to_look_for(Head(ver=10, pend="p"), NOW) == [second]
        queue.looked_for([second], [Success(b"1")], Head(ver=10, pend="p"), NOW)
        assert second.answer.result() == Success(b"1")
        assert not first.answer.done()

    asyncio.run(scenario())


def test_a_call_whose_result_was_there_when_it_was_handed_over_is_looked_for_at_once() -> None:
    async def scenario() -> None:
        asked = call("c1")
        queue = queue_of(asked)
        queue.hand_over(queue.movable(), NOW, None, {asked.event.id})
        asked.wanted_until_ms = NOW + 25_000
        assert queue.to_look_for(Head(ver=9, pend="p"), NOW) == [asked]

    asyncio.run(scenario())


def test_a_result_is_not_looked_for_while_the_head_shows_that_the_call_has_not_run() -> None:
    async def scenario() -> None:
        work, later = call("c1"), NOW + RESULT_LOOK_MS
        work.wanted_until_ms = NOW + 25_000
        queue = queue_of(work)
        own, other = run_of(work), run_of(call("c9"))
        queue.hand_over(queue.movable(), NOW, Head(ver=7, pend="p", run=other))
        assert queue.to_look_for(Head(ver=8, pend="p"), later) == []
        assert queue.to_look_for(Head(ver=9, pend="p", run=other), later) == []
        assert queue.to_look_for(Head(ver=10, pend="p", run=own), later) == []
        assert queue.to_look_for(Head(ver=9, pend="p"), later) == [work]
        assert queue.to_look_for(Head(ver=10, pend="p", run=other), later) == [work]
        assert queue.turn(NOW, Head(run=own)).begun
        assert not queue.turn(NOW, Head(run=other)).begun

    asyncio.run(scenario())


def test_results_that_the_head_has_forgotten_are_found_in_the_order_of_the_calls() -> None:
    """A process that drains an inbox trims what it has finished with its next write, maybe before anybody looks."""

    async def scenario() -> None:
        queue, calls = handed("c1", "c2", "c3", "c4", "c5")
        head, later = Head(ver=2, pend="p"), NOW + RESULT_LOOK_MS
        asked = []
        while some := queue.to_look_for(head, later):
            asked.append([call.event.nonce for call in some])
            found = [None if call is calls[-1] else Success(b"1") for call in some]
            queue.looked_for(some, found, head, later)
        assert asked == [["c1"], ["c2", "c3"], ["c4", "c5"]]
        assert [call.answer.done() for call in calls] == [True, True, True, True, False]
        assert queue.to_look_for(replace(head, ver=3), later + RESULT_LOOK_MS) == [calls[-1]]

    asyncio.run(scenario())


def test_a_queued_call_that_was_tried_here_may_have_been_ended_elsewhere() -> None:
    async def scenario() -> None:
        tried, new = call("c1"), call("c2")
        tried.attempted = True
        queue = queue_of(tried, new)
        run = run_of(tried)
        assert queue.to_look_for(Head(ver=1, run=run), NOW) == []
        moved = Head(ver=3, run=replace(run, event=call("c9").event))
        assert queue.to_look_for(moved, NOW) == [tried]
        queue.looked_for([tried], [Success(b"1")], moved, NOW)
        assert tried.answer.result() == Success(b"1")
        assert list(queue) == [new]

    asyncio.run(scenario())


def test_a_result_in_the_heads_outbox_is_taken_from_there() -> None:
    async def scenario() -> None:
        queue, (asked,) = handed("c1")
        queue.answer(Head(out={"1.0": ResultOut(asked.event.id, Success(b"1"))}), NOW)
        assert asked.answer.result() == Success(b"1")
        assert queue.waiting == 0

    asyncio.run(scenario())


def test_a_call_that_an_idle_lane_knows_nothing_of_is_looked_for_elsewhere() -> None:
    async def scenario() -> None:
        queue, (asked,) = handed("c1")
        queue.looked_for(queue.to_look_for(Head(ver=1), NOW), [None], Head(ver=1), NOW)
        assert asked.answer.result() == Elsewhere()
        assert queue.waiting == 0

    asyncio.run(scenario())


def test_a_call_whose_client_has_gone_is_forgotten_after_its_wait() -> None:
    async def scenario() -> None:
        queue, (asked,) = handed("c1", wanted_until_ms=NOW + 5)
        busy = Head(ver=1, pend="p")
        assert queue.to_look_for(busy, NOW + 5) == []
        assert queue.waiting == 1
        assert queue.to_look_for(busy, NOW + 6) == []
        assert (queue.waiting, asked.answer.result()) == (0, Elsewhere())

    asyncio.run(scenario())
