"""The estimate of `tenuto cost`: prices, sizes, shapes, the command and the page that shows it.

Owns what requests are charged at and what the command says. Does not own how many there are
(`tests.costs.test_cost_formula`).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto_control.__main__ import main
from tenuto_control.core.costs import (
    HOLD_SECONDS,
    MILLION,
    SCHEDULED_SECONDS_MIN,
    SHAPES,
    US_EAST_1,
    PriceList,
    PricesError,
    Workload,
    as_text,
    break_even,
    count,
    estimate,
    parse_prices,
    read_units_of_event,
    write_units,
    write_units_of_event,
)
from tenuto_control.limits import SERVERLESS, Limits
from tests.tidy import tree
from tests.tidy.test_pages import FENCE

PAGE = tree.ROOT / "docs" / "guides" / "cost.md"
THREE_STEPS_AND_A_SLEEP = Workload(steps=3, sleeps=1)

workloads = st.builds(
    Workload,
    events=st.floats(0, 1e12),
    steps=st.integers(0, 50),
    slow_code=st.booleans(),
    sleeps=st.integers(0, 5),
    sleep_seconds=st.sampled_from([0.1, 2.0, 15.0, 300.0]),
    sends=st.integers(0, 5),
    calls=st.booleans(),
    batch=st.floats(1, 10),
    head_bytes=st.integers(1, 409_600),
    memory_mb=st.sampled_from([128, 512, 10_240]),
    duration_ms=st.floats(1, 10_000),
    shape=st.sampled_from(SHAPES),
    tasks=st.integers(1, 9),
    records_per_poll=st.sampled_from([10.0, 500.0]),
)


def amounts(workload: Workload, prices: PriceList = US_EAST_1) -> dict[str, float]:
    """The lines of an estimate by item and unit."""
    return {f"{line.item}, {line.unit}": line.amount for line in estimate(workload, prices).lines}


# --- what things cost -------------------------------------------------------------------------------------------------


def test_the_example_of_the_design_by_hand() -> None:
    by_hand = {
        # Claim, two checkpoints, nap, commit.
        "DynamoDB writes, write units": 5 * 0.625,
        # The head when it is unknown.
        "DynamoDB reads, read units": 0.125,
        "Lambda handler, requests": 2 * 0.20,
        "Lambda handler, GB-s": MILLION * 2 * 0.1 * 0.5 * 0.0000133334,
        # Of twelve sweeps a minute ten with 16 queries and two with 48, and one with 201, over 730 hours.
        "DynamoDB reads, sweep, read units": 730 * 60 * (10 * 16 + 2 * 48 + 201) / MILLION * 0.125,
        "Fargate vCPU, vCPU-h": 730 * 0.25 * 0.03238,
        "Fargate memory, GB-h": 730 * 0.5 * 0.00356,
    }
    assert amounts(THREE_STEPS_AND_A_SLEEP) == pytest.approx(by_hand)
    made = estimate(THREE_STEPS_AND_A_SLEEP)
    assert made.total == pytest.approx(sum(by_hand.values()))
    assert made.per_million == pytest.approx(3.125 + 0.125 + 0.4 + 1.33334)
    assert made.fixed == pytest.approx(made.total - made.per_million)


def test_a_sleep_that_is_no_nap_costs_two_writes_more_and_a_timer() -> None:
    longer = amounts(replace(THREE_STEPS_AND_A_SLEEP, sleep_seconds=6))
    # Suspension and resumption in the place of the nap, the timer and its deletion.
    assert longer["DynamoDB writes, write units"] == pytest.approx(8 * 0.625)
    # Before the timer goes, the head is read again, and the timer in its bucket.
    assert longer["DynamoDB reads, read units"] == pytest.approx(3 * 0.125)


def test_at_scale_to_zero_a_short_sleep_is_paid_as_time_of_two_functions() -> None:
    short = amounts(replace(THREE_STEPS_AND_A_SLEEP, shape="scale-to-zero"))
    # Claim, three checkpoints, commit; one more if a step followed the sleep, which the estimate allows for.
    assert short["DynamoDB writes, write units"] == pytest.approx(6 * 0.625)
    assert short["Lambda handler, GB-s"] == pytest.approx(MILLION * 5.1 * 0.5 * 0.0000133334)
    assert short["Lambda dispatcher, GB-s"] == pytest.approx(MILLION / 10 * (5.1 + 0.02) * 0.0000133334)
    assert "EventBridge Scheduler, schedules" not in short


def test_at_scale_to_zero_a_long_sleep_is_ended_by_the_scheduler() -> None:
    long = amounts(replace(THREE_STEPS_AND_A_SLEEP, shape="scale-to-zero", sleep_seconds=60))
    assert long["EventBridge Scheduler, schedules"] == pytest.approx(1.0)
    assert long["Lambda dispatcher, requests"] == pytest.approx((0.1 + 1) * 0.20)
    assert long["DynamoDB writes, write units"] == pytest.approx(8 * 0.625)
    assert "Fargate vCPU, vCPU-h" not in long


def test_at_scale_to_zero_a_dispatcher_sits_out_a_short_suspension() -> None:
    waited = amounts(replace(THREE_STEPS_AND_A_SLEEP, shape="scale-to-zero", hold_seconds=1))
    assert "EventBridge Scheduler, schedules" not in waited
    seconds = (0.1 + 0.02) / 10 + 0.1 + 0.02 + 5
    assert waited["Lambda dispatcher, GB-s"] == pytest.approx(MILLION * seconds * 0.0000133334)


def test_an_always_on_control_plane_asks_the_scheduler_for_long_sleeps_alone() -> None:
    item = "EventBridge Scheduler, schedules"
    threshold_s = Limits().scheduler_threshold_ms / 1000
    assert item not in amounts(Workload(sleeps=1, sleep_seconds=threshold_s - 1))
    assert amounts(Workload(sleeps=2, sleep_seconds=threshold_s))[item] == pytest.approx(2.0)


def test_calls_pass_the_gateway_at_scale_to_zero_alone() -> None:
    calls = Workload(calls=True)
    assert "API Gateway, requests" not in amounts(calls)
    assert amounts(replace(calls, shape="scale-to-zero"))["API Gateway, requests"] == pytest.approx(1.0)


@pytest.mark.parametrize(("size", "units"), [(0, 1), (1, 1), (1_024, 1), (1_025, 2), (5_000, 5), (409_600, 400)])
def test_writes_are_billed_by_each_started_kilobyte(size: int, units: int) -> None:
    assert write_units(size) == units


def test_the_head_is_billed_whole_and_other_items_are_small() -> None:
    counts = count(Workload(steps=3, sleeps=1, sends=2))
    large, small = (write_units_of_event(counts, size) for size in (5_000, 1_000))
    assert small == counts.writes + counts.timers
    assert large - small == 4 * counts.head_writes
    assert read_units_of_event(counts, 5_000) - read_units_of_event(counts, 4_096) == counts.head_reads


def test_a_backlog_shares_what_the_events_of_a_key_have_in_common() -> None:
    assert count(Workload(batch=40)).writes == 1 / 40
    # The claim of each but the first is in the commit before it.
    assert count(Workload(steps=2, batch=40)).writes == pytest.approx(2 + 1 / 40)
    assert count(Workload(steps=2)).writes == 3
    assert count(Workload(steps=2, batch=40)).invocations == 1 / 40
    # The handler's code still runs for each of them.
    assert amounts(Workload(batch=40))["Lambda handler, GB-s"] == amounts(Workload())["Lambda handler, GB-s"]


def test_keys_that_share_an_invocation_share_its_time_if_they_take_steps() -> None:
    assert count(Workload(keys_per_invocation=8)).invocations == 1 / 8
    assert count(Workload(keys_per_invocation=8)).writes == count(Workload()).writes
    alone, state_only = amounts(Workload(steps=2)), amounts(Workload())
    assert amounts(Workload(keys_per_invocation=4))["Lambda handler, GB-s"] == state_only["Lambda handler, GB-s"]
    shared = amounts(Workload(steps=2, keys_per_invocation=4))
    assert shared["Lambda handler, GB-s"] == pytest.approx(alone["Lambda handler, GB-s"] / 4)
    assert shared["DynamoDB writes, write units"] == alone["DynamoDB writes, write units"]
    naps = Workload(steps=2, sleeps=1, sleep_seconds=5, keys_per_invocation=4)
    assert count(naps).invocations == 2 / 4


def test_sleeps_that_are_over_at_once_cost_nothing() -> None:
    assert count(Workload(sleeps=3, sleep_seconds=0.3)) == count(Workload())
    assert count(Workload(sleeps=3, sleep_seconds=0.3, hold_seconds=0)) == count(Workload())


def test_defaults_are_those_of_a_deployment() -> None:
    assert HOLD_SECONDS["scale-to-zero"] == SERVERLESS["hold_sleep_ms"] / 1000
    assert SCHEDULED_SECONDS_MIN["scale-to-zero"] == SERVERLESS["scheduler_threshold_ms"] / 1000
    assert HOLD_SECONDS["always-on"] == Limits().hold_sleep_ms / 1000


@given(workloads)
def test_estimates_add_up(workload: Workload) -> None:
    made = estimate(workload)
    assert made.total == pytest.approx(made.fixed + made.per_million / MILLION * workload.events)
    assert all(line.amount >= 0 for line in made.lines)
    more = estimate(replace(workload, events=workload.events + 1e9))
    assert more.total > made.total
    assert more.fixed == pytest.approx(made.fixed)
    assert as_text(made, break_even(workload))


@given(workloads)
def test_no_event_costs_less_for_doing_more(workload: Workload) -> None:
    usual = replace(workload, events=1e6)
    now = estimate(usual).per_million * 0.999_999
    for more in (
        replace(usual, steps=usual.steps + 1),
        replace(usual, sends=usual.sends + 1),
        replace(usual, sleeps=usual.sleeps + 1),
    ):
        assert estimate(more).per_million >= now


@given(workloads)
def test_both_shapes_cost_the_same_at_the_break_even(workload: Workload) -> None:
    even = break_even(workload)
    if even is None or not even:
        return
    records = max(workload.batch, workload.records_per_poll)
    on, zero = (
        estimate(replace(workload, events=even, shape=shape, records_per_poll=records)).total for shape in SHAPES
    )
    assert on == pytest.approx(zero, rel=1e-6)


# --- prices -----------------------------------------------------------------------------------------------------------


def test_a_file_replaces_the_prices_that_it_names() -> None:
    prices = parse_prices("dynamodb_write_per_million = 0.7\nscheduler_per_million = 0\n")
    assert prices == replace(US_EAST_1, dynamodb_write_per_million=0.7, scheduler_per_million=0)
    assert amounts(Workload(), prices)["DynamoDB writes, write units"] == pytest.approx(0.7)


def test_the_architecture_chooses_the_price_of_time() -> None:
    arm, x86 = (amounts(Workload(architecture=one))["Lambda handler, GB-s"] for one in ("arm64", "x86_64"))
    assert x86 / arm == pytest.approx(0.0000166667 / 0.0000133334)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dynamodb_write = 1", 'dynamodb_write: unknown key; did you mean "dynamodb_write_per_million"?'),
        ("zzz = 1", "zzz: unknown key; known are dynamodb_write_per_million, "),
        ('scheduler_per_million = "1"', "scheduler_per_million: expected a price in dollars, such as 1.0"),
        ("scheduler_per_million = true", "expected a price in dollars"),
        ("scheduler_per_million = -1", "expected a price in dollars"),
        ("scheduler_per_million = nan", "expected a price in dollars"),
        ("scheduler_per_million = inf", "expected a price in dollars"),
        ("scheduler_per_million = 1e300", "expected a price in dollars"),
        (f"scheduler_per_million = {'9' * 400}", "expected a price in dollars"),
        (f"scheduler_per_million = {'9' * 5_000}", "not TOML: "),
        (f"x = {'[' * 5_000}", "not TOML: "),
        ("= 1", "not TOML: "),
    ],
)
def test_prices_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(PricesError) as refused:
        parse_prices(text)
    assert message in str(refused.value)


# --- the command ------------------------------------------------------------------------------------------------------


def test_every_option_has_its_bounds() -> None:
    assert {one.name for one in fields(Workload) if "help" not in one.metadata} == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps -1", "tenuto: --steps: expected a number between 0 and 10,000, not -1"),
        (
            "--steps 1.5",
            "tenuto cost: argument --steps: '1.5' is not a whole number, such as 1,000,000; see tenuto cost --help",
        ),
        ("--events nan", "tenuto: --events: expected a number between 0 and 1,000,000,000,000,000, not nan"),
        ("--events inf", "tenuto: --events: expected a number between 0 and 1,000,000,000,000,000, not inf"),
        ("--sleep-seconds 1e300", "tenuto: --sleep-seconds: expected a number between 0 and 3,155,760,000"),
        ("--batch 0.5", "tenuto: --batch: expected a number between 1 and 100, not 0.5"),
        (
            "--batch 50 --shape scale-to-zero",
            "tenuto: --batch: a batch cannot hold more records than --records-per-poll",
        ),
        ("--head-bytes 500000", "tenuto: --head-bytes: expected a number between 1 and 409,600, not 500000"),
        ("--prices nowhere.toml", "tenuto: nowhere.toml: no such file; name a TOML file with --prices"),
        ("--prices .", "tenuto: .: cannot be read: "),
        ("--prices broken.toml", "tenuto: broken.toml: lambda: unknown key; known are "),
        ("--nothing", "tenuto: unrecognized arguments: --nothing; see tenuto --help"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("lambda = 1\n", "utf-8")
    try:
        status = main(["cost", *arguments.split()])
    except SystemExit as e:
        status = int(e.code or 0)
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(message)


@pytest.mark.parametrize("shape", ["always-on", "scale-to-zero"])
@pytest.mark.parametrize("calls", [False, True])
def test_the_largest_of_everything_has_a_price(shape: str, calls: bool) -> None:
    largest = {one.name: one.metadata["high"] for one in fields(Workload) if "high" in one.metadata}
    largest |= {"slow_code": True, "calls": calls, "shape": shape}
    for hold_seconds in (None, largest["hold_seconds"]):
        workload = Workload(**largest | {"hold_seconds": hold_seconds})
        made = estimate(workload, parse_prices("scheduler_per_million = 1e9"))
        assert 0 < made.total < float("inf")
        assert "inf" not in as_text(made, break_even(workload, US_EAST_1))


@given(st.sampled_from([one.name for one in fields(Workload) if "high" in one.metadata]), st.floats())
def test_no_number_ends_in_a_traceback(name: str, value: float) -> None:
    written = repr(int(value)) if math.isfinite(value) and value == int(value) else repr(value)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = main(["cost", f"--{name.replace('_', '-')}={written}", "--sleeps=1"])
        except SystemExit as e:
            status = int(e.code or 0)
    assert status in (0, 2)
    assert len(said.getvalue().splitlines()) == (status == 2)


def test_the_command_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--steps", "3", "--sleeps", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    made = estimate(THREE_STEPS_AND_A_SLEEP)
    assert said["total"] == made.total
    assert said["event"]["writes"] == 5
    assert said["workload"]["steps"] == 3
    assert sum(line["amount"] for line in said["lines"]) == pytest.approx(made.total)


def test_the_command_says_whose_prices_it_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text("fargate_vcpu_hour = 0.04\n", "utf-8")
    assert main(["cost", "--prices", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"Prices: those of {file}, and AWS's list prices in us-east-1 for the rest." in said
    assert "$0.04 " in said
    assert main(["cost"]) == 0
    assert "Prices: AWS's list prices in us-east-1, which --prices FILE.toml replaces." in capsys.readouterr().out


def test_the_command_explains_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cost", "--help"])
    assert ended.value.code == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for one in fields(Workload):
        assert f"--{one.name.replace('_', '-')}" in said
    assert "events a month (default: 1,000,000)" in said


# --- the page ---------------------------------------------------------------------------------------------------------


def shown() -> list[tuple[str, str]]:
    """Each command of the page with the output under it."""
    bodies = [match["body"] for match in FENCE.finditer(PAGE.read_text("utf-8"))]
    pairs = [body.partition("\n") for body in bodies if body.startswith("$ ")]
    return [(command.removeprefix("$ "), output) for command, _, output in pairs]


@pytest.mark.parametrize(("command", "output"), shown(), ids=[command for command, _ in shown()])
def test_the_page_shows_what_the_command_prints(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command)
    assert program == "tenuto"
    assert main(arguments) == 0
    assert capsys.readouterr().out == output


def test_the_page_shows_the_calculator_at_work() -> None:
    assert len(shown()) >= 2


def test_the_tables_of_the_page_are_computed() -> None:
    text = PAGE.read_text("utf-8")
    for size in (1, 4, 20):
        made = estimate(replace(THREE_STEPS_AND_A_SLEEP, head_bytes=size * 1024))
        units = write_units_of_event(made.counts, size * 1024)
        assert f"| {size} KB | {units:g} | ${made.per_million:,.2f} |" in text
    minute = replace(THREE_STEPS_AND_A_SLEEP, sleep_seconds=60)
    for name, workload in (
        ("state only", Workload()),
        ("three steps", Workload(steps=3)),
        ("three steps and a wait of a minute", minute),
        ("three steps and a wait of 5 s", THREE_STEPS_AND_A_SLEEP),
    ):
        (said,) = re.findall(rf"\n\| {name} \| ([\d,]+) \|\n", text)
        assert int(said.replace(",", "")) == pytest.approx(break_even(workload), rel=0.05)


def test_the_page_names_every_price() -> None:
    text = PAGE.read_text("utf-8")
    assert [one.name for one in fields(PriceList) if f"`{one.name}`" not in text] == []
