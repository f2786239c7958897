"""What others write cannot forge a line of a log, flood it, or steer the terminal that shows it.

Owns the one way out of every line of a control plane, and the lines of the SDK about failed attempts. Does not own
which lines there are.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from tenuto import ObjectContext, TerminalError, VirtualObject
from tenuto.protocol.failures import printable
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import Rejected, Speculated, Stopped, encode
from tenuto.protocol.records import Event, Failure, KafkaSource
from tenuto.protocol.texts import SHOWN_CHARACTERS_MAX, shown
from tenuto_control.core import log_fields
from tenuto_control.drivers import log_lines
from tenuto_control.drivers.log_lines import LINE_CHARACTERS_MAX, SERIES_LINES_MAX, SERIES_S, Lines
from tenuto_control.ingress import answers
from tenuto_control.ports import LogUnavailableError
from tests.attack.examples import examples
from tests.costs.meter import meter_of
from tests.hostile.world import HostileWorld
from tests.support.virtual_time import run_virtual

FOREIGN: Final[dict[str, str]] = {
    "a line": "ann\n2026-11-29 10:00:00,000 ERROR   tenuto.lane: forged",
    "a carriage return": "ann\r2026-11-29 10:00:00,000 ERROR   tenuto.lane: forged",
    "a separator": "ann\u20282026-11-29 10:00:00,000 ERROR   tenuto.lane: forged",
    "a form feed": "ann\x0c2026 \x0b2026 \x85 2026 \x1c 2026",
    "an escape": "\x1b[2J\x1b]0;title\x07\x1b[31m",
    "an 8-bit escape": "\x9b31m\x90q\x9c",
    "a direction": "\u202etxt.exe\u202c \u2066\u2067\u2068\u2069\u200e\u200f\u061c",
    "nothing to see": "\u200b\u200c\u200d\ufeff\u00ad",
    "a null": "ann\x00bob\x08\x08\x08eve\x7f",
    "a surrogate": "caf\udce9",
    "megabytes": "x" * 5_800_000,
    "megabytes of escapes": "\x1b" * 300_000,
    "a template": "%s %d %(message)s {0} %",
    "json": '{"level": "CRITICAL", "message": "forged"}',
    "nested json": "[" * 100_000,
}


def lines_of(form: str, *records: logging.LogRecord, now_s: Callable[[], float] = lambda: 0.0) -> list[str]:
    """What is written of records, split at line breaks alone."""
    formatter = log_lines.json_formatter() if form == "json" else logging.Formatter(log_lines.TEXT)
    stream = io.StringIO()
    handler = Lines(formatter, stream, now_s)
    for record in records:
        handler.handle(record)
    written = stream.getvalue()
    assert not written or written.endswith("\n")
    return written.split("\n")[:-1]


def record_of(text: str, *arguments: Any, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    """A record as a logger makes it."""
    told = None if error is None else (type(error), error, error.__traceback__)
    return logging.getLogger("tenuto.lane").makeRecord(
        "tenuto.lane", logging.WARNING, __file__, 1, text, arguments, told, extra=extra
    )


def is_harmless(line: str) -> bool:
    """Whether a line is nothing but text that a terminal shows as it stands there."""
    odd = {c for c in line if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"}}
    return not odd


def raised(text: str, kind: Callable[[str], BaseException] = ValueError, *, cause: str | None = None) -> BaseException:
    """An error with a traceback, and perhaps a cause."""
    before = None if cause is None else raised(cause, kind)
    with pytest.raises(BaseException) as caught:
        raise kind(text) from before
    return caught.value


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_text_is_one_short_line_wherever_it_stands(name: str, form: str) -> None:
    foreign = FOREIGN[name]
    records = [
        record_of("%s: %s", foreign, "it fails"),
        record_of(foreign),
        record_of("it fails", key=foreign, service=foreign, invocation_id=foreign, handler=foreign),
        record_of("%s %s", foreign, foreign, key=foreign),
    ]
    for record in records:
        (line,) = lines_of(form, record)
        assert is_harmless(line)
        assert len(line) < 6 * LINE_CHARACTERS_MAX
        if form == "json":
            assert json.loads(line)["level"] == "WARNING"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("way", ["itself", "its cause", "its context", "a note", "a group", "a key"])
def test_neither_does_a_traceback_forge_a_line(name: str, form: str, way: str) -> None:
    foreign = FOREIGN[name]
    match way:
        case "itself":
            error = raised(foreign)
        case "its cause":
            error = raised("outer", cause=foreign)
        case "its context":
            error = raised("outer")
            error.__context__ = raised(foreign)
        case "a note":
            error = raised("outer")
            error.add_note(foreign.encode(errors="replace").decode())
        case "a group":
            error = raised("", lambda _: ExceptionGroup("several", [ValueError(foreign), KeyError(foreign)]))
        case _:
            error = raised(foreign, KeyError)
    lines = lines_of(form, record_of("unforeseen", error=error))
    assert sum(map(len, lines)) < 20 * SHOWN_CHARACTERS_MAX
    if form == "json":
        (line,) = lines
        assert "Traceback" in json.loads(line)["exception"]
        lines = lines[:0]
    for line in lines:
        assert is_harmless(line)
    starts = [line for line in lines if re.match(r"\d{4}-|\{|\[", line)]
    assert len(starts) == len(lines[:1])


def test_an_error_that_is_harmless_is_printed_as_it_is() -> None:
    error = raised("no luck", cause="the reason")
    assert printable(error) is error
    likeness = printable(raised("no\nluck", cause="the reason"))
    assert str(likeness) == "no\n    luck"
    assert (type(likeness).__name__, type(likeness).__module__) == ("ValueError", "builtins")
    assert str(likeness.__cause__) == "the reason"
    assert likeness.__traceback__ is not None


def test_what_raises_when_it_is_looked_at_is_printed_all_the_same() -> None:
    class Mean(ValueError):
        def __str__(self) -> str:
            raise RuntimeError("not me")

        def __getattribute__(self, name: str) -> Any:
            if name == "__notes__":
                raise RuntimeError("nor me")
            return super().__getattribute__(name)

    looped = ValueError("round\nand round")
    looped.__context__ = ValueError("again\n")
    looped.__context__.__context__ = looped
    for error in (Mean(), looped, raised("x", lambda _: BaseExceptionGroup("g\n", [KeyboardInterrupt()]))):
        assert lines_of("text", record_of("odd", error=error))


@settings(max_examples=examples(100), deadline=None)
@given(st.text(st.characters(), max_size=700), st.sampled_from(["text", "json"]))
def test_whatever_is_written_a_line_is_a_line(text: str, form: str) -> None:
    (line,) = lines_of(form, record_of("%s", text, key=text))
    assert is_harmless(line)
    plain = shown(text)
    assert is_harmless(plain)
    assert len(plain) <= SHOWN_CHARACTERS_MAX + 30
    if text.isprintable() and len(text) <= SHOWN_CHARACTERS_MAX:
        assert plain == text


def test_a_long_text_says_how_long_it_was() -> None:
    assert shown("x" * 5_800_000) == "x" * SHOWN_CHARACTERS_MAX + " … (5,800,000 characters)"
    assert shown("a\x1b\u202e\udce9") == "a\\x1b\\u202e\\udce9"


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3)])
def test_a_line_whose_arguments_do_not_fit_is_written_without_them(arguments: tuple[int, ...]) -> None:
    (line,) = lines_of("text", record_of("%s and %s" if arguments else "100 % sure", *arguments))
    assert " WARNING tenuto.lane: " in line


# --- lines that repeat -----------------------------------------------------------------------------------------------


def test_a_storm_of_lines_is_thinned_and_counted() -> None:
    clock = SimpleNamespace(now_s=0.0)
    stream = io.StringIO()
    handler = Lines(logging.Formatter("%(message)s"), stream, lambda: clock.now_s)
    for number in range(20_000):
        # Of other keys each time: so no lane repeats itself.
        handler.handle(record_of("%s: %s", f"bad/k{number}", "x" * 5_000, service="bad"))
    handler.handle(record_of("%s: %s", "good/k", "another service", service="good"))
    handler.handle(record_of("another line", service="bad"))
    written = stream.getvalue().splitlines()
    assert len(written) == SERIES_LINES_MAX + 2
    assert len(stream.getvalue()) < 1_000_000
    clock.now_s = SERIES_S
    handler.handle(record_of("%s: %s", "bad/k", "later", service="bad"))
    *_, more, later = stream.getvalue().splitlines()
    assert more == f"{20_000 - SERIES_LINES_MAX} more lines like this one: %s: %s"
    assert later == "bad/k: later"


def test_what_was_not_written_is_told_at_the_end() -> None:
    stream = io.StringIO()
    handler = Lines(logging.Formatter("%(message)s"), stream, lambda: 0.0)
    for _ in range(SERIES_LINES_MAX + 5):
        handler.handle(record_of("again"))
    handler.close()
    assert stream.getvalue().splitlines()[-1] == "5 more lines like this one: again"


def test_services_without_end_are_no_way_around_it() -> None:
    clock = SimpleNamespace(now_s=0.0)
    stream = io.StringIO()
    handler = Lines(logging.Formatter("%(message)s"), stream, lambda: clock.now_s)
    for number in range(10_000):
        handler.handle(record_of("the same about %d", number, service=f"s{number}"))
    assert len(stream.getvalue().splitlines()) == log_lines.SERVICES_MAX + log_lines.OTHERS_LINES_MAX
    assert len(handler._series) == log_lines.SERVICES_MAX + 1
    # One that had its line before goes on having its own.
    handler.handle(record_of("the same about %d", 0, service="s0"))
    assert stream.getvalue().splitlines()[-1] == "the same about 0"
    clock.now_s = SERIES_S
    handler.handle(record_of("another"))
    dropped = 10_000 - log_lines.SERVICES_MAX - log_lines.OTHERS_LINES_MAX
    told = f"{dropped} more lines like this one, about other services: the same about %d"
    assert stream.getvalue().splitlines()[-2:] == [told, "another"]
    assert len(handler._series) == 1
    assert handler._services == {("tenuto.lane", logging.WARNING, "another"): 1}


def test_kinds_without_end_are_no_way_around_it() -> None:
    stream = io.StringIO()
    handler = Lines(logging.Formatter("%(message)s"), stream, lambda: 0.0)
    for number in range(10_000):
        handler.handle(record_of(f"kind {number}", service=f"s{number}"))
    assert len(handler._series) <= 10_000
    for number in range(10_000):
        handler.handle(record_of("the same", service=f"s{number}"))
    assert len(stream.getvalue().splitlines()) <= 10_000 + SERIES_LINES_MAX


FLOOD: Final = 300


def _event_of(service: str, key: str, offset: int, handler: str = "act") -> Event:
    source = KafkaSource("0", "t", 0, offset, 0)
    return Event.of(InvocationId(Lane(service, key), kafka_nonce("0", "t", 0, offset)), handler, source, b"1")


def _flood_of(name: str) -> list[Event]:
    match name:
        case "unknown services":
            return [_event_of(f"s{n}", "k", n) for n in range(FLOOD)]
        case "unknown handlers":
            return [_event_of("bad", f"k{n}", n, f"h{n}") for n in range(FLOOD)]
        case _:
            return [_event_of("bad", f"k{n}", n, name) for n in range(FLOOD)]


@pytest.mark.parametrize("name", ["unknown services", "unknown handlers", "fails", "refuses"])
def test_a_flood_of_what_cannot_be_done_makes_few_lines_and_is_counted(name: str) -> None:
    """Each of the keys has its own text or service."""
    bad = VirtualObject("bad")

    @bad.handler()
    async def fails(ctx: ObjectContext) -> None:
        raise RuntimeError(f"of {ctx.key} alone")

    @bad.handler()
    async def refuses(ctx: ObjectContext) -> None:
        raise TerminalError(f"of {ctx.key} alone")

    async def scenario() -> None:
        meter = meter_of(bad)
        for event in _flood_of(name):
            meter.dispatcher.deliver(event, lambda: None)
        await asyncio.sleep(SERIES_S * 3)
        await meter.dispatcher.kill()

    stream = io.StringIO()
    over = [False]

    def now_s() -> float:
        return float("inf") if over[0] else asyncio.get_running_loop().time()

    handler = Lines(logging.Formatter("%(levelname)s %(message)s"), stream, now_s)
    logger = logging.getLogger("tenuto")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        run_virtual(scenario())
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        over[0] = True
        handler.close()
    # Without the lines of tracebacks.
    lines = [line for line in stream.getvalue().splitlines() if re.match("(INFO|WARNING|ERROR) ", line)]
    assert 0 < len(lines) <= (4 * SERIES_LINES_MAX if name != "unknown services" else 3 * 60)
    assert any(" more lines like this one" in line for line in lines)


def test_the_most_severe_lines_are_always_written() -> None:
    stream = io.StringIO()
    handler = Lines(logging.Formatter("%(message)s"), stream, lambda: 0.0)
    record = record_of("it ends")
    record.levelno = logging.CRITICAL
    for _ in range(2 * SERIES_LINES_MAX):
        handler.handle(record)
    assert len(stream.getvalue().splitlines()) == 2 * SERIES_LINES_MAX


# --- the production code ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["text", "json"])
def written(request: pytest.FixtureRequest) -> Iterator[Callable[[], list[str]]]:
    """What a control plane writes, which the root's handler is told of, in both forms."""
    formatter = log_lines.json_formatter() if request.param == "json" else logging.Formatter(log_lines.TEXT)
    stream = io.StringIO()
    handler = Lines(formatter, stream, lambda: 0.0)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield lambda: stream.getvalue().split("\n")[:-1]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def harmless_lines(lines: list[str]) -> None:
    """Each is text, is short, and none was forged."""
    assert lines
    for line in lines:
        assert is_harmless(line)
        # JSON writes each backslash twice.
        assert len(line) < 4 * LINE_CHARACTERS_MAX
        assert not re.match(r"\d{4}-\S+ \S+ ERROR +tenuto\.lane: forged", line)


@pytest.mark.parametrize("name", FOREIGN)
def test_texts_of_functions_do_neither(name: str, written: Callable[[], list[str]]) -> None:
    text = FOREIGN[name].encode(errors="replace").decode()
    box = VirtualObject("box")
    event = str(InvocationId(Lane("box", "k"), "c1"))

    @box.handler()
    async def act(_ctx: ObjectContext, _n: int) -> None:
        """Never runs."""

    async def scenario() -> None:
        world = HostileWorld(meter_of(box).services)
        failure = Failure(text, 400)
        world.answers.extend(
            [
                encode(Speculated((), stopped=Stopped(event, failure))),
                encode(Rejected(failure)),
                LogUnavailableError(text),
            ]
        )
        await world.send(act, "k", b"1")
        await asyncio.sleep(60)
        await world.dispatcher.kill()

    run_virtual(scenario())
    harmless_lines(written())


@pytest.mark.parametrize("durable", [False, True], ids=["before its claim", "after its claim"])
@pytest.mark.parametrize("kind", [RuntimeError, lambda text: TerminalError(text, 409)], ids=["fails", "terminal"])
@pytest.mark.parametrize("name", FOREIGN)
def test_errors_of_handlers_do_neither(
    name: str, kind: Callable[[str], Exception], *, durable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In the function's own log, whose handlers and formats are the user's."""
    box = VirtualObject("box")
    event = Lane("box", "k")

    def fails() -> None:
        raise kind(FOREIGN[name])

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        if durable:
            await ctx.run("step", fails)
        fails()

    async def scenario() -> None:
        meter = meter_of(box)
        meter.deliver(act, event.key)
        await asyncio.sleep(1)
        await meter.dispatcher.kill()

    with caplog.at_level(logging.WARNING, "tenuto"):
        run_virtual(scenario())
    told = [record for record in caplog.records if record.name.startswith("tenuto.handler")]
    assert told
    plain = logging.Formatter("%(message)s")
    for record in told:
        assert is_harmless(record.getMessage())
        assert len(record.getMessage()) < 2 * SHOWN_CHARACTERS_MAX
        whole = plain.format(record)
        assert len(whole) < 40 * SHOWN_CHARACTERS_MAX
        assert all(is_harmless(line) for line in whole.split("\n"))
        assert not any(line.startswith("2026-") for line in whole.split("\n"))


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "a surrogate"])
def test_paths_of_requests_do_neither(name: str, written: Callable[[], list[str]]) -> None:
    request = Request({"type": "http", "method": "POST", "path": f"/call/box/{FOREIGN[name]}/act", "headers": []})
    run_virtual(cast("Any", answers.unavailable(request, LogUnavailableError(FOREIGN[name]))))
    run_virtual(cast("Any", answers.broken(request, RuntimeError(FOREIGN[name]))))
    lines = written()
    harmless_lines(lines)
    assert len(lines) == 2
    assert max(map(len, lines)) < 4 * SHOWN_CHARACTERS_MAX


def test_fields_of_lines_hold_what_they_say() -> None:
    lane = Lane("box", "a\nb")
    (line,) = lines_of("json", record_of("it fails", **cast("Any", log_fields.of_lane(lane))))
    assert json.loads(line)["key"] == "a\nb"
