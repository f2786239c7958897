"""Whatever a handler hands to its context is refused at the call, by an error that names it, or stored and read back.

Owns the rule for every public method and constructor, over generated values: wrong types, extreme sizes, odd text, odd
numbers. After each of them the key's next event runs. Does not own the wording (`tests/sdk/test_checks`) nor how values
are serialised (`test_serialisation`).
"""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import math
import operator
import uuid
from collections import UserDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tenuto import (
    Context,
    InvocationRetryPolicy,
    ObjectContext,
    RetryableError,
    RunOptions,
    Service,
    TerminalError,
    VirtualObject,
    gather,
)
from tenuto.protocol.backoff import asked_pause_ms, pause_ms
from tenuto.protocol.durations import milliseconds
from tenuto.protocol.failures import describe, failure_of, rejection_of
from tenuto.protocol.ids import MAX_KEY_BYTES, PARTITION_KEY_BYTES_MAX, AwakeableId, InvocationId, Lane, check_key
from tenuto.protocol.limits import (
    FAILURE_TEXT_BYTES_MAX,
    METADATA_BYTES_MAX,
    PAUSE_MS_MAX,
    PAUSE_MS_MIN,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import HandlerManifest, Manifest, RetryPolicy, ServiceManifest, decode_outcome, encode
from tenuto.protocol.records import Failed, RunSlot, pack, unpack_slot
from tenuto.result_hints import result_hint
from tests.support.in_process import InProcess

# A failing example of half a megabyte is reported with a warning, which must not hide the failure.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

T = TypeVar("T")

NAP = timedelta(seconds=30)
"""Long enough that a sleep suspends, so that everything before it is stored and replayed."""

LARGE = 500_000

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


# --- odd values ------------------------------------------------------------------------------------------------------


class Colour(enum.StrEnum):
    """A text that is not exactly a str."""

    RED = "red"


class Level(enum.IntEnum):
    """A number that is not exactly an int."""

    HIGH = 3


class Shout(str):
    """A text whose methods lie."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another text"

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"other bytes"


class Octets(bytes):
    """Bytes that are not exactly bytes."""

    __slots__ = ()


class Mute:
    """A value without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        return "Mute()"


class Quitter(Exception):
    """An exception whose text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(2)


odd_text = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(codec=None), max_size=20),
    st.text(st.sampled_from("%/#é\x00\x1f\x7f\x85\u2028\ud800\udce9\U0001f600"), max_size=12),
    st.builds(
        lambda c, n: c * n, st.sampled_from("k%é\ud800\U0001f600\n"), st.sampled_from([0, 1, 249, 255, 256, 1_024])
    ),
    st.sampled_from(["k" * 2_049, "%" * 700, "x" * LARGE, ".", "..", Colour.RED, Shout("one"), "caf\udce9", "a\x00b"]),
)
odd_numbers = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(-3, 10),
    st.floats(),
    st.sampled_from([2**70, -(2**70), 10**400, 1e308, 5e-324, -0.0, math.nan, math.inf, Level.HIGH, Decimal("1.5")]),
    st.fractions(max_denominator=9),
)
odd_durations = st.one_of(odd_numbers, st.timedeltas(), st.just(timedelta.max), st.just(timedelta.min))
odd_things = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.uuids(),
    st.dates(),
    st.builds(object),
    st.builds(Mute),
    st.builds(Quitter),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(
        [ValueError("x"), int, len, print, lambda: 1, bytearray(b"ab"), memoryview(b"ab"), Octets(b"o"), ...]
    ),
)
anything = st.one_of(odd_text, odd_numbers, odd_durations, odd_things)
headers = st.one_of(
    anything,
    st.dictionaries(odd_text, st.one_of(odd_text, st.binary(max_size=9), anything), max_size=3),
    st.lists(st.tuples(odd_text, st.one_of(odd_text, st.binary(max_size=9))), max_size=3),
    st.builds(UserDict, st.dictionaries(st.text(max_size=5), st.binary(max_size=9), max_size=2)),
)


# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class World:
    """One object whose handler is the test's, an object and a service that note what arrives."""

    stage: VirtualObject = field(default_factory=lambda: VirtualObject("stage"))
    box: VirtualObject = field(default_factory=lambda: VirtualObject("box"))
    mail: Service = field(default_factory=lambda: Service("mail"))
    received: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        @self.box.handler()
        async def take(ctx: ObjectContext, what: str) -> None:
            self.received.append((ctx.key, what))

        @self.box.handler(kind="shared")
        async def look(ctx: Any) -> None:
            return None

        @self.mail.handler()
        async def post(ctx: Context, what: Any = None) -> None:
            self.received.append(what)

    async def play(self, body: Callable[[ObjectContext], Any], *names: str) -> tuple[InProcess, Any]:
        """What a call gives (True when it was taken) between two steps, before a sleep; then the key's next event.

        An error of the body must be one that refuses, and name the handler and the argument.
        """
        refused: list[Exception] = []

        @self.stage.handler()
        async def act(ctx: ObjectContext, event: int) -> None:
            await ctx.run("first", nothing)
            try:
                made = body(ctx)
                if isinstance(made, Awaitable):
                    await made
            except (TypeError, TerminalError) as e:
                refused.append(e)
            await ctx.run("last", nothing)
            await ctx.sleep(NAP)

        @self.stage.handler()
        async def after(ctx: ObjectContext, event: int) -> None:
            self.received.append("next")

        local = InProcess(self.stage, self.box, self.mail)
        await local.deliver("events", "ann", act, b"1")
        await local.advance(2 * NAP)
        await local.deliver("events", "ann", after, b"1")
        assert self.received.pop() == "next", "the key's next event runs"
        assert local.head(self.stage, "ann").run is None
        for error in refused:
            assert any(name in str(error) for name in names), f"the error names the argument: {error}"
            assert "stage/act: " in str(error), "the error names the handler"
            assert len(str(error).encode()) <= FAILURE_TEXT_BYTES_MAX
        return local, not refused


def refusal(make: Callable[[], T]) -> tuple[T | None, str]:
    """What a constructor makes, or the text with which it refuses."""
    try:
        return make(), ""
    except (TypeError, ValueError) as e:
        return None, str(e)


async def nothing() -> None:
    """A step that does nothing."""


def exact(text: str) -> str:
    """A text as what it holds, whatever its class says."""
    return "".join(text[at] for at in range(len(text)))


def octets(value: str | bytes) -> bytes:
    return exact(value).encode() if isinstance(value, str) else bytes(value)


# --- methods of contexts ---------------------------------------------------------------------------------------------


@quick
@given(odd_text | anything, anything, odd_text | anything, headers)
@example("t", 1, 123, None)
@example("t", 1, uuid.UUID(int=1), None)
@example("t", 1, "k", {"n": 1})
@example("t", 1, "caf\udce9", {"n": "caf\udce9"})
@example("t", 1, Colour.RED, {Colour.RED: Shout("one")})
@example("t", b"x" * (VALUE_BYTES_MAX + 1), None, None)
@example("t", 1, None, [("n", b"1"), ("n", b"2")])
@example("t", 1, None, "ab")
@example("t" * 250, 1, None, None)
@example("..", 1, None, None)
def test_publish(topic: Any, value: Any, key: Any, given_headers: Any) -> None:
    async def scenario() -> None:
        world = World()
        call = functools.partial(ObjectContext.publish, topic=topic, value=value, key=key, headers=given_headers)
        local, taken = await world.play(call, "ctx.publish", "the record for")
        assert len(local.published) == taken
        for _, entry in local.published:
            assert entry.topic == exact(topic)
            assert entry.key == (None if key is None else octets(key))
            pairs = given_headers.items() if hasattr(given_headers, "items") else given_headers or ()
            assert entry.headers == tuple((exact(n), octets(v)) for n, v in pairs)
            if value is None or isinstance(value, bytes | bytearray | memoryview):
                assert entry.value == value
            else:
                assert entry.value is not None
                json.loads(entry.value)

    asyncio.run(scenario())


@quick
@given(odd_text | anything, st.none() | st.text(max_size=5) | anything, odd_durations | st.none())
@example("k" * 2_049, "a", None)
@example("k" * 1_024, "a", None)
@example("%" * 1_000, "a", None)
@example("", "a", None)
@example("a\x00b", "a", None)
@example("a\u2028b", "a", None)
@example("a", "a", 1)
@example("a", None, None)
@example("a", "x" * LARGE, None)
def test_object_send(key: Any, argument: Any, delay: Any) -> None:
    async def scenario() -> None:
        world = World()

        def call(ctx: ObjectContext) -> None:
            ctx.object_send(world.box.handlers["take"], key, argument, send_delay=delay)

        local, taken = await world.play(call, "ctx.object_send", "the message to box/take", "send_delay")
        if not taken:
            assert world.received == []
            return
        check_key("box", key)
        wait_ms = 0 if delay is None else milliseconds(delay, "delay")
        assert wait_ms >= 0
        await local.advance(timedelta(milliseconds=wait_ms + 1))
        assert world.received == [(exact(key), argument)] or not isinstance(argument, str)

    asyncio.run(scenario())


@quick
@given(anything, odd_durations | st.none())
@example([1, {"a": 2}], 0.5)
@example("x" * LARGE, None)
def test_service_send(argument: Any, delay: Any) -> None:
    async def scenario() -> None:
        world = World()

        def call(ctx: ObjectContext) -> None:
            ctx.service_send(world.mail.handlers["post"], argument, send_delay=delay)

        local, taken = await world.play(call, "the message to mail/post", "send_delay")
        if taken:
            wait_ms = 0 if delay is None else milliseconds(delay, "delay")
            await local.advance(timedelta(milliseconds=wait_ms + 1))
        assert len(world.received) == taken

    asyncio.run(scenario())


@quick
@given(anything, anything)
@example("take", "k")
def test_only_handlers_of_the_right_kind_are_sent_to(handler: Any, key: Any) -> None:
    async def scenario() -> None:
        calls: list[Callable[[ObjectContext], Any]] = [
            lambda ctx: ctx.object_send(handler, key, 1),
            lambda ctx: ctx.service_send(handler, 1),
            lambda ctx: ctx.object_send(World().mail.handlers["post"], "k", "x"),
            lambda ctx: ctx.service_send(World().box.handlers["take"], "x"),
            lambda ctx: ctx.object_send(World().box.handlers["look"], "k"),
            lambda ctx: ctx.service_send(World().box.handlers["look"]),
        ]
        for call in calls:
            world = World()
            _, taken = await world.play(call, "_send")
            assert not taken
            assert world.received == []

    asyncio.run(scenario())


@quick
@given(odd_text | anything, odd_text | st.integers(-5, 5))
@example("a\x00b", 1)
@example("n" * 256, 1)
@example("é" * 128, 1)
@example(Colour.RED, 1)
def test_state(name: Any, value: Any) -> None:
    async def scenario() -> None:
        world = World()
        seen: list[Any] = []

        async def call(ctx: ObjectContext) -> None:
            ctx.set(name, value)
            seen.append(await ctx.get(name))

        local, taken = await world.play(call, "ctx.set", "state ")
        expected = {exact(name): exact(value) if isinstance(value, str) else value} if taken else {}
        assert local.state(world.stage, "ann") == expected
        assert set(map(str, seen)) <= set(map(str, expected.values()))

    asyncio.run(scenario())


@quick
@given(anything)
def test_reading_and_clearing_state_refuse_what_is_no_name(name: Any) -> None:
    async def scenario() -> None:
        await World().play(lambda ctx: ctx.clear(name), "ctx.clear")
        await World().play(lambda ctx: ctx.get(name), "ctx.get")

    asyncio.run(scenario())


@quick
@given(odd_text | anything)
@example("n" * LARGE)
@example("caf\udce9")
@example("a\nb")
@example("")
def test_names_of_steps(name: Any) -> None:
    async def scenario() -> None:
        runs: list[int] = []

        async def step() -> int:
            runs.append(1)
            return 1

        _, taken = await World().play(lambda ctx: ctx.run(name, step), "step")
        assert len(runs) == taken, "once, though the handler was replayed"

    asyncio.run(scenario())


@quick
@given(odd_durations | anything)
@example(5)
@example(-1)
@example(math.nan)
@example(timedelta.max)
def test_sleeps(duration: Any) -> None:
    async def scenario() -> None:
        # Not awaited: a sleep of a century would hold the key as it was asked to.
        await World().play(lambda ctx: started(ctx.sleep(duration)), "sleep")

    def started(future: Any) -> None:
        assert future.due_ms > 0

    asyncio.run(scenario())


@quick
@given(odd_text | anything, odd_text | anything)
@example(str(AwakeableId(InvocationId(Lane("stage", "k" * 5_000), "n"), "1a", "0" * 32)), "x")
@example("awk_", "x")
@example("inv_" + "A" * 20, Mute())
def test_answers_to_awakeables_nobody_could_have_issued(awakeable: Any, value: Any) -> None:
    async def scenario() -> None:
        for verb in ("resolve_awakeable", "reject_awakeable"):
            call = operator.methodcaller(verb, awakeable, value)
            _, taken = await World().play(call, f"ctx.{verb}", "the value of an awakeable")
            assert not taken

    asyncio.run(scenario())


@quick
@given(odd_text | anything)
@example("x" * LARGE)
@example("caf\udce9")
def test_a_rejection_of_any_reason_arrives(reason: Any) -> None:
    async def scenario() -> None:
        asks = VirtualObject("asks")
        ids: list[str] = []
        told: list[str] = []

        @asks.handler()
        async def ask(ctx: ObjectContext, event: int) -> None:
            awakeable, answer = ctx.awakeable()
            await ctx.run("hand out", functools.partial(hand_out, awakeable))
            try:
                await answer
            except TerminalError as e:
                told.append(str(e))

        async def hand_out(awakeable: str) -> None:
            ids.append(awakeable)

        @asks.handler()
        async def tell(ctx: ObjectContext, event: int) -> None:
            ctx.reject_awakeable(ids[0], reason)

        local = InProcess(asks)
        await local.deliver("events", "ann", ask, b"1")
        await local.deliver("events", "bob", tell, b"1")
        assert told == [rejection_of(reason).message]

    asyncio.run(scenario())


@quick
@given(anything, anything)
def test_only_futures_of_the_invocation_are_waited_for(one: Any, other: Any) -> None:
    async def scenario() -> None:
        foreign: list[Any] = []

        async def keep(ctx: ObjectContext) -> None:
            foreign.append(ctx.run("kept", nothing))
            await foreign[0]

        await World().play(keep, "")
        for bad in ([one], [one, other], [[one]], [foreign[0]]):
            named = {f"f{number}": future for number, future in enumerate(bad)}
            calls: list[Callable[[ObjectContext], Any]] = [
                operator.methodcaller("gather", *bad),
                operator.methodcaller("select", **named),
            ]
            for call in calls:
                _, taken = await World().play(call, "future")
                assert not taken
        with pytest.raises(TypeError, match="future"):
            await gather(one, other)

    asyncio.run(scenario())


def test_select_takes_futures_by_name() -> None:
    async def scenario() -> None:
        async def unnamed(ctx: ObjectContext) -> None:
            await operator.methodcaller("select", ctx.run("step", nothing))(ctx)

        _, taken = await World().play(unnamed, "takes each future by a name")
        assert not taken

    asyncio.run(scenario())


def test_the_same_future_may_come_twice() -> None:
    async def scenario() -> None:
        seen: list[Any] = []

        async def call(ctx: ObjectContext) -> None:
            step = ctx.run("one", one)
            seen.append(await ctx.gather(step, step))
            seen.append((await ctx.select(a=step, b=step))[1])

        async def one() -> int:
            return 1

        _, taken = await World().play(call, "")
        assert taken
        assert seen[:2] == [[1, 1], 1]

    asyncio.run(scenario())


@quick
@given(anything)
@example("User")
@example(object)
def test_type_hints_and_options(hint: Any) -> None:
    async def scenario() -> None:
        calls: list[Callable[[ObjectContext], Any]] = [
            lambda ctx: ctx.run_with(hint, "one", nothing),
            lambda ctx: ctx.run("one", hint) if not callable(hint) else None,
            lambda ctx: len(ctx.awakeable(hint)),
            lambda ctx: ctx.get("name", hint),
        ]
        for call, name in zip(calls, ("run_with", "run", "awakeable", "get"), strict=True):
            await World().play(call, f"ctx.{name}")
        unfit: Any = object() if hint is None else hint
        with pytest.raises(TypeError, match="serde"):
            RunOptions(serde=unfit)

    asyncio.run(scenario())


# --- errors ----------------------------------------------------------------------------------------------------------


class Unset(TerminalError):
    """A subclass that does not call its base."""

    def __init__(self) -> None:
        """Leave every attribute out."""


class Lying(TerminalError):
    """A subclass whose attributes raise."""

    @property
    def status_code(self) -> int:
        raise KeyError("status")

    @status_code.setter
    def status_code(self, value: int) -> None:
        """Forget it."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Deep(Exception):
    """An exception whose text never ends."""

    def __str__(self) -> str:
        return str(self)


statuses = st.one_of(anything, st.integers(390, 610), st.sampled_from(HTTPStatus), st.integers(400, 599).map(str))
metadata = st.one_of(
    anything,
    st.dictionaries(
        anything.filter(hashable := lambda v: getattr(type(v), "__hash__", None) is not None), anything, max_size=3
    ),
    st.just({"n": 5}),
    st.just({"x" * LARGE: "y" * LARGE}),
    st.just({str(n): "v" * 100 for n in range(1_000)}),
)


@quick
@given(anything, statuses, metadata)
@example("x" * LARGE, 409, {"reason": "x" * LARGE})
@example(ValueError("x"), HTTPStatus.CONFLICT, {"n": 5})
@example("caf\udce9", "409", {"caf\udce9": "caf\udce9"})
@example(Quitter(), math.nan, Mute())
def test_a_terminal_error_of_anything_is_a_result(message: Any, status: Any, details: Any) -> None:
    async def scenario() -> None:
        shop = VirtualObject("shop")
        runs: list[int] = []

        @shop.handler()
        async def fail(ctx: ObjectContext) -> None:
            try:
                await ctx.run("refuse", refuse)
            except TerminalError as caught:
                await ctx.run("after", nothing)
                raise TerminalError(caught.message, caught.status_code, caught.metadata) from None

        async def refuse() -> None:
            runs.append(1)
            raise TerminalError(message, status, details)

        @shop.handler()
        async def fine(ctx: ObjectContext) -> int:
            return 1

        local = InProcess(shop)
        with pytest.raises(TerminalError) as ended:
            await local.call(fail, "ann")
        assert runs == [1], "terminal: not tried again"
        expected = failure_of(TerminalError(message, status, details))
        assert failure_of(ended.value) == expected
        assert (ended.value.message, ended.value.status_code) == (expected.message, expected.status_code)
        assert ended.value.metadata == expected.metadata
        assert await local.call(fine, "ann") == 1

    asyncio.run(scenario())


@given(
    st.one_of(
        st.builds(TerminalError, anything, statuses, metadata),
        st.builds(ValueError, anything),
        st.builds(Exception, anything, anything),
        st.sampled_from([Unset(), Lying("x"), Deep(), Quitter(), KeyboardInterrupt(), SystemExit(3), StopIteration(1)]),
        st.builds(
            lambda text: ExceptionGroup(text, [ValueError(text)]), st.text(st.characters(codec=None), max_size=9)
        ),
    )
)
@settings(deadline=None, max_examples=200)
def test_every_error_becomes_a_small_failure_that_can_be_stored(error: BaseException) -> None:
    failure = failure_of(error)
    stored = unpack_slot(pack(RunSlot("step", Failed(failure))))
    assert stored == RunSlot("step", Failed(failure))
    assert len(failure.message.encode()) <= FAILURE_TEXT_BYTES_MAX
    assert sum(len(n.encode()) + len(v.encode()) for n, v in failure.metadata.items()) <= METADATA_BYTES_MAX
    assert 400 <= failure.status_code <= 599
    again = TerminalError(failure.message, failure.status_code, failure.metadata)
    assert failure_of(again) == failure, "what was stored and raised again is the same"
    line = describe(error)
    assert len(line.splitlines()) == 1
    assert line.startswith(type(error).__name__)
    assert len(line.encode()) <= FAILURE_TEXT_BYTES_MAX


@given(anything, odd_durations | anything)
def test_a_retryable_error_has_a_pause_within_the_bounds_or_is_refused(message: Any, retry_after: Any) -> None:
    error, problem = refusal(lambda: RetryableError(message, retry_after))
    if error is None:
        assert "retry_after" in problem
        assert "timedelta(seconds=5)" in problem
        return
    str(error).encode()
    if error.retry_after is not None:
        assert PAUSE_MS_MIN <= error.retry_after / timedelta(milliseconds=1) <= PAUSE_MS_MAX
    else:
        assert retry_after is None or milliseconds(retry_after, "") <= 0


# --- constructors ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["initial_interval", "factor", "max_interval", "max_attempts"]),
    st.one_of(odd_numbers, odd_durations, anything),
    st.integers(1, 10**9),
    st.floats(0, 1, exclude_max=True),
)
@example("factor", 1e6, 53, 0.0)
@example("max_attempts", 2**70, 1, 0.0)
@example("max_attempts", 1.5, 1, 0.0)
@example("initial_interval", timedelta(microseconds=1), 1, 0.0)
def test_a_retry_policy_is_refused_by_name_or_always_pauses(
    name: str, value: Any, failures: int, jitter: float
) -> None:
    names = {name: value}
    if name == "initial_interval":
        names["max_interval"] = timedelta(days=365)
    policy, problem = refusal(lambda: InvocationRetryPolicy(**names))
    if policy is None:
        assert name in problem
        return
    wire = policy.wire()
    manifest = Manifest((ServiceManifest("s", True, (HandlerManifest("h", "exclusive", wire),)),))
    assert decode_outcome(encode(manifest)) == manifest, "it travels unchanged"
    assert PAUSE_MS_MIN <= pause_ms(wire, failures, jitter) <= max(PAUSE_MS_MIN, wire.max_ms)


@given(st.integers(), st.floats(), st.integers(), st.integers(-5, 10**9), st.floats(0, 1, exclude_max=True))
@example(1, 1e6, 5, 60, 0.0)
@example(10**400, 2.0, 10**400, 3, 0.5)
@example(1, math.nan, 5, 3, 0.5)
def test_a_policy_of_another_version_pauses_within_the_bounds(
    initial: int, factor: float, longest: int, failures: int, jitter: float
) -> None:
    assert PAUSE_MS_MIN <= pause_ms(RetryPolicy(initial, factor, longest), failures, jitter) <= PAUSE_MS_MAX
    assert (asked := asked_pause_ms(initial)) is None or PAUSE_MS_MIN <= asked <= PAUSE_MS_MAX


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            "max_attempts",
            "max_duration",
            "initial_retry_interval",
            "max_retry_interval",
            "retry_interval_factor",
            "serde",
        ]
    ),
    st.one_of(odd_numbers, odd_durations, anything),
)
def test_options_are_refused_by_name_or_serve(name: str, value: Any) -> None:
    options, problem = refusal(lambda: RunOptions[Any](**{name: value}))
    if options is None:
        assert name in problem
        return
    limits = options.limits()
    if limits.policy is not None:
        assert PAUSE_MS_MIN <= pause_ms(limits.policy, 3, 0.0) <= PAUSE_MS_MAX
        assert limits.policy.max_attempts is None or limits.policy.max_attempts >= 1
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(limits.policy), type=RetryPolicy) == limits.policy


@settings(deadline=None)
@given(st.sampled_from([Service, VirtualObject]), anything, anything, anything, anything)
def test_declarations_are_refused_by_name_or_reported(
    kind: Any, name: Any, called: Any, option: Any, function: Any
) -> None:
    async def fine(ctx: Any, event: Any) -> None:
        return None

    declared, problem = refusal(lambda: kind(name))
    if declared is None:
        assert "service name" in problem
        declared = kind("orders")
    _, problem = refusal(lambda: kind("orders", 1 if option is None else option))
    assert "retry_policy" in problem
    attempts: list[Callable[[], Any]] = [
        lambda: declared.handler(called)(fine),
        lambda: declared.handler("policy", retry_policy=option)(fine),
        lambda: declared.handler("function")(function),
        lambda: declared.handler("kind", kind=option)(fine),
    ]
    for attempt in attempts[: 4 if declared.keyed else 3]:
        made, problem = refusal(attempt)
        assert made is not None or "handler" in problem or declared.name in problem
    for handler in declared.handlers.values():
        check_key(handler.service, "k" * MAX_KEY_BYTES)
        invocation = InvocationId(Lane(handler.service, "k" * MAX_KEY_BYTES), "m" + "0" * 24)
        assert InvocationId.parse(str(invocation)) == invocation
        assert len(f"R#{invocation}") <= PARTITION_KEY_BYTES_MAX, "the result of every invocation has a place"


# --- pure rules ------------------------------------------------------------------------------------------------------


@given(odd_text)
def test_a_key_that_passes_can_be_stored_and_is_found_again(key: str) -> None:
    _, problem = refusal(lambda: check_key("service/with%", key))
    if problem:
        assert "key" in problem
        return
    lane = Lane("service/with%", key)
    assert Lane.from_pk(lane.pk) == lane
    assert 0 < len(key.encode()) <= MAX_KEY_BYTES
    assert len(lane.pk.encode()) <= PARTITION_KEY_BYTES_MAX
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in key)


@given(odd_durations)
def test_a_duration_is_rounded_up_to_milliseconds(duration: Any) -> None:
    found, problem = refusal(lambda: milliseconds(duration, "pause"))
    if found is None:
        assert "pause" in problem
        assert isinstance(duration, bool | Decimal | Fraction) or not math.isfinite(duration)
        return
    if isinstance(duration, timedelta):
        assert 0 <= found * 1_000 - duration // timedelta(microseconds=1) < 1_000
    elif abs(duration) < 10**9:
        assert -1e-3 <= found - duration * 1_000 < 1.001


# --- annotations of steps --------------------------------------------------------------------------------------------


class Client:
    """Steps in all shapes."""

    name: "Missing"  # type: ignore[name-defined]  # noqa: F821, UP037 - the mistake under test

    def bound(self) -> "Missing":  # type: ignore[name-defined]  # noqa: F821, UP037 - the mistake under test
        return 1

    def typed(self) -> int:
        return 1

    @classmethod
    def of_class(cls) -> int:
        return 1

    @staticmethod
    def static() -> int:
        return 1

    def __call__(self) -> int:
        return 1


class Moody:
    """A callable whose annotations cannot be read."""

    def __call__(self) -> int:
        return 1

    @property
    def __annotations__(self) -> Any:  # type: ignore[override]  # what proxies do
        raise RuntimeError("not now")


class Endless:
    """A callable that wraps without end."""

    def __call__(self) -> int:
        return 1

    @property
    def __wrapped__(self) -> Any:
        return Endless()


def annotated(annotation: Any) -> Callable[[], Any]:
    """A step with an annotation for its result."""

    def step() -> Any:
        return 1

    step.__annotations__["return"] = annotation
    return step


STEPS: list[tuple[Callable[..., Any], Any]] = [
    (annotated("Missing"), None),
    (annotated("Optional[Missing]"), None),
    (annotated("1 +"), None),
    (annotated("math.missing"), None),
    (annotated("int[str]"), None),
    (annotated("1 / 0"), None),
    (annotated("list['Missing']"), None),
    (annotated(list["Missing"]), None),  # type: ignore[name-defined]  # noqa: F821 - the mistake under test
    (annotated("datetime"), datetime),
    (annotated("list[date]"), list[date]),
    (annotated(Awaitable[int]), int),
    (annotated(None), None),
    (Client().bound, None),
    (Client().typed, int),
    (Client.of_class, int),
    (Client.static, int),
    (Client(), int),
    (Client, None),
    (functools.partial(functools.partial(Client().typed)), int),
    (functools.lru_cache(annotated("datetime")), datetime),
    (Moody(), int),
    (Endless(), None),
    (len, None),
    ([].append, None),
    (int, None),
    (print, None),
    (lambda: 1, None),
]


# By number: pytest would ask each for its name.
@pytest.mark.parametrize(("action", "hint"), STEPS, ids=range(len(STEPS)))
def test_a_step_runs_whatever_its_annotations_are(action: Callable[[], Any], hint: Any) -> None:
    assert result_hint(action) == hint
    assert result_hint(action) == hint, "the same from the cache"
    assert result_hint(functools.partial(action)) == hint


def test_a_step_with_an_annotation_that_cannot_be_resolved_is_run() -> None:
    async def scenario() -> None:
        seen: list[Any] = []

        async def call(ctx: ObjectContext) -> None:
            steps: list[Callable[[], int]] = [
                annotated("Optional[Missing]"),
                Client().bound,
                Moody(),
                Endless(),
                Client(),
            ]
            seen.extend([await ctx.run("odd", step) for step in steps])

        _, taken = await World().play(call, "")
        assert taken
        assert seen[:5] == [1] * 5

    asyncio.run(scenario())


def test_a_wrong_type_is_retried_by_the_policy_and_stores_nothing() -> None:
    async def scenario() -> None:
        wrong = VirtualObject("wrong")

        @wrong.handler(retry_policy=InvocationRetryPolicy(initial_interval=0.01, max_attempts=2))
        async def act(ctx: ObjectContext, event: int) -> None:
            ctx.set("before", 1)
            ctx.publish("out", 1, key=123)  # type: ignore[arg-type]  # the mistake under test

        local = InProcess(wrong)
        await local.deliver("events", "ann", act, b"1")
        ((_, letter),) = local.published
        assert letter.dead
        reason = dict(letter.headers)["tenuto-reason"].decode()
        assert "wrong/act: ctx.publish to out: the key is str or bytes, not int" in reason
        assert local.state(wrong, "ann") == {}

    asyncio.run(scenario())


def test_errors_outside_of_handlers_name_no_handler() -> None:
    with pytest.raises(TypeError, match=r"^max_attempts is a whole number"):
        InvocationRetryPolicy(max_attempts="3")  # type: ignore[arg-type]  # the mistake under test
