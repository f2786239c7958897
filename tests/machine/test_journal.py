"""The journal: numbering, replay, messages that leave once, and segments.

Owns the journal's own rules. Does not own the writes that store it (`tests/lane`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.errors import JournalMismatchError, TerminalError
from tenuto.lane.transitions import Progress
from tenuto.machine import journal as journals
from tenuto.machine.backlog import SEGMENT_BYTES, Backlog
from tenuto.machine.journal import (
    AwakeableCommand,
    Command,
    Journal,
    NowCommand,
    RunCommand,
    SendCommand,
    SleepCommand,
    command_of,
    describe,
    due_name,
)
from tenuto.protocol.limits import SLOTS_PER_WRITE_MAX
from tenuto.protocol.records import (
    AwakeableSlot,
    DueSlot,
    NowSlot,
    PublishOut,
    RunSlot,
    SentSlot,
    SleptSlot,
    Slot,
    Success,
    pack,
    unpack_slot,
)

ENTRY = PublishOut("topic", b"1")
COMMANDS: list[Command] = [
    RunCommand("pay"),
    RunCommand("ship"),
    SleepCommand(),
    AwakeableCommand(),
    SendCommand("topic t"),
    SendCommand("topic u"),
    NowCommand(),
]
SLOTS: list[tuple[str, Slot]] = [
    ("0", RunSlot("pay", Success(b"1"))),
    ("0", SleptSlot()),
    ("0d", DueSlot(5)),
    ("0a", AwakeableSlot(Success(b"1"))),
    ("0", SentSlot("topic t")),
    ("0", NowSlot(1)),
]


def ran(name: str = "pay", size: int = 1) -> RunSlot:
    return RunSlot(name, Success(b"x" * size))


class Both:
    """A journal with the side that stores it, and what is in storage: slots of the head, and of segments."""

    def __init__(self, head: Mapping[str, bytes] = {}, rolled: Mapping[str, bytes] = {}, first_out: int = 0) -> None:
        slots = {name: unpack_slot(data) for name, data in {**head, **rolled}.items()}
        self.journal = Journal.load(slots, first_out, deque())
        self.backlog = Backlog.load(self.journal.new, head, rolled, len(self.journal.order))
        self.rolled = dict(rolled)

    def prepare(self, *, publish: bool = False) -> Progress:
        """What the lane's writer makes of it, without the puts."""
        self.backlog.arrive()
        unstored = self.backlog.unstored(self.journal.out if publish else {})
        names = tuple(
            f"J#{len(self.backlog.segments) + n}" for n, part in enumerate((unstored.rolls, unstored.apart)) if part
        )
        segments = (*self.backlog.segments, *names) if names else None
        return Progress(unstored.slots, unstored.out, tuple(unstored.rolls), segments, unstored.apart, unstored.took)

    def applied(self, progress: Progress) -> None:
        """The write of this took place, and everybody knows."""
        rolls = {name: self.backlog.in_head[name] for name in progress.rolled}
        self.rolled |= {**rolls, **progress.apart}
        self.backlog.written(progress)
        self.journal.sent(progress.out)

    def store(self, *, publish: bool = False) -> Progress:
        """What the lane's writer does at a write."""
        progress = self.prepare(publish=publish)
        self.applied(progress)
        return progress

    def again(self) -> Both:
        """What the next attempt loads."""
        return Both(self.backlog.in_head, self.rolled, self.journal.first_out)


# --- numbering and replay --------------------------------------------------------------------------------------------


def test_commands_are_numbered_in_the_order_they_are_issued() -> None:
    journal = Journal()
    assert [journal.issue(command) for command in COMMANDS] == list(range(len(COMMANDS)))


def test_another_attempt_counts_from_zero_and_finds_what_finished() -> None:
    journal = Journal()
    journal.finish(str(journal.issue(RunCommand("pay"))), ran())
    journal.issue(SleepCommand())
    journal.restart()
    assert journal.issue(RunCommand("pay")) == 0
    assert journal.slot("0") == ran()
    assert journal.issue(SleepCommand()) == 1


def test_an_endless_loop_of_commands_ends_the_invocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "COMMANDS_MAX", 3)
    journal = Journal()
    for _ in range(3):
        journal.issue(SleepCommand())
    with pytest.raises(TerminalError, match="may issue 3 commands"):
        journal.issue(SleepCommand())


@pytest.mark.parametrize("command", COMMANDS, ids=describe)
@pytest.mark.parametrize(("name", "slot"), SLOTS, ids=lambda part: type(part).__name__)
def test_replay_takes_the_journaled_command_and_no_other(name: str, slot: Slot, command: Command) -> None:
    journal = Journal.load({name: slot}, 0, deque())
    if command == command_of(slot):
        assert journal.issue(command) == 0
    elif name == "0a":
        # Only an awakeable looks at a slot that is filled from outside: whoever guesses an id must not stop a run.
        assert journal.issue(command) == 0
    else:
        with pytest.raises(JournalMismatchError) as caught:
            journal.issue(command)
        assert caught.value.journaled == describe(command_of(slot))
        assert caught.value.replayed == describe(command)
        for side in (describe(command_of(slot)), describe(command), "command 0"):
            assert re.search(re.escape(side), str(caught.value))


@given(st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=8), st.data())
def test_a_replay_of_the_same_commands_never_differs(commands: list[Command], data: st.DataObject) -> None:
    finished: dict[Command, Slot] = {
        RunCommand("pay"): ran(),
        RunCommand("ship"): ran("ship"),
        SleepCommand(): SleptSlot(),
    }
    both = Both()
    for command in commands:
        index = both.journal.issue(command)
        if command in finished and data.draw(st.booleans()):
            both.journal.finish(str(index), finished[command])
    both.store(publish=True)
    for replay in (both.journal, both.again().journal):
        replay.restart()
        assert [replay.issue(command) for command in commands] == list(range(len(commands)))


# --- the order of completions ----------------------------------------------------------------------------------------


@given(st.data())
def test_every_attempt_is_told_of_completions_in_the_same_order(data: st.DataObject) -> None:
    """Whatever is stored when, and wherever an attempt ends."""
    first = Both()
    told = _play(first, data, [])
    for _ in range(data.draw(st.integers(0, 3))):
        first = first.again()
        stored = list(first.journal.order)
        retold = _play(first, data, told)
        # What was stored is told as it was; the rest had no effect that anybody saw.
        assert first.journal.order[: len(stored)] == stored
        told = retold


def _play(both: Both, data: st.DataObject, before: list[int]) -> list[int]:
    """An attempt of eight commands that are issued at once, told in an order that chance decides."""
    journal = both.journal
    outstanding = [journal.issue(RunCommand("pay")) for _ in range(8)]
    told: list[int] = []
    for _ in range(data.draw(st.integers(0, 8))):
        index = journal.next_told if len(outstanding) > 1 else None
        if index is None:
            index = data.draw(st.sampled_from(outstanding))
        if journal.slot(str(index)) is None:
            journal.finish(str(index), ran())
        journal.tell(index, len(outstanding))
        outstanding.remove(index)
        told.append(index)
        if data.draw(st.booleans()):
            both.store()
    return told


def test_a_command_that_has_no_rival_needs_no_record() -> None:
    both = Both()
    for _ in range(3):
        index = both.journal.issue(RunCommand("pay"))
        both.journal.finish(str(index), ran())
        both.journal.tell(index, 1)
    assert both.store().slots.keys() == {"0", "1", "2"}
    assert both.journal.next_told is None


# --- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [False, True])
def test_a_slot_never_changes(*, written: bool) -> None:
    both = Both()
    both.journal.finish("0", ran())
    if written:
        both.store()
    with pytest.raises(ValueError, match="already finished"):
        both.journal.finish("0", ran("pay", 9))
    assert both.journal.slot("0") == ran()


def test_progress_is_what_no_write_has_stored_yet() -> None:
    both = Both()
    both.journal.finish("0", ran())
    assert both.store() == Progress({"0": pack(ran())})
    assert both.prepare() == Progress()
    both.journal.finish("1", SleptSlot())
    assert both.prepare() == Progress({"1": pack(SleptSlot())})


def test_what_finished_during_a_write_waits_for_the_next() -> None:
    both = Both()
    both.journal.finish("0", ran())
    under_way = both.prepare()
    both.journal.finish("1", ran())
    both.applied(under_way)
    assert both.backlog.durable < both.journal.finished
    assert both.store().slots.keys() == {"1"}
    assert both.backlog.durable == both.journal.finished


def test_answers_from_outside_are_learned_once() -> None:
    both = Both()
    both.journal.finish("0", ran())
    both.store()
    answer = AwakeableSlot(Success(b"1"))
    slots = {"0": pack(ran()), "1a": pack(answer)}
    news = both.backlog.learn(slots, ())
    assert news == [("1a", answer)]
    assert both.backlog.learn(slots, ()) == []
    both.journal.hear(*news[0])
    assert both.journal.slot("1a") == answer


# --- messages --------------------------------------------------------------------------------------------------------


def test_messages_wait_for_a_write_that_publishes_them() -> None:
    both = Both(first_out=3)
    both.journal.send(both.journal.issue(SendCommand("topic t")), "topic t", ENTRY)
    assert both.prepare() == Progress()
    progress = both.store(publish=True)
    assert progress.out == {3: ENTRY}
    assert progress.slots == {"0": pack(SentSlot("topic t"))}
    assert both.prepare(publish=True) == Progress()


def test_a_message_that_left_is_not_sent_again_and_keeps_its_position() -> None:
    both = Both(first_out=3)
    both.journal.send(both.journal.issue(SendCommand("topic t")), "topic t", ENTRY)
    both.store(publish=True)
    both.journal.restart()
    both.journal.send(both.journal.issue(SendCommand("topic t")), "topic t", ENTRY)
    both.journal.send(both.journal.issue(SendCommand("topic u")), "topic u", ENTRY)
    assert both.prepare(publish=True).out == {4: ENTRY}


def test_messages_of_an_attempt_that_failed_do_not_leave() -> None:
    both = Both()
    both.journal.send(both.journal.issue(SendCommand("topic t")), "topic t", ENTRY)
    both.journal.restart()
    assert both.prepare(publish=True) == Progress()


# --- segments --------------------------------------------------------------------------------------------------------


def test_a_small_journal_stays_in_the_head() -> None:
    both = Both()
    both.journal.finish("0", ran(size=SEGMENT_BYTES // 2))
    both.store()
    assert both.prepare().rolled == ()


def test_a_journal_above_the_bound_rolls_and_is_all_there() -> None:
    both = Both()
    for index in range(100):
        both.journal.finish(str(index), ran(size=200))
        both.store()
        assert sum(map(len, both.backlog.in_head.values())) <= SEGMENT_BYTES + 300
    assert len(both.backlog.segments) > 5
    assert both.rolled.keys() | both.backlog.in_head.keys() == {str(index) for index in range(100)}
    again = both.again().journal
    assert [again.slot(str(index)) for index in range(100)] == [ran(size=200)] * 100


def test_more_slots_than_a_write_can_name_go_to_a_segment() -> None:
    both = Both()
    for index in range(SLOTS_PER_WRITE_MAX + 30):
        both.journal.finish(str(index), ran())
    progress = both.store()
    assert (len(progress.slots), len(progress.apart)) == (SLOTS_PER_WRITE_MAX, 30)
    assert both.again().journal.slot(str(SLOTS_PER_WRITE_MAX + 29)) == ran()


def test_a_result_that_leaves_the_head_is_remembered_as_given() -> None:
    answer = pack(AwakeableSlot(Success(b"x" * SEGMENT_BYTES)))
    both = Both({"3a": answer})
    both.journal.finish("4", SleptSlot())
    progress = both.store()
    assert (progress.rolled, progress.took) == (("3a",), (3,))
    assert both.backlog.took == {3}
    assert both.again().journal.slot("3a") == AwakeableSlot(Success(b"x" * SEGMENT_BYTES))


def test_a_rolled_slot_wins_over_one_put_again_later() -> None:
    first, second = (pack(AwakeableSlot(Success(value))) for value in (b"1", b"2"))
    both = Both({"0a": second}, {"0a": first})
    assert both.journal.slot("0a") == AwakeableSlot(Success(b"1"))
    assert both.backlog.in_head.keys() == {"0a"}, "the head still holds it, so the final commit removes it"


def test_the_time_of_a_sleep_has_a_slot_beside_its_end() -> None:
    journal = Both({due_name(0): pack(DueSlot(5))}).journal
    assert journal.issue(SleepCommand()) == 0
    assert journal.slot("0") is None
    journal.finish("0", SleptSlot())
