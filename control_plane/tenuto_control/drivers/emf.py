"""Metrics by way of the log: CloudWatch's embedded metric format, as AWS Lambda Powertools writes it.

Owns when a report is due to be written and that a deployment without a namespace has none. CloudWatch reads metrics out
of whatever log group standard output ends in, a function's and a container's alike, so no request is made. Does not own
what is counted (`core.metrics`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from tenuto_control.core.metrics import WRITES_PER_EVENT, Tally

NAMESPACE_VARIABLE = "POWERTOOLS_METRICS_NAMESPACE"
SERVICE_VARIABLE = "POWERTOOLS_SERVICE_NAME"
"""Powertools' own variables: the metrics' namespace, without which none are written, and their one dimension."""

DEFAULT_SERVICE = "tenuto"
MILLISECONDS_SUFFIX = "Ms"


class EmfReports:
    """Writes a tally as one line of JSON, whenever it is asked to."""

    def __init__(self, namespace: str, service: str) -> None:
        self._namespace = namespace
        self._service = service

    def write(self, tally: Tally) -> None:
        """One report of what was counted since the last; nothing when that is nothing."""
        summary = tally.take()
        if not summary:
            return
        metrics = EphemeralMetrics(namespace=self._namespace, service=self._service)
        for name, n in summary.counts.items():
            metrics.add_metric(name=name, unit=MetricUnit.Count, value=n)
        for name, values in summary.samples.items():
            unit = MetricUnit.Milliseconds if name.endswith(MILLISECONDS_SUFFIX) else MetricUnit.Count
            for value in values:
                metrics.add_metric(name=name, unit=unit, value=value)
        if summary.writes_per_event is not None:
            metrics.add_metric(name=WRITES_PER_EVENT, unit=MetricUnit.Count, value=summary.writes_per_event)
        metrics.flush_metrics()


def reports(environment: Mapping[str, str] | None = None) -> EmfReports | None:
    """Reports as the environment (`os.environ` unless given) asks for them; None when it names no namespace."""
    environment = os.environ if environment is None else environment
    namespace = environment.get(NAMESPACE_VARIABLE)
    return EmfReports(namespace, environment.get(SERVICE_VARIABLE) or DEFAULT_SERVICE) if namespace else None
