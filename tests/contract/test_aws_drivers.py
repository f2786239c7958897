"""What the AWS drivers say beyond their ports: names, expressions and error texts, on the embedded stack.

Does not own the ports' contracts (`test_function_invoker`, `test_wake_scheduler`).
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from tenuto.store.aws_client import CLIENT_VARIABLE
from tenuto.wire.dynamodb import WireDynamo
from tenuto_control.config import Config, ConfigError, FunctionConfig, SchedulerConfig
from tenuto_control.drivers.aws import AwsClients, open_clients
from tenuto_control.drivers.aws_wire import WireLambda
from tenuto_control.drivers.event_scheduler import (
    EventBridgeScheduler,
    NoScheduler,
    at_expression,
    schedule_name,
)
from tenuto_control.drivers.invoke_client import BotocoreLambda
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.ports import (
    FunctionFailedError,
    FunctionMissingError,
    FunctionUnreachableError,
    SchedulerUnavailableError,
)
from tenuto_local import EmbeddedStack, FunctionSpec
from tests.contract.conftest import NOBODY, WithClients
from tests.support.stack import register

pytestmark = pytest.mark.stack

ROLE = "arn:aws:iam::000000000000:role/r"
SCHEDULER = SchedulerConfig(role_arn=ROLE, target_arn="arn:aws:lambda:us-east-1:000000000000:function:work")
HANDLERS = """
import time

def work(event, context):
    time.sleep(event.get("sleep", 0))
    if event.get("fail"):
        raise ValueError("no luck")
    if event.get("exit"):
        import os
        os._exit(3)
    return event | {"version": context.function_version}
"""


@pytest.fixture(scope="module", autouse=True)
def functions(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("handlers")
    (root / "handlers.py").write_text(HANDLERS)
    register(stack, FunctionSpec(name="work", handler="handlers.work", root=str(root), timeout_s=2.0, concurrency=4))


def invoker(clients: AwsClients) -> LambdaInvoker:
    return LambdaInvoker(
        clients.lambda_,
        {
            "app": FunctionConfig(function="work"),
            "work": FunctionConfig(),
            "gone": FunctionConfig(),
        },
    )


def test_a_name_of_the_configuration_may_differ_from_the_functions(with_clients: WithClients) -> None:
    async def scenario(clients: AwsClients) -> None:
        for name in ("app", "work"):
            answer = json.loads(await invoker(clients).invoke(name, b'{"a": 1}'))
            assert answer["a"] == 1

    with_clients(scenario)


def test_failures_of_a_function_carry_its_words(with_clients: WithClients) -> None:
    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(FunctionFailedError, match='function "work" failed: ValueError: no luck'):
            await invoker(clients).invoke("work", b'{"fail": true}')
        with pytest.raises(FunctionFailedError, match="exit"):
            await invoker(clients).invoke("work", b'{"exit": true}')
        with pytest.raises(FunctionFailedError, match=r"(?i)timed out"):
            await invoker(clients).invoke("work", b'{"sleep": 10}')

    with_clients(scenario)


def test_a_function_that_is_not_there_says_what_to_do(with_clients: WithClients) -> None:
    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(FunctionMissingError, match="check its name"):
            await invoker(clients).invoke("gone", b"{}")
        with pytest.raises(FunctionMissingError, match=r"add a section \[functions.unheard\]"):
            await invoker(clients).invoke("unheard", b"{}")

    with_clients(scenario)


def test_silence_is_told_as_silence(with_clients: WithClients) -> None:
    async def nobody_there(clients: AwsClients) -> None:
        with pytest.raises(FunctionUnreachableError, match="gave no answer"):
            await invoker(clients).invoke("work", b"{}")
        with pytest.raises(SchedulerUnavailableError, match="gave no answer"):
            await EventBridgeScheduler(clients.scheduler, SCHEDULER).schedule("x", 0, b"{}")
        with pytest.raises(SchedulerUnavailableError, match="gave no answer"):
            await EventBridgeScheduler(clients.scheduler, SCHEDULER).cancel("x")

    with_clients(nobody_there, endpoint=NOBODY)


def test_a_scheduler_that_refuses_says_why(with_clients: WithClients) -> None:
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
    assert at_expression(2**63 - 1) == "at(9999-12-31T23:59:59)"
    assert at_expression(-(2**63)) == "at(1970-01-01T00:00:00)"


def test_a_missing_region_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="set AWS_REGION"):
            async with open_clients(Config(functions={})):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("region", "fips", "domain"),
    [
        ("eu-central-1", "false", "{}.eu-central-1.amazonaws.com"),
        ("us-east-1", "true", "{}-fips.us-east-1.amazonaws.com"),
        ("cn-north-1", "false", "{}.cn-north-1.amazonaws.com.cn"),
        ("eusc-de-east-1", "false", "{}.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_requests_go_to_the_endpoint_of_their_partition(
    region: str, fips: str, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_LAMBDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", fips)

    async def scenario() -> None:
        async with open_clients(Config(functions={})) as clients:
            for service, client in (("dynamodb", clients.dynamodb), ("lambda", clients.lambda_)):
                assert isinstance(client, WireDynamo | WireLambda)
                to = client._http._to
                assert (to.authority, to.region, to.service) == (domain.format(service), region, service)
                assert (to.tls, to.base_path) == (True, "")

    asyncio.run(scenario())


def test_a_client_that_does_not_exist_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLIENT_VARIABLE, "curl")

    async def scenario() -> None:
        with pytest.raises(ConfigError, match=r"^TENUTO_AWS_CLIENT is wire or botocore, not curl$"):
            async with open_clients(Config(functions={})):
                pass

    asyncio.run(scenario())


def test_a_proxy_behind_tls_is_left_to_aiobotocore(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_LAMBDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("https_proxy", "https://proxy.example")
    monkeypatch.setenv("no_proxy", "")

    async def scenario() -> None:
        async with open_clients(Config(functions={})) as clients:
            assert isinstance(clients.lambda_, BotocoreLambda)
            assert not isinstance(clients.dynamodb, WireDynamo)

    asyncio.run(scenario())
    said = [record.getMessage() for record in caplog.records if record.name == "tenuto.aws"]
    assert [line.split()[2] for line in said] == ["dynamodb", "lambda"]
    assert all("the proxy is used over plain HTTP only" in line for line in said)
