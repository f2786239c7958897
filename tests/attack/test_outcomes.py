"""A function answers whatever it likes: its own attempts fail for it, and nobody else notices.

The production dispatcher and an in-memory table, on virtual time. One service's function is hostile, and the other's is
not. Owns answers to activations. Does not own answers to discovery (`test_discovery`), nor the table's own items.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto import InvocationRetryPolicy, ObjectContext, ObjectSharedContext, VirtualObject
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane
from tenuto.protocol.messages import (
    Activation,
    ClaimedRun,
    Committed,
    EventResult,
    Fenced,
    Head,
    Late,
    Manifest,
    Outcome,
    Rejected,
    Speculated,
    Stopped,
    Suspended,
    decode_outcome,
    decode_request,
    encode,
)
from tenuto.protocol.records import (
    BundleOut,
    BuriedOut,
    CallSource,
    Event,
    Failed,
    Failure,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    ResolveOut,
    ResultOut,
    SendOut,
    Success,
)
from tenuto.service import Services
from tenuto_control.config import FunctionConfig
from tenuto_control.core.log_fields import SHOWN_CHARACTERS_MAX
from tenuto_control.dispatcher import activations
from tenuto_control.drivers.invoke_client import BotocoreLambda
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.limits import ANSWER_BYTES_MAX
from tenuto_control.ports import FunctionFailedError, FunctionUnreachableError, InvokeError, Pending
from tests.attack.examples import examples
from tests.hostile.world import DEAD, HostileWorld
from tests.support.virtual_time import run_virtual

THRICE: Final = InvocationRetryPolicy(initial_interval=timedelta(milliseconds=200), max_attempts=3)
VICTIM: Final = Lane("good", "victim")
NOW: Final = 1_700_000_000_000
WHILE_S: Final = 40.0

Hostile = Callable[[Activation], Outcome | bytes | InvokeError]
"""What the hostile function makes of a request."""


@dataclass(slots=True)
class Town:
    """A service whose function is hostile, `bad`, and one whose function is not, `good`."""

    bad: VirtualObject = field(default_factory=lambda: VirtualObject("bad"))
    good: VirtualObject = field(default_factory=lambda: VirtualObject("good"))
    ran: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    hostile: Hostile | None = None
    honest: int = 0
    world: HostileWorld = field(init=False)

    def __post_init__(self) -> None:
        """Wire a world whose function is both services'."""

        async def act(ctx: ObjectContext, _n: int) -> None:
            self.ran.append(ctx.key)

        async def looks(_ctx: ObjectSharedContext, _n: int) -> None:
            """Never runs."""

        async def rests(ctx: ObjectContext, _n: int) -> None:
            await ctx.run("step", int)
            await ctx.sleep(timedelta(seconds=3))
            self.ran.append(ctx.key)

        self.bad.handler("act", retry_policy=THRICE)(act)
        self.bad.handler("rests", retry_policy=THRICE)(rests)
        self.bad.handler("looks", kind="shared")(looks)
        self.good.handler("act")(act)
        self.world = HostileWorld(Services([self.bad, self.good]))
        self.world.instead = self._instead

    def record(self, service: str, key: str, handler: str = "act") -> None:
        """A record for a key arrives."""
        owner = self.bad if service == "bad" else self.good
        self.world.record(owner.handlers[handler], key, b"1")

    def _instead(self, payload: bytes) -> bytes | Exception | None:
        request = decode_request(payload)
        assert isinstance(request, Activation)
        if request.service != "bad":
            return None
        self.asked.append(request.mode)
        if self.hostile is None or len(self.asked) <= self.honest:
            return None
        answer = self.hostile(request)
        return answer if isinstance(answer, bytes | InvokeError) else encode(answer)


def first_of(request: Activation) -> Event:
    """The event that an activation begins with."""
    return _run_of(request).event if request.mode == "resume" else request.events[0]


def _run_of(request: Activation) -> ClaimedRun:
    assert request.head.run is not None
    return request.head.run


def fine(request: Activation) -> EventResult:
    """The result of its first event."""
    return EventResult(first_of(request).id, Success())


def ended(request: Activation, **changes: Any) -> Head:
    """What a commit of its first event would leave."""
    event, ver = first_of(request), request.head.ver + 2
    source = event.source
    marks = {source.watermark: source.offset + 1} if isinstance(source, KafkaSource) else {}
    return replace(Head(ver=ver, watermarks=marks, fin={event.nonce: NOW}), **changes)


def asleep(request: Activation, **changes: Any) -> Head:
    """What a suspension of its first event would leave, with nothing to wait for."""
    ver = request.head.ver + 1
    run = ClaimedRun(first_of(request), ver, NOW, 0, 1, request.holder, NOW + 9_000, awaits=(), wake_ms=NOW)
    return Head(ver=ver, run=replace(run, **changes))


def sent(**changes: Any) -> Hostile:
    """An outcome that sends a message to the victim."""
    whole = SendOut(*VICTIM, str(InvocationId(VICTIM, "m1")), "act", b"1")
    return out_of(lambda _request: replace(whole, **changes))


def out_of(made: Callable[[Activation], Out]) -> Hostile:
    """An outcome that ends its first event and sends something."""
    return lambda request: Speculated((fine(request),), {}, (made(request),))


def kept(made: Callable[[Activation], Out], sequence: str = "000000000002.000000") -> Hostile:
    """A commit, as the function says, whose head holds something to be sent."""
    return lambda request: Committed((fine(request),), ended(request, out={sequence: made(request)}), 2)


def said(**changes: Any) -> Hostile:
    """A commit whose head differs."""
    return lambda request: Committed((fine(request),), ended(request, **changes), 2)


def waits(**changes: Any) -> Hostile:
    """A suspension whose run differs."""
    return lambda request: Suspended((), asleep(request, **changes), 2)


FOREIGN: Final = Event(str(InvocationId(VICTIM, "m1")), "act", MessageSource("bad/k", "1"))
LONG: Final = str(InvocationId(Lane("good", "k" * 3_000), "m1"))
LINES: Final = str(InvocationId(Lane("good", "a\nERROR forged"), "m1"))
NONCE: Final = str(InvocationId(VICTIM, "m" * 4_000))
AWAKEABLE: Final = str(AwakeableId(InvocationId(Lane("good", "k" * 3_000), "m1"), "1a", "x"))

REFUSED: Final[dict[str, Hostile]] = {
    "nothing": lambda _: b"",
    "null": lambda _: b"null",
    "bytes": lambda _: b"\xff\xfe\x00",
    "a page": lambda _: b"<html>" * 1_000,
    "nested": lambda _: b"[" * 200_000,
    "nested in a known form": lambda _: b'{"type":"fenced","reason":' + b'{"a":' * 100_000,
    "another type": lambda _: b'{"type":"promoted","results":[]}',
    "an odd number": lambda _: b'{"type":"late","now_ms":1e999}',
    "too large": lambda _: b'{"type":"fenced","reason":"' + b"x" * 7_000_000 + b'"}',
    "it failed": lambda _: FunctionFailedError("it broke down"),
    "a manifest": lambda _: Manifest(()),
    "empty": lambda _: Speculated(()),
    "handed back": lambda _: Late(NOW),
    "effects of nothing": lambda _: Speculated((), {"s": b"1"}),
    "a foreign event": lambda _: Speculated((EventResult(FOREIGN.id, Success()),)),
    "garbage for an event": lambda _: Speculated((EventResult("garbage", Success()),)),
    "twice": lambda r: Speculated((fine(r), fine(r))),
    "ended and stopped": lambda r: Speculated((fine(r),), stopped=Stopped(first_of(r).id, Failure("no"))),
    "stopped elsewhere": lambda _: Speculated((), stopped=Stopped(FOREIGN.id, Failure("no"))),
    "a status": lambda r: Speculated((EventResult(first_of(r).id, Failed(Failure("no", 99))),)),
    "a large status": lambda r: Speculated((EventResult(first_of(r).id, Failed(Failure("no", 2**70))),)),
    "a state without a name": lambda r: Speculated((fine(r),), {"": b"1"}),
    "a state of a long name": lambda r: Speculated((fine(r),), {"n" * 70_000: b"1"}),
    "a message to no id": sent(event_id="garbage"),
    "a message to an empty id": sent(event_id=""),
    "a message to another lane": sent(key="other"),
    "a message to another service": sent(service="bad"),
    "a message to a long key": sent(event_id=LONG, key="k" * 3_000),
    "a message to a key of lines": sent(event_id=LINES, key="a\nERROR forged"),
    "a message with a long name": sent(event_id=NONCE),
    "a message to no handler": sent(handler=""),
    "a message to a handler of lines": sent(handler="act\x1b[31m"),
    "a message before time": sent(due_ms=-1),
    "a message beyond time": sent(due_ms=10**30),
    "a large delayed message": sent(due_ms=NOW + 9_000_000, input=b"x" * 360_000),
    "a message with large headers": sent(headers=(("h", b"x" * 120_000),)),
    "a foreign result": out_of(lambda _: ResultOut(FOREIGN.id, Success())),
    "garbage for a result": out_of(lambda _: ResultOut("garbage", Success())),
    "a foreign dead letter": out_of(lambda _: BuriedOut(FOREIGN, "no")),
    "a long reason": out_of(lambda r: BuriedOut(first_of(r), "x" * 400_000)),
    "a dead letter of the future": out_of(lambda r: BuriedOut(first_of(r), "no", at_ms=10**40)),
    "a dead letter in no item": out_of(lambda r: BuriedOut(first_of(r), "no", value_item="H")),
    "a record that is no dead letter": out_of(lambda _: PublishOut(DEAD, b"1", dead=True)),
    "a record in no item": out_of(lambda _: PublishOut("t", b"1", value_item="H")),
    "a bundle": out_of(lambda _: BundleOut("H")),
    "an answer to a long key": out_of(lambda _: ResolveOut(AWAKEABLE, Success(b"1"))),
    "a commit of nothing": lambda r: Committed((), ended(r)),
    "a commit without a trace": lambda r: Committed((fine(r),), Head(ver=r.head.ver + 2)),
    "a commit before it began": lambda r: Committed((fine(r),), ended(r, ver=r.head.ver)),
    "a commit of a foreign event": lambda r: Committed((EventResult(FOREIGN.id, Success()),), ended(r)),
    "a commit stopped elsewhere": lambda r: Committed((fine(r),), ended(r), 2, Stopped(FOREIGN.id, Failure("no"))),
    "a commit stopped at its own": lambda r: Committed((fine(r),), ended(r), 2, Stopped(first_of(r).id, Failure("no"))),
    "a token": said(ver=10**30),
    "a watermark": lambda r: Committed((fine(r),), replace(ended(r), watermarks=ended(r).watermarks | {"w": -1})),
    "an end in the future": lambda r: Committed((fine(r),), ended(r, fin={first_of(r).nonce: 10**30})),
    "stray": said(stray=("ver",)),
    "too heavy": said(state={"s": b"x" * 500_000}),
    "a long mark": said(pend="p" * 500_000),
    "writes without number": lambda r: Committed((fine(r),), ended(r), 10**30),
    "a kept message to no id": kept(lambda _: SendOut(*VICTIM, "garbage", "act")),
    "a kept message to another lane": kept(lambda _: SendOut("good", "x", str(InvocationId(VICTIM, "m1")), "act")),
    "a kept foreign result": kept(lambda _: ResultOut(FOREIGN.id, Success())),
    "a kept foreign dead letter": kept(lambda _: BuriedOut(FOREIGN, "no")),
    "a kept bundle that is the head": kept(lambda _: BundleOut("H")),
    "a kept entry at no place": kept(lambda _: PublishOut("t", b"1"), "garbage"),
    "asleep without a run": lambda r: Suspended((), ended(r)),
    "asleep and running": waits(awaits=None),
    "another's sleep": waits(event=FOREIGN),
    "a sleep beyond time": waits(wake_ms=10**30),
    "a lease beyond time": waits(lease_ms=10**30),
    "an attempt without number": waits(attempt=10**30),
    "asleep for nested bytes": lambda r: Suspended(
        (), replace(asleep(r, awaits=("1",), wake_ms=None), slots={"1d": b"\x91" * 100_000})
    ),
    "asleep for too much": waits(awaits=tuple(map(str, range(2_000)))),
}
"""Answers that are none: each is a failed attempt."""

LAZY: Final[dict[str, Hostile]] = {
    "lost": lambda _: Fenced("x" * 100_000),
    "rejected": lambda _: Rejected(Failure("\x1b[31m\n" * 100_000, 404)),
    "stopped": lambda r: Speculated((), stopped=Stopped(first_of(r).id, Failure("no"))),
    "stopped for nothing": lambda r: Speculated((), stopped=Stopped(first_of(r).id, Failure("no"), 0)),
    "stopped for less": lambda r: Speculated((), stopped=Stopped(first_of(r).id, Failure("no"), -(10**30))),
    "stopped for ever": lambda r: Speculated((), stopped=Stopped(first_of(r).id, Failure("no"), 10**30)),
    "asleep": waits(),
    "asleep for what is there": lambda r: Suspended(
        (), replace(asleep(r, awaits=("1a",), wake_ms=None), slots={"1a": b"x"})
    ),
    "asleep with a foreign holder": waits(holder="meter.1.x"),
}
"""Answers that can be, and in which nothing comes to an end."""


async def neighbours_go_on(town: Town, number: int) -> None:
    """The victim and another key of the other service take an event each, at once."""
    before = len(town.ran)
    for key in (VICTIM.key, "neighbour"):
        town.record("good", key)
    await asyncio.sleep(1)
    assert sorted(town.ran[before:]) == ["neighbour", "victim"], number


def unforeseen(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines that tell of what nobody thought of, and lines that are too long or no lines."""
    odd = [line for line in caplog.messages if "unforeseen" in line or "Traceback" in line]
    return odd + [line for line in caplog.messages if len(line) > SHOWN_CHARACTERS_MAX + 300 or not line.isprintable()]


def play(scenario: Callable[[], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture) -> None:
    """Run a scenario to its end, in which no lane meets anything unforeseen."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    assert unforeseen(caplog) == []


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_cannot_be_is_a_failed_attempt_and_reaches_nobody(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        town = Town(hostile=REFUSED[name])
        town.record("bad", "k")
        await neighbours_go_on(town, 0)
        await asyncio.sleep(WHILE_S)
        await neighbours_go_on(town, 1)
        # Its policy's three attempts, and then its dead letter.
        assert town.asked == ["speculate"] * 3
        assert town.world.released[-4:].count(0) == 1
        (dead,) = town.world.kafka.records(DEAD)
        assert b"3 attempts failed, the last without an answer: " in dict(dead.headers)["tenuto-reason"]
        assert {pk for pk, _ in town.world.table.items if "#" not in pk} <= {"bad/k", "good/victim", "good/neighbour"}
        assert not [key for key in town.world.table.items if key[0] == VICTIM.pk and key[1] != "H"]
        assert not [pk for pk, _ in town.world.table.items if pk.startswith("R#")]
        # The key itself goes on once its function is itself again.
        town.hostile = None
        town.record("bad", "k")
        await asyncio.sleep(1)
        assert town.ran[-1] == "k"

    play(scenario, caplog)
    assert any("attempt at act failed: " in line for line in caplog.messages)


@pytest.mark.parametrize("mode", ["drain", "resume"])
@pytest.mark.parametrize("name", REFUSED)
def test_so_it_is_in_the_other_modes(name: str, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        town = Town(hostile=REFUSED[name], honest=int(mode == "resume"))
        if mode == "resume":
            town.record("bad", "k", "rests")
        else:
            await town.world.send(town.bad.handlers["act"], "k", b"1", keep=True)
        await asyncio.sleep(WHILE_S)
        await neighbours_go_on(town, 0)
        assert set(town.asked) <= {"speculate", mode}
        if (mode, name) not in {("resume", "handed back"), ("resume", "a commit before it began")}:
            assert town.asked.count(mode) == 3
        assert town.asked.count(mode) <= 6
        assert not town.world.head("bad", "k").run
        dead = len(town.world.kafka.records(DEAD)) + len(town.world.letters())
        assert dead == 1
        town.hostile = None
        town.record("bad", "k")
        await asyncio.sleep(1)
        assert town.ran[-1] == "k"

    play(scenario, caplog)


@pytest.mark.parametrize("mode", ["speculate", "drain", "resume"])
@pytest.mark.parametrize("name", LAZY)
def test_an_answer_that_gets_nowhere_makes_no_hot_loop(name: str, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        town = Town(hostile=LAZY[name], honest=int(mode == "resume"))
        if mode == "resume":
            town.record("bad", "k", "rests")
        elif mode == "drain":
            await town.world.send(town.bad.handlers["act"], "k", b"1")
        else:
            town.record("bad", "k")
        await asyncio.sleep(WHILE_S)
        await neighbours_go_on(town, 0)
        assert len(town.asked) <= WHILE_S + 10
        assert sum(town.world.table.requests.values()) < 400

    play(scenario, caplog)
    assert len(caplog.messages) < 40


GOES_NOWHERE: Final = ("asleep", "asleep for what is there", "asleep with a foreign holder", "lost", "stopped")


@pytest.mark.parametrize("mode", ["speculate", "drain", "resume"])
@given(names=st.lists(st.sampled_from([*REFUSED, *GOES_NOWHERE]), min_size=1, max_size=4), others=st.integers(0, 2))
@settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(names=["asleep", "nothing"], others=1)
@example(names=["asleep", "nothing", "asleep"], others=0)
@example(names=["lost", "nothing"], others=2)
@example(names=["handed back", "nothing"], others=0)
@example(names=["asleep"], others=0)
def test_answers_that_get_nowhere_by_turns_are_counted(mode: str, names: list[str], others: int) -> None:
    """Each is a failed attempt, whatever was before it, and the event is given up after as many as its policy says."""

    async def scenario() -> None:
        turns = itertools.cycle((REFUSED | LAZY)[name] for name in names)

        def answer(request: Activation) -> Outcome | bytes | InvokeError:
            return next(turns)(request)

        town = Town(hostile=answer, honest=int(mode == "resume"))
        if mode == "resume":
            town.record("bad", "k", "rests")
        elif mode == "drain":
            for n in range(1 + others):
                await town.world.send(town.bad.handlers["act"], "k", b"1", nonce=f"c{n}")
        else:
            for _ in range(1 + others):
                town.record("bad", "k")
        await asyncio.sleep(200)
        count = 1 if mode == "resume" else 1 + others
        # A head that it has made up may hold a dead letter that has left: the same one leaves once more.
        dead = {dict(record.headers)["tenuto-invocation"] for record in town.world.kafka.records(DEAD)}
        assert len(dead) + len(town.world.letters()) == count
        assert 3 * count <= len(town.asked) <= 12 * count + 6
        await neighbours_go_on(town, 0)

    logging.disable(logging.CRITICAL)
    try:
        run_virtual(scenario())
    finally:
        logging.disable(logging.NOTSET)


def test_a_message_to_a_handler_that_is_not_there_waits_with_its_sender(caplog: pytest.LogCaptureFixture) -> None:
    """It may be there soon, so no attempt is counted; but the receiver's key is not what waits for it."""

    async def scenario() -> None:
        town = Town(hostile=sent(handler="later"))
        town.record("bad", "k")
        await asyncio.sleep(WHILE_S)
        await neighbours_go_on(town, 0)
        assert 2 < len(town.asked) < 7
        assert town.world.kafka.records(DEAD) == []
        assert not [key for key in town.world.table.items if key[0] == VICTIM.pk and key[1] != "H"]
        town.hostile = None
        await asyncio.sleep(15)
        assert town.ran[-1] == "k"

    play(scenario, caplog)
    assert "bad/k: a message to good/later waits: no function serves that handler" in caplog.messages


@pytest.mark.parametrize("name", [*LAZY, "empty", "a manifest", "nested", "a commit of nothing", "handed back"])
@pytest.mark.parametrize("keep", [False, True], ids=["without a key", "idempotent"])
def test_a_callers_wait_ends_when_it_says(name: str, *, keep: bool) -> None:
    async def scenario() -> None:
        town = Town(hostile=(LAZY | REFUSED)[name])
        event = town.world.event_of_call(town.bad.handlers["act"], "k", "c1", keep=keep)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        found = await town.world.dispatcher.call(event, 4_000)
        # Handing it over takes a moment more.
        assert loop.time() - began_s <= 4.5
        assert isinstance(found, Pending | Failed)
        assert len(town.asked) < 30

    run_virtual(scenario())


# --- any answer ------------------------------------------------------------------------------------------------------

MODELS: Final[dict[str, Hostile]] = {
    "fine": lambda r: Speculated((fine(r),), {"s": b"1"}),
    "sends": sent(),
    "everything": lambda r: Speculated(
        (EventResult(first_of(r).id, Failed(Failure("no", 400, {"a": "b"}))),),
        {"s": b"1", "t": None},
        (
            SendOut(*VICTIM, str(InvocationId(VICTIM, "m1")), "act", b"1", (("h", b"1"),), NOW + 1_000),
            PublishOut("t", b"1", b"k", (("h", b"1"),)),
            ResultOut(first_of(r).id, Success(b"1")),
            ResolveOut(str(AwakeableId(InvocationId(VICTIM, "m1"), "1a", "x")), Success(b"1")),
            BuriedOut(first_of(r), "no", 400, NOW, NOW, 1),
        ),
    ),
    "stopped": LAZY["stopped"],
    "committed": said(tok="t", pend="p", state={"s": b"1"}, tried=("n", 1), segments=("J#1",), stray=("j.1.x",)),
    "kept": kept(lambda _: SendOut(*VICTIM, str(InvocationId(VICTIM, "m1")), "act", b"1")),
    "asleep": lambda r: Suspended((), replace(asleep(r), slots={"1d": b"x"}, base={"s": None}), 2),
    "lost": LAZY["lost"],
    "rejected": LAZY["rejected"],
}

ODD: Final[list[Any]] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1.5, 1e300),
    *("", "garbage", "x" * 5_000, "\x00\x1b[2J\r\n", "\u202e\u2028", "AAAA", "1970-01-01"),
    *(str(InvocationId(VICTIM, "m1")), LONG, LINES, "good", "victim", "act", "H", "ver", "send", "bundle", "ok"),
    *([], {}, [[]], [None], {"type": "bundle", "item": "H"}, {"a": {"b": {"c": [1, 2, 3]}}}),
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places in a JSON value, itself included."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [at, *(path for name, part in inner for path in paths(part, (*at, name)))]


def changed(value: Any, path: tuple[Any, ...], new: Any, *, named: bool) -> Any:
    """A JSON value with something else at a place; with `named`, as the name that stands there, if it is one."""
    if not path:
        return new
    where, rest = path[0], path[1:]
    if isinstance(value, list):
        return [changed(part, rest, new, named=named) if at == where else part for at, part in enumerate(value)]
    if named and not rest and isinstance(new, str):
        return {new if name == where else name: part for name, part in value.items()}
    return {name: changed(part, rest, new, named=named) if name == where else part for name, part in value.items()}


mutation = st.tuples(st.integers(0, 10_000), st.sampled_from(ODD), st.booleans())


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.sampled_from(sorted(MODELS)),
    mutations=st.lists(mutation, min_size=1, max_size=3),
    mode=st.sampled_from(["speculate", "drain", "resume"]),
)
def test_whatever_is_changed_in_an_answer_the_others_go_on(
    model: str, mutations: list[tuple[int, Any, bool]], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    def hostile(request: Activation) -> bytes:
        answer = MODELS[model](request)
        assert not isinstance(answer, bytes | InvokeError)
        value = json.loads(encode(answer))
        for place, new, named in mutations:
            every = paths(value)
            value = changed(value, every[place % len(every)], new, named=named)
        return json.dumps(value).encode()

    async def scenario() -> None:
        town = Town(hostile=hostile, honest=int(mode == "resume"))
        if mode == "drain":
            await town.world.send(town.bad.handlers["act"], "k", b"1")
        else:
            town.record("bad", "k", "rests" if mode == "resume" else "act")
        await asyncio.sleep(WHILE_S)
        town.ran.clear()
        await neighbours_go_on(town, 0)
        assert len(town.asked) <= WHILE_S + 10

    play(scenario, caplog)


MANY: Final = {
    "names of state": b'{"type":"speculated","results":[],"state":{"s":null%s}}'
    % b"".join(b',"%x":null' % n for n in range(210_000)),
    "ends": b'{"type":"committed","results":[],"head":{"took":[1%s]}}' % (b",1" * 210_000),
    "headers": b'{"type":"speculated","results":[],"out":[{"type":"publish","topic":"t","value":null,"headers":[%s]}]}'
    % b",".join([b'["",""]'] * 110_000),
    "what has no place": b'{"type":"fenced","reason":"r","x":[%s0]}' % (b"[]," * 210_000),
}
"""Answers that are no larger than others, and would take twelve times their size once decoded."""


@pytest.mark.parametrize("name", MANY)
def test_an_answer_of_hundreds_of_thousands_of_values_is_not_decoded(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(answer: bytes) -> Outcome:
        decoded.append(len(answer))
        return decode_outcome(answer)

    monkeypatch.setattr(activations, "decode_outcome", decode)

    async def scenario() -> None:
        town = Town(hostile=lambda _: MANY[name])
        town.record("bad", "k")
        await asyncio.sleep(WHILE_S)
        await neighbours_go_on(town, 0)
        assert town.asked == ["speculate"] * 3
        assert len(town.world.kafka.records(DEAD)) == 1
        assert decoded
        assert max(decoded) < 10_000

    play(scenario, caplog)
    assert "answered more than 200,000 values" in caplog.text


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.one_of(st.binary(max_size=200), st.recursive(st.sampled_from(ODD), st.lists).map(msgspec.json.encode)))
def test_so_they_do_whatever_bytes_are_answered(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        town = Town(hostile=lambda _: answer)
        town.record("bad", "k")
        await asyncio.sleep(WHILE_S)
        await neighbours_go_on(town, 0)
        assert town.asked == ["speculate"] * 3
        assert len(town.world.kafka.records(DEAD)) == 1

    play(scenario, caplog)


@pytest.mark.parametrize("name", [*REFUSED, *LAZY])
def test_a_handler_that_only_reads_answers_with_one_result(name: str) -> None:
    """Whatever comes instead is the caller's error, and the lane is not touched."""
    town = Town(hostile=(REFUSED | LAZY)[name])

    async def scenario() -> None:
        event = Event(str(InvocationId(Lane("bad", "k"), "c1")), "looks", CallSource(), b"1")
        try:
            found = await town.world.dispatcher.call_shared(event)
        except InvokeError:
            found = None
        assert found is None or isinstance(found, Failed | Success)
        assert town.asked == ["shared"]
        assert not town.world.table.log

    run_virtual(scenario())


# --- as Lambda's answers are read ------------------------------------------------------------------------------------


class Stream:
    """The body of an answer; without `data` it never ends."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data
        self.taken = 0
        self.closed = False

    async def read(self, most: int) -> bytes:
        """The next bytes of it, as few as a connection brings at once."""
        size = min(most, 65_536)
        self.taken += size
        if self.data is None:
            return b"x" * size
        part, self.data = self.data[:size], self.data[size:]
        return part

    def close(self) -> None:
        """Nobody reads on."""
        self.closed = True


def invoked(answer: dict[str, Any]) -> bytes:
    """What the driver makes of an answer of Lambda's. Raises InvokeError."""

    async def invoke(**_: Any) -> dict[str, Any]:
        return answer

    client: Any = SimpleNamespace(invoke=invoke)
    return asyncio.run(LambdaInvoker(BotocoreLambda(client), {"f": FunctionConfig()}).invoke("f", b"{}"))


@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000, ANSWER_BYTES_MAX])
def test_an_answer_is_read_whole(size: int) -> None:
    assert invoked({"Payload": Stream(b"x" * size)}) == b"x" * size


@pytest.mark.parametrize("data", [None, b"x" * (ANSWER_BYTES_MAX + 1)], ids=["without end", "a byte too long"])
def test_an_answer_that_is_too_long_is_not(data: bytes | None) -> None:
    stream = Stream(data)
    with pytest.raises(FunctionFailedError, match="answered more than 6,291,456 bytes"):
        invoked({"Payload": stream})
    assert stream.closed
    assert stream.taken < ANSWER_BYTES_MAX + 200_000


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"[" * 200_000, b'{"errorMessage": ' + b"[" * 200_000, b'{"errorType": "\\u001b[31m", "x": 1}'],
    ids=["nothing", "bytes", "nested", "nested in a known field", "an escape"],
)
def test_an_error_of_lambdas_may_be_of_any_form(body: bytes) -> None:
    with pytest.raises(FunctionFailedError) as caught:
        invoked({"FunctionError": "Unhandled", "Payload": Stream(body)})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2 * SHOWN_CHARACTERS_MAX


def test_an_answer_without_a_body_is_none() -> None:
    with pytest.raises(FunctionUnreachableError):
        invoked({})
