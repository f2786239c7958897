"""Traces of control plane and function: one for an invocation over all its attempts, and nothing secret in it.

Owns which spans there are and how they hang together, with OpenTelemetry's own SDK taking them. Does not own the way
over the wire (`tests/stack/test_traces.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import pytest
from aiobotocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tenuto import ObjectContext, TerminalError, VirtualObject
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.records import CallSource, Event
from tenuto.service import Services
from tenuto_control.config import ConfigError
from tenuto_control.core.traces import PARENT_FORM, parent_of
from tenuto_control.drivers.invoke_client import TRACE_HEADER, BotocoreLambda
from tenuto_control.drivers.otel import OtelTracer, hand_to_xray, tracer_of
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

MARK: Final = "quite-unmistakable"
GIVEN: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True, slots=True)
class Spans:
    """What was traced. `provider` serves both sides, as it would in one process."""

    provider: TracerProvider
    exporter: InMemorySpanExporter

    def all(self) -> Sequence[ReadableSpan]:
        """Every span, in order of their ends."""
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of a name."""
        return [span for span in self.all() if span.name == name]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The API takes one provider in the life of a process.
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    yield Spans(provider, exporter)
    provider.shutdown()


def event(nonce: str, *headers: tuple[str, bytes]) -> Event:
    return Event(str(InvocationId(Lane("box", "k"), nonce)), "work", CallSource(), b"1", headers)


def box_that(fails: list[str]) -> VirtualObject:
    """An object whose handler suspends between two steps, and fails as long as the list says."""
    box = VirtualObject("box")

    @box.handler()
    async def work(ctx: ObjectContext, value: str) -> None:
        await ctx.run("first", lambda: f"{value} first")
        await ctx.sleep(timedelta(seconds=30))
        if fails and fails.pop() == "attempt":
            raise RuntimeError(f"{value} in an error")
        await ctx.run("second", lambda: f"{value} second")
        ctx.set("value", value)

    @box.handler()
    async def refuse(ctx: ObjectContext, value: str) -> None:
        def step() -> None:
            raise TerminalError(f"{value} refused")

        await ctx.run("refused", step)

    return box


def deliver(spans: Spans, box: VirtualObject, handler: str, times: int = 1) -> None:
    async def scenario() -> None:
        meter = Meter(Services([box]), tracer=OtelTracer(spans.provider))
        for _ in range(times):
            meter.deliver(box.handlers[handler], "k", f'"{MARK}"'.encode())
        await asyncio.sleep(120)
        await meter.quiet()

    run_virtual(scenario())


def test_an_invocation_is_one_trace_over_all_its_attempts(spans: Spans) -> None:
    deliver(spans, box_that(["attempt"]), "work")
    activations, attempts = spans.named("activate box/work"), spans.named("box/work")
    assert len({span.context.trace_id for span in spans.all()}) == 1
    assert [span.attributes["tenuto.outcome"] for span in activations if span.attributes] == ["Suspended", "Committed"]
    # Three attempts: suspended, failed, through; the second activation held the last two.
    assert len(attempts) == 3
    by_id = {span.context.span_id: span for span in spans.all()}
    parents = [by_id[span.parent.span_id] for span in attempts if span.parent]
    assert parents == [activations[0], activations[1], activations[1]]
    # A replay runs no finished step again, and makes no span for one.
    (first,), (second,) = spans.named("run first"), spans.named("run second")
    assert first.parent
    assert second.parent
    assert by_id[first.parent.span_id] is attempts[0]
    assert by_id[second.parent.span_id] is attempts[2]
    assert {span.name: span.status.description for span in spans.all() if span.status.description} == {
        "box/work": "RuntimeError"
    }


def test_a_step_that_refuses_fails_its_span_and_its_attempt(spans: Spans) -> None:
    deliver(spans, box_that([]), "refuse")
    assert {span.name: span.status.description for span in spans.all() if span.status.description} == {
        "run refused": "TerminalError",
        "box/refuse": "TerminalError",
    }


def test_no_payload_is_in_a_span(spans: Spans) -> None:
    deliver(spans, box_that(["attempt"]), "work")
    deliver(spans, box_that([]), "refuse")
    assert spans.all()
    assert [span for span in spans.all() if MARK in span.to_json()] == []


def test_events_that_share_an_activation_are_linked(spans: Spans) -> None:
    box = VirtualObject("box")

    @box.handler()
    async def count(ctx: ObjectContext, _value: str) -> None:
        ctx.set("n", (await ctx.get("n", int) or 0) + 1)

    deliver(spans, box, "count", times=5)
    linked = sum(len(span.links) for span in spans.named("activate box/count"))
    assert len(spans.named("activate box/count")) + linked == 5
    assert linked > 0


def test_without_a_tracer_there_is_none(spans: Spans) -> None:
    box = box_that([])

    async def scenario() -> None:
        meter = Meter(Services([box]))
        meter.deliver(box.handlers["work"], "k", b'"x"')
        await asyncio.sleep(60)
        await meter.quiet()

    run_virtual(scenario())
    assert list(spans.all()) == []


def test_what_is_not_sampled_costs_the_function_nothing(spans: Spans) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    box = box_that([])

    async def scenario() -> None:
        meter = Meter(Services([box]), tracer=OtelTracer(provider))
        meter.deliver(box.handlers["work"], "k", b'"x"')
        await asyncio.sleep(60)
        await meter.quiet()

    run_virtual(scenario())
    assert list(spans.all()) == []


# --- which trace -----------------------------------------------------------------------------------------------------


def test_a_producers_trace_goes_on() -> None:
    assert parent_of(event("n", ("traceparent", GIVEN.encode()))) == GIVEN
    assert parent_of(event("n", ("Traceparent", GIVEN.encode()))) == GIVEN


@pytest.mark.parametrize(
    "wrong", [b"", b"nonsense", b"\xff", GIVEN[:-1].encode(), f"00-{'0' * 32}-{'1' * 16}-01".encode()]
)
def test_a_header_that_is_none_makes_no_difference(wrong: bytes) -> None:
    assert parent_of(event("n", ("traceparent", wrong))) == parent_of(event("n"))


@given(one=st.text("abc", min_size=1, max_size=4), other=st.text("abc", min_size=1, max_size=4))
def test_a_trace_follows_from_the_invocation(one: str, other: str) -> None:
    assert PARENT_FORM.fullmatch(parent_of(event(one)))
    assert (parent_of(event(one)) == parent_of(event(other))) == (one == other)


# --- X-Ray -----------------------------------------------------------------------------------------------------------


async def header_sent(monkeypatch: pytest.MonkeyPatch, tracer: OtelTracer | None) -> str | None:
    """X-Ray's header of an invocation of a function, which is caught before it is sent."""

    class Caught(Exception):
        def __init__(self, request: Any) -> None:
            self.header: Any = request.headers.get(TRACE_HEADER)

    def catch(request: Any, **_: Any) -> None:
        raise Caught(request)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    async with get_session().create_client("lambda", region_name="us-east-1") as client:
        client.meta.events.register("before-send.lambda.Invoke", catch)
        if tracer is not None:
            hand_to_xray(BotocoreLambda(client))
        span = nullcontext() if tracer is None else tracer._tracer.start_as_current_span("invoke")
        with span, pytest.raises(Caught) as caught:
            await client.invoke(FunctionName="f")
    header = caught.value.header
    return header.decode() if isinstance(header, bytes) else header


def test_lambda_is_told_of_the_span(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    header = asyncio.run(header_sent(monkeypatch, OtelTracer(spans.provider)))
    (span,) = spans.named("invoke")
    trace_id = f"{span.context.trace_id:032x}"
    assert header == f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={span.context.span_id:016x};Sampled=1"


def test_inside_of_lambda_the_functions_own_segment_comes_first(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    # The dispatcher as a function: Lambda traces it, and the client names its segment without any tracer of ours.
    own = "Root=1-67891233-abcdef012345678912345678;Parent=463ac35c9f6413ad;Sampled=1"
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "tenuto-dispatcher")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", own)
    assert asyncio.run(header_sent(monkeypatch, None)) == own
    assert asyncio.run(header_sent(monkeypatch, OtelTracer(spans.provider))) == own


# --- when there is a tracer ------------------------------------------------------------------------------------------


def test_opentelemetrys_variables_decide() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert tracer_of({}) is None
    assert tracer_of({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    assert tracer_of({**endpoint, "OTEL_SDK_DISABLED": "true"}) is None
    tracer = tracer_of({**endpoint, "OTEL_SERVICE_NAME": "orders"}, InMemorySpanExporter())
    assert tracer is not None
    assert tracer._provider.resource.attributes["service.name"] == "orders"
    asyncio.run(tracer.close())


def test_traces_without_the_extra_are_a_mistake_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"install tenuto\[otel\]"):
        tracer_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
