"""Lambda as its callers see it through boto3: answers, errors, limits, and functions that die."""

import base64
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from tenuto_local import ConfigurationError, EmbeddedStack, FunctionSpec
from tests.local.conftest import FUNCTIONS
from tests.support.stack import register, run

pytestmark = pytest.mark.stack


def invoke(client: Any, event: Any, name: str = "sample", **options: Any) -> tuple[Any, Any]:
    """Invoke and return (kind of function error or None, decoded payload)."""
    answer = client.invoke(FunctionName=name, Payload=json.dumps(event).encode(), **options)
    payload = answer["Payload"].read()
    return answer.get("FunctionError"), json.loads(payload) if payload else None


def refusal(client: Any, event: Any, name: str, **options: Any) -> ClientError:
    """Invoke and return the error of the service."""
    with pytest.raises(ClientError) as refused:
        invoke(client, event, name, **options)
    return refused.value


class Background(threading.Thread):
    """An invocation that runs while the test does something else."""

    def __init__(self, client: Any, event: Any, name: str) -> None:
        super().__init__()
        self._arguments = (client, event, name)
        self.result: tuple[Any, Any] = (None, None)
        self.start()

    def run(self) -> None:
        self.result = invoke(*self._arguments)

    def outcome(self) -> tuple[Any, Any]:
        self.join(20)
        assert not self.is_alive()
        return self.result


def busy_pid(stack: EmbeddedStack, name: str) -> int:
    """Wait until a worker of the function has an invocation; its process id."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for worker in run(stack.describe_functions())[name]["workers"]:
            if worker["state"] == "busy":
                assert worker["request_id"]
                return int(worker["pid"])
        time.sleep(0.01)
    raise AssertionError(f"no worker of {name} became busy")


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter when it is reaped while being read
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_handler_returns(lambda_client: Any) -> None:
    answer = lambda_client.invoke(FunctionName="sample", Payload=b'{"greeting": "\xc3\xa9"}')
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert "FunctionError" not in answer
    assert json.loads(answer["Payload"].read()) == {"greeting": "é"}


def test_the_context_is_what_aws_gives(functions: EmbeddedStack, lambda_client: Any) -> None:
    context = base64.b64encode(json.dumps({"custom": {"trace": "7"}}).encode()).decode()
    error, seen = invoke(lambda_client, {"do": "describe"}, ClientContext=context)
    assert error is None
    assert seen["arn"].endswith(":function:sample")
    assert seen["name"] == "sample"
    assert len(seen["request_id"]) == 36
    assert 4000 < seen["remaining_ms"] <= 5000
    assert seen["client"] == {"trace": "7"}
    assert seen["endpoint"] == functions.dynamodb_endpoint_url
    assert seen["colour"] == "blue"
    assert seen["directory"] == FUNCTIONS
    assert seen["pid"] in run(functions.worker_pids("sample"))


@pytest.mark.parametrize("name", ["sample:live", "arn:aws:lambda:us-east-1:000000000000:function:sample:$LATEST"])
def test_a_function_is_found_by_alias_and_arn(lambda_client: Any, name: str) -> None:
    assert invoke(lambda_client, 1, name)[0] == "Unhandled"  # a number has no `get`: the handler was reached


def test_an_exception_is_a_function_error(lambda_client: Any) -> None:
    error, payload = invoke(lambda_client, {"do": "raise"})
    assert error == "Unhandled"
    assert (payload["errorType"], payload["errorMessage"]) == ("ValueError", "no such order")
    assert "sample.py" in payload["stackTrace"][0]


@pytest.mark.parametrize(
    ("status", "message"),
    [(3, "Runtime exited with error: exit status 3"), (0, "Runtime exited without providing a reason")],
)
def test_a_crash_is_an_exit_error(lambda_client: Any, status: int, message: str) -> None:
    error, payload = invoke(lambda_client, {"do": "exit", "status": status})
    assert error == "Unhandled"
    assert payload["errorType"] == "Runtime.ExitError"
    assert payload["errorMessage"].endswith(message)
    assert invoke(lambda_client, {"next": 1}) == (None, {"next": 1})


def test_a_timeout_kills_the_process(functions: EmbeddedStack, lambda_client: Any) -> None:
    call = Background(lambda_client, {"do": "sleep", "seconds": 30}, "single")
    pid = busy_pid(functions, "single")
    error, payload = call.outcome()
    assert error == "Unhandled"
    assert payload["errorMessage"].endswith("Task timed out after 1.00 seconds")
    wait_gone(pid)
    assert invoke(lambda_client, {"next": 1}, "single") == (None, {"next": 1})


def test_a_killed_worker_is_an_exit_error_and_is_replaced(functions: EmbeddedStack, lambda_client: Any) -> None:
    call = Background(lambda_client, {"do": "sleep", "seconds": 4}, "sample")
    os.kill(busy_pid(functions, "sample"), signal.SIGKILL)
    error, payload = call.outcome()
    assert error == "Unhandled"
    assert payload["errorMessage"].endswith("Runtime exited with error: signal: killed")
    assert invoke(lambda_client, {"next": 1}) == (None, {"next": 1})


def test_a_worker_lost_while_idle_is_replaced_silently(functions: EmbeddedStack, lambda_client: Any) -> None:
    assert invoke(lambda_client, {"first": 1}) == (None, {"first": 1})
    before = run(functions.worker_pids("sample"))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for pid in before:
        wait_gone(pid)
    deadline = time.monotonic() + 5
    while not (after := run(functions.worker_pids("sample"))) or set(after) & set(before):
        assert time.monotonic() < deadline, "no worker came in the place of the lost ones"
    assert invoke(lambda_client, {"next": 1}) == (None, {"next": 1})


def test_what_a_handler_forked_dies_with_its_worker(lambda_client: Any) -> None:
    _, pids = invoke(lambda_client, {"do": "fork"})
    os.kill(pids["pid"], signal.SIGKILL)
    wait_gone(pids["child"])


def test_the_concurrency_limit_is_a_429(functions: EmbeddedStack, lambda_client: Any) -> None:
    call = Background(lambda_client, {"do": "sleep", "seconds": 0.5}, "single")
    busy_pid(functions, "single")
    error = refusal(lambda_client, {}, "single").response
    assert error["Error"]["Code"] == "TooManyRequestsException"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert cast("Any", error)["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert call.outcome() == (None, "slept")


def test_as_many_callers_as_workers_are_never_throttled(lambda_client: Any) -> None:
    def call() -> None:
        for number in range(100):
            assert invoke(lambda_client, {"n": number}) == (None, {"n": number})

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)


def test_a_queue_lets_callers_wait(functions: EmbeddedStack, lambda_client: Any) -> None:
    spec = FunctionSpec(name="queued", handler="sample.handler", root=FUNCTIONS, concurrency=1, queue_limit=1)
    register(functions, spec)
    calls = [Background(lambda_client, {"do": "sleep", "seconds": 0.2}, "queued") for _ in range(2)]
    assert [call.outcome() for call in calls] == [(None, "slept")] * 2


def test_an_unknown_function_is_a_404(lambda_client: Any) -> None:
    error = refusal(lambda_client, {}, "absent").response
    assert error["Error"]["Code"] == "ResourceNotFoundException"
    assert error["Error"]["Message"].endswith(":function:absent")


def test_a_module_that_cannot_be_imported(lambda_client: Any) -> None:
    for _ in range(2):
        error, payload = invoke(lambda_client, {}, "broken")
        assert error == "Unhandled"
        assert payload["errorType"] == "Runtime.ImportModuleError"
        assert "there_is_no_such_module" in payload["errorMessage"]


def test_a_request_above_six_megabytes_is_refused(lambda_client: Any) -> None:
    largest = "x" * (6_291_456 - 2)
    assert invoke(lambda_client, largest[:6_000_000], "sample")[0] is not None  # a string has no `get`
    error = refusal(lambda_client, largest + "x", "sample").response
    assert error["Error"]["Code"] == "RequestTooLargeException"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 413


def test_a_response_above_six_megabytes_is_a_function_error(lambda_client: Any) -> None:
    assert invoke(lambda_client, {"do": "large", "bytes": 6_000_000}) == (None, "x" * 6_000_000)
    error, payload = invoke(lambda_client, {"do": "large", "bytes": 6_300_000})
    assert error == "Unhandled"
    assert payload["errorType"] == "Function.ResponseSizeTooLarge"
    assert invoke(lambda_client, {"next": 1}) == (None, {"next": 1})


def test_an_event_is_accepted_at_once_and_retried_twice(lambda_client: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    event = json.dumps({"do": "count", "file": str(file), "fail": True}).encode()
    answer = lambda_client.invoke(FunctionName="sample", InvocationType="Event", Payload=event)
    assert answer["StatusCode"] == 202
    deadline = time.monotonic() + 5
    while not file.exists() or len(file.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(file.read_text().splitlines()) == 3


def test_events_beyond_the_concurrency_limit_wait_for_their_turn(lambda_client: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    event = json.dumps({"do": "count", "file": str(file)}).encode()
    for _ in range(5):
        lambda_client.invoke(FunctionName="single", InvocationType="Event", Payload=event)
    deadline = time.monotonic() + 10
    while not file.exists() or len(file.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_dry_run_runs_nothing(functions: EmbeddedStack, lambda_client: Any) -> None:
    before = run(functions.describe_functions())["sample"]["invocations"]
    assert lambda_client.invoke(FunctionName="sample", InvocationType="DryRun")["StatusCode"] == 204
    assert run(functions.describe_functions())["sample"]["invocations"] == before


def test_a_new_version_takes_the_place_of_the_old(functions: EmbeddedStack, lambda_client: Any) -> None:
    for colour in ("red", "green"):
        spec = FunctionSpec(name="deployed", handler="sample.handler", root=FUNCTIONS, environment={"COLOUR": colour})
        register(functions, spec)
        assert invoke(lambda_client, {"do": "describe"}, "deployed")[1]["colour"] == colour
    assert len(run(functions.worker_pids("deployed"))) == 1


def test_what_waits_goes_to_the_new_version(functions: EmbeddedStack, lambda_client: Any) -> None:
    spec = FunctionSpec(name="moved", handler="sample.handler", root=FUNCTIONS, concurrency=1, queue_limit=5)
    register(functions, spec)
    first = Background(lambda_client, {"do": "sleep", "seconds": 1.0}, "moved")
    old = busy_pid(functions, "moved")
    waiting = Background(lambda_client, {"do": "describe"}, "moved")
    while run(functions.describe_functions())["moved"]["queued"] == 0:
        time.sleep(0.01)
    register(functions, spec)
    assert waiting.outcome()[1]["pid"] != old
    assert first.outcome() == (None, "slept")


def test_a_held_function_keeps_its_processes_and_starts_no_others(functions: EmbeddedStack, lambda_client: Any) -> None:
    spec = FunctionSpec(name="held", handler="sample.handler", root=FUNCTIONS, concurrency=2, queue_limit=5)
    register(functions, spec)
    pid = invoke(lambda_client, {"do": "describe"}, "held")[1]["pid"]
    run(functions.hold("held"))
    first = Background(lambda_client, {"do": "sleep", "seconds": 0.5}, "held")
    busy_pid(functions, "held")
    second = Background(lambda_client, {"do": "describe"}, "held")
    assert second.outcome()[1]["pid"] == pid, "a second process was started"
    assert first.outcome() == (None, "slept")
    with pytest.raises(ConfigurationError, match="no function 'nobody'"):
        run(functions.hold("nobody"))


def test_the_configuration_of_a_function_can_be_read(lambda_client: Any) -> None:
    configuration = lambda_client.get_function_configuration(FunctionName="single")
    assert (configuration["Timeout"], configuration["Handler"]) == (1, "sample.handler")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"handler": "handler"}, "module.attribute"),
        ({"root": "/no/such/directory"}, "not a directory"),
        ({"timeout_s": 901.0}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"name": "a b"}, "letters"),
    ],
)
def test_a_function_that_cannot_run_is_refused(functions: EmbeddedStack, change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"name": "bad", "handler": "sample.handler", "root": FUNCTIONS} | change
    with pytest.raises(ConfigurationError, match=message):
        register(functions, FunctionSpec(**fields))
