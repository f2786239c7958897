"""Heads, runs and events for tests of the lane's writes.

Owns values only. Does not own any expectation.
"""

from __future__ import annotations

from tenuto.lane.head import head_key, pack_run
from tenuto.lane.writes import Applied, Item, Refused, Value, Write, apply
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce, message_nonce
from tenuto.protocol.messages import ClaimedRun
from tenuto.protocol.records import (
    AwakeableSlot,
    CallSource,
    Event,
    KafkaSource,
    MessageSource,
    SendOut,
    Success,
    pack,
)

LANE = Lane("profile", "ann")
OFFSET = 7
KAFKA = KafkaSource("0", "users", 0, OFFSET, 1_000)
EVENT = Event(str(InvocationId(LANE, kafka_nonce("0", "users", 0, OFFSET))), "update", KAFKA, b'{"n": 1}')
MESSAGE = Event(str(InvocationId(LANE, message_nonce("sender", 0))), "update", MessageSource("s/a", "1.0"))
CALL = Event(str(InvocationId(LANE, "c1")), "update", CallSource(keep_result=True))
RUN = ClaimedRun(event=EVENT, ver=4, start_ms=1_000, first_out=0, attempt=1, holder="h1", lease_ms=9_000)
ANSWER = pack(AwakeableSlot(Success(b"1")))
OUT = SendOut("other", "bob", "inv_x", "greet")


def idle(changes: Item | None = None, **named: Value) -> Item:
    """The item of a lane at rest at version 3, with what differs from that."""
    key = head_key(LANE)
    return {"pk": key.pk, "sk": key.sk, "ver": 3, "tok": "t3", "s.name": b'"Ann"', **(changes or {}), **named}


def owned(changes: Item | None = None, **named: Value) -> Item:
    """The item of a lane whose run is active at version 4."""
    run: Item = {"rid": RUN.event.nonce, "run": pack_run(RUN), "att": RUN.attempt, "holder": RUN.holder}
    return idle({"ver": 4, "tok": "t4", "lease": RUN.lease_ms, **run, **(changes or {}), **named})


def suspended(changes: Item | None = None, **named: Value) -> Item:
    """The item of a lane whose run waits for its slot 0a."""
    return owned({"awaits": ["0a"], "fails": 0, **(changes or {}), **named})


def applied(write: Write, item: Item | None) -> Item:
    """What a write leaves, which must not be refused."""
    answer = apply(write, item)
    assert isinstance(answer, Applied), f"{write} is refused on {item}"
    assert answer.item is not None
    return answer.item


def refused(write: Write, item: Item | None) -> None:
    """A write must be refused, and says what is there instead."""
    assert apply(write, item) == Refused(item)
