"""What is counted, and the one line of JSON in which CloudWatch finds it."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.service import Services
from tenuto_control.core.metrics import SAMPLES_MAX, WRITES_PER_EVENT, CountName, SampleName, Summary, Tally
from tenuto_control.drivers.emf import NAMESPACE_VARIABLE, SERVICE_VARIABLE, EmfReports, reports
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

ROOT = Path(__file__).resolve().parents[2]


def test_a_tally_says_what_was_counted_since_the_last_time() -> None:
    tally = Tally()
    tally.count("Committed", 4)
    tally.count("Writes", 6)
    tally.count("Retries", 0)
    tally.sample("AgeMs", 7)
    assert tally.take() == Summary({"Committed": 4, "Writes": 6}, {"AgeMs": [7]}, 1.5)
    assert not tally.take()


def test_of_many_samples_few_are_kept_over_all_of_the_time_and_the_last() -> None:
    tally = Tally()
    for value in range(10_000):
        tally.sample("Lag", value)
    kept = tally.take().samples["Lag"]
    assert SAMPLES_MAX / 2 <= len(kept) <= SAMPLES_MAX
    assert (kept[0], kept[-1]) == (0, 9_999)
    assert max(b - a for a, b in itertools.pairwise(kept)) < 300


def test_events_failures_and_sleeps_are_counted() -> None:
    box = VirtualObject("box")
    tried: list[int] = []

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=2))
    async def act(ctx: ObjectContext, n: int) -> None:
        if n == 1:
            await ctx.run("step", int)
            await ctx.sleep(timedelta(seconds=5))
        if n == 2:
            tried.append(n)
            raise RuntimeError("never")

    async def scenario() -> Summary:
        tally = Tally()
        meter = Meter(Services([box]), metrics=tally)
        meter.dead_letter = "dead"
        for value in (b"0", b"1", b"2"):
            meter.deliver(act, f"k{value.decode()}", value)
        await asyncio.sleep(30)
        await meter.quiet()
        return tally.take()

    summary = run_virtual(scenario())
    counts = dict(summary.counts)
    assert counts.pop("Writes") > counts["Committed"]
    assert counts == {"EventsIn": 3, "Committed": 3, "Retries": 1, "Suspensions": 1, "DeadLetters": 1}
    assert set(summary.samples) == {"AgeMs", "WakeLatenessMs"}


def test_a_report_is_one_line_that_cloudwatch_reads(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    tally.count("Committed", 2)
    tally.count("Writes", 3)
    tally.sample("WakeLatenessMs", 12.5)
    found = reports({NAMESPACE_VARIABLE: "tenuto", SERVICE_VARIABLE: "orders"})
    assert isinstance(found, EmfReports)
    found.write(tally)
    found.write(tally)
    (line,) = capsys.readouterr().out.splitlines()
    written = json.loads(line)
    (described,) = written["_aws"]["CloudWatchMetrics"]
    assert (described["Namespace"], described["Dimensions"], written["service"]) == ("tenuto", [["service"]], "orders")
    assert (written["WakeLatenessMs"], written[WRITES_PER_EVENT]) == ([12.5], [1.5])


def test_without_a_namespace_nothing_is_written() -> None:
    assert reports({}) is None


def test_the_dashboard_and_the_alarms_know_every_metric_by_its_name() -> None:
    text = (ROOT / "infra" / "observability.yaml").read_text("utf-8")
    names = {*get_args(CountName), *get_args(SampleName), WRITES_PER_EVENT} - {"Writes"}
    assert {name for name in names if name not in text} == set()
