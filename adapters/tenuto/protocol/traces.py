"""What both sides call the parts of a trace. Owns names alone."""

from __future__ import annotations

TRACEPARENT = "traceparent"
"""W3C Trace Context: the header that says which span the receiver's is a part of."""

SCOPE = "tenuto"
"""OpenTelemetry's instrumentation scope."""

PREFIX = "tenuto."
"""Before the name of each attribute of a span."""
