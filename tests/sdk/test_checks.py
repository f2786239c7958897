"""Arguments of context methods: which are refused, what the error says, and which other forms are taken.

Owns the wording and the table of right forms. Does not own generated values (`tests/hostile/test_arguments`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import pytest

from tenuto import (
    Context,
    InvalidArgumentError,
    InvocationRetryPolicy,
    ObjectContext,
    RetryableError,
    RunOptions,
    Service,
    StateTooLargeError,
    TerminalError,
    UnserialisableError,
    VirtualObject,
)
from tenuto.protocol.backoff import pause_ms
from tenuto.protocol.failures import describe, failure_of
from tenuto.protocol.limits import FAILURE_TEXT_BYTES_MAX, METADATA_BYTES_MAX, PAUSE_MS_MAX, PAUSE_MS_MIN
from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import Failure, PublishOut
from tenuto.protocol.texts import CUT_MARK
from tests.support.in_process import InProcess

box, mail = VirtualObject("box"), Service("mail")


@box.handler()
async def take(ctx: ObjectContext, what: str) -> None:
    """Read the message and do nothing."""


@box.handler(kind="shared")
async def look(ctx: Any) -> None:
    """Only read."""


@mail.handler()
async def post(ctx: Context) -> None:
    """Take no input."""


async def nothing() -> None:
    """A step."""


def step(name: Any) -> Callable[[ObjectContext], Any]:
    async def run(ctx: ObjectContext) -> None:
        await ctx.run(name, nothing)

    return run


async def played(call: Callable[[ObjectContext], Any]) -> tuple[InProcess, list[BaseException]]:
    """A handler that makes one call, and what the call raised."""
    stage = VirtualObject("stage")
    raised: list[BaseException] = []

    @stage.handler()
    async def act(ctx: ObjectContext, event: int) -> None:
        try:
            made = call(ctx)
            if asyncio.iscoroutine(made):
                await made
        except Exception as e:  # noqa: BLE001 - whatever it is, the test judges it
            raised.append(e)

    local = InProcess(stage, box, mail)
    await local.deliver("events", "ann", act, b"1")
    return local, raised


REFUSED: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda c: c.publish(5, 1), TypeError, 'ctx.publish: the topic is text, not int: ctx.publish("orders", value)'),
    (
        lambda c: c.publish("a b", 1),
        InvalidArgumentError,
        "ctx.publish: 'a b' is not a valid name of a Kafka topic: 1 to 249",
    ),
    (lambda c: c.publish("", 1), InvalidArgumentError, "ctx.publish: '' is not a valid name of a Kafka topic"),
    (lambda c: c.publish("t\n", 1), InvalidArgumentError, "not a valid name of a Kafka topic"),
    (lambda c: c.publish("..", 1), InvalidArgumentError, "neither '.' nor '..'"),
    (
        lambda c: c.publish("t", 1, key=123),
        TypeError,
        "ctx.publish to t: the key is str or bytes, not int: write it as",
    ),
    (
        lambda c: c.publish("t", 1, key=c.uuid()),
        TypeError,
        "the key is str or bytes, not UUID: write it as text, such as",
    ),
    (lambda c: c.publish("t", 1, key=True), TypeError, "the key is str or bytes, not bool"),
    (lambda c: c.publish("t", 1, key="caf\udce9"), InvalidArgumentError, "the key holds a lone surrogate"),
    (lambda c: c.publish("t", 1, headers={"n": 1}), TypeError, "the header 'n' is str or bytes, not int"),
    (lambda c: c.publish("t", 1, headers={"n": None}), TypeError, "the header 'n' is str or bytes, not NoneType"),
    (
        lambda c: c.publish("t", 1, headers={1: "n"}),
        TypeError,
        "the name of a header is text, not int: give a dict such as",
    ),
    (
        lambda c: c.publish("t", 1, headers="ab"),
        TypeError,
        'headers are a mapping or pairs, not str: give a dict such as {"source": "bank"}',
    ),
    (lambda c: c.publish("t", 1, headers=["ab"]), TypeError, "headers have a str where a pair belongs"),
    (lambda c: c.publish("t", 1, headers=7), TypeError, "headers are a mapping or pairs, not int"),
    (lambda c: c.publish("t", object()), UnserialisableError, "the record for 't' of type object cannot be serialised"),
    (lambda c: c.publish("t", "caf\udce9"), UnserialisableError, "lone surrogate"),
    (lambda c: c.publish("t", b"x" * 350_001), StateTooLargeError, "the record for 't' is 350,001 bytes; the limit is"),
    (lambda c: c.publish("t", None, key="k" * 350_001), StateTooLargeError, "the record for 't' is 350,001 bytes"),
    (lambda c: c.object_send(take, "k" * 2_049, "x"), InvalidArgumentError, "the key is 2049 bytes long; at most 1024"),
    (lambda c: c.object_send(take, "é" * 513, "x"), InvalidArgumentError, "the key is 1026 bytes long"),
    (
        lambda c: c.object_send(take, "%" * 700, "x"),
        InvalidArgumentError,
        "2104 bytes as a partition key; at most 2048",
    ),
    (lambda c: c.object_send(take, "", "x"), InvalidArgumentError, "ctx.object_send to box: the key is empty"),
    (lambda c: c.object_send(take, "a\x00", "x"), InvalidArgumentError, "the key holds the control character U+0000"),
    (lambda c: c.object_send(take, "a\x9f", "x"), InvalidArgumentError, "the key holds the control character U+009F"),
    (lambda c: c.object_send(take, "\ud800", "x"), InvalidArgumentError, "the key holds a lone surrogate"),
    (lambda c: c.object_send(take, 7, "x"), TypeError, "ctx.object_send: the key is text, not int: write it as text"),
    (lambda c: c.object_send(take, b"k", "x"), TypeError, "the key is text, not bytes"),
    (lambda c: c.object_send(take, "k"), UnserialisableError, "the message to box/take of type NoneType cannot be"),
    (lambda c: c.object_send(take, "k", "x" * 350_001), StateTooLargeError, "the message to box/take is 350,003 bytes"),
    (lambda c: c.object_send(take, "k", object()), UnserialisableError, "the message to box/take of type object"),
    (
        lambda c: c.object_send(post, "k"),
        TypeError,
        "mail/post belongs to a service, which has no keys: use ctx.service",
    ),
    (lambda c: c.object_send(look, "k"), TypeError, "box/look is a shared handler, which only reads"),
    (lambda c: c.service_send(look), TypeError, "box/look is a shared handler, which only reads"),
    (
        lambda c: c.service_send(take, "x"),
        TypeError,
        "box/take belongs to a virtual object: use ctx.object_send with a key",
    ),
    (lambda c: c.service_send("mail/post"), TypeError, "ctx.service_send takes a declared handler, not str"),
    (lambda c: c.service_send(take.function, "x"), TypeError, "takes a declared handler, not function"),
    (
        lambda c: c.service_send(post, send_delay="5s"),
        TypeError,
        "send_delay is a duration, not str: give a timedelta or",
    ),
    (lambda c: c.service_send(post, send_delay=-1), InvalidArgumentError, "send_delay is negative"),
    (
        lambda c: c.service_send(post, send_delay=math.nan),
        InvalidArgumentError,
        "send_delay is nan, which is not a duration",
    ),
    (lambda c: c.sleep("5"), TypeError, "ctx.sleep: the duration is a duration, not str: give a timedelta or seconds"),
    (lambda c: c.sleep(True), TypeError, "not bool"),
    (lambda c: c.sleep(Decimal(5)), TypeError, "not Decimal"),
    (lambda c: c.sleep(math.inf), InvalidArgumentError, "is inf, which is not a duration"),
    (lambda c: c.sleep(timedelta.max), InvalidArgumentError, "ctx.sleep: the duration is longer than 100 years"),
    (step("n" * 500_000), InvalidArgumentError, "the name of a step is 500000 bytes long; at most 255 are possible"),
    (step(""), InvalidArgumentError, "the name of a step is empty"),
    (step("a\nb"), InvalidArgumentError, "the name of a step holds the control character U+000A"),
    (step("caf\udce9"), InvalidArgumentError, "the name of a step holds a lone surrogate"),
    (step(nothing), TypeError, 'the name of a step is text, not function: ctx.run("pay", pay, order)'),
    (lambda c: c.run_with({}, "a", nothing), TypeError, "ctx.run_with takes RunOptions first, not dict"),
    (lambda c: c.set(5, 1), TypeError, 'ctx.set: the name of a state value is text, not int: ctx.set("balance", 5)'),
    (lambda c: c.set("a\x7f", 1), InvalidArgumentError, "a state name has 1 to 255 bytes and no control characters"),
    (lambda c: c.get(None), TypeError, 'ctx.get: the name of a state value is text, not NoneType: ctx.get("balance")'),
    (lambda c: c.get("n", "User"), TypeError, "ctx.get: TypeError: the type hint 'User' is not supported: it is text"),
    (lambda c: c.clear([]), TypeError, "ctx.clear: the name of a state value is text, not list"),
    (lambda c: c.awakeable("User"), TypeError, "ctx.awakeable: TypeError: the type hint 'User' is not supported"),
    (lambda c: c.resolve_awakeable(7), TypeError, "ctx.resolve_awakeable: the id of an awakeable is text, not int"),
    (lambda c: c.resolve_awakeable("awk_x"), InvalidArgumentError, "begins with awk_ and comes from ctx.awakeable()"),
    (
        lambda c: c.reject_awakeable("", "no"),
        InvalidArgumentError,
        "ctx.reject_awakeable: the id of an awakeable begins",
    ),
    (lambda c: c.gather([c.sleep(0)]), TypeError, "ctx.gather takes the futures that context methods return, not list"),
    (lambda c: c.gather(7), TypeError, "not int: ctx.gather(ctx.run(...), ctx.sleep(...))"),
    (lambda c: c.select(a=7), TypeError, "not int: ctx.select(answer=future, timeout=ctx.sleep(60))"),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED, ids=range(len(REFUSED)))
def test_a_call_is_refused_where_it_is_made(call: Callable[[Any], Any], kind: type[Exception], text: str) -> None:
    async def scenario() -> None:
        local, raised = await played(call)
        (error,) = raised
        assert type(error) is kind
        assert str(error).startswith("stage/act: ")
        assert text in str(error)
        assert local.published == []

    asyncio.run(scenario())


TAKEN: list[Callable[[Any], Any]] = [
    lambda c: c.object_send(take, "k" * 1_024, "x", send_delay=0.5),
    lambda c: c.object_send(take, "a/b#c%\u2028 é", "x", send_delay=timedelta(0)),
    lambda c: c.object_send(take, "%" * 681, "x"),
    lambda c: c.service_send(post, send_delay=60),
    lambda c: c.sleep(-1),
    lambda c: c.sleep(0),
    lambda c: c.sleep(0.001),
    lambda c: c.sleep(timedelta(days=-1)),
    step("n" * 255),
    step("ask Ünal / 5%"),
    lambda c: c.set("é" * 127, None),
    lambda c: c.clear("not there"),
    lambda c: c.gather(),
]


@pytest.mark.parametrize("call", TAKEN, ids=range(len(TAKEN)))
def test_a_right_form_is_taken(call: Callable[[Any], Any]) -> None:
    async def scenario() -> None:
        _, raised = await played(call)
        assert raised == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (None, ()),
        ({}, ()),
        ({"a": "é", "b": b"\xff"}, (("a", "é".encode()), ("b", b"\xff"))),
        ([("a", "1"), ("a", b"2")], (("a", b"1"), ("a", b"2"))),
        ((("a", b""),), (("a", b""),)),
    ],
)
def test_headers_are_a_mapping_or_pairs(given: Any, stored: Any) -> None:
    async def scenario() -> None:
        local, raised = await played(lambda c: c.publish("t", bytearray(b"v"), key="k", headers=given))
        assert raised == []
        assert [entry for _, entry in local.published] == [PublishOut("t", b"v", b"k", stored)]

    asyncio.run(scenario())


def test_headers_of_an_event_are_passed_on() -> None:
    async def scenario() -> None:
        _, raised = await played(lambda c: c.publish("t", 1, headers=c.request().headers))
        assert raised == []

    asyncio.run(scenario())


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (409, 409),
        (409.0, 409),
        ("409", 409),
        (HTTPStatus.CONFLICT, 409),
        (599, 599),
        (True, 500),
        (200, 500),
        (99_999, 500),
        (math.nan, 500),
        (None, 500),
        ("nine", 500),
        ("9" * 50, 500),
    ],
    ids=repr,
)
def test_a_status_is_one_of_an_error(given: Any, status: int) -> None:
    error = TerminalError("no", given)
    assert (error.status_code, type(error.status_code)) == (status, int)
    assert hasattr(error, "__notes__") == (status == 500), "a status that is not taken is mentioned in the traceback"


def test_texts_of_errors_are_made_encodable_and_cut_and_the_rest_survives() -> None:
    error = TerminalError(
        "caf\udce9 " + "x" * 500_000, 409, {"n": 5, "caf\udce9": None, "long": "y" * 5_000, "left": 1}
    )
    assert error.message.startswith(r"caf\udce9 xxx")
    assert error.message.endswith(CUT_MARK)
    assert len(error.message.encode()) == FAILURE_TEXT_BYTES_MAX
    assert (error.status_code, error.metadata["n"], error.metadata[r"caf\udce9"]) == (409, "5", "None")
    assert sum(len(n.encode()) + len(v.encode()) for n, v in error.metadata.items()) <= METADATA_BYTES_MAX
    assert failure_of(error) == Failure(error.message, 409, error.metadata)


def test_an_error_may_be_raised_by_its_class_alone() -> None:
    with pytest.raises(TerminalError, match="terminal error"):
        raise TerminalError
    assert str(TerminalError(ValueError("x"))) == "x"


def test_other_errors_are_described_on_one_line() -> None:
    assert describe(ValueError("a\r\nb\u2028c\x1b[31m")) == r"ValueError: a b c\x1b[31m"
    assert describe(KeyError()) == "KeyError"


def test_a_group_is_described_with_its_first_members() -> None:
    inner = ExceptionGroup("inner", [OSError("lost")])
    group = ExceptionGroup("outer", [ValueError("boom"), inner, *[KeyError(number) for number in range(1_000)]])
    assert describe(group) == (
        "ExceptionGroup: outer (1002 sub-exceptions) "
        "[ValueError: boom; ExceptionGroup: inner (1 sub-exception) [OSError: lost]; KeyError: 0]"
    )


def test_a_deep_group_is_described_briefly() -> None:
    group: Exception = ValueError("deepest")
    for _ in range(5_000):
        group = ExceptionGroup("g", [group])
    assert describe(group).count("ExceptionGroup") == 4
    assert failure_of(FileNotFoundError("caf\udce9.txt")) == Failure(r"FileNotFoundError: caf\udce9.txt", 500)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (timedelta(seconds=-5), None),
        (0, None),
        (-1.5, None),
        (2, timedelta(seconds=2)),
        (0.5, timedelta(milliseconds=500)),
        (timedelta(microseconds=1), timedelta(milliseconds=PAUSE_MS_MIN)),
        (timedelta.max, timedelta(milliseconds=PAUSE_MS_MAX)),
        (1e308, timedelta(milliseconds=PAUSE_MS_MAX)),
    ],
)
def test_what_a_retryable_error_asks_for_is_brought_within_the_bounds(given: Any, kept: timedelta | None) -> None:
    assert RetryableError("busy", given).retry_after == kept


@pytest.mark.parametrize("given", ["2", True, math.nan, math.inf, Decimal(2), [2]])
def test_what_is_no_duration_is_refused_with_the_right_form(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"retry_after=.*timedelta\(seconds=5\), 5 or 0\.25"):
        RetryableError("busy", retry_after=given)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_attempts": math.nan}, "max_attempts is a whole number or None, not float: max_attempts=5"),
        ({"max_attempts": 1.5}, "not float"),
        ({"max_attempts": True}, "not bool"),
        ({"max_attempts": 0}, "at least 1"),
        ({"max_attempts": 2**70}, "at most 1,000,000"),
        ({"initial_interval": 0}, "a retry policy needs 0 < initial_interval <= 365 days: give a timedelta or seconds"),
        ({"initial_interval": -1}, "a retry policy needs"),
        ({"initial_interval": "1s"}, "initial_interval is a duration, not str"),
        ({"max_interval": timedelta.max}, "max_interval <= 365 days"),
        ({"max_interval": math.inf}, "max_interval is inf"),
        (
            {"initial_interval": 61},
            "a retry policy needs 0 < initial_interval <= max_interval, not 0:01:01 and 0:01:00",
        ),
        ({"factor": math.nan}, "a retry policy needs 1 <= factor <= 1,000: factor=2.0"),
        ({"factor": math.inf}, "a retry policy needs 1 <= factor"),
        ({"factor": 0.5}, "a retry policy needs 1 <= factor"),
        ({"factor": 1e6}, "a retry policy needs 1 <= factor"),
        ({"factor": "2"}, "factor is a number, not str"),
    ],
)
def test_a_retry_policy_says_what_it_needs(options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        InvocationRetryPolicy(**options)
    assert text in str(refused.value)
    renamed = {"initial_interval": "initial_retry_interval", "max_interval": "max_retry_interval"}
    steps = {renamed.get(name, name): value for name, value in options.items()}
    if "factor" in steps:
        steps["retry_interval_factor"] = steps.pop("factor")
    with pytest.raises((TypeError, ValueError)):
        RunOptions[Any](**steps)


def test_intervals_are_timedeltas_or_seconds() -> None:
    policy = InvocationRetryPolicy(initial_interval=0.5, factor=3, max_interval=60, max_attempts=4)
    assert policy == InvocationRetryPolicy(timedelta(seconds=0.5), 3.0, timedelta(minutes=1), 4)
    assert policy.wire() == RetryPolicy(500, 3.0, 60_000, 4)
    options = RunOptions[Any](max_duration=20, initial_retry_interval=5)
    assert options == RunOptions[Any](max_duration=timedelta(seconds=20), initial_retry_interval=timedelta(seconds=5))
    limits = options.limits()
    assert limits.max_duration_ms == 20_000
    assert limits.policy == RetryPolicy(5_000, 2.0, 60_000, None)


@pytest.mark.parametrize("factor", [1e6, 1e308, math.nan, math.inf, -2.0])
def test_a_pause_never_overflows(factor: float) -> None:
    policy = RetryPolicy(initial_ms=1, factor=factor, max_ms=5_000)
    assert all(PAUSE_MS_MIN <= pause_ms(policy, failures, 0.0) <= 5_000 for failures in range(1, 400))


class Half:
    """A serde that only writes."""

    def serialize(self, value: Any) -> bytes:
        return b""


@pytest.mark.parametrize("serde", [Half(), Half, 7, "json"])
def test_a_serde_has_its_two_methods(serde: Any) -> None:
    with pytest.raises(TypeError, match=r"serde (has the methods serialize|is an instance, not the class Half)"):
        RunOptions(serde=serde)


@pytest.mark.parametrize("hint", ["User", 7, lambda: 1])
def test_a_type_hint_is_a_type(hint: Any) -> None:
    with pytest.raises(TypeError, match=r"type_hint: .*not supported"):
        RunOptions(type_hint=hint)
