"""Bytes of any kind in every decoder: they are refused in one way, that every caller expects.

Owns decoders alone. Does not own what becomes of an item that cannot be read (`test_unreadable_items`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto.errors import ProtocolError
from tenuto.hosts import event_scheduler
from tenuto.lane.dead_letters import Letter, letter_put, parse_letter
from tenuto.lane.head import parse_head
from tenuto.lane.timers import GuardTimer, SendTimer, parse_timer, timer_put
from tenuto.lane.transitions import check_inbox_events, inbox_put
from tenuto.lane.writes import Foreign, Item, Put, Value
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import (
    Discover,
    Fenced,
    Head,
    Outcomes,
    Pooled,
    Speculated,
    decode_outcome,
    decode_outcomes,
    decode_request,
    encode,
)
from tenuto.protocol.records import (
    Bundle,
    CallSource,
    Carried,
    Event,
    RunSlot,
    SendOut,
    Success,
    pack,
    pack_events,
    unpack_bundle,
    unpack_carried,
    unpack_event,
    unpack_events,
    unpack_out,
    unpack_result,
    unpack_slot,
)
from tests.attack.examples import examples

LANE = Lane("box", "k")
EVENT = Event(str(InvocationId(LANE, "c1")), "put", CallSource(keep_result=True), b"1", (("h", b"v"),))
SEND = SendOut("box", "k", EVENT.id, "put", b"1")

DECODERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (unpack_slot, pack(RunSlot("step", Success(b"1")))),
    (unpack_out, pack(SEND)),
    (unpack_event, pack(EVENT)),
    (unpack_events, pack_events([EVENT, EVENT])),
    (unpack_result, pack(Success(b"1"))),
    (unpack_bundle, pack(Bundle(((1, SEND),)))),
    (unpack_carried, pack(Carried((("h", b"v"),), b"k"))),
    (decode_request, encode(Discover())),
    (decode_request, encode(Pooled(()))),
    (decode_outcome, encode(Fenced("lost"))),
    (decode_outcomes, encode(Outcomes((None, Speculated(()))))),
    (event_scheduler.decode, event_scheduler.wake_up(LANE)),
]

DEPTHS = [100, 1_000, 100_000]
OPENINGS = [b"\x91", b"\x81\xa1a", b"\x81\xa4type", b"[", b'{"a":', b'{"type":"fenced","a":', b'{"tenuto":"wake","a":']
FIELDS = [b"\x82\xa4type\xa4send\xa1x", b"\x83\xa1x\xa1y\xa1z", b"\x92\x91\x91", b"\x81\xa1x", b"\x92\xa1a"]

odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**37), 10**37)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.just(Foreign({"BOOL": True}, "DynamoDB type BOOL")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _refuses(decode: Callable[[bytes], object], data: bytes) -> None:
    """Decoding succeeds, or raises what says that the data is bad."""
    try:
        decode(data)
    except (msgspec.DecodeError, ProtocolError):
        return


@pytest.mark.parametrize("number", range(len(DECODERS)), ids=lambda n: f"{n}-{DECODERS[n][0].__name__}")
def test_no_depth_is_more_than_bad_data(number: int) -> None:
    decode, _ = DECODERS[number]
    for depth in DEPTHS:
        for opening in OPENINGS:
            for field in (b"", *FIELDS):
                _refuses(decode, field + opening * depth)


@pytest.mark.parametrize("number", range(len(DECODERS)), ids=lambda n: f"{n}-{DECODERS[n][0].__name__}")
@settings(max_examples=examples(50), deadline=None)
@given(data=st.data())
def test_bytes_of_any_kind_are_refused_in_one_way(number: int, data: st.DataObject) -> None:
    decode, valid = DECODERS[number]
    decode(valid)
    at = data.draw(st.integers(0, len(valid)))
    junk = data.draw(st.binary(max_size=30))
    _refuses(decode, junk)
    _refuses(decode, valid[:at])
    _refuses(decode, valid[:at] + junk)
    _refuses(decode, valid[:at] + junk + valid[at:])
    _refuses(decode, valid[:at] + junk + valid[at + len(junk) :])


def _twice(encoded: bytes) -> list[bytes]:
    """A record with each of its fields said twice, first otherwise and then as it is."""
    json = encoded[:1] == b"{"
    codec: Any = msgspec.json if json else msgspec.msgpack
    record = codec.decode(encoded)
    if not isinstance(record, dict):
        return []
    made = []
    for name in record:
        others: tuple[Any, ...] = ("another", 7, None, b"x", ["a"], {})
        for other in others:
            field, value = codec.encode(name), codec.encode(other)
            if json:
                made.append(b"{" + field + b":" + value + b"," + encoded[1:])
            else:
                made.append(bytes([encoded[0] + 1]) + field + value + encoded[1:])
    return made


@pytest.mark.parametrize("number", range(len(DECODERS)), ids=lambda n: f"{n}-{DECODERS[n][0].__name__}")
def test_a_field_that_is_there_twice_counts_as_it_was_said_last_or_is_bad_data(number: int) -> None:
    decode, valid = DECODERS[number]
    for data in _twice(valid):
        try:
            found = decode(data)
        except (msgspec.DecodeError, ProtocolError):
            continue
        assert found == decode(valid)


def test_so_does_a_field_within_an_answer() -> None:
    answer = (
        b'{"type":"speculated","results":[],"results":[{"event_id":"a","event_id":"b","result":{"type":"ok"}}],'
        b'"state":{"n":"MQ==","n":"Mg=="},"state":{"n":"Mw==","n":"NA=="}}'
    )
    found = decode_outcome(answer)
    assert isinstance(found, Speculated)
    assert [result.event_id for result in found.results] == ["b"]
    assert found.state == {"n": b"4"}
    assert decode_outcome(encode(found)) == found


def _items() -> list[tuple[Callable[[Item], object], Item]]:
    """A well-formed item of every kind, with what reads it."""

    def item(put: Put) -> Item:
        return {"pk": put.key.pk, "sk": put.key.sk, **put.attributes}

    head: Item = {"pk": LANE.pk, "sk": "H", "ver": 3, "tok": "t", "pend": "p", "s.a": b"1", "w.0|t|0": 4, "f.c1": 1}
    head |= {"o.000000000003.000001": pack(SEND), "rid": "c1", "tried": ["c1", 1], "took": b"\x91\x01", "seg": ["J#1"]}
    return [
        (parse_head, head),
        (parse_timer, item(timer_put(GuardTimer(LANE, "c1", 5, "n", ver=1, since_ms=1)))),
        (parse_timer, item(timer_put(SendTimer(LANE, "c1", 5, "n", pack(SEND), "box/s", "1.0")))),
        (lambda one: check_inbox_events(LANE, one), item(inbox_put(LANE, EVENT))),
        (parse_letter, item(letter_put(Letter("a", "message", "why", 500, 1, "HTTP")))),
    ]


ITEMS = _items()


@pytest.mark.parametrize("number", range(len(ITEMS)))
@settings(max_examples=examples(50), deadline=None)
@given(data=st.data())
def test_items_of_any_content_are_read_or_refused_in_one_way(number: int, data: st.DataObject) -> None:
    read, valid = ITEMS[number]
    read(dict(valid))
    names = st.sampled_from(sorted(valid.keys() - {"pk", "sk"})) | st.sampled_from(
        ["run", "o.x", "j.", "b.", "w.", "f."]
    )
    changes = data.draw(st.dictionaries(names, odd_values, max_size=3))
    gone = data.draw(st.sets(st.sampled_from(sorted(valid.keys() - {"pk", "sk"})), max_size=2))
    item = {name: value for name, value in (valid | cast("dict[str, Any]", changes)).items() if name not in gone}
    try:
        found = read(item)
    except ValueError:
        return
    if isinstance(found, Head):
        # A function is given it, whatever else is done with it.
        msgspec.msgpack.encode(found)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**37, -(10**37)])
@pytest.mark.parametrize("name", ["f.c1", "x.0|t|0", "tried", "w.0|t|0", "ver"])
def test_a_number_of_38_digits_in_a_head_is_no_number(name: str, number: int) -> None:
    """DynamoDB's numbers have 38 digits, those of a message 64 bits: a lane would decide, and then send nothing."""
    read, valid = ITEMS[0]
    values: dict[str, Value] = {"tried": ["c1", number], "x.0|t|0": [number, number]}
    value = values.get(name, number)
    try:
        found = read({**valid, name: value})
    except ValueError:
        assert name in ("w.0|t|0", "ver"), "what a lane goes by stops it, and nothing else does"
        return
    msgspec.msgpack.encode(found)
    assert name not in ("w.0|t|0", "ver")
