"""The bench runs from its command line to its JSON, and its arithmetic is right.

Owns the shape of the document. Asserts no time and no rate: those belong to the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.figures import latency
from bench.workloads import EVENT_BYTES, WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS_MAX = 240


def test_percentiles_are_values_of_the_sample() -> None:
    summed = latency([float(n) for n in range(1, 201)])
    assert (summed.p50, summed.p99, summed.max, summed.samples) == (100.0, 198.0, 200.0, 200)
    assert latency([7.0]).p99 == 7.0
    with pytest.raises(ValueError, match="nothing to take percentiles of"):
        latency([])


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_a_stream_is_what_its_workload_says(workload: Any) -> None:
    scaled = workload.scaled(0.05)
    stream = scaled.stream()
    keys = [key for key, _ in stream]
    assert len(stream) == scaled.events
    assert {key: keys.count(key) for key in set(keys)} == scaled.per_key()
    assert {len(value) for _, value in stream} == {EVENT_BYTES}
    assert scaled.events // scaled.keys == workload.events // workload.keys or workload.keys == 1
    assert stream == scaled.stream()


def test_a_mistake_on_the_command_line_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--workloads", "w9"], "w9 is no workload"), (["--scale", "0"], "above 0")):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert words in capsys.readouterr().err


def test_other_components_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TENUTO_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert main(["--workloads", "w1"]) == 2
    assert "unset TENUTO_BOOTSTRAP_SERVERS" in capsys.readouterr().err


def printed(*arguments: str) -> str:
    """What a module of the bench prints as a command, which succeeds and complains of nothing."""
    run = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_the_micro_benchmark_counts_the_writes_of_a_function() -> None:
    lines = printed("bench.micro_function", "--events", "20").splitlines()
    writes = {line.partition(":")[0]: line.split()[-2] for line in lines}
    assert writes == {"w1": "0.00", "w2": "4.00", "w4": "6.00"}


def test_the_micro_benchmark_of_the_control_plane_answers_its_calls() -> None:
    assert float(printed("bench.micro_plane", "--calls", "200").split()[-4]) > 0


@pytest.mark.stack
@pytest.mark.slow
def test_a_small_run_writes_its_json(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench", "--workloads", "w1,naive", "--scale", "0.01", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert str(out) in ran.stdout
    report = json.loads(out.read_text())
    assert set(report["workloads"]) == {"w1"}
    w1 = report["workloads"]["w1"]
    assert (w1["events"], w1["keys"]) == (200, 10)
    assert 0 < w1["latency_ms"]["p50"] <= w1["latency_ms"]["p99"] <= w1["latency_ms"]["max"]
    assert w1["latency_ms"]["samples"] == 200
    # Whatever was committed together: at least one version per key, at most one per event.
    assert 10 / 200 <= w1["lane_versions_per_event"] <= 1
    counted = w1["requests"]
    assert counted["dynamodb"]["control plane"]["UpdateItem"] <= counted["events"]
    assert counted["write_units_per_event"] == counted["writes_per_event"] > 0
    assert report["naive"]["latency_ms"]["samples"] == 200
    assert set(report["ratios"]) == {"events_per_s", "latency_p50", "cpu", "write_units"}
    assert report["machine"]["cores"] >= 1
    if sys.platform.startswith("linux"):
        assert {"control plane", "functions", "gateway", "broker", "table"} <= set(w1["processes"])
        assert {"consumer", "broker", "table"} <= set(report["naive"]["processes"])
