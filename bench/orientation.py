"""Figures of another engine on the same workloads, for orientation.

Owns constants that were measured elsewhere, and their source. They are medians on a machine of the same size, not of
this run; the Lambda transport invokes a function per event as tenuto does, the stream keeps a connection to it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SOURCE: Final = "Restate 1.7.12 with its Python SDK, medians on a machine with 2 cores, Java 17 and Python 3.11"

LAMBDA_TRANSPORT: Final[Mapping[str, Mapping[str, float]]] = {
    "w1": {"events_per_s": 1_383},
    "w2": {"events_per_s": 277, "invocations_per_event": 4},
    "w3": {"events_per_s": 537},
    "w4": {"wake_lateness_p50_ms": 21, "wake_lateness_p99_ms": 189, "invocations_per_event": 2},
    "w5": {"events_per_s": 1_288, "steady_p50_ms": 4.2, "steady_p99_ms": 10},
}
STREAM_TRANSPORT: Final[Mapping[str, Mapping[str, float]]] = {
    "w1": {"events_per_s": 1_627},
    "w2": {"events_per_s": 897},
    "w3": {"events_per_s": 364},
    "w5": {"events_per_s": 894},
}


def orientation() -> dict[str, Any]:
    """All of it, as the report carries it."""
    return {"source": SOURCE, "lambda_transport": LAMBDA_TRANSPORT, "stream_transport": STREAM_TRANSPORT}
