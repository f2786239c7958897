"""Traces over OTLP, by OpenTelemetry's own SDK and its own variables.

Owns the tracer provider of a control plane process, and the header by which AWS X-Ray takes a function's segment into
the same trace. Does not own which trace an invocation belongs to (`core.traces`). Nothing of OpenTelemetry is imported
where no endpoint is named.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tenuto.protocol.records import Event
from tenuto.protocol.traces import PREFIX, SCOPE, TRACEPARENT
from tenuto_control.config import ConfigError
from tenuto_control.core.traces import Activating, parent_of
from tenuto_control.drivers.invoke_client import InvokeClient

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's variables; one of them switches traces on."""

DISABLED: Final = "OTEL_SDK_DISABLED"
SERVICE_NAME: Final = "tenuto"
FLUSH_MS_MAX: Final = 1_000
IN_LAMBDA: Final = "_X_AMZN_TRACE_ID"
"""Where Lambda tells a function of its segment."""


class OtelTracer:
    """A `Tracer` over an OpenTelemetry provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SCOPE)

    @contextmanager
    def activation(self, activating: Activating) -> Iterator[_Traced]:
        """See `Tracer.activation`. Events beyond the first of a batch are linked."""
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        first, *others = activating.events
        w3c = TraceContextTextMapPropagator()

        def above(event: Event) -> Context:
            return w3c.extract({TRACEPARENT: parent_of(event)}, Context())

        links = [trace.Link(trace.get_current_span(above(event)).get_span_context()) for event in others]
        attributes: dict[str, str | int] = {
            "invocation_id": first.id,
            "service": activating.lane.service,
            "key": activating.lane.key,
            "handler": first.handler,
            "mode": activating.mode,
            "attempt": activating.attempt,
            "events": len(activating.events),
        }
        with self._tracer.start_as_current_span(
            f"activate {activating.lane.service}/{first.handler}",
            context=above(first),
            kind=trace.SpanKind.CLIENT,
            attributes={PREFIX + name: value for name, value in attributes.items()},
            links=links,
            # What an exception says may quote a payload.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield _Traced(span)

    def flush(self) -> None:
        """Send what has ended; for a process that may be frozen. Blocks for a second at most."""
        self._provider.force_flush(FLUSH_MS_MAX)

    async def close(self) -> None:
        """Send what has ended, for a second at most, and stop."""
        await asyncio.to_thread(self.flush)
        await asyncio.to_thread(self._provider.shutdown)


@dataclass(frozen=True, slots=True)
class _Traced:
    """A `Traced` over an OpenTelemetry span."""

    span: Span

    @property
    def parent(self) -> str | None:
        """See `Traced.parent`. A span that is not sampled is nobody's parent."""
        context = self.span.get_span_context()
        if not context.trace_flags.sampled:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, outcome: str, *, failed: bool) -> None:
        """See `Traced.end`."""
        from opentelemetry.trace import StatusCode

        self.span.set_attribute(f"{PREFIX}outcome", outcome)
        if failed:
            self.span.set_status(StatusCode.ERROR, outcome)


def tracer_of(environment: Mapping[str, str], exporter: SpanExporter | None = None) -> OtelTracer | None:
    """The tracer that OpenTelemetry's variables ask for, None when they ask for none.

    `exporter` takes the place of the one over HTTP. Raises ConfigError when the extra is not installed.
    """
    wanted = any(environment.get(name) for name in ENDPOINTS)
    if not wanted or environment.get(DISABLED, "").lower() == "true":
        return None
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        raise ConfigError(f"{ENDPOINTS[0]} asks for traces: install tenuto[otel], or unset it")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME as NAME
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = environment.get("OTEL_SERVICE_NAME") or environment.get("POWERTOOLS_SERVICE_NAME") or SERVICE_NAME
    provider = TracerProvider(resource=Resource.create({NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return OtelTracer(provider)


def hand_to_xray(client: InvokeClient) -> None:
    """Have a Lambda client name the current span in X-Ray's own header, so that Lambda's segment joins its trace.

    Inside of Lambda the client names the segment of its own function by itself, and keeps to that.
    """
    client.name_segments(_current_segment)


def _current_segment() -> str | None:
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return xray(context) if context.is_valid and not os.environ.get(IN_LAMBDA) else None


def xray(context: SpanContext) -> str:
    """A span in X-Ray's notation, whose trace ids are W3C's with two hyphens."""
    trace_id = f"{context.trace_id:032x}"
    sampled = int(context.trace_flags.sampled)
    return f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={context.span_id:016x};Sampled={sampled}"
