# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Writes `docs/internals/lane_protocol.md` from the tables in the code: phases of an attempt, writes of a lane, rules.

    python tools/draw_protocol.py           # write the page
    python tools/draw_protocol.py --check   # exit 1 when the page differs from the code

Owns the form of the page, and what a writer does when a write is refused. The rest comes from `tenuto.machine.phases`,
`tenuto.lane` (its modules of writes) and the lists of the proofs (`tests.model`,
`tests.simulation.mutants`): what changes there changes here, and a test compares the two.
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

from msgspec.structs import replace

from tenuto.lane import continuations, dead_letters, items, joins, lives, naps, timers, transitions, tries
from tenuto.lane.head import WATERMARK
from tenuto.lane.writes import Absent, AbsentOrAtMost, AbsentOrEquals, Clause, Delete, Equals, Put, Update
from tenuto.machine.phases import TRANSITIONS, Phase
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import ClaimedRun, Head, Trim
from tenuto.protocol.records import Bundle, Event, KafkaSource, MessageSource, PublishOut, Success, pack

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "internals" / "lane_protocol.md"

LANE: Final = Lane("service", "key")
EVENT: Final = Event(str(InvocationId(LANE, "nonce")), "handler", KafkaSource("epoch", "topic", 0, 7, 0))
RUN: Final = ClaimedRun(event=EVENT, ver=3, start_ms=0, first_out=0, attempt=1, holder="holder", lease_ms=0)
IDLE: Final = Head(ver=3, pend="mark", base={"name": None})
FAILED: Final = replace(RUN, failures=1, error="why", wake_ms=0)
OWNED: Final = Head(ver=4, run=FAILED, slots={"0": b""}, base={"name": None}, segments=("J#1",), took=(0,))
MESSAGE: Final = Event(str(InvocationId(LANE, "other")), "handler", MessageSource("sender", "1.0"))
OUT: Final = PublishOut("topic", None)
EFFECTS: Final = transitions.effects_of([EVENT, MESSAGE], {"name": b"", "gone": None}, {0: OUT}, 0)
PROGRESS: Final = transitions.Progress({"1": b""}, {0: OUT}, ("0",), ("J#1",))
TIMER: Final = timers.GuardTimer(LANE, "nonce", 0, "unique")
LETTER: Final = dead_letters.Letter("0", "message", "reason", 500, 0, "origin")
NOTHING: Final = "none"

ENDS: Final = (Phase.SUSPENDED, Phase.COMMITTED, Phase.FENCED)
"""Where an attempt may end."""

DEFENCES: Final = {
    "spec.idle",
    "spec.watermark",
    "claim.idle",
    "claim.watermark",
    "join.pend",
    "nap.awake",
    "slot.free",
    "clear.ver",
}
"""Clauses implied by others, kept against a mistake in those."""

Write = Update | Put | Delete


WAKES: Final = transitions.WakeCondition(("2a",), None)
NAP: Final = naps.Nap(0, "holder", 0, {"2": b""})


@dataclass(frozen=True, slots=True)
class Row:
    """One write: who makes it, the function that builds it, a sample, and what follows a refusal or no response."""

    function: Callable[..., Write]
    by: str
    sample: Write
    otherwise: str


ROWS: Final = (
    Row(
        transitions.spec_commit,
        "dispatcher",
        transitions.spec_commit(LANE, IDLE, EFFECTS, "tok", drain=False, clears=True),
        "read the head again, then inbox and result item; decide afresh. No response: repeat; its own `tok`: applied",
    ),
    Row(
        transitions.claim,
        "function",
        transitions.claim(LANE, IDLE, EFFECTS, RUN, "tok", drain=False),
        "its own `tok` on a repetition: owned. Else stop; the dispatcher looks again",
    ),
    Row(
        transitions.checkpoint,
        "function",
        transitions.checkpoint(LANE, 4, RUN, PROGRESS, "own"),
        "stop: fenced. No response: repeat",
    ),
    Row(
        transitions.suspend,
        "function",
        transitions.suspend(LANE, 4, RUN, PROGRESS, {"name": b""}, {"name": b""}, WAKES, "own"),
        "suspended: by an earlier try, which stands. An answer came: take it and continue. Another `ver` or `own`: "
        "stop. No response: repeat",
    ),
    Row(
        naps.nap,
        "function",
        naps.nap(LANE, 4, FAILED, PROGRESS, {"name": b""}, {"name": b""}, NAP, "tok", "own"),
        "suspended: by an earlier write, which stands. Else stop. No response: as 1",
    ),
    Row(
        transitions.takeover,
        "dispatcher",
        transitions.takeover(LANE, OWNED, "holder", 0, {"0": b""}, "tok"),
        "read the head again. Invoke with the head that the write left. Pause, or attempts keep fencing each other",
    ),
    Row(
        transitions.final_commit,
        "function, dispatcher",
        transitions.final_commit(LANE, OWNED, EFFECTS, "tok", "own"),
        "stop; the dispatcher reads the head again. No response: as 1",
    ),
    Row(
        joins.commit_and_claim,
        "function",
        joins.commit_and_claim(LANE, OWNED, transitions.Effects(), RUN, "tok", "own", drain=False),
        "write 7 alone. No response: as 1",
    ),
    Row(
        transitions.slots_put,
        "resolver",
        transitions.slots_put(LANE, OWNED, {"2a": b""}, "mark"),
        "no run waits, it was answered, or another answer came first: read the head again. No response: as refused",
    ),
    Row(
        items.answer_put,
        "resolver, before 8",
        items.answer_put(LANE, "Q#1", b""),
        "no response: repeat",
    ),
    Row(
        transitions.inbox_put,
        "shipper, ingress, spill",
        transitions.inbox_put(LANE, EVENT),
        "a tombstone: delivered. A live item: 10 and 11 all the same",
    ),
    Row(
        transitions.inbox_again,
        "ingress",
        transitions.inbox_again(LANE, EVENT, 0),
        "another process did so, or the tombstone has been replaced",
    ),
    Row(
        transitions.inbox_aside,
        "drain",
        transitions.inbox_aside({"pk": LANE.pk, "sk": "I#c#nonce", "ev": b"junk"}),
        "-",
    ),
    Row(
        transitions.inbox_gone,
        "after the former",
        transitions.inbox_gone({"pk": LANE.pk, "sk": "I#c#nonce", "ev": b"junk"}, 0),
        "-",
    ),
    Row(
        transitions.mark_pend,
        "after 9 and 10",
        transitions.mark_pend(LANE, "unique"),
        "no response: repeat. Only then clear the sender's outbox, release the offset, answer 202",
    ),
    Row(
        transitions.clear_pend,
        "dispatcher",
        transitions.clear_pend(LANE, IDLE),
        "read the head again",
    ),
    Row(
        transitions.tombstone,
        "dispatcher",
        transitions.tombstone(LANE, EVENT, 0),
        "no response: repeat. Trim `f.<nonce>` only afterwards",
    ),
    Row(
        transitions.trim_head,
        "dispatcher",
        transitions.trim_head(LANE, Trim(("1.0",), ("nonce",), ("j.1.0",))),
        "no response: repeat, or with the next write of the head",
    ),
    Row(
        transitions.result_put,
        "shipper",
        transitions.result_put(EVENT.id, Success(), 0),
        "no response: repeat. Trim `o.<sequence>` only afterwards",
    ),
    Row(
        transitions.result_expected,
        "ingress, before 10 of a delayed send",
        transitions.result_expected(EVENT.id, 0),
        "the result is there already",
    ),
    Row(
        dead_letters.letter_put,
        "shipper",
        dead_letters.letter_put(LETTER),
        "it is kept already, or was dealt with since. Trim `o.<sequence>` only afterwards",
    ),
    Row(
        dead_letters.letter_redriving,
        "operator, to redrive",
        dead_letters.letter_redriving(LETTER.id, 0),
        "a redrive began before: that time counts",
    ),
    Row(
        dead_letters.letter_done,
        "operator, to redrive or discard",
        dead_letters.letter_done(LETTER.id, 0),
        "no response: repeat",
    ),
    Row(
        lives.life_over,
        "dispatcher, for a topic that was created again",
        lives.life_over(LANE, {"epoch.0a1b2c3d|topic|0": (0, 0)}),
        "no response: repeat, or with the next record",
    ),
    Row(
        tries.attempt_counted,
        "dispatcher",
        tries.attempt_counted(LANE, "nonce", 1, ("1.0",)),
        "no response: repeat",
    ),
    Row(
        items.segment_put,
        "function, before 3",
        items.segment_put(LANE, "J#1", {"0": b""}),
        "no response: repeat",
    ),
    Row(
        items.bundle_put,
        "function, before 3, 5, 7",
        items.bundle_put(LANE, "O#1", Bundle(())),
        "no response: repeat",
    ),
    Row(
        items.entry_aside,
        "dispatcher",
        items.entry_aside(LANE, "1.0", pack(PublishOut("t", b"")), "a reason"),
        "no response: repeat",
    ),
    Row(
        items.item_aside,
        "dispatcher",
        items.item_aside({"pk": LANE.pk, "sk": "O#1", "outs": b""}, "a reason"),
        "no response: repeat",
    ),
    Row(
        items.input_put,
        "function, before 2",
        items.input_put(LANE, "V#1", b""),
        "no response: repeat",
    ),
    Row(
        items.leftover_delete,
        "sweep, before 18 of a guard",
        items.leftover_delete(LANE, "J#1"),
        "no response: the sweep visits it again",
    ),
    Row(
        timers.timer_put,
        "before 2, 5, 8, 11",
        timers.timer_put(TIMER),
        "no response: repeat",
    ),
    Row(
        timers.wide_mark,
        "dispatcher, before 4 of a minute that is spread",
        timers.wide_mark(0),
        "no response: repeat",
    ),
    Row(
        timers.wide_mark_delete,
        "sweep",
        timers.wide_mark_delete(0),
        "no response: the sweep visits it again",
    ),
    Row(
        timers.timer_put_again,
        "ingress",
        timers.timer_put_again(timers.SendTimer(LANE, "nonce", 0, "nonce", b"", "http", "nonce")),
        "it is there already",
    ),
    Row(
        timers.timer_delete,
        "sweep",
        timers.timer_delete(TIMER),
        "no response: the sweep visits it again",
    ),
    Row(
        continuations.continuation_begin,
        "dispatcher scaled to zero, before it waits",
        continuations.continuation_begin(LANE.pk, "unique", 0, 0),
        "another invocation waits for the lane: leave it alone. No response: repeat; its own `owner`: applied",
    ),
    Row(
        continuations.continuation_pass,
        "dispatcher scaled to zero, when it begins or ends",
        continuations.continuation_pass(LANE.pk, "unique", "another", 0),
        "another invocation has begun since: leave the lane alone. No response: as above",
    ),
    Row(
        timers.cursor_put,
        "sweep",
        timers.cursor_put(0),
        "another sweeper is further",
    ),
    Row(
        timers.cursor_reset,
        "sweep",
        timers.cursor_reset(0),
        "no response: the next sweep finds it again",
    ),
)

HEADER: Final = """\
# The protocol of a lane

Drawn by `tools/draw_protocol.py` from the code and the proofs: change the tables there, then run it. The item's
attributes are described in `adapters/tenuto/lane/head.py`. The protocol is checked as an explicit-state model
(`tests/model`): two control planes, one of which may be a zombie, functions that outlive their callers or are delivered
twice, callers, a sending lane, sleeps and answers; with crashes, kills, lost responses and rebalances between any two
steps. Change the model before the protocol, and the protocol before the code.

"""

WRITES: Final = """
## The writes

Each write is one request on one item. A clause is named as in the mutation tests; one in *italics* is a defence,
implied by others. `ver` rises with 1, 2, 6, 7, `nap` and `commit_and_claim` alone. A part in angle brackets stands
for any name.

"""


AROUND: Final = """
## What is done around the writes

- **13, drain**: the head is read *first*, then the inbox is queried; lowest position of each source first. A Kafka
  item below the watermark is deleted. A message whose id is in `f.<nonce>`, or a call whose result item exists,
  becomes a tombstone. Anything else runs, and ends in 1 or 2.
- **15, ship**: the target's item comes first, then `o.<sequence>` is removed.
- **16, call**: the head is read *first*, then the result item. A result that is known is answered. A lane that is
  taken, marked or has an outbox gets 10, 9 and 11, and the caller 202. Otherwise 1 or 2, with a guard before a claim,
  and before a commit that sends. After a refusal it starts over from the head, with the result item read *again*.
- **nap**: the sleep has ended, and the process that the lane was left to begins the next attempt, once and without a
  write. Every other process waits until the lease ends, and then makes write 6.
- **17, release an offset**: the watermark is past it and what its event sent is trimmed from the outbox; or its run
  is suspended; or its inbox item is put and marked.
- **18, delete a timer**: a sleep's when its invocation is over and the outbox is empty. A guard's when, besides, no
  item waits in the inbox, the write it was put for can come no more (the head is at another `ver`, or that write is
  long overdue) and the head, read *again*, still has its `ver`.

`tok` is written with `ver`, and only lets a writer recognise its own write after a lost response: another's `tok`
never means that a write was not applied. `w` is the next offset that the lane accepts. The inbox position of a
message derives from its sender's lane and its place there.
"""

NOT_MODELLED: Final = """
## What the model leaves out

Real time but for the order in which things become due, time to live, calls with replies, cancellation, several keys
and partitions, topics created again and replays on purpose, dead letters, size limits other than those of answers,
throttling, the bound of `f.<nonce>`, the completion order of concurrent commands, and errors of handlers. The
simulation runs all of these in the code itself (`tests/simulation`).
"""


def phases() -> str:
    """The phases of an attempt as a state diagram."""
    lines = ["## An attempt", "", "```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.SPECULATING.value}"]
    lines += [f"    {phase.value} --> {to.value}: {step.value}" for (phase, step), to in TRANSITIONS.items()]
    lines += [f"    {phase.value} --> [*]" for phase in ENDS]
    return "\n".join([*lines, "```", ""])


def writes() -> str:
    """Every write as a row."""
    rows = [
        "| # | write | by | on | conditions | sets | removes | refused, or no response |",
        "|---|---|---|---|---|---|---|---|",
    ]
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
        row.otherwise,
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
            if clause.attribute.startswith(WATERMARK):
                bound = "first offset"
            else:
                bound = "now" if clause.attribute == "until" else "the new one"
            text = f"{attribute} ≤ {bound}"
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
    apart = {"T#": "timer", "D#": "dead letter"}
    if write.key.pk[:2] in apart:
        return apart[write.key.pk[:2]]
    kinds = {
        "C": "sweep's cursor",
        "H": "head",
        "I": "inbox",
        "J": "segment",
        "N": "continuation",
        "O": "bundle",
        "P": "part",
        "Q": "large answer",
        "R": "result",
        "U": "beside the inbox",
        "V": "large input",
    }
    return kinds[write.key.sk.partition("#")[0]]


def rules() -> str:
    """What the model and the simulation say of each rule: what goes wrong without it, or why nothing does."""
    if str(ROOT) not in sys.path:
        # A tool runs as a file, with its own folder on the path; the lists of the proofs are beside it.
        sys.path.insert(0, str(ROOT))
    from tests.model import mutants, rules
    from tests.simulation.mutants import EQUIVALENT

    lines = ["", "## What goes wrong without each rule", ""]
    lines += ["As the model shows it: the law that breaks, and in which of its scenarios. The laws are those of the"]
    lines += ["[invariants](invariants.md); *replay* is a replay from another state, *bound* a head without room.", ""]
    lines += ["| rule | says | without it |", "|---|---|---|"]
    says = {**rules.CLAUSES, **rules.PRACTICES}
    lines += [
        f'| `{label}` | {says[label]} | *{hunt.law}* in "{hunt.scenario}" |' for label, hunt in mutants.DEADLY.items()
    ]
    for labels, hunt in mutants.TOGETHER.items():
        both = " and ".join(f"`{label}`" for label in labels)
        texts = "; ".join(says[label] for label in labels)
        lines.append(f'| {both} | {texts} | together: *{hunt.law}* in "{hunt.scenario}" |')
    lines += ["", "## Redundant rules", "", "Kept as a defence against a mistake in the others.", ""]
    lines += [f"- `{label}`: {argument}." for label, argument in {**EQUIVALENT, **mutants.EQUIVALENT}.items()]
    return "\n".join([*lines, ""])


def page() -> str:
    """The whole page."""
    return HEADER + phases() + WRITES + writes() + AROUND + rules() + NOT_MODELLED


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
