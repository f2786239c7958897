"""The window of unfinished offsets against a model that keeps everything."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tenuto_control.core.offsets import OffsetWindow


class Model:
    """Every delivered offset and whether it is finished, scanned anew for each question."""

    def __init__(self) -> None:
        self.unfinished: dict[int, int] = {}
        self.position: int | None = None

    def deliver(self, offset: int, size_bytes: int) -> bool:
        if offset in self.unfinished:
            return False
        self.unfinished[offset] = size_bytes
        self.position = offset + 1
        return True

    def finish(self, offset: int) -> None:
        self.unfinished.pop(offset, None)

    @property
    def committable(self) -> int | None:
        return None if self.position is None else min([self.position, *self.unfinished])


offsets = st.integers(0, 30)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), offsets, st.integers(0, 100)),
        st.tuples(st.just("finish"), offsets, st.just(0)),
    ),
    max_size=120,
)


@given(steps)
def test_window_agrees_with_the_model(script: list[tuple[str, int, int]]) -> None:
    window, model = OffsetWindow(), Model()
    for step, offset, size in script:
        if step == "deliver":
            assert window.deliver(offset, size) == model.deliver(offset, size)
        else:
            window.finish(offset)
            model.finish(offset)
        assert window.committable == model.committable
        assert window.records == len(model.unfinished)
        assert window.bytes == sum(model.unfinished.values())


@given(st.lists(offsets, unique=True, min_size=1).map(sorted), st.randoms())
def test_an_ascending_log_with_gaps_never_commits_past_unfinished_work(log: list[int], chance: Random) -> None:
    window = OffsetWindow()
    for offset in log:
        window.deliver(offset, 1)
    order = list(log)
    chance.shuffle(order)
    committed = window.committable
    assert committed == log[0]
    for done, offset in enumerate(order, 1):
        window.finish(offset)
        rest = set(order[done:])
        now = window.committable
        assert now is not None
        assert now >= committed
        assert now == (min(rest) if rest else log[-1] + 1)
        committed = now


def test_nothing_delivered_means_nothing_to_commit() -> None:
    window = OffsetWindow()
    window.finish(3)
    assert window.committable is None
    assert (window.records, window.bytes) == (0, 0)


def test_a_log_that_starts_over_is_committed_from_its_new_position() -> None:
    window = OffsetWindow()
    window.deliver(1_000, 1)
    window.finish(1_000)
    window.deliver(0, 1)
    assert window.committable == 0
    window.finish(0)
    assert window.committable == 1
