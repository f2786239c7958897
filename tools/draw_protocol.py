# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Writes `docs/internals/lane_protocol.md` from the tables in the code: phases of an attempt, writes of a lane.

    python tools/draw_protocol.py           # write the page
    python tools/draw_protocol.py --check   # exit 1 when the page differs from the code

Owns the form of the page. Its content comes from `tenuto.machine.phases` and `tenuto.lane.transitions`: what changes
there changes here, and a test compares the two.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

from tenuto.lane import transitions
from tenuto.lane.head import WATERMARK
from tenuto.lane.writes import Absent, AbsentOrAtMost, AbsentOrEquals, Clause, Delete, Equals, Put, Update
from tenuto.machine.phases import TRANSITIONS, Phase
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Head, Run, Trim
from tenuto.protocol.records import Event, KafkaSource, MessageSource, PublishOut, Success

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "internals" / "lane_protocol.md"

LANE: Final = Lane("service", "key")
EVENT: Final = Event(str(InvocationId(LANE, "nonce")), "handler", KafkaSource("epoch", "topic", 0, 7, 0))
RUN: Final = Run(event=EVENT, ver=3, start_ms=0, first_out=0, attempt=1, holder="holder", lease_ms=0)
IDLE: Final = Head(ver=3, pend="mark", base={"name": None})
OWNED: Final = Head(ver=4, run=RUN, slots={"0": b""}, base={"name": None})
MESSAGE: Final = Event(str(InvocationId(LANE, "other")), "handler", MessageSource("sender", "1.0"))
OUT: Final = PublishOut("topic", None)
EFFECTS: Final = transitions.effects_of([EVENT, MESSAGE], {"name": b"", "gone": None}, {0: OUT}, 0)
PROGRESS: Final = transitions.Progress({"1": b""}, {0: OUT}, ("0",), ("J#1",))
TIMER: Final = transitions.Timer(LANE, "guard", "nonce", 0, "unique")
NOTHING: Final = "none"

ENDS: Final = (Phase.SUSPENDED, Phase.COMMITTED, Phase.FENCED)
"""Where an attempt may end."""

DEFENCES: Final = {"spec.idle", "spec.watermark", "claim.idle", "claim.watermark", "takeover.ver", "clear.ver"}
"""Clauses implied by others, kept against a mistake in those."""

Write = Update | Put | Delete


WAIT: Final = transitions.Wait(("2a",), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One write: who makes it, the function that builds it, and a sample of it."""

    function: Callable[..., Write]
    by: str
    sample: Write


ROWS: Final = (
    Row(
        transitions.spec_commit,
        "dispatcher",
        transitions.spec_commit(LANE, IDLE, EFFECTS, "tok", drain=False, clears=True),
    ),
    Row(transitions.claim, "function", transitions.claim(LANE, IDLE, EFFECTS, RUN, "tok", drain=False)),
    Row(transitions.checkpoint, "function", transitions.checkpoint(LANE, 4, RUN, PROGRESS, "own")),
    Row(
        transitions.suspend,
        "function",
        transitions.suspend(LANE, 4, RUN, PROGRESS, {"name": b""}, {"name": b""}, WAIT, "own"),
    ),
    Row(transitions.takeover, "dispatcher", transitions.takeover(LANE, OWNED, "holder", 0, {"0": b""}, "tok")),
    Row(transitions.final_commit, "function, dispatcher", transitions.final_commit(LANE, OWNED, EFFECTS, "tok", "own")),
    Row(transitions.slot_put, "whoever resolves", transitions.slot_put(LANE, OWNED, "2a", b"", "mark")),
    Row(transitions.inbox_put, "shipper, ingress, spill", transitions.inbox_put(LANE, EVENT)),
    Row(transitions.inbox_again, "ingress", transitions.inbox_again(LANE, EVENT, 0)),
    Row(transitions.mark_pend, "after 9 and 10", transitions.mark_pend(LANE, "unique")),
    Row(transitions.clear_pend, "dispatcher", transitions.clear_pend(LANE, IDLE)),
    Row(transitions.tombstone, "dispatcher", transitions.tombstone(LANE, EVENT, 0)),
    Row(transitions.trim_head, "dispatcher", transitions.trim_head(LANE, Trim(("1.0",), ("nonce",), ("j.1.0",)))),
    Row(transitions.result_put, "shipper", transitions.result_put(EVENT.id, Success(), 0)),
    Row(transitions.result_expected, "ingress, before 10 of a delayed send", transitions.result_expected(EVENT.id, 0)),
    Row(transitions.segment_put, "function, before 3", transitions.segment_put(LANE, "J#1", {"0": b""})),
    Row(transitions.input_put, "function, before 2", transitions.input_put(LANE, "V#1", b"")),
    Row(transitions.timer_put, "before 2, 5, 8, 11", transitions.timer_put(TIMER)),
    Row(transitions.timer_put_again, "ingress", transitions.timer_put_again(TIMER)),
    Row(transitions.timer_delete, "sweep", transitions.timer_delete(TIMER)),
    Row(transitions.cursor_put, "sweep", transitions.cursor_put(0)),
)

HEADER: Final = """\
# The protocol of a lane

Drawn by `tools/draw_protocol.py` from the code: change the tables there, then run it. The item's attributes are
described in `adapters/tenuto/lane/head.py`.

"""

WRITES: Final = """
## The writes

Each write is one request on one item. A clause is named as in the mutation tests; one in *italics* is a defence,
implied by others. `ver` rises with 1, 2, 6 and 7 alone. A part in angle brackets stands for any name.

"""


def phases() -> str:
    """The phases of an attempt as a state diagram."""
    lines = ["## An attempt", "", "```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.SPECULATING.value}"]
    lines += [f"    {phase.value} --> {to.value}: {step.value}" for (phase, step), to in TRANSITIONS.items()]
    lines += [f"    {phase.value} --> [*]" for phase in ENDS]
    return "\n".join([*lines, "```", ""])


def writes() -> str:
    """Every write as a row."""
    rows = ["| # | write | by | on | conditions | sets | removes |", "|---|---|---|---|---|---|---|"]
    rows += [row_of(row) for row in ROWS]
    return "\n".join([*rows, "", "## What each is for", "", *(purpose(row) for row in ROWS), ""])


def row_of(row: Row) -> str:
    """One write as a row of the table."""
    write = row.sample
    conditions = () if isinstance(write, Delete) else write.conditions
    sets: list[str] = []
    removes: list[str] = []
    match write:
        case Update():
            sets, removes = names(write.sets), names(write.removes)
        case Put():
            sets = ["whole item: " + ", ".join(names(write.attributes))]
        case Delete():
            removes = ["whole item"]
    clauses = "; ".join(dict.fromkeys(clause_of(clause) for clause in conditions))
    cells = (
        number(row),
        f"`{row.function.__name__}`",
        row.by,
        place(write),
        clauses,
        ", ".join(sets),
        ", ".join(removes),
    )
    return "| " + " | ".join(cell or NOTHING for cell in cells) + " |"


def purpose(row: Row) -> str:
    """The function's own docstring, but for its number."""
    text = " ".join((inspect.getdoc(row.function) or "").split())
    return f"- **{number(row)} `{row.function.__name__}`**: {re.sub(r'^[0-9, ]+[.] ', '', text)}"


def number(row: Row) -> str:
    """The write's number in the protocol, which opens its docstring."""
    found = re.match(r"([0-9]+(?:, [0-9]+)*)\. ", inspect.getdoc(row.function) or "")
    return found.group(1) if found else NOTHING


def clause_of(clause: Clause) -> str:
    """A clause in words, under its label."""
    attribute = generic(clause.attribute)
    match clause:
        case Equals():
            text = f"{attribute} is as seen"
        case Absent():
            text = "no item" if clause.attribute == "pk" else f"no {attribute}"
        case AbsentOrAtMost():
            text = f"{attribute} ≤ {'first offset' if clause.attribute.startswith(WATERMARK) else 'the new one'}"
        case AbsentOrEquals():
            text = f"no {attribute}, or the writer's"
        case _:
            assert_never(clause)
    label = f"`{clause.label}`"
    return f"*{label} {text}*" if clause.label in DEFENCES else f"{label} {text}"


def names(attributes: Any) -> list[str]:
    """Attributes, each kind once."""
    return list(dict.fromkeys(generic(name) for name in attributes))


def generic(attribute: str) -> str:
    """An attribute with its variable part left open."""
    kinds = {"s.": "name", "b.": "name", "w.": "source", "o.": "sequence", "f.": "nonce", "j.": "ver>.<slot"}
    prefix = attribute[:2]
    if prefix in kinds:
        return f"`{prefix}<{kinds[prefix]}>`"
    return "`<slot>`" if attribute.isdigit() else f"`{attribute}`"


def place(write: Write) -> str:
    """Which item a write is about."""
    if write.key.pk.startswith("T#"):
        return "timer"
    kinds = {
        "C": "sweep's cursor",
        "H": "head",
        "I": "inbox",
        "J": "segment",
        "P": "part",
        "R": "result",
        "V": "large input",
    }
    return kinds[write.key.sk.partition("#")[0]]


def page() -> str:
    """The whole page."""
    return HEADER + phases() + WRITES + writes()


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == page():
        return 0
    sys.stderr.write(f"{PAGE} is out of date: run `python tools/draw_protocol.py`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
