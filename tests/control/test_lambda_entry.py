"""What the dispatcher function answers a mapping with and what it refuses; `tests/stack` runs the rest for real."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tenuto.errors import ProtocolError
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto_control import lambda_entry
from tenuto_control.config import ConfigError

RECORDS = [SourceRecord("t", 0, offset, 0, b"k", b"1") for offset in (4, 5)]


def context() -> Any:
    return SimpleNamespace(
        invoked_function_arn="arn", aws_request_id="r-1", get_remaining_time_in_millis=lambda: 10_000
    )


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, whose handlers a dispatcher function takes the place of."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("value", [None, "", "false"])
def test_where_partial_answers_are_not_read_an_unfinished_batch_fails(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(lambda_entry.PARTIAL_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(lambda_entry.PARTIAL_VARIABLE, value)
    assert lambda_entry._answered(RECORDS, []) == {"batchItemFailures": []}
    with pytest.raises(lambda_entry.BatchUnfinishedError, match="1 of 2 records"):
        lambda_entry._answered(RECORDS, RECORDS[1:])


def test_where_they_are_read_the_unfinished_records_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lambda_entry.PARTIAL_VARIABLE, "true")
    named = lambda_entry._answered(RECORDS, RECORDS[1:])
    assert named == {"batchItemFailures": [{"itemIdentifier": {"partition": "t-0", "offset": 5}}]}


def test_a_start_that_fails_says_why_and_the_next_one_tries_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv(lambda_entry.CONFIG_VARIABLE, str(tmp_path / "tenuto.toml"))
    function = lambda_entry.DispatcherFunction()
    try:
        for _ in range(2):
            with pytest.raises(ConfigError, match="no such file"):
                function({"tenuto": "sweep"}, context())
    finally:
        function.close()


@pytest.mark.parametrize("answers", [True, False])
def test_a_warm_process_asks_the_functions_again_now_and_then(
    monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    asked: list[int] = []
    now_ms = 1_000

    async def discover(_within_s: float) -> None:
        asked.append(now_ms)
        if not answers:
            raise ConfigError("it does not answer")

    async def tick(_tick: object, _deadline_ms: int) -> None:
        """Nothing is due."""

    assembly = SimpleNamespace(
        clock=SimpleNamespace(now_ms=lambda: now_ms),
        report=lambda: None,
        flush=lambda: None,
        deployments=SimpleNamespace(discover=discover, unanswered=()),
    )
    function = lambda_entry.DispatcherFunction()
    parts = SimpleNamespace(assembly=assembly, serverless=SimpleNamespace(tick=tick), discovered_ms=0, asked_in_vain=0)
    monkeypatch.setattr(function, "_parts", parts)
    try:
        for now_ms in (1_000, 301_000, 302_000, 700_000):  # noqa: B007 - read by the clock
            function({"tenuto": "sweep"}, context())
        assert asked == [301_000, 700_000]
    finally:
        monkeypatch.undo()
        function.close()


def test_a_function_that_did_not_answer_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    now_ms = 1_000

    async def discover(_within_s: float) -> None:
        asked.append(now_ms)
        if len(asked) == 3:
            deployments.unanswered = ()

    async def tick(_tick: object, _deadline_ms: int) -> None:
        """Nothing is due."""

    deployments = SimpleNamespace(discover=discover, unanswered=("shop",))
    assembly = SimpleNamespace(
        clock=SimpleNamespace(now_ms=lambda: now_ms),
        report=lambda: None,
        flush=lambda: None,
        deployments=deployments,
    )
    function = lambda_entry.DispatcherFunction()
    parts = SimpleNamespace(assembly=assembly, serverless=SimpleNamespace(tick=tick), discovered_ms=0, asked_in_vain=0)
    monkeypatch.setattr(function, "_parts", parts)
    try:
        for now_ms in (1_000, 6_000, 12_000, 17_000, 28_000, 38_000, 60_000):  # noqa: B007 - read by the clock
            function({"tenuto": "sweep"}, context())
        assert asked == [6_000, 17_000, 38_000]
    finally:
        monkeypatch.undo()
        function.close()


def test_its_lines_are_json_and_name_the_invocation_of_lambda(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root_logger: logging.Logger
) -> None:
    monkeypatch.delenv("TENUTO_LOG_FORMAT", raising=False)
    monkeypatch.setenv(lambda_entry.CONFIG_VARIABLE, "nowhere/tenuto.toml")
    lambdas_own = logging.StreamHandler()
    root_logger.addHandler(lambdas_own)
    function = lambda_entry.DispatcherFunction()
    try:
        for request_id in ("r-1", "r-2"):
            asked = context()
            asked.aws_request_id = request_id
            with pytest.raises(ConfigError):
                function({"tenuto": "sweep"}, asked)
            lambda_entry.log.warning("%s waits", "orders/ann", extra={"service": "orders", "key": "ann"})
    finally:
        function.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["function_request_id"] for line in lines] == ["r-1", "r-2"]
    assert [line["service"] for line in lines] == ["orders", "orders"]
    assert lambdas_own not in root_logger.handlers


@pytest.mark.parametrize("variable", ["TENUTO_LOG_FORMAT", "TENUTO_LOG_LEVEL"])
def test_a_setting_of_the_log_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "loud")
    function = lambda_entry.DispatcherFunction()
    try:
        with pytest.raises(ConfigError, match=f"{variable}.* is one of .*, not 'loud'"):
            function({"tenuto": "sweep"}, context())
    finally:
        function.close()


def test_an_event_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    function = lambda_entry.DispatcherFunction()
    assembly = SimpleNamespace(
        clock=SimpleNamespace(now_ms=int),
        report=lambda: None,
        flush=lambda: None,
        deployments=SimpleNamespace(unanswered=()),
    )
    monkeypatch.setattr(function, "_parts", SimpleNamespace(assembly=assembly, discovered_ms=0, asked_in_vain=0))
    try:
        with pytest.raises(ProtocolError, match="not \\['type'\\]"):
            function({"type": "activation"}, context())
    finally:
        monkeypatch.undo()
        function.close()
