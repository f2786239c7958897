"""What simulated handlers do: programs as data, drawn from a seed or written out, and the handlers that play them.

Owns the vocabulary of programs and the traces they leave in state, by which the oracles judge. The handlers use the
SDK as any user would. Does not own what effects do outside (`Outside`, given by the world).

State that a box keeps, all of it inside the product's own transactions:

    chain.<topic>    hash chain over (partition, offset) of the events that took effect
    sent.<key>       messages sent to that box            got.<key>     the last number received from it
    later.<key>      delayed messages sent to that box    came.<key>    numbers received, in any order
    calls            ids of calls that took effect
    count            events, messages and calls that took effect, of all kinds together
    steps            results of the last event's steps: [[idempotency key, value], …]
    slips            events without a key that took effect
    doomed           ids of messages sent that have to fail for good
    gave_up          ids of invocations that ended by a terminal error
    wrong            what a handler saw that it should not have
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeAlias, assert_never

import msgspec

from tenuto.context import Context, ObjectContext, ObjectSharedContext, idempotency_key
from tenuto.errors import TerminalError
from tenuto.protocol.ids import digest
from tenuto.runtime.futures import RunFuture
from tenuto.service import InvocationRetryPolicy, Service, Services, VirtualObject

BULK = "x" * 3_000
"""More than stays in the head, as part of a result or of an input."""

ROLLING = "x" * 1_500
"""A part of a result that stays in the head; with two of these a journal rolls into a segment."""

HEAVY = "x" * 400_000
"""More than one item holds: such an input waits in parts, and can take no durable step."""

ANNOUNCEMENTS = "announcements"
"""The topic that programs publish to."""

LOOSE = "loose"
"""The topic, and the service without a key, whose events stand alone. One takes effect as a slip that its box gets."""

LOOSE_ATTEMPTS_MAX = 3
DOOMED_ATTEMPTS_MAX = 2
OVERFULL = "x" * 200_000
"""More than the state of a key may weigh (`tenuto.protocol.limits.STATE_BYTES_MAX`)."""

LOOSE_NAP_MS = 900
LOOSE_PLAYS = ("slip", "step", "nap", "doomed")
"""What an event without a key does before it sends its slip; a doomed one always fails."""


@dataclass(frozen=True, slots=True)
class Step:
    """An external effect inside `ctx.run`; a `bulky` one has a result that does not stay in the head.

    A `rolling` one stays there until the journal rolls. It `takes_ms`, besides what the outside takes by itself.
    """

    name: str
    bulky: bool = False
    rolling: bool = False
    takes_ms: int = 0


@dataclass(frozen=True, slots=True)
class Nap:
    """A sleep, in milliseconds."""

    ms: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Count up a state name. It `takes_ms`, without a durable step."""

    name: str
    takes_ms: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """Clear a state name."""

    name: str


@dataclass(frozen=True, slots=True)
class Tell:
    """A message to another box, at once or later."""

    key: str
    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """Wait for an awakeable that a party outside, or the helper object, resolves."""

    helper: bool = False


@dataclass(frozen=True, slots=True)
class AskBefore:
    """Hand an awakeable out, take these steps, and only then wait for the answer."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Overfill:
    """Set more state than a key may have: the event ends among the dead letters, whole."""


@dataclass(frozen=True, slots=True)
class Doom:
    """A message whose handler fails at every attempt, and has few."""

    key: str


@dataclass(frozen=True, slots=True)
class AskWithin:
    """An awakeable against a sleep: whichever comes first."""

    ms: int


@dataclass(frozen=True, slots=True)
class Together:
    """Several steps and a sleep at the same time."""

    steps: tuple[str, ...]
    nap_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Race:
    """A step against a sleep."""

    name: str
    nap_ms: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish to a topic."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A terminal error."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A loop."""

    times: int
    body: tuple[Op, ...]


Op: TypeAlias = (
    Step
    | Nap
    | Remember
    | Forget
    | Tell
    | Ask
    | AskBefore
    | AskWithin
    | Together
    | Race
    | Announce
    | GiveUp
    | Overfill
    | Doom
    | Repeat
)
Program: TypeAlias = tuple[Op, ...]


LIGHT_OPS = (Remember, Forget, Tell, Announce, GiveUp, Overfill, Doom)
"""What needs no claim."""


class Outside(Protocol):
    """The world beyond the product, as handlers meet it."""

    async def effect(self, key: str, what: str) -> int:
        """Something happens outside, once per idempotency key if the outside cares. Raises when it fails."""
        ...

    async def hand_out(self, awakeable: str) -> None:
        """Somebody outside will resolve this awakeable."""
        ...

    def stumble(self) -> None:
        """Raise, now and then: user code fails as it likes, while faults last."""
        ...


class Cargo(msgspec.Struct):
    """The value of an event: which program to play. `ballast` makes it as large as a test wants."""

    program: int
    ballast: str = ""


class Letter(msgspec.Struct):
    """A message between boxes: the n-th of its kind from `sender`."""

    sender: str
    n: int
    program: int


def services(programs: Sequence[Program], outside: Outside) -> Services:
    """One function's services: the box that plays programs, the helper that answers it, and what has no key."""
    box = VirtualObject("box")
    helper = VirtualObject("helper")

    @box.handler()
    async def event(ctx: ObjectContext, cargo: Cargo) -> None:
        origin = ctx.request().kafka
        assert origin is not None
        name = f"chain.{origin.topic}"
        await player.play(ctx, name, link(await ctx.get(name, str), origin.partition, origin.offset), cargo.program)

    @box.handler()
    async def message(ctx: ObjectContext, letter: Letter) -> None:
        name = f"got.{letter.sender}"
        last = await ctx.get(name, int) or 0
        if letter.n != last + 1:
            ctx.set("wrong", f"message {letter.n} from {letter.sender} came after {last}")
        await player.play(ctx, name, letter.n, letter.program)

    @box.handler()
    async def late(ctx: ObjectContext, letter: Letter) -> None:
        name = f"came.{letter.sender}"
        came = await ctx.get(name, list[int]) or []
        if letter.n in came:
            ctx.set("wrong", f"delayed message {letter.n} from {letter.sender} came twice")
        await player.play(ctx, name, sorted([*came, letter.n]), letter.program)

    @box.handler()
    async def call(ctx: ObjectContext, cargo: Cargo) -> int:
        calls = await ctx.get("calls", list[str]) or []
        if ctx.request().id in calls:
            ctx.set("wrong", f"call {ctx.request().id} came twice")
        await player.play(ctx, "calls", [*calls, ctx.request().id], cargo.program)
        return len(calls) + 1

    @box.handler(kind="shared")
    async def peek(ctx: ObjectSharedContext) -> int:
        return len(await ctx.get("calls", list[str]) or [])

    @box.handler()
    async def slip(ctx: ObjectContext, origin: str) -> None:
        slips = await ctx.get("slips", list[str]) or []
        if origin in slips:
            ctx.set("wrong", f"the slip of {origin} came twice")
        await player.play(ctx, "slips", [*slips, origin], 0)

    @helper.handler()
    async def answer(ctx: ObjectContext, awakeable: str) -> None:
        ctx.set("answered", (await ctx.get("answered", int) or 0) + 1)
        ctx.resolve_awakeable(awakeable, 7)

    player = _Player(programs, outside, message, late, answer, _doomed(box))
    return Services([box, helper, _loose(outside, slip)])


def _doomed(box: VirtualObject) -> Any:
    """The handler of a box that fails at every attempt."""

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=DOOMED_ATTEMPTS_MAX))
    async def doomed(ctx: ObjectContext, _sender: str) -> None:
        await ctx.get("count", int)
        raise RuntimeError("this message never works")

    return doomed


def _loose(outside: Outside, slip: Any) -> Service:
    """The service without a key, whose invocations have a bound of attempts."""
    loose = Service(LOOSE)

    @loose.handler(retry_policy=InvocationRetryPolicy(max_attempts=LOOSE_ATTEMPTS_MAX))
    async def single(ctx: Context, cargo: Cargo) -> None:
        outside.stumble()
        what, origin = LOOSE_PLAYS[cargo.program], ctx.request().kafka
        assert origin is not None
        if what == "doomed":
            raise RuntimeError("this never works")
        if what in ("step", "nap"):
            await ctx.run("a", effect)
        if what == "nap":
            await ctx.sleep(timedelta(milliseconds=LOOSE_NAP_MS))
        ctx.object_send(slip, LOOSE, f"{origin.partition}:{origin.offset}")
        outside.stumble()

    async def effect() -> int:
        return await outside.effect(idempotency_key(), "a")

    return loose


def link(chain: str | None, partition: int, offset: int) -> str:
    """The chain with one more event."""
    return hashlib.sha256(f"{chain or ''}|{partition}:{offset}".encode()).hexdigest()[:24]


def brief(value: Any) -> Any:
    """What is noted of a step's result: of a bulky one its beginning, which no other result has."""
    return value.partition(" ")[0] if isinstance(value, str) else value


class _Player:
    """Plays a program in a handler, and leaves the handler's trace in state with it."""

    def __init__(
        self, programs: Sequence[Program], outside: Outside, message: Any, late: Any, answer: Any, doomed: Any
    ) -> None:
        self._programs = programs
        self._outside = outside
        self._message = message
        self._late = late
        self._answer = answer
        self._doomed = doomed

    async def play(self, ctx: ObjectContext, name: str, trace: Any, program: int) -> None:
        """The program, then the trace: an event whose trace is missing has not taken effect."""
        steps: list[tuple[str, Any]] = []
        count = await ctx.get("count", int) or 0
        self._outside.stumble()
        try:
            for op in self._programs[program]:
                await self._do(ctx, op, steps)
            self._outside.stumble()
        except TerminalError:
            ctx.set("gave_up", [*(await ctx.get("gave_up", list[str]) or []), ctx.request().id])
            raise
        finally:
            # Also a terminal failure takes effect once. (A suspension passes here too, when its write is done already.)
            ctx.set(name, trace)
            ctx.set("steps", steps, list[tuple[str, Any]])
            ctx.set("count", count + 1)

    async def _do(  # noqa: C901, PLR0912 - one case for each kind of operation
        self, ctx: ObjectContext, op: Op, steps: list[tuple[str, Any]]
    ) -> None:
        match op:
            case Step():
                await self._results(ctx, [self._step(ctx, op)], steps)
            case Nap(ms):
                await ctx.sleep(timedelta(milliseconds=ms))
            case Remember(name, takes_ms):
                if takes_ms:
                    await asyncio.sleep(takes_ms / 1_000)
                ctx.set(f"v.{name}", (await ctx.get(f"v.{name}", int) or 0) + 1)
            case Forget(name):
                ctx.clear(f"v.{name}")
            case Tell(key, delay_ms):
                await self._tell(ctx, key, delay_ms)
            case Ask(helper):
                await self._ask(ctx, helper=helper)
            case AskBefore(before):
                awakeable, answered = ctx.awakeable(int)
                await ctx.run("hand out", self._outside.hand_out, awakeable)
                for step in before:
                    await self._results(ctx, [self._step(ctx, step)], steps)
                ctx.set("v.answer", await answered)
            case Overfill():
                ctx.set("overfull", OVERFULL)
            case Doom(key):
                sent = ctx.object_send(self._doomed, key, ctx.key)
                ctx.set("doomed", [*(await ctx.get("doomed", list[str]) or []), sent])
            case AskWithin(ms):
                awakeable, answered = ctx.awakeable(int)
                await ctx.run("hand out", self._outside.hand_out, awakeable)
                won, _ = await ctx.select(answer=answered, late=ctx.sleep(timedelta(milliseconds=ms)))
                ctx.set("v.won", won)
            case Together(names, nap_ms):
                futures = [self._step(ctx, Step(name)) for name in names]
                nap = [] if nap_ms is None else [ctx.sleep(timedelta(milliseconds=nap_ms))]
                await ctx.gather(*futures, *nap)
                await self._results(ctx, futures, steps)
            case Race(name, nap_ms):
                racing = self._step(ctx, Step(name))
                won, _ = await ctx.select(step=racing, nap=ctx.sleep(timedelta(milliseconds=nap_ms)))
                ctx.set("v.won", won)
            case Announce():
                ctx.publish(ANNOUNCEMENTS, {"from": ctx.key}, key=ctx.key)
            case GiveUp():
                raise TerminalError("given up", 409)
            case Repeat(times, body):
                for _ in range(times):
                    for inner in body:
                        await self._do(ctx, inner, steps)
            case _:
                assert_never(op)

    def _step(self, ctx: ObjectContext, step: Step) -> RunFuture[Any]:
        future: Any
        if step.bulky or step.rolling:
            future = ctx.run(step.name, self._large_effect, step.name, BULK if step.bulky else ROLLING)
        else:
            future = ctx.run(step.name, self._effect, step.name, step.takes_ms)
        assert isinstance(future, RunFuture)
        return future

    async def _effect(self, name: str, takes_ms: int = 0) -> int:
        await asyncio.sleep(takes_ms / 1_000)
        return await self._outside.effect(idempotency_key(), name)

    async def _large_effect(self, name: str, ballast: str) -> str:
        return f"{await self._effect(name)} {ballast}"

    async def _results(
        self, ctx: ObjectContext, futures: Sequence[RunFuture[Any]], steps: list[tuple[str, Any]]
    ) -> None:
        for future in futures:
            value = await future
            steps.append((digest(ctx.request().id, str(future.index)), brief(value)))

    async def _tell(self, ctx: ObjectContext, key: str, delay_ms: int) -> None:
        name = f"{'later' if delay_ms else 'sent'}.{key}"
        n = (await ctx.get(name, int) or 0) + 1
        ctx.set(name, n)
        letter = Letter(ctx.key, n, 0)
        if delay_ms:
            ctx.object_send(self._late, key, letter, send_delay=timedelta(milliseconds=delay_ms))
        else:
            ctx.object_send(self._message, key, letter)

    async def _ask(self, ctx: ObjectContext, *, helper: bool) -> None:
        awakeable, answered = ctx.awakeable(int)
        if helper:
            ctx.object_send(self._answer, ctx.key, awakeable)
        else:
            await ctx.run("hand out", self._outside.hand_out, awakeable)
        ctx.set("v.answer", await answered)


def durable(program: Program) -> bool:
    """Whether a program may take a durable step: its input then has to fit into an item."""
    return any(durable(op.body) if isinstance(op, Repeat) else not isinstance(op, LIGHT_OPS) for op in program)


def overfills(program: Program) -> bool:
    """Whether an event of this program has to end among the dead letters."""
    return any(isinstance(op, Overfill) for op in program)


def lasting_ms(program: Program, told_ms: int = 0) -> int:
    """How long a program may sleep altogether, the programs of the messages it sends (`told_ms` each) included."""
    return sum(_lasting_ms(op, told_ms) for op in program)


def _lasting_ms(op: Op, told_ms: int) -> int:
    match op:
        case Nap(ms) | AskWithin(ms) | Race(_, ms):
            return ms
        case Together(_, nap_ms):
            return nap_ms or 0
        case Tell():
            return told_ms
        case Repeat(times, body):
            return times * lasting_ms(body, told_ms)
        case _:
            return 0


# --- drawn from a seed ---------------------------------------------------------------------------------------------


BULKY_SHARE = 0.1


def drawn(rng: random.Random, keys: Sequence[str], count: int) -> list[Program]:
    """Random programs. Program 0 is for messages: it never sends any, so that a message ends somewhere."""
    quiet = _draw(rng, (), 3)
    return [quiet, (Remember("only"),), *(_draw(rng, keys, rng.choice([1, 2, 4, 7])) for _ in range(count))]


def _draw(rng: random.Random, keys: Sequence[str], length: int) -> Program:
    ops = [_draw_op(rng, keys, depth=0) for _ in range(rng.randint(1, length))]
    if rng.random() < 0.05:
        ops.append(GiveUp())
    return tuple(ops)


def _draw_op(rng: random.Random, keys: Sequence[str], depth: int) -> Op:  # noqa: C901 - one case for each kind
    kind = rng.choice(
        ["step", "step", "step", "remember", "remember", "forget", "nap", "nap", "ask", "together", "race", "within"]
        + (["tell", "tell", "tell later", "announce", "helper"] if keys else [])
        + (["repeat"] if depth == 0 else [])
    )
    nap_ms = rng.choice([1, 20, 150, 299, 301, 301, 800, 800, 3_000, 3_000, 20_000, 130_000])
    match kind:
        case "step":
            return Step(rng.choice("abc"), bulky=rng.random() < BULKY_SHARE)
        case "remember":
            return Remember(rng.choice("xyz"))
        case "forget":
            return Forget(rng.choice("xyz"))
        case "nap":
            return Nap(nap_ms)
        case "ask":
            return Ask()
        case "helper":
            return Ask(helper=True)
        case "within":
            return AskWithin(nap_ms)
        case "together":
            return Together(tuple("pqr"[: rng.randint(1, 3)]), rng.choice([None, nap_ms]))
        case "race":
            return Race("r", min(nap_ms, 3_000))
        case "tell":
            return Tell(rng.choice(keys))
        case "tell later":
            return Tell(rng.choice(keys), rng.choice([1, 500, 5_000, 150_000]))
        case "announce":
            return Announce()
        case _:
            return Repeat(rng.randint(2, 4), tuple(_draw_op(rng, keys, depth + 1) for _ in range(2)))
