"""A small SAM template through CloudFormation: what a deployment leans on, apart from the project's own template.

Owns the question whether table, function, published version and alias come out of a template and work together.
The real `template.yaml` has a module of its own, `test_template`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from tenuto.lane.writes import Key
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Committed, Discover, Manifest, decode_outcome, encode
from tenuto.store.dynamodb import DynamoTable
from tenuto_control.config import FunctionConfig
from tenuto_control.drivers.aws import AwsClients
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tests.localstack.conftest import Play
from tests.localstack.deployment import RUNTIME, activation, archive
from tests.localstack.stacks import Stacks

TEMPLATE = Path(__file__).parent / "templates" / "small.yaml"


def test_a_deployed_alias_serves_and_commits(play: Play, stacks: Stacks) -> None:
    key = stacks.upload("app.zip", archive())
    outputs = stacks.create("small", TEMPLATE, {"Bucket": stacks.bucket, "Archive": key, "Runtime": RUNTIME})
    assert outputs["Alias"] == f"{outputs['Function']}:live"

    async def scenario(clients: AwsClients) -> None:
        by_alias = LambdaInvoker(clients.lambda_, {"app": FunctionConfig(function=outputs["Alias"])})
        assert isinstance(decode_outcome(await by_alias.invoke("app", encode(Discover()))), Manifest)
        by_qualifier = LambdaInvoker(
            clients.lambda_, {"app": FunctionConfig(function=outputs["Function"], qualifier="live")}
        )
        request = activation("add_in_a_step", 2, outputs["Table"])
        outcome = decode_outcome(await by_qualifier.invoke("app", encode(request)))
        assert isinstance(outcome, Committed)
        lanes = DynamoTable(cast("Any", clients.dynamodb), outputs["Table"])
        assert await lanes.get(Key(Lane(request.service, request.key).pk, "H")) is not None

    play(scenario)
