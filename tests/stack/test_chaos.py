"""The real stack under SIGKILL: a short run of the plan; `python -m tests.stack.chaos` makes a long one."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import msgspec
import pytest

from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head
from tests.stack import chaos
from tests.stack.chaos_app import Event, Execution, link
from tests.stack.chaos_truth import Outcome, Sent, differences

SEED = 1
SECONDS = 14.0


@pytest.mark.stack
@pytest.mark.slow
def test_nothing_is_lost_doubled_or_reordered_under_kills(caplog: pytest.LogCaptureFixture) -> None:
    # The client says again and again that the broker is away, which is the point here.
    caplog.set_level(logging.CRITICAL, logger="aiokafka")
    options = chaos.Options(events=800, keys=60, seconds=SECONDS, seed=SEED)
    said: list[str] = []
    report = asyncio.run(chaos.run(options, said.append))
    assert not report.differences, "\n".join([*said, *report.differences[: chaos.SHOWN_MAX], chaos.replay(options)])
    assert not report.tracebacks, "\n".join(report.tracebacks)
    assert report.kills.keys() == set(options.victims)


def test_a_seed_gives_the_same_plan_and_stream_again() -> None:
    options = chaos.Options(events=50, keys=5, seconds=60.0, seed=3)
    assert chaos.plan(options) == chaos.plan(options)
    assert chaos.stream(options) == chaos.stream(options)
    assert chaos.plan(options) != chaos.plan(replace(options, seed=4))


# --- the oracles notice what is wrong -------------------------------------------------------------------------------

SENT = [
    Sent("k", Event(0, "fold"), 2, 10),
    Sent("k", Event(1, "steps"), 2, 11),
    Sent("k", Event(2, "send"), 2, 13),
]


def executed(number: int, step: str, answer: str, *given: str, pid: int = 1, key: str | None = None) -> Execution:
    return Execution(number, step, key or f"{number}.{step}", answer, given, pid, 0.0)


def outcome() -> Outcome:
    value = ""
    for one in SENT:
        value = link(value, one.partition, one.offset, one.event.number)
    return Outcome(
        heads={
            Lane("chain", "k"): head(chain=value, length=3),
            Lane("tally", "k"): head(numbers=[2], calls=[9]),
        },
        executions=[
            executed(1, "first", "a"),
            executed(1, "second", "b", "a"),
            executed(1, "third", "c", "a", "b"),
            executed(9, "call", "d"),
        ],
        published=[("id", 2), ("id", 2)],
    )


def head(**state: object) -> Head:
    return Head(ver=1, state={name: msgspec.json.encode(value) for name, value in state.items()})


def judged(found: Outcome, killed: frozenset[int] = frozenset()) -> list[str]:
    return differences(SENT, {"k": [9]}, killed, found)


def test_the_truth_is_no_difference() -> None:
    assert judged(outcome()) == []


def test_the_oracles_notice_state_that_is_not_the_fold() -> None:
    found = outcome()
    found.heads[Lane("chain", "k")] = head(chain="other", length=3)
    assert "another order" in judged(found)[0]
    found.heads[Lane("chain", "k")] = head(chain="other", length=4)
    assert "4 events took effect, not 3" in judged(found)[0]
    del found.heads[Lane("tally", "k")]
    assert len(judged(found)) == 3


def test_the_oracles_notice_what_is_left() -> None:
    found = outcome()
    found.inbox.append("chain/k")
    found.lag = 1
    found.heads[Lane("chain", "k")] = msgspec.structs.replace(found.heads[Lane("chain", "k")], pend="mark")
    assert len(judged(found)) == 3


@pytest.mark.parametrize(
    ("place", "extra", "said"),
    [
        (2, executed(1, "first", "x", pid=2), "ran again after second had begun"),
        (1, executed(1, "first", "a", pid=2), "was not killed"),
        (1, executed(1, "first", "a", key="other"), "two idempotency keys"),
        (4, executed(0, "first", "z"), "was never sent"),
    ],
)
def test_the_oracles_notice_steps_that_should_not_have_run(place: int, extra: Execution, said: str) -> None:
    found = outcome()
    if said == "was never sent":
        extra = msgspec.structs.replace(extra, number=77)
    found.executions.insert(place, extra)
    assert any(said in text for text in judged(found))


def test_a_step_in_flight_at_a_kill_may_run_again() -> None:
    found = outcome()
    found.executions[0] = msgspec.structs.replace(found.executions[0], answer="lost")
    found.executions.insert(1, executed(1, "first", "a", pid=2))
    assert judged(found, frozenset({1})) == []


def test_the_oracles_notice_missing_steps_and_changed_results() -> None:
    found = outcome()
    found.executions[1] = executed(1, "second", "b", "changed")
    assert any("the journal said" in text for text in judged(found))
    del found.executions[2]
    assert any("not ['first', 'second', 'third']" in text or "ran [" in text for text in judged(found))


def test_the_oracles_notice_lost_and_doubled_records() -> None:
    found = outcome()
    found.published.append(("another", 2))
    assert judged(found) == ["event 2 was published under 2 ids"]
    found.published.clear()
    assert "missing [2]" in judged(found)[0]
