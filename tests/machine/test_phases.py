"""The phases of an attempt: every change that is not in the table is refused.

Owns the check of the table. Does not own what happens on the way (`tests/simulation`).
"""

from __future__ import annotations

from itertools import product

import pytest

from tenuto.machine.phases import TRANSITIONS, IllegalChangeError, Phase, PhaseChange, advance

WRITING = {Phase.SPECULATING, Phase.OWNING, Phase.FENCED}


@pytest.mark.parametrize(("phase", "change"), list(product(Phase, PhaseChange)))
def test_only_the_table_leads_anywhere(phase: Phase, change: PhaseChange) -> None:
    if (phase, change) in TRANSITIONS:
        assert advance(phase, change) is TRANSITIONS[phase, change]
    else:
        with pytest.raises(IllegalChangeError, match=f"{phase.value} cannot be {change.value}"):
            advance(phase, change)


def test_a_suspended_attempt_goes_nowhere() -> None:
    assert Phase.SUSPENDED not in {phase for phase, _ in TRANSITIONS}


def test_after_a_commit_only_another_event_follows() -> None:
    after = {(change, to) for (phase, change), to in TRANSITIONS.items() if phase is Phase.COMMITTED}
    assert after <= {(PhaseChange.CONTINUED, Phase.SPECULATING)}


def test_a_fenced_attempt_stays_fenced() -> None:
    assert {to for (phase, _), to in TRANSITIONS.items() if phase is Phase.FENCED} == {Phase.FENCED}


@pytest.mark.parametrize("phase", [Phase.SPECULATING, Phase.OWNING])
def test_whoever_may_write_may_be_refused(phase: Phase) -> None:
    assert TRANSITIONS[phase, PhaseChange.REFUSED] is Phase.FENCED


def test_changes_of_an_owner_are_for_owners() -> None:
    owners = {phase for phase, change in TRANSITIONS if change in {PhaseChange.CHECKPOINTED, PhaseChange.SUSPENDED}}
    assert owners == {Phase.OWNING}


def test_every_phase_can_be_reached() -> None:
    reached = {Phase.SPECULATING}
    for _ in Phase:
        reached |= {to for (phase, _), to in TRANSITIONS.items() if phase in reached}
    assert reached == set(Phase)
