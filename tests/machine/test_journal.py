"""The journal: numbering, replay, messages that leave once, and segments.

Owns the journal's own rules. Does not own the writes that store it (`tests/lane`).
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.errors import JournalMismatchError, TerminalError
from tenuto.lane.transitions import Progress
from tenuto.machine import journal as journals
from tenuto.machine.journal import (
    SEGMENT_BYTES,
    Awakeable,
    Command,
    Journal,
    Run,
    Select,
    Send,
    Sleep,
    command_of,
    describe,
    due_name,
)
from tenuto.protocol.records import (
    AwakeableSlot,
    DueSlot,
    PublishOut,
    RunSlot,
    SelectedSlot,
    SentSlot,
    SleptSlot,
    Slot,
    Success,
    pack,
)

ENTRY = PublishOut("topic", b"1")
COMMANDS: list[Command] = [Run("pay"), Run("ship"), Sleep(), Awakeable(), Send("topic t"), Send("topic u"), Select()]
SLOTS: list[tuple[str, Slot]] = [
    ("0", RunSlot("pay", Success(b"1"))),
    ("0", SleptSlot()),
    ("0d", DueSlot(5)),
    ("0a", AwakeableSlot(Success(b"1"))),
    ("0", SentSlot("topic t")),
    ("0", SelectedSlot(1)),
]


def ran(name: str = "pay", size: int = 1) -> RunSlot:
    return RunSlot(name, Success(b"x" * size))


def store(journal: Journal, *, publish: bool = False) -> Progress:
    """What the lease does at a write, without the write."""
    progress = journal.progress(publish=publish)
    rolls = journal.rolls()
    journal.written(progress)
    if rolls:
        journal.rolled(tuple(rolls), (*journal.segments, f"J#{len(journal.segments)}"))
    return progress


# --- numbering and replay --------------------------------------------------------------------------------------------


def test_commands_are_numbered_in_the_order_they_are_issued() -> None:
    journal = Journal()
    assert [journal.issue(command) for command in COMMANDS] == list(range(len(COMMANDS)))


def test_another_attempt_counts_from_zero_and_finds_what_finished() -> None:
    journal = Journal()
    journal.finish(str(journal.issue(Run("pay"))), ran())
    journal.issue(Sleep())
    journal.restart()
    assert journal.issue(Run("pay")) == 0
    assert journal.slot("0") == ran()
    assert journal.issue(Sleep()) == 1


def test_an_endless_loop_of_commands_ends_the_invocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "COMMANDS_MAX", 3)
    journal = Journal()
    for _ in range(3):
        journal.issue(Sleep())
    with pytest.raises(TerminalError, match="may issue 3 commands"):
        journal.issue(Sleep())


@pytest.mark.parametrize("command", COMMANDS, ids=describe)
@pytest.mark.parametrize(("name", "slot"), SLOTS, ids=lambda part: type(part).__name__)
def test_replay_takes_the_journaled_command_and_no_other(name: str, slot: Slot, command: Command) -> None:
    journal = Journal.load({name: pack(slot)}, {}, (), 0)
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
    finished: dict[Command, Slot] = {Run("pay"): ran(), Run("ship"): ran("ship"), Sleep(): SleptSlot()}
    journal = Journal()
    for command in commands:
        index = journal.issue(command)
        if command in finished and data.draw(st.booleans()):
            journal.finish(str(index), finished[command])
    stored = store(journal, publish=True)
    for replay in (journal, Journal.load(stored.slots, {}, (), 0)):
        replay.restart()
        assert [replay.issue(command) for command in commands] == list(range(len(commands)))


# --- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [False, True])
def test_a_slot_never_changes(*, written: bool) -> None:
    journal = Journal()
    journal.finish("0", ran())
    if written:
        store(journal)
    with pytest.raises(ValueError, match="already finished"):
        journal.finish("0", ran("pay", 9))
    assert journal.slot("0") == ran()


def test_progress_is_what_no_write_has_stored_yet() -> None:
    journal = Journal()
    journal.finish("0", ran())
    assert journal.progress(publish=False) == Progress({"0": pack(ran())})
    store(journal)
    assert not journal.progress(publish=False)
    journal.finish("1", SleptSlot())
    assert journal.progress(publish=False) == Progress({"1": pack(SleptSlot())})


def test_what_finished_during_a_write_waits_for_the_next() -> None:
    journal = Journal()
    journal.finish("0", ran())
    under_way = journal.progress(publish=False)
    journal.finish("1", ran())
    journal.written(under_way)
    assert journal.progress(publish=False).slots.keys() == {"1"}


def test_answers_from_outside_are_learned_once() -> None:
    journal = Journal()
    journal.finish("0", ran())
    store(journal)
    slots = {"0": pack(ran()), "1a": pack(AwakeableSlot(Success(b"1")))}
    assert journal.learn(slots) == ["1a"]
    assert journal.learn(slots) == []
    assert journal.slot("1a") == AwakeableSlot(Success(b"1"))


# --- messages --------------------------------------------------------------------------------------------------------


def test_messages_wait_for_a_write_that_publishes_them() -> None:
    journal = Journal(first_out=3, next_out=3)
    journal.send(journal.issue(Send("topic t")), "topic t", ENTRY)
    assert not journal.progress(publish=False)
    progress = store(journal, publish=True)
    assert progress.out == {3: ENTRY}
    assert progress.slots == {"0": pack(SentSlot("topic t"))}
    assert not journal.progress(publish=True)


def test_a_message_that_left_is_not_sent_again_and_keeps_its_position() -> None:
    journal = Journal(first_out=3, next_out=3)
    journal.send(journal.issue(Send("topic t")), "topic t", ENTRY)
    store(journal, publish=True)
    journal.restart()
    journal.send(journal.issue(Send("topic t")), "topic t", ENTRY)
    journal.send(journal.issue(Send("topic u")), "topic u", ENTRY)
    assert journal.progress(publish=True).out == {4: ENTRY}


def test_messages_of_an_attempt_that_failed_do_not_leave() -> None:
    journal = Journal()
    journal.send(journal.issue(Send("topic t")), "topic t", ENTRY)
    journal.restart()
    assert not journal.progress(publish=True)


# --- segments --------------------------------------------------------------------------------------------------------


def test_a_small_journal_stays_in_the_head() -> None:
    journal = Journal()
    journal.finish("0", ran(size=SEGMENT_BYTES // 2))
    store(journal)
    assert journal.rolls() == {}


def test_a_journal_above_the_bound_rolls_and_is_all_there() -> None:
    journal = Journal()
    segments: dict[str, bytes] = {}
    for index in range(100):
        journal.finish(str(index), ran(size=200))
        segments |= journal.rolls()
        store(journal)
        assert sum(map(len, journal.in_head.values())) <= SEGMENT_BYTES + 300
    assert len(journal.segments) > 5
    head = dict(journal.in_head)
    assert segments.keys() | head.keys() == {str(index) for index in range(100)}
    again = Journal.load(head, segments, journal.segments, 0)
    assert [again.slot(str(index)) for index in range(100)] == [ran(size=200)] * 100


def test_a_rolled_slot_wins_over_one_put_again_later() -> None:
    first, second = (pack(AwakeableSlot(Success(value))) for value in (b"1", b"2"))
    journal = Journal.load({"0a": second}, {"0a": first}, ("J#0",), 0)
    assert journal.slot("0a") == AwakeableSlot(Success(b"1"))
    assert journal.in_head.keys() == {"0a"}, "the head still holds it, so the final commit removes it"


def test_the_time_of_a_sleep_has_a_slot_beside_its_end() -> None:
    journal = Journal.load({due_name(0): pack(DueSlot(5))}, {}, (), 0)
    assert journal.issue(Sleep()) == 0
    assert journal.slot("0") is None
    journal.finish("0", SleptSlot())
