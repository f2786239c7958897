"""What a process calls itself, and what it calls that nobody else may call so."""

from __future__ import annotations

from tenuto_control.core.lane_memory import named_by
from tenuto_control.dispatcher.parts import Names


def test_names_are_of_the_process_and_never_equal() -> None:
    names = Names("df-1")
    given = [names.token() for _ in range(3)]
    assert len(set(given)) == len(given)
    assert all(named_by(names.process, name) for name in given)


def test_a_process_that_has_stopped_all_it_ran_does_not_take_that_for_its_own() -> None:
    names = Names("df-1")
    before = names.token()
    names.begin_anew()
    assert not named_by(names.process, before)
    assert named_by(names.process, names.token())
