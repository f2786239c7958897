"""The written templates, translated by SAM and read by the linter: each function reaches what is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tenuto_cli.program import main
from tests.infra.deployment import Resource, Templates, deploy
from tests.infra.tools import run_tool
from tests.sam.project import write_project

SCRIPT: Final = Path(__file__).parents[1] / "infra" / "translate.py"
QUEUE: Final = "https://sqs.eu-west-1.amazonaws.com/111122223333/q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that was written, in a project with a flat layout."""
    project = write_project(tmp_path_factory.mktemp("project"), layout="flat")
    assert main(["sam", str(project), "--out", "infra/aws", "--quiet"]) == 0
    return project / "infra" / "aws"


@pytest.fixture(scope="module")
def templates(folder: Path) -> Templates:
    """Every written template after the SAM transform, by file."""
    files = [str(path) for path in folder.iterdir() if path.suffix in (".yaml", ".json")]
    answer = run_tool("python", str(SCRIPT), *files)
    assert answer.returncode == 0, answer.stderr
    translated: dict[str, Any] = json.loads(answer.stdout)
    return {Path(name).name: template for name, template in translated.items()}


def deployed(templates: Templates, **parameters: str) -> dict[str, Resource]:
    return deploy(templates, "tenuto.yaml", QueueUrl=QUEUE, **parameters)


def of_type(resources: dict[str, Resource], kind: str) -> dict[str, dict[str, Any]]:
    return {name: dict(one.properties) for name, one in resources.items() if one.type == kind}


def test_sam_and_the_linter_accept_them(folder: Path) -> None:
    files = [str(path) for path in folder.iterdir() if path.suffix in (".yaml", ".json")]
    answer = run_tool("cfn-lint", "--regions", "eu-west-1", "--template", *files)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    root = str(folder.parents[1] / "template.yaml")
    text = Path(root).read_text("utf-8")
    Path(root).write_text(text.replace("        Shape:", "        QueueUrl: q\n        Shape:"), "utf-8")
    # Without a region: plain `sam validate` is what a person types.
    answer = run_tool("sam", "validate", "--lint", "--template", root, environment={"AWS_DEFAULT_REGION": ""})
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_nothing_of_the_example_is_left(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name != "requirements":
            text = path.read_text("utf-8").replace('MODE: "a \\"b\\" ${X} UserUpdates"', "")
            for word in ("UserUpdates", "user-updates", "userUpdates", "user_updates", "tenuto sam: ", "infra/lambda"):
                assert word not in text, f"{word} in {path.name}"


def test_each_function_is_what_the_configuration_says(templates: Templates) -> None:
    functions = of_type(deployed(templates), "AWS::Lambda::Function")
    assert functions.keys() == {
        "Functions/OrderIntakeFunction",
        "Functions/MailerFunction",
        "Dispatcher/Dispatcher",
    }
    intake, mailer = functions["Functions/OrderIntakeFunction"], functions["Functions/MailerFunction"]
    assert (intake["FunctionName"], intake["Handler"]) == ("tenuto-order-intake", "shop.app.handler")
    assert (mailer["FunctionName"], mailer["Handler"]) == ("tenuto-mailer", "shop.app.mailer")
    assert (intake["MemorySize"], mailer["MemorySize"]) == (256, 512)
    assert (intake["Timeout"], mailer["Timeout"]) == ("40", 33)
    variables = intake["Environment"]["Variables"]
    assert (variables["QUEUE"], variables["MODE"]) == (QUEUE, 'a "b" ${X} UserUpdates')
    assert "QUEUE" not in mailer["Environment"]["Variables"]


def test_each_role_reaches_the_lanes_of_its_own_services(templates: Templates) -> None:
    roles = of_type(deployed(templates), "AWS::IAM::Role")
    keys = {}
    for name, role in roles.items():
        for policy in role["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                if statement.get("Sid") == "OwnLanes":
                    keys[name] = statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
    # What IAM takes for a pattern, and what a partition key escapes, stand for themselves.
    assert keys == {
        "Functions/OrderIntakeFunctionRole": ["order/*"],
        "Functions/MailerFunctionRole": ["mail${*}%25er/*"],
    }
    assert roles["Functions/OrderIntakeFunctionRole"]["ManagedPolicyArns"] == [
        "arn:aws:iam::aws:policy/AmazonSQSFullAccess",
        "arn:aws:iam::111122223333:policy/mine",
    ]
    assert "ManagedPolicyArns" not in roles["Functions/MailerFunctionRole"]


@pytest.mark.parametrize("shape", ["ScaleToZero", "AlwaysOn"])
def test_the_control_plane_knows_and_may_invoke_each_function(templates: Templates, shape: str) -> None:
    network = {"SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}
    resources = deployed(templates, Shape=shape, BootstrapServers="b:9092", **network)
    if shape == "AlwaysOn":
        (container,) = resources["ControlPlane/Task"].properties["ContainerDefinitions"]
        variables = {one["Name"]: one["Value"] for one in container["Environment"]}
        role = resources["ControlPlane/TaskRole"]
    else:
        variables = resources["Dispatcher/Dispatcher"].properties["Environment"]["Variables"]
        role = resources["Dispatcher/DispatcherRole"]
    aliases = {"Functions/OrderIntakeFunctionAliaslive", "Functions/MailerFunctionAliaslive"}
    told = {name: value for name, value in variables.items() if name.startswith("TENUTO_FUNCTION_")}
    assert told.keys() == {"TENUTO_FUNCTION_ORDER_INTAKE", "TENUTO_FUNCTION_MAILER"}
    assert set(told.values()) == aliases
    (invoke,) = [
        statement
        for policy in role.properties["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
        if statement.get("Sid") == "Invoke"
    ]
    itself = {one for one in invoke["Resource"] if one.endswith(":tenuto-dispatcher:live")}
    assert set(invoke["Resource"]) - itself == aliases
    assert len(itself) == (0 if shape == "AlwaysOn" else 1)


def test_each_subscription_has_a_mapping(templates: Templates) -> None:
    mappings = of_type(deployed(templates, BootstrapServers="b:9092"), "AWS::Lambda::EventSourceMapping")
    found = {
        (one["Topics"][0], one["StartingPosition"], one["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"])
        for one in mappings.values()
    }
    assert found == {("orders.v1", "TRIM_HORIZON", "tenuto.orders.v1"), ("orders", "LATEST", "tenuto.orders")}


def test_each_function_has_its_alarms_and_its_lines_on_the_dashboard(templates: Templates) -> None:
    resources = deployed(templates)
    alarms = {one["AlarmName"] for one in of_type(resources, "AWS::CloudWatch::Alarm").values()}
    assert {
        f"tenuto-{name}-{kind}" for name in ("order-intake", "mailer") for kind in ("errors", "throttles")
    } <= alarms
    body = json.loads(resources["Observability/Dashboard"].properties["DashboardBody"])
    shown = {metric[3] for widget in body["widgets"] for metric in widget["properties"]["metrics"] if len(metric) > 3}
    assert {"Functions/OrderIntakeFunction", "Functions/MailerFunction"} <= shown
