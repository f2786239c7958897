"""The invoker of the control plane against deployed functions: discovery, activations, and failures."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from tenuto.lane.head import parse_head
from tenuto.lane.writes import Key
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import (
    Committed,
    Discover,
    Head,
    Manifest,
    Outcome,
    Speculated,
    decode_outcome,
    encode,
)
from tenuto.protocol.records import Success
from tenuto.store.dynamodb import DynamoTable
from tenuto_control.config import FunctionConfig
from tenuto_control.drivers.aws import AwsClients
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.ports import FunctionFailedError, FunctionMissingError
from tests.localstack.conftest import Play
from tests.localstack.deployment import Deployment, activation


def invoker(clients: AwsClients, function: str) -> LambdaInvoker:
    return LambdaInvoker(clients.lambda_, {"app": FunctionConfig(function=function)})


def test_discovery_tells_what_a_function_serves(play: Play, deployment: Deployment) -> None:
    function = deployment.function("handler")

    async def scenario(clients: AwsClients) -> None:
        manifest = decode_outcome(await invoker(clients, function).invoke("app", encode(Discover())))
        assert isinstance(manifest, Manifest)
        (service,) = manifest.services
        assert (service.name, service.keyed) == ("counter", True)
        assert [handler.name for handler in service.handlers] == ["add", "add_in_a_step"]

    play(scenario)


def test_a_handler_that_needs_its_state_alone_speculates(play: Play, deployment: Deployment) -> None:
    function = deployment.function("handler")

    async def scenario(clients: AwsClients) -> None:
        request = activation("add", 2, "no-table-is-touched", Head(state={"total": b"40"}))
        outcome: Outcome = decode_outcome(await invoker(clients, function).invoke("app", encode(request)))
        assert isinstance(outcome, Speculated)
        assert outcome.state == {"total": b"42"}
        assert [result.result for result in outcome.results] == [Success(b"42")]

    play(scenario)


def test_a_handler_with_a_step_commits_to_the_table(play: Play, deployment: Deployment, table: str) -> None:
    function = deployment.function("handler")

    async def scenario(clients: AwsClients) -> None:
        request = activation("add_in_a_step", 2, table)
        outcome = decode_outcome(await invoker(clients, function).invoke("app", encode(request)))
        assert isinstance(outcome, Committed)
        assert [result.result for result in outcome.results] == [Success(b"3")]
        stored = await DynamoTable(cast("Any", clients.dynamodb), table).get(Key(Lane("counter", request.key).pk, "H"))
        assert stored is not None
        assert parse_head(stored) == outcome.head

    play(scenario)


def test_the_function_runs_what_was_deployed(play: Play, deployment: Deployment) -> None:
    function = deployment.function("where")

    async def scenario(clients: AwsClients) -> None:
        files: dict[str, Any] = json.loads(await invoker(clients, function).invoke("app", b"{}"))
        roots = {path.rpartition(f"/{package}/")[0] for package, path in files.items()}
        assert len(roots) == 1, "both come from the archive"

    play(scenario)


def test_a_failure_carries_the_functions_words(play: Play, deployment: Deployment) -> None:
    function = deployment.function("fail")

    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(FunctionFailedError, match='function "app" failed: ValueError: no luck'):
            await invoker(clients, function).invoke("app", b'{"words": "no luck"}')

    play(scenario)


def test_a_function_that_is_not_there_is_missing(play: Play, deployment: Deployment, run_name: str) -> None:
    deployment.function("handler")  # Loads the service, or skips.

    async def scenario(clients: AwsClients) -> None:
        with pytest.raises(FunctionMissingError, match="check its name"):
            await invoker(clients, f"{run_name}-nobody").invoke("app", b"{}")

    play(scenario)
