"""The head item: what is written comes back, and nonsense is named.

Owns the schema's round trip. Does not own the writes (`test_transitions`).
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.lane.head import BASE, FIN, OUT, STATE, WATERMARK, head_key, pack_run, parse_head, slot_attribute
from tenuto.lane.writes import Foreign, Item, Value
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import PublishOut, ResultOut, SendOut, Success, UnreadableOut, pack
from tests.lane.samples import EVENT, LANE, RUN, idle, owned

names = st.text(min_size=1, max_size=8)
data = st.binary(max_size=16)
outs = st.one_of(
    st.builds(PublishOut, names, st.none() | data, st.none() | data),
    st.builds(SendOut, names, names, names, names, st.none() | data, due_ms=st.none() | st.integers(0, 10**13)),
    st.builds(ResultOut, names, st.builds(Success, st.none() | data)),
)
runs = st.builds(
    ClaimedRun,
    event=st.just(EVENT),
    ver=st.integers(1, 10**6),
    start_ms=st.integers(0, 10**13),
    first_out=st.integers(0, 100),
    attempt=st.integers(1, 100),
    holder=names,
    lease_ms=st.integers(0, 10**13),
    failures=st.integers(0, 100),
    awaits=st.none() | st.lists(names, max_size=3).map(tuple),
    wake_ms=st.none() | st.integers(0, 10**13),
    error=st.none() | names,
)


@st.composite
def heads(draw: st.DrawFn) -> Head:
    run = draw(st.none() | runs)
    slots = draw(st.dictionaries(names, data, max_size=3)) if run else {}
    return Head(
        ver=draw(st.integers(1, 10**6)),
        tok=draw(st.none() | names),
        pend=draw(st.none() | names),
        state=draw(st.dictionaries(names, data, max_size=3)),
        base=draw(st.dictionaries(names, st.none() | data, max_size=3)) if run else {},
        watermarks=draw(st.dictionaries(names, st.integers(0, 10**12), max_size=3)),
        out=dict(sorted(draw(st.dictionaries(names, outs, max_size=3)).items())),
        fin=draw(st.dictionaries(names, st.integers(0, 10**13), max_size=3)),
        run=run,
        slots=slots,
        segments=tuple(draw(st.lists(names, max_size=2))) if run else (),
    )


def item_of(head: Head) -> Item:
    """The item as the writes would have left it."""
    key = head_key(LANE)
    item: Item = {"pk": key.pk, "sk": key.sk, "ver": head.ver}
    item |= {n: v for n, v in (("tok", head.tok), ("pend", head.pend)) if v is not None}
    item |= {STATE + n: v for n, v in head.state.items()}
    item |= {BASE + n: v for n, v in head.base.items()}
    item |= {WATERMARK + n: v for n, v in head.watermarks.items()}
    item |= {OUT + n: pack(v) for n, v in head.out.items()}
    item |= {FIN + n: v for n, v in head.fin.items()}
    run = head.run
    if run is None:
        return item
    item |= {"rid": run.event.nonce, "run": pack_run(run), "att": run.attempt, "holder": run.holder}
    item |= {"lease": run.lease_ms, "fails": run.failures}
    item |= {n: v for n, v in (("wake", run.wake_ms), ("err", run.error)) if v is not None}
    item |= {slot_attribute(run.ver, n): v for n, v in head.slots.items()}
    if run.awaits is not None:
        item["awaits"] = list(run.awaits)
    if head.segments:
        item["seg"] = list(head.segments)
    return item


@given(heads())
def test_a_head_comes_back_from_its_item(head: Head) -> None:
    assert parse_head(item_of(head)) == head


def test_no_item_is_a_lane_that_never_did_anything() -> None:
    assert parse_head(None) == Head()


def test_the_outbox_is_in_sending_order() -> None:
    entry = pack(PublishOut("t", None))
    item = idle({"o.000000000010.000000": entry, "o.000000000009.000001": entry, "o.000000000009.000000": entry})
    assert list(parse_head(item).out) == ["000000000009.000000", "000000000009.000001", "000000000010.000000"]


def test_slots_of_another_run_are_stray() -> None:
    head = parse_head(owned({"j.4.0": b"mine", "j.3.0": b"older", "j.40.0": b"not mine either"}))
    assert head.slots == {"0": b"mine"}
    assert sorted(head.stray) == ["j.3.0", "j.40.0"]
    assert parse_head(idle({"j.4.0": b"over"})).stray == ("j.4.0",)


def test_an_empty_list_of_awaited_slots_is_a_suspension_too() -> None:
    run = parse_head({**owned(), "awaits": []}).run
    assert run is not None
    assert run.suspended
    assert not RUN.suspended


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("ver", "3"),
        ("pend", 3),
        ("s.name", "text"),
        ("b.name", 3),
        ("w.users", "7"),
        ("att", None),
        ("holder", 3),
        ("lease", "late"),
        ("awaits", "0a"),
        ("awaits", [1]),
        ("wake", "soon"),
        ("seg", "J#1"),
        ("j.4.0", "text"),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_named(attribute: str, value: str | int | list[int] | None) -> None:
    broken: Item = {**owned(), attribute: [*value] if isinstance(value, list) else value}
    with pytest.raises(ValueError, match=f"'{attribute}'"):
        parse_head(broken)


@pytest.mark.parametrize("value", ["text", 3, None, b"", b"\xc1", pack(Success(b"1")), Foreign({"BOOL": True}, "odd")])
def test_an_outgoing_entry_that_cannot_be_read_concerns_nothing_else_in_its_head(value: Value) -> None:
    entry = PublishOut("t", None)
    head = parse_head({**owned(), "o.1": value, "o.2": pack(entry), "s.name": b"1"})
    assert isinstance(head.out.pop("1"), UnreadableOut)
    assert head.out == {"2": entry}
    assert head.state["name"] == b"1"


def test_what_only_tells_of_something_may_hold_anything() -> None:
    head = parse_head({**idle(), "f.m1": "now", "tok": 3, "ans": 7, "took": "x", "seg": b"", "err": 5})
    assert (head.fin, head.tok, head.ans, head.took, head.segments) == ({"m1": 0}, None, None, (), ())
    assert parse_head({**owned(), "err": 5}).run == RUN
