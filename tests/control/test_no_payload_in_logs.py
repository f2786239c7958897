"""No log line holds a payload: no input, header, state, result, message, published record or answer.

The production code of both sides runs through what can happen to an invocation, with a marker in every value that comes
from outside or from a handler, and every line of every logger is searched for it. What may be in a line is another
matter: names of services and handlers, keys of objects, ids, and the texts of exceptions that handlers raise, which
here quote nothing. Owns that law. Does not own the drivers' own clients, whose lines `assembly.quiet_libraries` keeps
away.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec
import pytest
from botocore.exceptions import ClientError
from msgspec.structs import replace

from tenuto.errors import ProtocolError
from tenuto.hosts import activation, event_scheduler, kafka_event_source
from tenuto.lane.timers import SWEEP_CURSOR, SendTimer, timer_put
from tenuto.lane.writes import Put
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane
from tenuto.protocol.messages import Activation, Broken, Head, Outcome, Pooled
from tenuto.protocol.records import Event, KafkaSource, SendOut
from tenuto.runtime.activation import activate
from tenuto.runtime.beside import run_beside
from tenuto.runtime.environment import Environment, InlineWriteLoop
from tenuto.service import Services
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control.limits import Limits
from tenuto_control.loops import consume
from tenuto_control.ports import AnswerHolder, LogUnavailableError, TopicPartition
from tests.control.marked_handlers import Marked
from tests.control.marked_world import MARK, Body, Ears, FailingTable, MarkedWorld, listening
from tests.support.memory_kafka import Operation, no_faults
from tests.support.virtual_time import run_virtual
from tests.tidy import tree

HEADERS: Final = [("secret", MARK.encode()), ("authorization", f"Bearer {MARK}".encode())]
SOON_S: Final = 20.0
"""Longer than the pauses between attempts."""

NAP_S: Final = 45.0
LONG_S: Final = 700.0

NOT_REACHED: Final = {
    "__main__.py": "speaks of the configuration",
    "admin/deployments.py": "asks for names of handlers, and an answer of another form is not quoted",
    "always_on.py": "knows of no invocation",
    "drivers/": "speak of topics, connections and the end of a process; most of them need a broker",
    "lambda_entry.py": "names lanes; what refuses an event of another shape is tested below",
    "loops/restarts.py": "names loops, with the traceback of a mistake of their own",
    "loops/serverless.py": "counts lanes",
    "store/senders.py": "says at the first use which client is taken, before there is any request",
}
"""Files and folders whose lines the scenarios do not come to, and why no payload can be in them."""


def cargo(act: str) -> bytes:
    """An input of `act`."""
    return json.dumps({"act": act, "secret": MARK}).encode()


def world(**limits: Any) -> tuple[Marked, MarkedWorld]:
    """Handlers and what runs them."""
    marked = Marked()
    limits = {"spill_after_ms": 1_000, "scheduler_threshold_ms": 300_000, **limits}
    return marked, MarkedWorld(
        Services([marked.box, marked.plain]),
        limits=Limits(**limits),
        table=FailingTable(),
        dead_letter="events.dead-letter",
    )


async def events(w: MarkedWorld, *acts: str, topic: str = "events") -> None:
    """A record for each, of a key of its own, with the marker in value and headers."""
    for act in acts:
        w.kafka.append(topic, cargo(act), act.encode(), HEADERS)
    await asyncio.sleep(SOON_S)


async def call(w: MarkedWorld, path: str, content: bytes | None = None, **headers: str) -> int:
    """Call or send over HTTP, with the marker in headers and idempotency key. Returns the status."""
    sent = {"content-type": "application/json", "x-secret": MARK, "authorization": f"Bearer {MARK}"}
    answer = await w.http.post(path, content=content, headers=sent | headers)
    return answer.status_code


# --- what happens -----------------------------------------------------------------------------------------------------


async def handlers_end_well(w: MarkedWorld, m: Marked) -> None:
    await events(w, "remember", "step", "tells", "publishes", "naps", "forgets_tasks")
    await asyncio.sleep(NAP_S)
    assert await call(w, "/call/box/k/act", cargo("remember")) == 200
    assert await call(w, "/call/box/k/act", cargo("step"), **{"idempotency-key": MARK}) == 200
    assert await call(w, "/call/box/k/look", cargo("look")) == 200
    assert await call(w, "/send/box/k/act?delay=5s", cargo("remember")) == 202
    assert await call(w, "/call/plain/act", cargo("called")) == 200
    await asyncio.sleep(SOON_S)


async def handlers_fail(w: MarkedWorld, m: Marked) -> None:
    await events(w, "fails", "later", "step_fails", "gives_up", "refuses", "refuses_late", "diverges")
    w.kafka.append("events", cargo("no_such_act"), b"k", HEADERS)
    for act in ("at once", "durably"):
        event = Event(
            str(InvocationId(Lane("box", act), "n1")), "always", KafkaSource("0", "events", 0, 0, 0), cargo(act)
        )
        w.dispatcher.deliver(event, lambda: None)
    assert await call(w, "/call/box/k/look", cargo("fail")) == 500
    assert await call(w, "/call/box/k/act", cargo("refuses")) == 409
    assert await call(w, "/send/gone/k/act", cargo("x")) == 404
    await events(w, "tells_gone")


async def values_do_not_fit(w: MarkedWorld, m: Marked) -> None:
    acts = ["keeps_much", "steps_much", "returns_much", "returns_bytes", "publishes_much", "keeps_opaque"]
    acts += ["steps_opaque", "keeps_surrogate", "misreads_state", "misreads_step"]
    await events(w, *acts)
    await asyncio.sleep(NAP_S)
    for act in acts:
        await call(w, f"/call/box/{act}2/act", cargo(act))
    large = json.dumps({"act": "step", "secret": MARK * 40_000}).encode()
    w.kafka.append("events", large, b"large", HEADERS)
    await call(w, "/call/box/large2/act", large)
    await asyncio.sleep(SOON_S)


async def inputs_cannot_be_read(w: MarkedWorld, m: Marked) -> None:
    bad = [json.dumps(MARK).encode(), MARK.encode(), b"\xff" + MARK.encode(), json.dumps({"act": [MARK]}).encode()]
    bad += [json.dumps({MARK: MARK}).encode(), json.dumps({"number": MARK, MARK: 1}).encode(), b"[" * 5_000]
    for value in bad:
        for topic in ("events", "colours", "keyed", "gone"):
            w.kafka.append(topic, value, b"k", HEADERS)
            w.kafka.append(topic, value, None, HEADERS)
        w.kafka.append("keyed", value, b"\xff" + MARK.encode(), HEADERS)
        w.kafka.append("keyed", json.dumps({"id": {"deep": MARK}}).encode(), b"k", HEADERS)
        for handler in ("act", "paint", "fill", "look"):
            await call(w, f"/call/box/{handler}/{handler}", value)
            await call(w, f"/call/box/{handler}/{handler}", value, **{"content-type": "text/plain"})
    await asyncio.sleep(SOON_S)


async def dead_letters_are_too_large(w: MarkedWorld, m: Marked) -> None:
    value = json.dumps({"act": "refuses", "secret": MARK * 1_000}).encode()
    w.kafka.append("events", value, b"k", HEADERS)
    w.kafka.append("events", value, None, HEADERS)
    w.kafka.append("events", cargo("refuses"), b"k2", [("secret", MARK.encode() * 1_000)])
    w.kafka.append("events", value, MARK.encode() * 100 + b"\xff", HEADERS)
    await asyncio.sleep(SOON_S)
    w.kafka.delete_topic("events.dead-letter")
    w.kafka.append("events", value, None, HEADERS)
    await asyncio.sleep(SOON_S)
    w.kafka.create_topic("events.dead-letter")
    await asyncio.sleep(SOON_S)


async def lanes_wait(w: MarkedWorld, m: Marked) -> None:
    for act in ("naps", "remember", "fails", "refuses", "naps_long"):
        w.kafka.append("events", cargo(act), b"one", HEADERS)
    await asyncio.sleep(SOON_S)
    for n in range(3):
        await call(w, "/call/box/one/act", cargo("remember"), **{"idempotency-key": f"{MARK}{n}", "prefer": "wait=0"})
    await asyncio.sleep(LONG_S)


async def lanes_are_too_many(w: MarkedWorld, m: Marked) -> None:
    for key in (b"one", b"two", b"three"):
        w.kafka.append("events", cargo("fails"), key, HEADERS)
    await asyncio.sleep(LONG_S)


async def awakeables_are_answered(w: MarkedWorld, m: Marked) -> None:
    await events(w, "asks", "asks_number")
    for n in range(3):
        w.kafka.append("events", cargo("asks"), b"asks%d" % n, HEADERS)
    await asyncio.sleep(SOON_S)
    assert len(m.awakeables) == 5
    marked = json.dumps({"value": MARK}).encode()
    for awakeable in m.awakeables[:3]:
        assert await call(w, f"/awakeables/{awakeable}/resolve", marked) < 300
    assert await call(w, f"/awakeables/{m.awakeables[3]}/reject", json.dumps({"message": MARK}).encode()) < 300
    bad: list[bytes] = [
        MARK.encode(),
        json.dumps({"message": [MARK], MARK: 1}).encode(),
        b'"' + MARK.encode() * 9_000 + b'"',
    ]
    for body in bad:
        for verb in ("resolve", "reject"):
            await call(w, f"/awakeables/{m.awakeables[4]}/{verb}", body)
    for n in range(3, 5):
        w.kafka.append("events", cargo("asks"), b"asks%d" % n, HEADERS)
    await asyncio.sleep(SOON_S)
    await events(w, "answers")


async def topics_are_missing(w: MarkedWorld, m: Marked) -> None:
    await events(w, "publishes_nowhere")
    w.kafka.create_topic("not-there-yet")
    await asyncio.sleep(SOON_S)


async def published_records_are_too_large(w: MarkedWorld, m: Marked) -> None:
    w.kafka.create_topic("not-there-yet", record_bytes_max=1)
    await events(w, "publishes_nowhere")


async def requests_are_bad(w: MarkedWorld, m: Marked) -> None:
    large = b'{"act": "remember", "secret": "' + MARK.encode() * 400_000 + b'"}'
    assert await call(w, "/call/box/k/act", large) == 413
    assert await call(w, "/call/box/k/act", cargo("remember"), **{"x-large": MARK * 2_000}) == 431
    assert await call(w, "/call/box/k/act", cargo("remember"), **{"idempotency-key": MARK * 100}) == 400
    assert await call(w, "/call/box/k/act", cargo("remember"), prefer=f"wait={MARK}") == 400
    assert await call(w, f"/send/box/k/act?delay={MARK}", cargo("remember")) == 400
    assert await call(w, f"/send/box/k/act?{MARK}={MARK}", cargo("remember")) == 400
    assert await call(w, "/call/box/k/act", MARK.encode()) == 400


async def functions_crash(w: MarkedWorld, m: Marked) -> None:
    failed = json.dumps({"errorType": "Runtime.ExitError", "errorMessage": "it exited", "secret": MARK}).encode()
    of_no_form = MARK.encode() * 10
    outcomes = [
        of_no_form,
        json.dumps({"type": MARK}).encode(),
        json.dumps({"type": "speculated", "results": MARK}).encode(),
    ]
    refusal: Any = {
        "Error": {"Code": "ServiceException", "Message": "busy"},
        "ResponseMetadata": {"HTTPStatusCode": 500},
    }
    missing: Any = {
        "Error": {"Code": "ResourceNotFound", "Message": "gone"},
        "ResponseMetadata": {"HTTPStatusCode": 404},
    }
    ends: list[Any] = [
        {"FunctionError": "Unhandled", "Payload": Body(data)} for data in (failed, of_no_form, *outcomes)
    ]
    ends += [{"Payload": Body(data)} for data in (*outcomes, b"", b"[1]")]
    ends += [ClientError(refusal, "Invoke"), ClientError(missing, "Invoke"), OSError("away")]
    for n, end in enumerate(ends):
        w.crashes.append(end)
        w.kafka.append("events", cargo("step"), b"crash%d" % n, HEADERS)
        await asyncio.sleep(SOON_S)
        w.crashes.append(end)
        await call(w, f"/call/box/crash{n}/look", cargo("look"))
    for end in ends[:2]:
        w.crashes.extend([end] * 4)
        await events(w, "remember")
    # A run that has claimed its lane, and whose function never answers again.
    await events(w, "naps")
    w.crashes.extend([ends[0], ends[1]] * 4)
    await asyncio.sleep(LONG_S)


async def lanes_fail_side_by_side(w: MarkedWorld, m: Marked) -> None:
    head = Head(state={"held": json.dumps(MARK).encode()})
    without_run = Activation("box", "k", "resume", head, "holder")

    async def run(one: Activation) -> Outcome:
        env = Environment(w.table, w.clock.now_ms, w.clock.now_ms() + 10_000, InlineWriteLoop())
        return await activate(one, w.services, env)

    (outcome,) = (await run_beside(Pooled((without_run,), beside=True), run)).outcomes
    assert isinstance(outcome, Broken)


async def calls_are_given_up(w: MarkedWorld, m: Marked) -> None:
    crash = {"FunctionError": "Unhandled", "Payload": Body(MARK.encode())}
    w.crashes.extend([crash] * 3)
    assert await call(w, "/call/box/k/act", cargo("remember")) == 500
    assert await call(w, "/call/box/k/act", cargo("naps"), prefer="wait=1") == 202
    await asyncio.sleep(SOON_S)
    w.crashes.extend([crash] * 3)
    await asyncio.sleep(LONG_S)


async def messages_end_unseen(w: MarkedWorld, m: Marked) -> None:
    bad = [MARK.encode(), json.dumps({"act": [MARK]}).encode(), json.dumps({"act": "remember", MARK: 1}).encode()]
    acts = ("refuses", "refuses_late", "gives_up", "keeps_much", "asks")
    for number, body in enumerate((*bad, *map(cargo, acts), cargo("asks"))):
        await call(w, f"/send/box/send{number}/act", body)
        await call(w, f"/send/box/send{number}/always", body, **{"idempotency-key": f"{MARK}{number}"})
    await asyncio.sleep(SOON_S)
    for awakeable in m.awakeables:
        assert await call(w, f"/awakeables/{awakeable}/reject", json.dumps({"message": MARK}).encode()) < 300
    await asyncio.sleep(NAP_S)
    assert sum("letter" in item for item in w.table.items.values()) > len(acts)


async def the_broker_is_away(w: MarkedWorld, m: Marked) -> None:
    async def away(operation: Operation) -> None:
        if operation.name == "produce":
            raise LogUnavailableError("no broker")

    w.kafka.hook = away
    w.kafka.append("events", MARK.encode(), None, HEADERS)
    await events(w, "publishes", "refuses", "gives_up")
    w.kafka.hook = no_faults
    await asyncio.sleep(SOON_S)


async def a_service_is_gone(w: MarkedWorld, m: Marked) -> None:
    await events(w, "naps", "remember")
    w.served = False
    await events(w, "naps", "remember", "step")
    assert await call(w, "/call/box/k/act", cargo("remember")) == 404
    await asyncio.sleep(NAP_S)


async def the_table_fails(w: MarkedWorld, m: Marked) -> None:
    assert isinstance(w.table, FailingTable)
    away, refused = TableUnavailableError("no answer"), TableRefusedError("ValidationException: no")
    for error in (away, refused, RuntimeError("a bug")):
        for times in (1, 2, 5, 9):
            w.table.errors.extend([error] * times)
            await events(w, "step", "tells", "remember")
            w.table.errors.extend([error] * times)
            await call(w, "/call/box/k/act", cargo("remember"))
            w.table.errors.extend([error] * times)
            await call(w, "/call/box/k/look", cargo("look"))
            await call(w, "/send/box/k/act", cargo("remember"))
            await asyncio.sleep(SOON_S)
        w.table.errors.clear()


async def calls_overload_a_key(w: MarkedWorld, m: Marked) -> None:
    w.kafka.append("events", cargo("naps"), b"busy", HEADERS)
    await asyncio.sleep(1)
    codes = await asyncio.gather(*(call(w, "/call/box/busy/act", cargo("remember")) for _ in range(4)))
    assert 503 in codes


async def the_scheduler_is_away(w: MarkedWorld, m: Marked) -> None:
    w.schedules = False
    await events(w, "naps_long", "races")
    assert await call(w, f"/awakeables/{m.awakeables[0]}/resolve", json.dumps(MARK).encode()) < 300
    await asyncio.sleep(LONG_S)


async def timers_cannot_be_read(w: MarkedWorld, m: Marked) -> None:
    lane, due_ms = Lane("box", "k"), w.clock.now_ms() + 1_000
    whole = SendOut("box", "k", str(InvocationId(lane, "n1")), "act", MARK.encode())
    fields = msgspec.to_builtins(whole, builtin_types=[bytes])
    misfits = [fields | {"handler": [MARK]}, fields | {"input": [MARK]}, fields | {"headers": MARK}, [MARK], MARK]
    misfits += [fields | {"type": "elsewhere"}, {"type": "result", "invocation": MARK, "result": MARK}]
    for n, packed in enumerate((MARK.encode(), b"", *map(msgspec.msgpack.encode, misfits))):
        await w.table.write(timer_put(SendTimer(lane, f"n{n}", due_ms, f"v{n}", packed, "http", "0")))
    unhandled = msgspec.msgpack.encode(replace(whole, handler="nobody"))
    await w.table.write(timer_put(SendTimer(lane, "n8", due_ms, "v8", unhandled, "box/k", "0")))
    put = timer_put(SendTimer(lane, "n9", due_ms, "v1", MARK.encode(), "http", "0"))
    assert isinstance(put, Put)
    broken = {name: MARK if isinstance(value, str) else value for name, value in put.attributes.items()}
    await w.table.write(replace(put, key=replace(put.key, sk=put.key.sk + "x"), attributes=broken))
    await w.table.write(replace(put, key=replace(put.key, sk=put.key.sk + "y"), attributes={"secret": MARK}))
    await w.table.write(Put(SWEEP_CURSOR, {"minute": MARK}))
    await asyncio.sleep(LONG_S)


async def outboxes_cannot_be_read(w: MarkedWorld, m: Marked) -> None:
    await events(w, "remember")
    head = next(key for key, item in w.table.items.items() if key[1] == "H" and "s.held" not in item)
    lane = Lane.from_pk(head[0])
    sound = msgspec.to_builtins(SendOut("box", "k", str(InvocationId(lane, "n1")), "act"), builtin_types=[bytes])
    misfits = [sound | {"handler": [MARK]}, sound | {"input": MARK}, sound | {"headers": MARK}, [MARK], MARK]
    for number, packed in enumerate((MARK.encode(), *map(msgspec.msgpack.encode, misfits))):
        w.table.items[head][f"o.00000000000{number}.000001"] = packed
    w.table.items[head]["o.000000000009.000001"] = MARK
    await events(w, "remember")
    await asyncio.sleep(LONG_S)
    assert sum(sk.startswith("U#O#") for _, sk in w.table.items) == len(misfits) + 2


async def records_cannot_be_read(w: MarkedWorld, m: Marked) -> None:
    at = w.kafka.append("events", cargo("remember"), b"k", HEADERS)
    tp = TopicPartition(at.topic, at.partition)
    w.kafka.damage(tp, at.offset)
    await asyncio.sleep(SOON_S)
    w.kafka.repair(tp)
    w.kafka.append("events", cargo("remember"), b"k", HEADERS, unreadable="the record breaks Kafka's format")
    await asyncio.sleep(SOON_S)
    with mock.patch.object(consume, "route", side_effect=ValueError(MARK)):
        await events(w, "remember")


SCENARIOS: Final = (
    handlers_end_well,
    handlers_fail,
    values_do_not_fit,
    inputs_cannot_be_read,
    dead_letters_are_too_large,
    lanes_wait,
    lanes_are_too_many,
    awakeables_are_answered,
    topics_are_missing,
    published_records_are_too_large,
    requests_are_bad,
    functions_crash,
    lanes_fail_side_by_side,
    calls_are_given_up,
    messages_end_unseen,
    the_broker_is_away,
    a_service_is_gone,
    the_table_fails,
    calls_overload_a_key,
    the_scheduler_is_away,
    timers_cannot_be_read,
    outboxes_cannot_be_read,
    records_cannot_be_read,
)


def played(scenario: Any) -> Ears:
    """Run a scenario to its end; what was heard."""

    async def whole() -> None:
        bounds = {calls_overload_a_key: {"lane_calls_max": 2}, lanes_are_too_many: {"lanes_max": 1}}
        marked, w = world(**bounds.get(scenario, {}))
        async with w.running():
            await scenario(w, marked)

    with listening() as ears:
        run_virtual(whole())
    return ears


# --- the law ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heard() -> dict[str, Ears]:
    """What each scenario had to say."""
    return {scenario.__name__: played(scenario) for scenario in SCENARIOS}


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_no_line_holds_a_payload(name: str, heard: dict[str, Ears]) -> None:
    assert heard[name].leaks == []


def test_the_scenarios_come_to_every_line_there_is(heard: dict[str, Ears]) -> None:
    reached = {(Path(path).name, function) for ears in heard.values() for path, function, _ in ears.places}
    unreached = [
        (name, function) for name, function in log_calls() if (name.rpartition("/")[2], function) not in reached
    ]
    assert unreached == [], "lines that nothing here comes to"


def log_calls() -> Iterator[tuple[str, str]]:
    """File and function of every log call of the SDK and the control plane, but for the files that are named above."""
    for folder in ("adapters/tenuto", "control_plane/tenuto_control"):
        root = tree.ROOT / folder
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name.startswith(tuple(NOT_REACHED)):
                continue
            for function in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "_log.")):
                        yield name, function.name


def shapes() -> Iterator[tuple[Any, Any]]:
    """What reads an event of Lambda's, and an event that it refuses; the runtime logs why."""
    yield kafka_event_source.read, {"records": {"t-0": [{"topic": "t", "value": MARK + "!", "offset": MARK}]}}
    record = {"topic": "t", "partition": 0, "offset": 0, "timestamp": 0, "headers": []}
    yield kafka_event_source.read, {"records": {"t-0": [record | {"value": MARK + "!"}]}}
    yield event_scheduler.read, {"tenuto": MARK}
    yield event_scheduler.read, {"tenuto": "wake", "lane": [MARK]}
    yield activation.read, {"type": "activation", "service": [MARK], "events": MARK}
    yield activation.read, {"type": "activation", "head": {"state": {"kept": MARK}}, "mode": MARK}
    yield activation.read, MARK


@pytest.mark.parametrize(("read", "event"), list(shapes()))
def test_what_refuses_an_event_of_another_shape_quotes_none_of_it(read: Any, event: Any) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(event)
    with listening() as ears:
        logging.getLogger("tenuto").error("as Lambda's runtime does", exc_info=refused.value)
    assert ears.leaks == []


# --- that it can fail -------------------------------------------------------------------------------------------------


def chained() -> ValueError:
    """An error whose cause says too much."""
    error = ValueError("no luck")
    error.__cause__ = KeyError(MARK)
    return error


@pytest.mark.parametrize(
    ("text", "arguments", "more"),
    [
        (f"box/k: {MARK}", (), {}),
        ("%s: input %s", ("box/k", cargo("step")), {}),
        ("box/k", (), {"extra": {"input": {"deep": [MARK]}}}),
        ("box/k: %s", (base64.b64encode(b"ab" + cargo("step")).decode(),), {}),
        ("box/k: %s", (cargo("step").hex(),), {}),
        ("box/k: unforeseen", (), {"exc_info": ValueError(MARK)}),
        ("box/k: unforeseen", (), {"exc_info": chained()}),
    ],
    ids=["text", "argument", "field", "base64", "hexadecimal", "exception", "cause of an exception"],
)
def test_a_line_that_holds_one_is_found(text: str, arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
    with listening() as ears:
        logging.getLogger("tenuto.lane").debug(text, *arguments, **more)
    assert ears.leaks


def test_a_line_that_the_product_might_have_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = MarkedWorld.invoke

    async def talkative(self: MarkedWorld, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        logging.getLogger("tenuto.lane").debug("invoking %s with %s", function, payload)
        return await deliver(self, function, payload, room)

    monkeypatch.setattr(MarkedWorld, "invoke", talkative)
    assert played(handlers_end_well).leaks


def test_keys_and_ids_are_no_payload_and_hide_none() -> None:
    awakeable = str(AwakeableId(InvocationId(Lane("box", "k"), "n1"), "0a", "0" * 32))
    with listening() as ears:
        logging.getLogger("tenuto.lane").warning("box/k: %s", awakeable)
    assert ears.heard
    assert ears.leaks == []


def test_the_world_is_not_quiet(heard: dict[str, Ears]) -> None:
    silent = {name for name, ears in heard.items() if not ears.heard}
    assert silent <= {"handlers_end_well", "requests_are_bad"}, "a scenario in which nothing is said proves little"
