"""SAM and the linter accept the templates, and the templates agree with the code that they deploy."""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast

from starlette.routing import Route

from tenuto_control import memory
from tenuto_control.config import ENVIRONMENT, FUNCTION_VARIABLE
from tenuto_control.core.costs import HOLD_SECONDS, SCALE_TO_ZERO, Workload
from tenuto_control.drivers.log_lines import FORMAT_VARIABLE
from tenuto_control.ingress import create_app
from tenuto_control.lambda_entry import PARTIAL_VARIABLE
from tenuto_control.limits import Limits
from tenuto_local.table import LOCAL_PROPERTIES, table_definition
from tests.infra.conftest import TABLE, TEMPLATES
from tests.infra.deployment import Templates, deploy
from tests.infra.tools import run_tool
from tests.tidy import tree

MAKEFILE: Final = tree.ROOT / "infra" / "lambda" / "Makefile"
ROUTES: Final = {
    "POST /call/{target+}",
    "POST /send/{target+}",
    "GET /invocations/{id}/attach",
    "GET /invocations/{id}/output",
    "POST /awakeables/{id}/resolve",
    "POST /awakeables/{id}/reject",
}

READ_ELSEWHERE: Final = {
    "TENUTO_EXAMPLE_DIR",  # examples/ledger.py
    FORMAT_VARIABLE,  # drivers.log_lines, which is set up before there is a configuration
    memory.VARIABLE,  # what the task has, by which its limits are judged
    PARTIAL_VARIABLE,  # lambda_entry, of the mapping that calls it
}
"""Variables that are not the control plane's configuration."""


def test_sam_and_the_linter_accept_the_templates() -> None:
    answer = run_tool("sam", "validate", "--lint", "--region", "eu-west-1", "--template", "template.yaml")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    answer = run_tool("cfn-lint", "--regions", "eu-west-1", "--template", *TEMPLATES, TABLE)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_embedded_stack_creates_the_deployed_table() -> None:
    properties = json.loads((tree.ROOT / TABLE).read_text("utf-8"))["Resources"]["Table"]["Properties"]
    assert table_definition() == {name: properties[name] for name in LOCAL_PROPERTIES}
    # What only AWS has: a definition that loses one of them is noticed here.
    assert {name: value for name, value in properties.items() if name not in LOCAL_PROPERTIES} == {
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
        "SSESpecification": {"SSEEnabled": True},
    }
    assert properties["BillingMode"] == "PAY_PER_REQUEST"
    assert properties["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}


def test_a_table_outlives_its_stack(templates: Templates) -> None:
    table = templates[TABLE]["Resources"]["Table"]
    assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_artefacts_are_built_for_what_the_templates_name(templates: Templates) -> None:
    defaults = dict(re.findall(r"^(TENUTO_\w+) \?= (\S+)$", MAKEFILE.read_text("utf-8"), re.MULTILINE))
    for name, resource in deploy(templates).items():
        if resource.type == "AWS::Lambda::Function":
            assert resource.properties["Runtime"] == defaults["TENUTO_RUNTIME"], name
            assert resource.properties["Architectures"] == [defaults["TENUTO_ARCHITECTURE"]], name


def environments(templates: Templates) -> dict[str, dict[str, Any]]:
    """The variables of everything that runs tenuto's code, by resource, with all that can be set."""
    kafka = {"BootstrapServers": "b:9092", "KafkaAuth": "Scram512", "KafkaSecretArn": "arn:secret"}
    found: dict[str, dict[str, Any]] = {}
    for shape in ("ScaleToZero", "AlwaysOn"):
        for name, resource in deploy(templates, Shape=shape, SubnetIds="subnet-1", **kafka).items():
            if resource.type == "AWS::Lambda::Function":
                found[name] = resource.properties["Environment"]["Variables"]
            elif resource.type == "AWS::ECS::TaskDefinition":
                (container,) = resource.properties["ContainerDefinitions"]
                found[name] = {one["Name"]: one["Value"] for one in container["Environment"]}
                found[name] |= {one["Name"]: one["ValueFrom"] for one in container["Secrets"]}
    return found


def test_every_variable_is_one_that_something_reads(templates: Templates) -> None:
    strangers = {
        (name, variable)
        for name, variables in environments(templates).items()
        for variable in variables
        if variable.startswith("TENUTO_")
        and variable not in ENVIRONMENT
        and variable not in READ_ELSEWHERE
        and not variable.startswith(FUNCTION_VARIABLE)
    }
    assert strangers == set()


def test_a_password_is_never_written_out(templates: Templates) -> None:
    for name, variables in environments(templates).items():
        if "TENUTO_KAFKA_SASL_PASSWORD" in variables:
            assert variables["TENUTO_KAFKA_SASL_PASSWORD"] in (
                "{{resolve:secretsmanager:arn:secret:SecretString:password}}",
                "arn:secret:password::",
            ), name


def test_time_limits_leave_room_for_what_they_enclose(templates: Templates) -> None:
    limits = Limits()
    scaled, always_on = (
        deploy(templates),
        deploy(templates, Shape="AlwaysOn", SubnetIds="subnet-1", LoadBalancer="true"),
    )
    (container,) = always_on["ControlPlane/Task"].properties["ContainerDefinitions"]
    # Consumers drain first, the calls in progress after them.
    assert container["StopTimeout"] * 1000 > 2 * limits.drain_timeout_ms
    dispatcher = scaled["Dispatcher/Dispatcher"].properties
    handler = scaled["Functions/UserUpdates"].properties
    held_ms = int(dispatcher["Environment"]["Variables"]["TENUTO_HOLD_SLEEP_MS"])
    assert int(handler["Timeout"]) * 1000 > held_ms + 10_000
    assert dispatcher["Timeout"] > 2 * int(handler["Timeout"])
    assert int(scaled["HttpApi/Integration"].properties["TimeoutInMillis"]) > limits.http_wait_ms_max
    attributes = {
        one["Key"]: one["Value"] for one in always_on["ControlPlane/Balancer"].properties["LoadBalancerAttributes"]
    }
    idle_ms = int(attributes["idle_timeout.timeout_seconds"]) * 1000
    # A connection that its task closes first may have a request on its way, which is answered 502.
    assert limits.http_wait_ms_max < idle_ms < limits.http_keep_alive_ms


def test_a_table_that_does_not_answer_has_no_task_replaced(templates: Templates) -> None:
    deployed = deploy(templates, Shape="AlwaysOn", SubnetIds="subnet-1", LoadBalancer="true")
    assert deployed["ControlPlane/Targets"].properties["HealthCheckPath"] == "/health"
    (container,) = deployed["ControlPlane/Task"].properties["ContainerDefinitions"]
    variables = {one["Name"]: one["Value"] for one in container["Environment"]}
    # At the port where no callers wait.
    port = variables["TENUTO_HTTP_HEALTH_PORT"]
    assert f":{port}/health" in container["HealthCheck"]["Command"][-1]
    assert deployed["ControlPlane/Targets"].properties["HealthCheckPort"] == port
    assert {str(one["ContainerPort"]) for one in container["PortMappings"]} == {port, variables["TENUTO_HTTP_PORT"]}


def test_every_function_has_a_log_group_that_forgets(templates: Templates) -> None:
    for shape in ("ScaleToZero", "AlwaysOn"):
        deployed = deploy(templates, Shape=shape, SubnetIds="subnet-1", LogRetentionDays="7")
        groups = {name for name, one in deployed.items() if one.type == "AWS::Logs::LogGroup"}
        assert groups
        assert all(deployed[name].properties["RetentionInDays"] == "7" for name in groups)
        for resource in deployed.values():
            if resource.type == "AWS::Lambda::Function":
                assert resource.properties["LoggingConfig"]["LogGroup"] in groups


def test_the_dashboard_is_json(templates: Templates) -> None:
    for shape in ("ScaleToZero", "AlwaysOn"):
        deployed = deploy(templates, Shape=shape, SubnetIds="subnet-1")
        assert json.loads(deployed["Observability/Dashboard"].properties["DashboardBody"])["widgets"]


def test_the_routes_of_the_template_are_those_of_the_ingress() -> None:
    app = create_app(*(cast("Any", None),) * 2, ready=cast("Any", None), wait_ms_max=1)
    served = {
        f"{method} {route.path.replace(':path', '+')}"
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    # These tell about the process, and a function has none to tell about.
    assert served - {"GET /", "GET /health", "GET /ready"} == ROUTES


def test_both_kinds_of_api_have_the_routes_of_the_ingress_and_no_other(templates: Templates) -> None:
    http = deploy(templates, Api="Http")
    assert {one.properties["RouteKey"] for one in http.values() if one.type == "AWS::ApiGatewayV2::Route"} == ROUTES
    paths = deploy(templates, Api="Rest")["RestApi/Api"].properties["Body"]["paths"]
    assert {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs} == ROUTES


def test_costs_are_estimated_for_what_the_templates_deploy(templates: Templates) -> None:
    estimated = Workload()
    scaled = deploy(templates)
    dispatcher, handler = scaled["Dispatcher/Dispatcher"].properties, scaled["Functions/UserUpdates"].properties
    assert int(dispatcher["MemorySize"]) == estimated.dispatcher_mb
    assert int(handler["MemorySize"]) == estimated.memory_mb
    assert handler["Architectures"] == [estimated.architecture]
    held_ms = int(dispatcher["Environment"]["Variables"]["TENUTO_HOLD_SLEEP_MS"])
    assert held_ms == HOLD_SECONDS[SCALE_TO_ZERO] * 1000
    task = deploy(templates, Shape="AlwaysOn", SubnetIds="subnet-1")["ControlPlane/Task"].properties
    assert int(task["Cpu"]) == estimated.vcpu * 1024
    assert int(task["Memory"]) == estimated.task_gb * 1024
