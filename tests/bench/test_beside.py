"""The comparison with Restate is fair by its form: equal handlers, medians of quiet rounds, no ratio without both.

Owns the pure parts, and that the harness runs on tenuto's side. Asserts no time, no rate and no ratio of a measurement.
"""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.beside import passes
from bench.beside.calls import read_wrk
from bench.beside.page import publish
from bench.beside.readings import Readings
from bench.beside.report import Comparison, render
from bench.beside.restate import install
from bench.beside.summary import OTHERS_MAX, ROWS, Found, line_of, lines
from bench.figures import Processes
from bench.kafka_load import WrongOutcomeError
from bench.resources import share_of_others
from bench.svg import bars
from bench.svg import lines as line_plot
from bench.workloads import EVENT_BYTES
from tenuto_local.errors import FetchFailed, PrerequisiteMissing

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS_MAX = 120
W1 = ROWS[0]
LATE = next(row for row in ROWS if row.name == "w4 wake p50")


class AsTenuto(ast.NodeTransformer):
    """Restate's names for what tenuto names otherwise."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return ast.Attribute(node.value, "run", node.ctx) if node.attr == "run_typed" else node


def commands(module: str) -> dict[str, str]:
    """What each function of a module of handlers does, by name: its code without what only one system needs."""
    tree = ast.parse((ROOT / "bench" / "beside" / f"{module}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    return {function.name: ast.unparse(AsTenuto().visit(function)) for function in functions}


def test_both_systems_run_the_same_handlers_line_by_line() -> None:
    ours, theirs = commands("tenuto_handlers"), commands("restate_handlers")
    assert ours == theirs
    assert {this.handler for this in passes.PASSES.values()} <= ours.keys()


def found(value: float, others: float = 0.0, row: str = "w1") -> Found:
    return Found(
        {row: value}, {"functions": Processes(cpu_s=1, cpu_ms_per_event=value, memory_peak_mb=1)}, others, 1, 0
    )


def test_a_ratio_is_that_of_the_medians_and_above_one_where_tenuto_is_better() -> None:
    faster = line_of(W1, {"tenuto": [found(v) for v in (10, 30, 20)], "restate": [found(10.0)]}, "tenuto", "restate")
    assert (faster.medians["tenuto"], faster.ratio) == (20, 2)
    rounds = {"tenuto": [found(50, row=LATE.name)], "restate": [found(100, row=LATE.name)]}
    assert line_of(LATE, rounds, "tenuto", "restate").ratio == 2


shares = st.floats(0, 1)
rounds_of = st.lists(st.builds(found, st.floats(0.1, 1e5), shares), min_size=1, max_size=5)


@given(ours=rounds_of, theirs=rounds_of)
def test_a_ratio_is_refused_exactly_where_a_side_has_no_quiet_round(ours: list[Found], theirs: list[Found]) -> None:
    line = line_of(W1, {"tenuto": ours, "restate": theirs}, "tenuto", "restate")
    quiet = [[f.values["w1"] for f in side if f.others <= OTHERS_MAX] for side in (ours, theirs)]
    assert (line.ratio is None) == (not all(quiet)) == (line.refused is not None)
    if line.refused is not None:
        assert "of the machine" in line.refused
    for values, name in zip(quiet, ("tenuto", "restate"), strict=True):
        if values:
            assert min(values) <= line.medians[name] <= max(values)


def test_one_side_alone_has_no_ratio() -> None:
    line = line_of(W1, {"tenuto": [found(1)]}, "tenuto", "restate")
    assert (line.ratio, line.refused) == (None, "restate not measured")


def test_what_others_take_is_the_busy_time_that_is_not_ours() -> None:
    assert share_of_others(busy_s=20, ours_s=15, wall_s=10, cores=2) == 0.25
    assert share_of_others(busy_s=14.9, ours_s=15, wall_s=10, cores=2) == 0.0
    assert share_of_others(busy_s=40, ours_s=0, wall_s=10, cores=2) == 1.0


def test_notes_are_read_while_they_are_written(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    readings = Readings(notes)
    readings.read_on()
    notes.write_text("S 1 10.0 10.5\nS 1 10.0 11.0\nW 1 10.0 11.6\nE 1 10.0 12.0\nE 2 10.0 13.")
    readings.read_on()
    assert readings.done(range(3)) == 1
    with notes.open("a") as file:
        file.write("0\nE 2 10.0 14.0\n")
    readings.read_on()
    assert readings.done(range(1, 3)) == 2
    assert readings.repeats == 1
    assert readings.latencies_ms(range(1, 3)) == [2000, 3000]
    # From the first time it went to sleep: 10.5, a second, and what it was late by.
    assert readings.lateness_ms(range(3)) == [pytest.approx(100)]
    assert readings.per_s(range(1, 3)) == pytest.approx(2 / 3)


def test_a_call_that_failed_spoils_the_pass() -> None:
    good = 'some words\nRESULT {"calls": 500, "us": 2000000, "failed": 0}\n'
    assert (read_wrk("tenuto", 0, good).calls, read_wrk("tenuto", 0, good).per_s) == (500, 250)
    for status, printed in ((1, good), (0, "nothing"), (0, good.replace('"failed": 0', '"failed": 1')), (None, good)):
        with pytest.raises(WrongOutcomeError, match="tenuto: "):
            read_wrk("tenuto", status, printed)


def test_an_event_has_its_size_and_its_time() -> None:
    for number in (0, 123_456, passes.WARM_NUMBER):
        value = passes.event(number)
        assert abs(len(value) - EVENT_BYTES) <= 1
        assert msgspec.json.decode(value)["number"] == number


@pytest.mark.parametrize("this", passes.PASSES.values(), ids=lambda this: this.name)
def test_a_pass_can_be_short(this: passes.Pass) -> None:
    short = this.scaled(0.001)
    assert short.steady_s >= passes.SECONDS_MIN
    assert short.keys == 1 or short.keys >= 20
    assert this.scaled(1.0) == replace(this, **lengths(this))


def lengths(this: passes.Pass) -> dict[str, Any]:
    return {
        "events": max(20, this.events),
        "steady_s": max(passes.SECONDS_MIN, this.steady_s),
        "flood_s": max(passes.SECONDS_MIN, this.flood_s),
    }


def comparison() -> Comparison:
    sides = {
        "tenuto": [Found(dict.fromkeys((row.name for row in ROWS), 4.0), found(1).processes, 0.1, 1, 0)],
        "restate": [Found(dict.fromkeys((row.name for row in ROWS), 2.0), found(2).processes, 0.1, 1, 0)],
    }
    return Comparison(
        started="2026-01-01T00:00:00+00:00",
        command="python -m bench.beside",
        scale=1,
        rounds=1,
        machine={
            "cores": 2,
            "cpu": "a <cpu>",
            "memory_gb": 8,
            "system": "Linux",
            "python": "3.11",
            "java": "Java 17",
            "kafka": "kafka",
            "packages": {"tenuto": "1"},
        },
        settings={
            "table": "dynoxide",
            "calls": "wrk",
            "restate": "1",
            "function_workers": 8,
            "at_a_time": 3,
            "partitions": 4,
        },
        founds=dict.fromkeys(passes.PASSES, sides),
        naive=[],
    )


def test_the_page_has_every_row_and_its_plot_is_xml(tmp_path: Path) -> None:
    report = comparison()
    page = publish(report, tmp_path).read_text()
    printed = render(report)
    for row in ROWS:
        assert row.title in page
        assert row.title in printed
    assert len(lines(report.founds, "tenuto", "restate")) == len(ROWS)
    plot = ET.fromstring((tmp_path / "beside.svg").read_text())
    assert sum(element.tag.endswith("rect") for element in plot.iter()) == len(ROWS)
    assert msgspec.json.decode((tmp_path / "beside.json").read_bytes(), type=Comparison) == report


positive = st.floats(1e-3, 1e6)
words = st.text(st.characters(min_codepoint=32, exclude_categories=["C"]), max_size=20)


@given(rows=st.lists(st.tuples(words, st.none() | positive, words), max_size=5), title=words)
def test_bars_are_well_formed(rows: list[tuple[str, float | None, str]], title: str) -> None:
    drawn = ET.fromstring(bars(title, rows))
    assert title in [element.text or "" for element in drawn.iter()]


@given(st.dictionaries(words, st.lists(st.tuples(positive, positive), min_size=1, max_size=5), min_size=1, max_size=3))
def test_lines_are_well_formed(series: dict[str, list[tuple[float, float]]]) -> None:
    drawn = ET.fromstring(line_plot("title", "keys", series))
    for circle in (element for element in drawn.iter() if element.tag.endswith("circle")):
        assert 0 <= float(circle.attrib["cx"]) <= 860
        assert 0 <= float(circle.attrib["cy"]) <= 420


def test_a_missing_restate_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> Path:
        raise FetchFailed("Restate's server could not be fetched; check the network (npm ended with status 1: E404)")

    monkeypatch.setattr("bench.beside.restate.fetch_program", nothing)
    with pytest.raises(PrerequisiteMissing) as refused:
        asyncio.run(install(print))
    assert str(refused.value).startswith("Restate cannot be installed: Restate's server could not be fetched")
    assert "\n" not in str(refused.value)


@pytest.mark.stack
def test_the_harness_runs_on_tenutos_side(tmp_path: Path) -> None:
    out = tmp_path / "beside.json"
    options = ["--sides", "tenuto", "--rounds", "1", "--scale", "0.002", "--passes", "w3", "--out", str(out)]
    command = [sys.executable, "-m", "bench.beside", *options, "--engine", "dynamodb-local"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = msgspec.json.decode(out.read_bytes(), type=Comparison)
    (once,) = report.founds["w3"]["tenuto"]
    assert once.values["w3"] > 0
    assert once.repeats == 0
    if sys.platform.startswith("linux"):
        assert {"control plane", "functions", "gateway", "broker", "table"} <= set(once.processes)
    assert "w3: no ratio, restate not measured" in ran.stdout
