"""Handlers as data, and the scenarios that the model explores.

Owns what is asked of a lane: programs, Kafka events, messages, calls, answers, and how many faults of each kind may
strike. Does not own how a lane treats them.

An event is named by its kind and number: `k0` is the first record of the one topic-partition, `m0` a message, `r0` a
call. A slot that begins with `sl` is a sleep's, one that begins with `aw` an awakeable's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Change:
    """Append to the key's state."""

    mark: str


@dataclass(frozen=True, slots=True)
class Step:
    """An effect whose result is journaled. A `bulky` result goes to a segment item and never into the head."""

    slot: str
    bulky: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for any of these slots. `listed`: how many of them a suspension has room to name."""

    slots: tuple[str, ...]
    listed: int = 9


@dataclass(frozen=True, slots=True)
class Send:
    """A message to another lane."""


Op: TypeAlias = Change | Step | Wait | Send
Program: TypeAlias = tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Someone answers an awakeable of an event. The name is unique: it is also the mark of the write."""

    name: str
    event: str
    slot: str


@dataclass(frozen=True, slots=True)
class Faults:
    """How often each fault may strike in one history, and all of them together.

    crash: a control plane, caller or shipper ends; kill: a function; lost: the response to a write; rebalance: the
    partition moves and its former owner goes on; shippers: the sender's outbox is shipped twice at once; twin: an
    invocation is delivered twice; zombie: a run is taken over while its function lives; late: a resumed function starts
    after its lease and hands the activation back.
    """

    crash: int = 1
    kill: int = 1
    lost: int = 1
    rebalance: int = 1
    shippers: int = 1
    twin: int = 0
    zombie: int = 0
    late: int = 0
    total: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What one exploration starts from.

    `callers` processes make the call. `inline_max`: answers that may sit in the head, the others are pointers.
    `roll_at`: as many slots in the head roll into a segment at the next checkpoint or suspension. `cached`: the standby
    begins with a head that it read earlier. `naps`: sleeps are short enough that the control plane keeps the lane.
    `joins`: a commit claims the event that follows in its batch.
    `pressed`: events may be spilled though their lane is free, as when a handler is slow or fails.
    """

    programs: Mapping[str, Program]
    records: int = 0
    messages: tuple[str, ...] = ()
    call: str | None = None
    callers: int = 1
    answers: tuple[Answer, ...] = ()
    inline_max: int | None = None
    roll_at: int | None = None
    cached: bool = False
    naps: bool = False
    joins: bool = False
    pressed: bool = False
    batches: bool = True
    attempts_max: int = 2
    faults: Faults = field(default_factory=Faults)


def offset(event: str) -> int:
    """The offset of a Kafka event, or the number of any other."""
    return int(event[1:])


def marks(program: Program, event: str) -> tuple[str, ...]:
    """What an event that took effect has left in the state."""
    return tuple(event + op.mark for op in program if isinstance(op, Change))


def sends(program: Program) -> bool:
    """Whether a program sends a message."""
    return any(isinstance(op, Send) for op in program)


# --- the scenarios -------------------------------------------------------------------------------------------------

_QUICK: Program = (Change("1"),)
_STEP: Program = (Step("a"), Change("1"))
_STEPS: Program = (Step("a"), Change("1"), Step("b"), Change("2"))
_NAP: Program = (Change("1"), Wait(("sl",)), Change("2"))
_STEPS_AND_NAP: Program = (Step("a"), Change("1"), Wait(("sl",)), Step("b"), Change("2"))
_NAP_AND_STEP: Program = (Wait(("sl",)), Step("b"), Change("2"))
_ASK: Program = (Change("1"), Wait(("aw",)), Step("b"), Change("2"))
_ASK_OR_NAP: Program = (Step("a"), Change("1"), Wait(("aw", "sl")), Change("2"))
_SEND: Program = (Change("1"), Send())
_ONE_ANSWER = (Answer("first", "k0", "aw"),)
_TWO_ANSWERS = (*_ONE_ANSWER, Answer("second", "k0", "aw"))

SCENARIOS: dict[str, Scenario] = {
    "two events": Scenario(records=2, programs={"k0": _QUICK, "k1": _QUICK}),
    "event, step": Scenario(records=2, programs={"k0": _QUICK, "k1": _STEP}),
    "step, event": Scenario(records=2, programs={"k0": _STEP, "k1": _QUICK}),
    "steps": Scenario(records=1, programs={"k0": _STEPS}),
    "steps, twins": Scenario(records=1, programs={"k0": _STEPS}, faults=Faults(twin=1), attempts_max=3),
    "steps, zombies": Scenario(records=1, programs={"k0": _STEPS}, faults=Faults(zombie=1)),
    "steps, joined": Scenario(records=2, programs={"k0": _STEP, "k1": _STEP}, joins=True),
    "steps, joined, twins": Scenario(
        records=2, programs={"k0": _STEP, "k1": _STEP}, joins=True, faults=Faults(twin=1), attempts_max=3
    ),
    "steps, joined, zombies": Scenario(
        records=2, programs={"k0": _STEPS, "k1": _STEPS}, joins=True, faults=Faults(zombie=1)
    ),
    "steps, joined, message": Scenario(
        records=2,
        messages=("m0",),
        programs={"k0": _STEP, "k1": _STEP, "m0": _QUICK},
        joins=True,
        faults=Faults(shippers=0),
    ),
    "steps, joined, with an old head": Scenario(
        records=3, programs={"k0": _STEP, "k1": _STEP, "k2": _STEP}, joins=True, cached=True, pressed=True
    ),
    "nap, joined": Scenario(records=2, programs={"k0": _NAP, "k1": _NAP}, joins=True),
    "kept nap, joined": Scenario(records=2, programs={"k0": _NAP, "k1": _NAP}, joins=True, naps=True),
    "nap, joined, message": Scenario(
        records=2,
        messages=("m0",),
        programs={"k0": _NAP, "k1": _NAP, "m0": _QUICK},
        joins=True,
        faults=Faults(shippers=0),
    ),
    "nap and step, joined, twins": Scenario(
        records=2,
        programs={"k0": _NAP_AND_STEP, "k1": _NAP_AND_STEP},
        joins=True,
        naps=True,
        faults=Faults(twin=1, lost=0),
        attempts_max=3,
    ),
    "steps, late": Scenario(records=1, programs={"k0": _STEPS}, faults=Faults(late=1, zombie=1)),
    "nap, event": Scenario(records=2, programs={"k0": _NAP, "k1": _QUICK}),
    "steps and nap": Scenario(records=1, programs={"k0": _STEPS_AND_NAP}),
    "steps and nap, twins": Scenario(
        records=1, programs={"k0": _STEPS_AND_NAP}, faults=Faults(twin=1, lost=0), attempts_max=3
    ),
    "step, twins": Scenario(records=1, programs={"k0": _STEP}, faults=Faults(twin=1), attempts_max=3),
    "steps and nap, steps": Scenario(records=2, programs={"k0": _STEPS_AND_NAP, "k1": _STEPS}),
    "kept nap, event": Scenario(records=2, programs={"k0": _NAP, "k1": _QUICK}, naps=True),
    "steps and kept nap": Scenario(records=1, programs={"k0": _STEPS_AND_NAP}, naps=True),
    "steps and kept nap, twins": Scenario(
        records=1, programs={"k0": _STEPS_AND_NAP}, naps=True, faults=Faults(twin=1), attempts_max=3
    ),
    "steps and kept nap, zombies": Scenario(
        records=1, programs={"k0": _STEPS_AND_NAP}, naps=True, faults=Faults(zombie=1, late=1), attempts_max=3
    ),
    "send, kept nap, answer": Scenario(
        records=1,
        programs={"k0": (Send(), *_NAP, Wait(("aw",)), Change("3"))},
        answers=_ONE_ANSWER,
        naps=True,
        faults=Faults(shippers=0),
    ),
    "message with a kept nap": Scenario(messages=("m0",), programs={"m0": _NAP}, naps=True),
    "answer": Scenario(records=1, programs={"k0": _ASK}, answers=_ONE_ANSWER),
    "answer, zombies": Scenario(records=1, programs={"k0": _ASK}, answers=_ONE_ANSWER, faults=Faults(zombie=1)),
    "two answers": Scenario(records=1, programs={"k0": _ASK}, answers=_TWO_ANSWERS),
    "steps, then answer": Scenario(
        records=1, programs={"k0": (Step("a"), Step("b"), Wait(("aw",)), Change("1"))}, answers=_ONE_ANSWER
    ),
    "answer or nap": Scenario(records=1, programs={"k0": _ASK_OR_NAP}, answers=_ONE_ANSWER),
    "answer or nap, answer": Scenario(
        records=2,
        programs={"k0": _ASK_OR_NAP, "k1": (Step("a"), Wait(("aw",)), Change("1"))},
        answers=(*_ONE_ANSWER, Answer("other", "k1", "aw")),
    ),
    "nap, then answer": Scenario(
        records=1,
        programs={"k0": (Change("1"), Wait(("sl",)), Change("2"), Wait(("aw",)), Change("3"))},
        answers=_ONE_ANSWER,
    ),
    "event sends": Scenario(records=1, programs={"k0": _SEND}),
    "event sends, then another": Scenario(records=2, programs={"k0": _SEND, "k1": _QUICK}, batches=False),
    "nap, then send": Scenario(records=1, programs={"k0": (*_NAP, Send())}, faults=Faults(crash=2)),
    "send, then answer": Scenario(records=1, programs={"k0": (Send(), *_ASK)}, answers=_ONE_ANSWER),
    "send, then nap": Scenario(records=1, programs={"k0": (Send(), *_NAP)}),
    "two messages": Scenario(messages=("m0", "m1"), programs={"m0": _QUICK, "m1": _QUICK}, faults=Faults(lost=0)),
    "message": Scenario(messages=("m0",), programs={"m0": _QUICK}),
    "message sends": Scenario(messages=("m0",), programs={"m0": _SEND}),
    "message naps": Scenario(messages=("m0",), programs={"m0": _NAP}),
    "message, step": Scenario(records=1, messages=("m0",), programs={"k0": _STEP, "m0": _QUICK}),
    "message asks": Scenario(
        messages=("m0",), programs={"m0": _ASK}, answers=(Answer("first", "m0", "aw"),), faults=Faults(shippers=0)
    ),
    "nap, event, message": Scenario(
        records=2, messages=("m0",), programs={"k0": _NAP, "k1": _QUICK, "m0": _SEND}, faults=Faults(shippers=0)
    ),
    "call": Scenario(call="r0", callers=2, programs={"r0": _QUICK}),
    "call, event": Scenario(call="r0", callers=2, records=1, programs={"k0": _QUICK, "r0": _QUICK}),
    "call with a step": Scenario(call="r0", callers=2, programs={"r0": _STEP}),
    "call with a step, event": Scenario(call="r0", records=1, programs={"k0": _QUICK, "r0": _STEP}),
    "call sends": Scenario(call="r0", programs={"r0": _SEND}),
    "call naps and sends": Scenario(call="r0", records=1, programs={"k0": _QUICK, "r0": (*_NAP, Send())}),
    "call, message": Scenario(call="r0", messages=("m0",), programs={"r0": _STEP, "m0": _QUICK}),
    "standby with an old head": Scenario(
        records=3, programs={"k0": _STEP, "k1": _QUICK, "k2": _QUICK}, cached=True, pressed=True, batches=False
    ),
    "standby with an old head, step": Scenario(
        records=3, programs={"k0": _STEP, "k1": _QUICK, "k2": _STEP}, cached=True, pressed=True, batches=False
    ),
    "spilled beside a message": Scenario(
        records=2,
        messages=("m0",),
        programs={"k0": _QUICK, "k1": _QUICK, "m0": _QUICK},
        pressed=True,
        batches=False,
        faults=Faults(crash=0, kill=0, lost=0, shippers=0),
    ),
    "bulky result, answer": Scenario(
        records=1,
        programs={"k0": (Step("a"), Step("b", bulky=True), Wait(("aw",)), Step("c"), Change("1"))},
        answers=_ONE_ANSWER,
        roll_at=2,
    ),
    "results that roll, answer": Scenario(
        records=1,
        programs={"k0": (Step("a"), Step("b"), Wait(("aw",)), Change("1"))},
        answers=_ONE_ANSWER,
        roll_at=2,
    ),
    "answer beyond the list": Scenario(
        records=1,
        programs={"k0": (Step("a"), Wait(("aw1", "aw2"), listed=1), Change("1"))},
        answers=(Answer("first", "k0", "aw2"),),
    ),
    "answers that fill the head": Scenario(
        records=1,
        programs={"k0": (Step("a"), Wait(("aw1",)), Wait(("aw2",)), Change("1"))},
        answers=(Answer("first", "k0", "aw1"), Answer("second", "k0", "aw2")),
        inline_max=1,
    ),
    "answer that rolls": Scenario(
        records=1,
        programs={"k0": (Wait(("aw",)), Step("a"), Step("b"), Change("1"))},
        answers=_TWO_ANSWERS,
        roll_at=1,
    ),
    "answers across two waits": Scenario(
        records=1,
        programs={"k0": (Wait(("aw1", "sl")), Wait(("aw2",)), Change("1"))},
        answers=(Answer("first", "k0", "aw1"), Answer("second", "k0", "aw2"), Answer("third", "k0", "aw3")),
        inline_max=1,
        faults=Faults(crash=0, rebalance=0, total=1),
    ),
}
