"""The processes that run LocalStack's functions, without LocalStack: answers, errors, crashes, time limits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tenuto_local.localstack.inside.runtime_process import PORT_MAX, PORT_MIN, Invocation, RuntimeProcess
from tests.local.conftest import FUNCTIONS

Start = Callable[..., RuntimeProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process for a handler of `functions/`."""
    started: list[RuntimeProcess] = []

    def begin(handler: str = "sample.handler") -> RuntimeProcess:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": FUNCTIONS,
            "LAMBDA_TASK_ROOT": FUNCTIONS,
            "AWS_LAMBDA_FUNCTION_NAME": "sample",
            "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1",
        }
        process = RuntimeProcess([sys.executable, "-m", "awslambdaric", handler], environment, tmp_path / "log")
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()


def run(process: RuntimeProcess, event: Any, timeout_s: float = 10.0) -> tuple[bool, Any]:
    """Whether it failed, and the answer."""
    outcome = process.run(Invocation("request", "arn:function", "Root=1", json.dumps(event).encode()), timeout_s)
    return outcome.failed, json.loads(outcome.payload)


def test_one_invocation_after_another_is_answered(start: Start) -> None:
    process = start()
    assert process.wait_ready() is None
    for number in range(3):
        assert run(process, {"n": number, "large": "ü" * 100_000}) == (False, {"n": number, "large": "ü" * 100_000})
    failed, seen = run(process, {"do": "describe"}, timeout_s=5.0)
    assert not failed
    assert (seen["request_id"], seen["arn"]) == ("request", "arn:function")
    assert 4_000 < seen["remaining_ms"] <= 5_000


def test_an_exception_is_the_functions_own(start: Start) -> None:
    process = start()
    failed, error = run(process, {"do": "raise"})
    assert failed
    assert (error["errorType"], error["errorMessage"]) == ("ValueError", "no such order")
    assert run(process, {"next": 1}) == (False, {"next": 1})


def test_an_end_of_the_process_ends_its_invocation(start: Start) -> None:
    process = start()
    failed, error = run(process, {"do": "exit", "status": 3})
    assert failed
    assert error["errorMessage"].endswith("Runtime exited with error: exit status 3")
    assert not process.running
    assert run(process, {"too": "late"})[0]


def test_a_time_limit_kills_the_process(start: Start) -> None:
    process = start()
    assert process.wait_ready() is None
    began_s = time.monotonic()
    failed, error = run(process, {"do": "sleep", "seconds": 30}, timeout_s=0.3)
    assert failed
    assert error["errorMessage"].endswith("Task timed out after 0.30 seconds")
    assert time.monotonic() - began_s < 5
    assert not process.running


def test_a_module_that_cannot_be_imported_is_told(start: Start) -> None:
    failure = start("broken.handler").wait_ready()
    assert failure is not None
    error = json.loads(failure)
    assert error["errorType"] == "Runtime.ImportModuleError"
    assert "there_is_no_such_module" in error["errorMessage"]


def test_what_is_logged_is_found_by_position(start: Start, tmp_path: Path) -> None:
    process = start()
    run(process, {"first": 1})
    position = process.log_size()
    with (tmp_path / "log").open("a") as log:
        log.write("said later\n")
    assert process.log_from(position) == "said later\n"


def test_ports_lie_below_the_ephemeral_range() -> None:
    assert 1_024 < PORT_MIN < PORT_MAX < 32_768
