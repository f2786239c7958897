"""The modes of an activation on the wire: old functions and new control planes understand each other, and back.

Owns the bytes of one message of each mode, as the first version sent them. Does not own what follows from a mode.
"""

from __future__ import annotations

import json
from typing import Final, get_args

import pytest
from msgspec.structs import replace

from tenuto.errors import ProtocolError
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Activation, ClaimedRun, Head, ModeTag, Trim, decode_request, encode
from tenuto.protocol.modes import Drain, Mode, Resume, Shared, Speculate, activation_of, mode_of
from tenuto.protocol.records import Event, KafkaSource, ResultOut, Success

LANE: Final = Lane("box", "k")


def event(offset: int) -> Event:
    source = KafkaSource("0", "t", 0, offset, 5)
    return Event(str(InvocationId(LANE, f"n{offset}")), "work", source, b"x")


RUN: Final = ClaimedRun(event(1), 3, 10, 0, 2, "h1", 900, secret=b"s")
HEAD: Final = Head(
    ver=3,
    tok="a",
    pend="p",
    state={"n": b"1"},
    watermarks={"w": 2},
    out={"3.0": ResultOut("i", Success())},
    fin={"c1": 4},
    run=RUN,
)


def wired(offset: int) -> str:
    """An event on the wire."""
    return (
        f'{{"id":"inv_Ym94H24{"xy"[offset - 1]}H2s","handler":"work","source":{{"type":"kafka","epoch":"0","topic":"t",'
        f'"partition":0,"offset":{offset},"timestamp_ms":5,"raw_key":null,"dead_letter":null}},"input":"eA==",'
        '"headers":[]}'
    )


def message(mode: str, events: str = "", *, attempt: int = 1, claim: str = "false", late: str = "false") -> str:
    """A message as the first version of the control plane sent it."""
    run = (
        f'{{"event":{wired(1)},"ver":3,"start_ms":10,"first_out":0,"attempt":2,"holder":"h1","lease_ms":900,'
        '"failures":0,"awaits":null,"wake_ms":null,"error":null,"input_item":null,"secret":"cw=="}'
    )
    return (
        f'{{"type":"activation","service":"box","key":"k","mode":"{mode}","head":{{"ver":3,"tok":"a","pend":"p",'
        '"state":{"n":"MQ=="},"base":{},"watermarks":{},"out":{},"fin":{},'
        f'"run":{run if mode == "resume" else "null"},"slots":{{}},"segments":[],"stray":[],'
        '"ans":null,"took":[],"tried":null},'
        f'"holder":"h1","events":[{events}],"attempt":{attempt},"claim_first":{claim},'
        '"trim":{"out":["3.0"],"fin":["c1"],"stray":[]},"table":"t1","encrypted":true,"trace":null,"hold_ms":20000,'
        f'"late":{late},"version":1}}'
    )


SENT: Final[dict[str, tuple[Mode, str]]] = {
    "speculate": (Speculate((event(1), event(2)), 3), message("speculate", f"{wired(1)},{wired(2)}", attempt=3)),
    "speculate, claiming first": (
        Speculate((event(1),), claim_first=True),
        message("speculate", wired(1), claim="true"),
    ),
    "drain": (Drain((event(1),), 2), message("drain", wired(1), attempt=2)),
    "resume": (Resume(RUN), message("resume")),
    "resume, late": (Resume(RUN, late=True), message("resume", late="true")),
    "resume, events behind it": (Resume(RUN, behind=(event(1), event(2))), message("resume", f"{wired(1)},{wired(2)}")),
    "shared": (Shared(event(1)), message("shared", wired(1))),
}


def sent(mode: Mode) -> Activation:
    trim = Trim(("3.0",), ("c1",))
    return activation_of(mode, "box", "k", HEAD, "h1", trim=trim, table="t1", encrypted=True, hold_ms=20_000)


@pytest.mark.parametrize("case", SENT)
def test_a_mode_is_sent_as_the_bytes_that_every_version_reads(case: str) -> None:
    mode, expected = SENT[case]
    message = json.loads(encode(sent(mode)))
    # What later versions have added, at the end of the message and of its head: an older function leaves it unread.
    assert (message.pop("spread"), message.pop("nap"), message["head"].pop("former")) == ([0, 0], None, {})
    assert json.dumps(message, separators=(",", ":")) == expected


@pytest.mark.parametrize("case", SENT)
def test_a_mode_is_read_from_these_bytes(case: str) -> None:
    mode, data = SENT[case]
    request = decode_request(data.encode())
    assert isinstance(request, Activation)
    assert mode_of(request) == mode


def test_every_tag_of_the_wire_is_a_mode_of_its_own() -> None:
    tags = [sent(mode).mode for mode, _ in SENT.values()]
    assert set(tags) == set(get_args(ModeTag))
    assert len({type(mode) for mode, _ in SENT.values()}) == len(set(tags))


def test_whether_a_mark_is_cleared_stays_with_who_commits() -> None:
    assert encode(sent(Drain((event(1),), clears=True))) == encode(sent(Drain((event(1),))))


@pytest.mark.parametrize("events", [(), (event(1), event(2))])
def test_a_request_without_what_its_mode_is_about_is_refused(events: tuple[Event, ...]) -> None:
    with pytest.raises(ProtocolError, match=f"for one event, not {len(events)}"):
        mode_of(replace(sent(Shared(event(1))), events=events))
    with pytest.raises(ProtocolError, match="its head has none"):
        mode_of(replace(sent(Resume(RUN)), head=Head(), events=events))
