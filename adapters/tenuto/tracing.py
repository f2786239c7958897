"""Traces of handlers: a span for each attempt and for each step that really runs, in OpenTelemetry.

Owns the spans of a function, their names and attributes. Does not own their export: the code of the function or its
OpenTelemetry layer sets up the tracer provider. Without OpenTelemetry, or if the control plane does not trace, nothing
is imported and nothing happens.

A replayed step has no span, since it does not run. Spans contain names and ids, but no payloads and no exception texts.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from tenuto.protocol.traces import PREFIX, SCOPE, TRACEPARENT

FLUSH_MS_MAX: Final = 500
"""How long a function waits for its spans to leave before it answers; a frozen process could not send them."""


class SpanEnd:
    """What became of what a span is about; without a word, it went well."""

    __slots__ = ("failed",)

    def __init__(self) -> None:
        self.failed: str | None = None


def attempt(parent: str | None, target: str, fields: Mapping[str, str | int]) -> AbstractContextManager[SpanEnd]:
    """A span for an attempt, as a part of the control plane's; handlers' own spans become parts of it."""
    if parent is None or not installed():
        return nullcontext(SpanEnd())
    return _attempt(parent, target, fields)


def step(parent: str | None, name: str) -> AbstractContextManager[SpanEnd]:
    """A span for a step that runs, as a part of its attempt."""
    if parent is None or not installed():
        return nullcontext(SpanEnd())
    return _span(f"run {name}", {}, None)


def flush(parent: str | None) -> None:
    """Have the spans of an activation sent, where a provider is set up that keeps them for later."""
    if parent is None or not installed():
        return
    from opentelemetry import trace

    send = getattr(trace.get_tracer_provider(), "force_flush", None)
    if send is not None:
        send(FLUSH_MS_MAX)


@functools.cache
def installed() -> bool:
    """Whether this process has OpenTelemetry's API."""
    return importlib.util.find_spec("opentelemetry") is not None


@contextmanager
def _attempt(parent: str, target: str, fields: Mapping[str, str | int]) -> Iterator[SpanEnd]:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = TraceContextTextMapPropagator().extract({TRACEPARENT: parent}, Context())
    with _span(target, {PREFIX + name: value for name, value in fields.items()}, above) as end:
        yield end


@contextmanager
def _span(name: str, attributes: Mapping[str, str | int], above: object) -> Iterator[SpanEnd]:
    from opentelemetry import trace

    end = SpanEnd()
    kind = trace.SpanKind.INTERNAL if above is None else trace.SpanKind.SERVER
    # What a suspension raises is no error, and what an exception says may quote a payload.
    with trace.get_tracer(SCOPE).start_as_current_span(
        name,
        context=above,  # type: ignore[arg-type]  # the API's context, or none
        kind=kind,
        attributes=dict(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield end
        except Exception as e:
            end.failed = type(e).__name__
            raise
        finally:
            if end.failed is not None:
                span.set_status(trace.StatusCode.ERROR, end.failed)
