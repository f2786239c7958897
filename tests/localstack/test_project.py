"""A project outside of the repository, made by `tenuto init` from the wheel, deployed to the endpoint and called there.

Owns that what a person deploys comes up whole in the shape that scales to zero, and keeps its state. What the endpoint
lacks for another deployment, and for the other shape, is found out by asking it: LocalStack in host mode has no
containers, and deploys the functions of a nested stack once.

A few lines of the person's own `template.yaml` differ from what is written, as LocalStack has no HTTP APIs: a REST API
is in their place, with its address among the outputs.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError

from tenuto.protocol.ids import Lane
from tests.infra.tools import MACHINE, RUNTIME
from tests.install.conftest import bare, wheel
from tests.install.environment import Bare
from tests.localstack import capabilities
from tests.localstack.conftest import Client
from tests.localstack.test_sam_deploy import CALL_SECONDS_MAX, OURS, TEMPLATE_RUNTIME
from tests.outside.project import built, made, sam

__all__ = ["bare", "wheel"]

SHAPE: Final = re.compile(r"( +)Shape: ScaleToZero\n")


def written(project: Path, **parameters: str) -> None:
    """Give the stack `Tenuto` parameters, as a person edits `template.yaml`."""
    file = project / "template.yaml"
    text = file.read_text("utf-8")
    more = "".join(rf"\1{name}: {value}\n" for name, value in parameters.items())
    changed, count = SHAPE.subn(r"\g<0>" + more, text)
    assert count == 1, text
    file.write_text(changed.replace("Tenuto.Outputs.HttpApiUrl", "Tenuto.Outputs.RestApiUrl"), "utf-8")


class Deployed:
    """The project at the endpoint."""

    def __init__(self, bare: Bare, project: Path, client: Client, endpoint_url: str) -> None:
        self.project = project
        self.table = ""
        self._bare = bare
        self._client = client
        self._endpoint_url = endpoint_url
        self._api = ""

    def deploy(self) -> None:
        """`sam build` and `sam deploy`, as the project's README says."""
        built(self._bare, self.project, runtime=RUNTIME if OURS else TEMPLATE_RUNTIME)
        deploying = sam(
            self._bare,
            self.project,
            *("deploy", "--no-progressbar", "--no-fail-on-empty-changeset"),
            environment={"AWS_ENDPOINT_URL": self._endpoint_url, "AWS_DEFAULT_REGION": "us-east-1"},
        )
        assert deploying.returncode == 0, deploying.stdout + deploying.stderr
        (stack,) = self._client("cloudformation").describe_stacks(StackName=self.project.name)["Stacks"]
        outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
        self.table = outputs["TableName"]
        self._api = outputs["Url"].removeprefix("https://").partition(".")[0]

    def call(self, path: str, body: object = None) -> Any:
        """What a call by way of the API answers."""
        url = f"{self._endpoint_url}/_aws/execute-api/{self._api}/live/call/{path}"
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=CALL_SECONDS_MAX) as answer:
            return json.loads(answer.read())

    def head(self, service: str, key: str) -> dict[str, Any]:
        """The head of a lane."""
        place = {"pk": {"S": Lane(service, key).pk}, "sk": {"S": "H"}}
        found: dict[str, Any] = self._client("dynamodb").get_item(TableName=self.table, Key=place)["Item"]
        return found


@pytest.fixture(scope="module")
def deployed(
    bare: Bare, client: Client, endpoint_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    project = made(bare, tmp_path_factory.mktemp("outside"), "minimal", f"shop-{token_hex(4)}")
    written(project, Api="Rest", ApiAuth="NONE", Architecture=MACHINE)
    made_there = Deployed(bare, project, client, endpoint_url)
    made_there.deploy()
    yield made_there
    client("cloudformation").delete_stack(StackName=project.name)


def codes(client: Client, project: str) -> dict[str, str]:
    """The hashes of the code of a project's function, and of what its alias names."""
    lambda_ = client("lambda")
    name = f"{project}-{project}"
    found = {"$LATEST": "$LATEST", "live": lambda_.get_alias(FunctionName=name, Name="live")["FunctionVersion"]}
    return {
        what: lambda_.get_function_configuration(FunctionName=name, Qualifier=version)["CodeSha256"]
        for what, version in found.items()
    }


def test_it_is_deployed_and_called(deployed: Deployed) -> None:
    assert deployed.call("greeter/ann/greet", "Hello") == "Hello, Ann! That was greeting 1."
    assert deployed.call("greeter/ann/greet", "Hi") == "Hi, Ann! That was greeting 2."
    assert deployed.call("greeter/ann/greeted") == 2
    assert "rid" not in deployed.head("greeter", "ann")


def test_it_is_deployed_anew(deployed: Deployed, client: Client) -> None:
    assert deployed.call("greeter/bo/greet", "Hello") == "Hello, Bo! That was greeting 1."
    handlers = next((deployed.project / "src").glob("*/handlers.py"))
    handlers.write_text(handlers.read_text("utf-8").replace("That was greeting", "This is greeting"), "utf-8")
    before = codes(client, deployed.project.name)
    deployed.deploy()
    after = codes(client, deployed.project.name)
    built = [path.read_text("utf-8") for path in (deployed.project / ".aws-sam" / "build").rglob("*/handlers.py")]
    assert any("This is greeting" in text for text in built)
    if after["live"] == before["live"]:
        pytest.skip("the endpoint leaves the functions of a nested stack as they are when the stack is deployed anew")
    assert deployed.call("greeter/bo/greet", "Good day") == "Good day, Bo! This is greeting 2."


def test_what_is_always_on_needs_more_of_the_endpoint(client: Client) -> None:
    """Where an endpoint has containers, the other shape is worth a test; those known so far have none."""
    try:
        client("ecs").list_clusters()
    except ClientError as error:
        capabilities.require(f"no containers, so nothing is always on: {capabilities.why_lacking(error) or error}")
    pytest.skip("the endpoint has containers; the image of the control plane would have to be pushed to it")
