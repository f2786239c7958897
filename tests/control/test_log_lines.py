"""Log lines of the control plane: text for people, JSON for programs, and the fields that say what a line is about.

Owns how lines look and what they are told. Does not own what may be in one (`test_no_payload_in_logs`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.records import Event, KafkaSource
from tenuto_control.config import ConfigError
from tenuto_control.drivers import log_lines
from tests.costs.meter import meter_of
from tests.support.virtual_time import run_virtual

FIELDS = ("service", "key", "invocation_id", "handler", "attempt")
SECONDS_MAX = 60


def line_of(record: logging.LogRecord) -> dict[str, Any]:
    """A record as the JSON formatter writes it."""
    text = log_lines.json_formatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert isinstance(line, dict)
    return line


def record_of(*arguments: Any, **extra: Any) -> logging.LogRecord:
    """A record as a logger makes it."""
    return logging.getLogger("tenuto.lane").makeRecord(
        "tenuto.lane", logging.WARNING, __file__, 1, "%s: %s", arguments, extra.pop("exc_info", None), extra=extra
    )


def tenuto(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TENUTO_")}
    return subprocess.run(
        [sys.executable, "-m", "tenuto_control", *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def test_a_json_line_is_one_object_with_the_fields_of_its_record() -> None:
    line = line_of(record_of("orders/ann", "it fails", service="orders", key="ann", attempt=3))
    assert line["level"] == "WARNING"
    assert line["message"] == "orders/ann: it fails"
    assert line["name"] == "tenuto.lane"
    assert (line["service"], line["key"], line["attempt"]) == ("orders", "ann", 3)
    assert line["timestamp"].endswith("+00:00")
    assert not {"invocation_id", "handler", "exception"} & line.keys()


def test_a_traceback_is_part_of_its_line() -> None:
    with pytest.raises(ValueError, match="no number") as raised:
        int("no number")
    line = line_of(record_of("orders/ann", "unforeseen", exc_info=raised._excinfo))
    assert line["exception_name"] == "ValueError"
    assert line["exception"].startswith("Traceback")
    assert "stack_trace" not in line


@pytest.mark.parametrize("durable", [False, True], ids=["before its claim", "after its claim"])
def test_lines_of_function_and_control_plane_name_an_attempt_alike(
    caplog: pytest.LogCaptureFixture, *, durable: bool
) -> None:
    box = VirtualObject("box")
    policy = InvocationRetryPolicy(initial_interval=timedelta(seconds=10), max_attempts=2)
    source = KafkaSource("0", "t", 0, 0, 0)
    event = Event(str(InvocationId(Lane("box", "ann"), "n1")), "act", source, b"1")

    @box.handler(retry_policy=policy)
    async def act(ctx: ObjectContext, _n: int) -> None:
        if durable:
            await ctx.run("a", int)
        raise RuntimeError("no luck")

    async def scenario() -> None:
        meter = meter_of(box)
        meter.dispatcher.deliver(event, lambda: None)
        await asyncio.sleep(60)

    with caplog.at_level(logging.INFO):
        run_virtual(scenario())
    lines = [(r.name, r.getMessage(), r) for r in caplog.records]
    functions = [tuple(r.__dict__[name] for name in FIELDS) for name, _, r in lines if name == "tenuto.handler"]
    planes = [tuple(r.__dict__[name] for name in FIELDS) for name, _, r in lines if name == "tenuto.lane"]
    assert functions == [("box", "ann", event.id, "act", attempt) for attempt in (1, 2)]
    assert planes == functions[:1]
    assert all(t.startswith("box/ann: attempt at act failed") for name, t, _ in lines if name == "tenuto.lane")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--log-format", "xml"], {}),
        ([], {"TENUTO_LOG_FORMAT": "xml"}),
        (["--log-level", "loud"], {}),
        ([], {"TENUTO_LOG_LEVEL": "loud"}),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(arguments: list[str], environment: dict[str, str]) -> None:
    ended = tenuto(*arguments, "check", **environment)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tenuto: the log ")
    assert " is one of " in line


def test_what_ends_a_process_that_writes_json_is_a_line_of_json(tmp_path: Path) -> None:
    ended = tenuto("check", "--config", str(tmp_path / "nowhere.toml"), TENUTO_LOG_FORMAT="json")
    assert ended.returncode == 2
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert line["level"] == "CRITICAL"
    assert "no such file" in line["message"]
    program = "import sys; from tenuto_control.drivers import log_lines as l; l.set_up('json', 'info'); sys.exit(1 / 0)"
    broken = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    (line,) = map(json.loads, broken.stderr.splitlines())
    assert line["exception_name"] == "ZeroDivisionError"
    assert broken.returncode == 1


def test_text_is_what_it_is_by_default(tmp_path: Path) -> None:
    ended = tenuto("check", "--config", str(tmp_path / "nowhere.toml"))
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tenuto: ")


def test_a_setting_may_be_in_capital_letters() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log_lines.set_up("TEXT", "DEBUG")
        with pytest.raises(ConfigError, match="TENUTO_LOG_FORMAT"):
            log_lines.set_up("", "info")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
