"""The life of a stack: one endpoint for all, nothing started that is named from outside, nothing left."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import pytest

from tenuto_local import ConfigurationError, EmbeddedStack, FunctionSpec, PrerequisiteMissing, ProcessFailed
from tenuto_local.prerequisites import PrerequisiteReport, Tool
from tests.local.conftest import FUNCTIONS
from tests.local.test_lambda import alive, wait_gone
from tests.support.programs import Program
from tests.support.stack import aws_client, run

SCRIPT = """
import asyncio, os, sys
from tenuto_local import EmbeddedStack, FunctionSpec
import boto3

async def main():
    spec = FunctionSpec(name="sample", handler="sample.handler", root=sys.argv[1])
    async with EmbeddedStack(functions=[spec]) as stack:
        os.environ.update(stack.environment())
        client = boto3.client("lambda")
        await asyncio.to_thread(client.invoke, FunctionName="sample", Payload=b"{}")
        print("up", stack.workdir, *await stack.worker_pids("sample"), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def descendants(pid: int) -> set[int]:
    """The process ids below `pid`."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found.update(children)
        todo += children
    return found


@pytest.mark.stack
def test_boto3_needs_nothing_but_the_environment(functions: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in functions.environment().items():
        monkeypatch.setenv(name, value)
    # The session that boto3 keeps for a process may know the credentials of an earlier stack.
    session = boto3.Session()
    assert session.client("sts").get_caller_identity()["Account"] == "000000000000"
    assert session.client("lambda").invoke(FunctionName="sample", Payload=b"{}")["StatusCode"] == 200
    assert session.client("scheduler").list_schedules()["Schedules"] == []
    assert isinstance(session.client("dynamodb").list_tables()["TableNames"], list)


@pytest.mark.stack
def test_a_service_that_is_not_there_says_so(stack: EmbeddedStack) -> None:
    client = aws_client(stack, "sqs")
    with pytest.raises(client.exceptions.ClientError, match="no service 'sqs'"):
        client.list_queues()


@pytest.mark.stack
def test_what_the_environment_names_is_not_started(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)

    async def scenario() -> None:
        before = descendants(os.getpid())
        async with EmbeddedStack() as second:
            assert descendants(os.getpid()) == before
            assert second.environment() == stack.environment()
            with pytest.raises(ConfigurationError, match="TENUTO_BOOTSTRAP_SERVERS"):
                _ = second.broker
            with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL"):
                await second.worker_pids("sample")

    run(scenario())


@pytest.mark.stack
@pytest.mark.parametrize(("number", "workdir_stays"), [(signal.SIGINT, False), (signal.SIGKILL, True)])
def test_nothing_runs_after_the_parent_is_gone(number: signal.Signals, workdir_stays: bool, tmp_path: Path) -> None:
    program = Program([sys.executable, "-c", SCRIPT, FUNCTIONS], tmp_path / "log")
    try:
        up = program.shows(r"^up (\S+) (\d+)$")
        started = descendants(program.pid)
        assert len(started) >= 4  # broker, DynamoDB, gateway, worker
        assert int(up[2]) in started
        program.send(number)
        program.wait(20)
    finally:
        program.close()
    for pid in started:
        wait_gone(pid)
    workdir = Path(up[1])
    assert workdir.exists() is workdir_stays
    if workdir_stays:
        # The next stack sweeps what a killed one could not remove, once it is old enough to be surely
        # abandoned.
        os.utime(workdir, (time.time() - 3600, time.time() - 3600))
        sweep = "from tenuto_local.workdir import sweep_abandoned; sweep_abandoned()"
        subprocess.run([sys.executable, "-c", sweep], check=True, timeout=60)
        assert not workdir.exists()


@pytest.mark.stack
def test_a_component_that_cannot_start_takes_the_others_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tenuto_local.stack.READY_MARKER", "never said")
    monkeypatch.setattr("tenuto_local.stack.GATEWAY_READY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = descendants(os.getpid())
    with pytest.raises(ProcessFailed, match="gateway was not ready within"):
        run(EmbeddedStack().start())
    assert not [pid for pid in descendants(os.getpid()) - before if alive(pid)]
    assert list(tmp_path.glob("tenuto-stack-*")) == []


def test_a_bad_function_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="not a directory"):
        EmbeddedStack(functions=[FunctionSpec(name="f", handler="a.b", root="/no/such/directory")])


def test_a_missing_tool_is_named_with_the_command_that_installs_it() -> None:
    java = Tool("Java", "11", "version 11 is too old, 17 or newer is needed", "openjdk-17-jdk-headless", "openjdk@17")
    maven = Tool("Maven", "", None, "maven", "maven")
    report = PrerequisiteReport((java, maven))
    assert report.line == "Java 11 ✗ Maven ✓"
    with pytest.raises(PrerequisiteMissing, match=r"Java: version 11 is too old.*install.*openjdk"):
        report.require()
    PrerequisiteReport((maven,)).require()


def test_maven_is_needed_only_to_fetch() -> None:
    report = PrerequisiteReport((Tool("Maven", "", "mvn not found", "maven", "maven"),))
    with pytest.raises(PrerequisiteMissing, match="mvn not found"):
        report.require()
    report.require(maven=False)


def test_the_gateway_refuses_bad_functions_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "functions.json"
    file.write_text('[{"name": "f"}]')
    command = [
        sys.executable,
        "-m",
        "tenuto_local.gateway",
        "--port",
        "1",
        "--dynamodb",
        "http://127.0.0.1:1",
    ]
    command += ["--functions", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "handler" in ended.stderr


def test_cancellation_while_starting_leaves_nothing() -> None:
    before = descendants(os.getpid())

    async def scenario() -> None:
        task = asyncio.create_task(EmbeddedStack().start())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
    assert not [pid for pid in descendants(os.getpid()) - before if alive(pid)]
