"""Invoker and scheduler on the embedded stack, through the clients the control plane opens."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tenuto_control.config import Config, ConfigError, FunctionConfig, SchedulerConfig
from tenuto_control.drivers.aws import AwsClients, open_clients
from tenuto_control.drivers.event_scheduler import (
    EventBridgeScheduler,
    NoScheduler,
    at_expression,
    schedule_name,
)
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.drivers.system import SystemClock
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    PayloadTooLargeError,
    SchedulerUnavailableError,
)
from tenuto_local import EmbeddedStack, FunctionSpec
from tests.support.stack import register, run, stack

__all__ = ["stack"]
pytestmark = pytest.mark.stack

ROLE = "arn:aws:iam::000000000000:role/r"
SCHEDULER = SchedulerConfig(role_arn=ROLE, target_arn="arn:aws:lambda:us-east-1:000000000000:function:work")
HANDLERS = """
import json, pathlib, time

def work(event, context):
    if "file" in event:
        pathlib.Path(event["file"]).write_text(str(time.time()))
    time.sleep(event.get("sleep", 0))
    if event.get("fail"):
        raise ValueError("no luck")
    if event.get("exit"):
        import os
        os._exit(3)
    return event | {"version": context.function_version}
"""


@pytest.fixture(scope="module")
def functions(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedStack:
    root = tmp_path_factory.mktemp("handlers")
    (root / "handlers.py").write_text(HANDLERS)
    register(
        stack,
        FunctionSpec(name="work", handler="handlers.work", root=str(root), timeout_s=2.0, concurrency=4),
        FunctionSpec(name="single", handler="handlers.work", root=str(root), timeout_s=2.0, concurrency=1),
    )
    return stack


@pytest.fixture
def with_clients(
    functions: EmbeddedStack, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[AwsClients], Coroutine[Any, Any, None]]], None]:
    for name, value in functions.environment().items():
        monkeypatch.setenv(name, value)

    def play(scenario: Callable[[AwsClients], Coroutine[Any, Any, None]], limits: Limits | None = None) -> None:
        async def opened() -> None:
            async with open_clients(Config(functions={}, limits=limits or Limits())) as clients:
                await scenario(clients)

        run(opened())

    return play


def invoker(clients: AwsClients) -> LambdaInvoker:
    return LambdaInvoker(
        clients.lambda_,
        {
            "app": FunctionConfig(function="work"),
            "work": FunctionConfig(),
            "single": FunctionConfig(),
            "gone": FunctionConfig(),
        },
    )


def test_the_answer_of_a_function_comes_back(with_clients: Any) -> None:
    async def scenario(clients: AwsClients) -> None:
        for name in ("app", "work"):
            answer = json.loads(await invoker(clients).invoke(name, b'{"a": 1}'))
            assert answer["a"] == 1

    with_clients(scenario)


def test_failures_of_a_function_carry_its_words(with_clients: Any) -> None:
    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(FunctionFailedError, match='function "work" failed: ValueError: no luck'):
            await invoker(clients).invoke("work", b'{"fail": true}')
        with pytest.raises(FunctionFailedError, match="exit"):
            await invoker(clients).invoke("work", b'{"exit": true}')
        with pytest.raises(FunctionFailedError, match=r"(?i)timed out"):
            await invoker(clients).invoke("work", b'{"sleep": 10}')

    with_clients(scenario)


def test_refusals_of_the_service_are_told_apart(with_clients: Any) -> None:
    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(FunctionMissingError, match="check its name"):
            await invoker(clients).invoke("gone", b"{}")
        with pytest.raises(FunctionMissingError, match=r"add a section \[functions.unheard\]"):
            await invoker(clients).invoke("unheard", b"{}")
        with pytest.raises(PayloadTooLargeError):
            await invoker(clients).invoke("work", b'"' + b"x" * 6_300_000 + b'"')
        busy = asyncio.create_task(invoker(clients).invoke("single", b'{"sleep": 1}'))
        await asyncio.sleep(0.3)
        with pytest.raises(FunctionThrottledError):
            await invoker(clients).invoke("single", b"{}")
        await busy

    with_clients(scenario)


def test_silence_is_unreachable(with_clients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def impatient(clients: AwsClients) -> None:
        with pytest.raises(FunctionUnreachableError, match="gave no answer"):
            await invoker(clients).invoke("work", b'{"sleep": 1}')

    with_clients(impatient, Limits(invoke_read_timeout_ms=200))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    async def nobody_there(clients: AwsClients) -> None:
        with pytest.raises(FunctionUnreachableError, match="gave no answer"):
            await invoker(clients).invoke("work", b"{}")
        with pytest.raises(SchedulerUnavailableError, match="gave no answer"):
            await EventBridgeScheduler(clients.scheduler, SCHEDULER).schedule("x", 0, b"{}")
        with pytest.raises(SchedulerUnavailableError, match="gave no answer"):
            await EventBridgeScheduler(clients.scheduler, SCHEDULER).cancel("x")

    with_clients(nobody_there)


def test_a_wake_up_is_scheduled_once_fires_and_is_gone(with_clients: Any, tmp_path: Path) -> None:
    async def scenario(clients: AwsClients) -> None:
        scheduler = EventBridgeScheduler(clients.scheduler, SCHEDULER)
        file = tmp_path / "woken"
        due_ms = SystemClock().now_ms() + 1_000
        payload = json.dumps({"file": str(file)}).encode()
        await scheduler.schedule("lane/with/slashes#1", due_ms, payload)
        await scheduler.schedule("lane/with/slashes#1", due_ms, payload)
        for _ in range(200):
            if file.exists() and file.read_text():
                break
            await asyncio.sleep(0.05)
        assert float(file.read_text()) * 1_000 >= due_ms
        await scheduler.cancel("lane/with/slashes#1")

    with_clients(scenario)


def test_a_cancelled_wake_up_does_not_fire(with_clients: Any, tmp_path: Path) -> None:
    async def scenario(clients: AwsClients) -> None:
        scheduler = EventBridgeScheduler(clients.scheduler, SCHEDULER)
        file = tmp_path / "woken"
        await scheduler.schedule("other", SystemClock().now_ms() + 1_000, json.dumps({"file": str(file)}).encode())
        await scheduler.cancel("other")
        await scheduler.cancel("other")
        await asyncio.sleep(2.5)
        assert not file.exists()

    with_clients(scenario)


def test_a_scheduler_that_refuses_says_why(with_clients: Any) -> None:
    async def scenario(clients: AwsClients) -> None:
        lost = SchedulerConfig(role_arn=ROLE, target_arn=SCHEDULER.target_arn, group="nowhere")
        with pytest.raises(SchedulerUnavailableError, match="refused a wake-up"):
            await EventBridgeScheduler(clients.scheduler, lost).schedule("x", 0, b"{}")

    with_clients(scenario)


def test_no_scheduler_takes_everything() -> None:
    async def scenario() -> None:
        await NoScheduler().schedule("x", 0, b"")
        await NoScheduler().cancel("x")

    asyncio.run(scenario())


def test_names_are_legal_and_distinct() -> None:
    texts = ["a", "a/b", "a-b", "é" * 300, "x" * 64, "x" * 65, ""]
    names = [schedule_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(re.fullmatch(r"[0-9a-zA-Z-_.]{1,64}", name) for name in names)


def test_expressions_round_up_to_the_second() -> None:
    assert at_expression(1_700_000_000_000) == "at(2023-11-14T22:13:20)"
    assert at_expression(1_700_000_000_001) == "at(2023-11-14T22:13:21)"


def test_a_missing_region_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="set AWS_REGION"):
            async with open_clients(Config(functions={})):
                pass

    asyncio.run(scenario())
