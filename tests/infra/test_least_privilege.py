"""Who may do what, read off the translated templates.

No emulator enforces permissions, so each grant is compared with a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.user_updates.handler import user_updates
from tenuto.lane.timers import timer_bucket
from tenuto.protocol.ids import Lane
from tenuto.store.dynamodb import Operation
from tests.infra.deployment import Resource, Templates, deploy

CLUSTER: Final = "arn:aws:kafka:eu-west-1:111122223333:cluster/events/0b6f0a4c-1"
VARIANTS: Final[Mapping[str, Mapping[str, str]]] = {
    "scaled, nothing else": {"Api": "None"},
    "scaled, self-managed Kafka": {
        "BootstrapServers": "b:9092",
        "KafkaAuth": "Scram512",
        "KafkaSecretArn": "arn:secret",
        "SubnetIds": "subnet-1",
        "SecurityGroupIds": "sg-1",
    },
    "scaled, MSK": {
        "BootstrapServers": "b:9098",
        "MskClusterArn": CLUSTER,
        "KafkaAuth": "Iam",
        "SubnetIds": "subnet-1",
        "SecurityGroupIds": "sg-1",
        "Api": "Rest",
        "ProvisionedPollers": "1",
    },
    "always on, self-managed Kafka": {
        "Shape": "AlwaysOn",
        "BootstrapServers": "b:9092",
        "KafkaAuth": "Scram512",
        "KafkaSecretArn": "arn:secret",
        "SubnetIds": "subnet-1",
        "SecurityGroupIds": "sg-1",
        "LoadBalancer": "true",
        "VpcId": "vpc-1",
    },
    "always on, MSK": {
        "Shape": "AlwaysOn",
        "BootstrapServers": "b:9098",
        "MskClusterArn": CLUSTER,
        "KafkaAuth": "Iam",
        "SubnetIds": "subnet-1",
        "SecurityGroupIds": "sg-1",
    },
}

WITHOUT_RESOURCE: Final = {
    # AWS X-Ray has no resources to name.
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
    # A token is for every registry repository of the account.
    "ecr:GetAuthorizationToken",
    # Lambda checks these of a function in a network, and of one with a Kafka mapping, before interfaces exist.
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "ec2:UnassignPrivateIpAddresses",
}
"""The only actions that may be granted on every resource."""

TABLE: Final = "Table/Table.Arn"
HANDLER_ALIAS: Final = "Functions/UserUpdatesAliaslive"
DISPATCHER_ALIAS: Final = "arn:aws:lambda:eu-west-1:111122223333:function:tenuto-dispatcher:live"
ALL_LANES: Final = {f"dynamodb:{''.join(part.title() for part in name.split('_'))}" for name in get_args(Operation)}
"""What the store sends, as IAM calls it."""

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def listed(value: Any) -> list[Any]:
    """IAM takes one value for a list of one."""
    return value if isinstance(value, list) else [value]


def grants(deployed: Mapping[str, Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement of every policy, with the resource that it stands in."""
    for name, resource in deployed.items():
        properties = resource.properties
        match resource.type:
            case "AWS::IAM::Role":
                documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
            case "AWS::IAM::Policy" | "AWS::IAM::ManagedPolicy":
                documents = [properties["PolicyDocument"]]
            case _:
                continue
        for document in documents:
            for statement in listed(document["Statement"]):
                yield name, statement


def granted(deployed: Mapping[str, Resource], service: str) -> list[tuple[str, set[str], set[str]]]:
    """Who may do what of one AWS service, and to which resources, in order of name and actions."""
    found = [
        (name, {action for action in listed(statement["Action"]) if action.startswith(f"{service}:")}, statement)
        for name, statement in grants(deployed)
    ]
    kept = [(name, actions, set(listed(statement["Resource"]))) for name, actions, statement in found if actions]
    return sorted(kept, key=lambda one: (one[0], sorted(one[1])))


@every_variant
def test_every_grant_names_its_actions_and_resources(templates: Templates, variant: str) -> None:
    for name, statement in grants(deploy(templates, **VARIANTS[variant])):
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        assert statement["Effect"] == "Allow"
        assert not {"NotAction", "NotResource", "NotPrincipal"} & statement.keys(), name
        assert not [action for action in actions if "*" in action], name
        assert not [action for action in actions if "Scan" in action], name
        if "*" in resources:
            assert set(actions) <= WITHOUT_RESOURCE, name
            assert resources == ["*"], name


@every_variant
def test_no_role_has_a_policy_that_is_not_here(templates: Templates, variant: str) -> None:
    deployed = deploy(templates, **VARIANTS[variant])
    for name, resource in deployed.items():
        if resource.type == "AWS::IAM::Role":
            assert set(resource.properties.get("ManagedPolicyArns", [])) <= {"MskAccess/Policy"}, name


@every_variant
def test_a_handler_reaches_its_own_lanes_and_puts_timers(templates: Templates, variant: str) -> None:
    deployed = deploy(templates, **VARIANTS[variant])
    statements = [one for name, one in grants(deployed) if name == "Functions/UserUpdatesRole"]
    lanes, timers = (one for one in statements if one["Resource"] == TABLE)
    own = Lane(user_updates.name, "").pk
    assert set(lanes["Action"]) == {
        "dynamodb:BatchWriteItem",
        "dynamodb:GetItem",
        "dynamodb:PutItem",
        "dynamodb:UpdateItem",
    }
    assert lanes["Condition"] == {
        "ForAllValues:StringLike": {"dynamodb:LeadingKeys": [f"{own}*"]},
        "Null": {"dynamodb:LeadingKeys": "false"},
    }
    assert timers["Action"] == "dynamodb:PutItem"
    assert timers["Condition"] == {
        "ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["T#*"]},
        "Null": {"dynamodb:LeadingKeys": "false"},
        "StringEqualsIfExists": {"dynamodb:ReturnValues": "NONE"},
    }
    services = {action.split(":")[0] for one in statements for action in listed(one["Action"])}
    assert services == {"dynamodb", "logs", "xray"}


def test_a_timer_is_where_the_pattern_says() -> None:
    assert timer_bucket(0, 0).startswith("T#")


@given(names=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True), key=st.text(max_size=8))
def test_no_lane_is_under_the_pattern_of_another_service(names: list[str], key: str) -> None:
    mine, other = names
    pk = Lane(other, key).pk
    assert not pk.startswith(Lane(mine, "").pk)
    # Nor does a lane look like a timer or a result.
    assert "#" not in pk


def test_the_pattern_of_a_service_has_no_wildcard_of_its_own() -> None:
    # IAM takes `*`, `?` and `$` in a pattern for its own: a name that has one needs `${*}`, `${?}` or `${$}`.
    assert not set("*?$") & set(user_updates.name)


@every_variant
def test_the_control_plane_has_what_the_store_sends(templates: Templates, variant: str) -> None:
    deployed = deploy(templates, **VARIANTS[variant])
    owner = "ControlPlane/TaskRole" if VARIANTS[variant].get("Shape") == "AlwaysOn" else "Dispatcher/DispatcherRole"
    found = [(actions, resources) for name, actions, resources in granted(deployed, "dynamodb") if name == owner]
    assert found == [(ALL_LANES, {TABLE})]


@every_variant
def test_functions_are_invoked_by_alias(templates: Templates, variant: str) -> None:
    invoke = {"lambda:InvokeFunction"}
    found = granted(deploy(templates, **VARIANTS[variant]), "lambda")
    if VARIANTS[variant].get("Shape") == "AlwaysOn":
        assert found == [("ControlPlane/TaskRole", invoke, {HANDLER_ALIAS})]
    else:
        assert found == [
            # Itself as well: an invocation hands on what is left when its time ends.
            ("Dispatcher/DispatcherRole", invoke, {HANDLER_ALIAS, DISPATCHER_ALIAS}),
            ("Dispatcher/SchedulerRole", invoke, {DISPATCHER_ALIAS}),
        ]


@every_variant
def test_a_function_lets_itself_be_invoked_for_one_source(templates: Templates, variant: str) -> None:
    for name, resource in deploy(templates, **VARIANTS[variant]).items():
        if resource.type == "AWS::Lambda::Permission":
            assert resource.properties["Action"] == "lambda:InvokeFunction", name
            assert resource.properties["FunctionName"] == "Dispatcher/DispatcherAliaslive", name
            assert resource.properties["SourceArn"], name


@every_variant
def test_the_scheduler_role_is_passed_to_the_scheduler_alone(templates: Templates, variant: str) -> None:
    deployed = deploy(templates, **VARIANTS[variant])
    passing = [(name, one) for name, one in grants(deployed) if "iam:PassRole" in listed(one["Action"])]
    if VARIANTS[variant].get("Shape") == "AlwaysOn":
        assert passing == []
        return
    ((name, statement),) = passing
    assert name == "Dispatcher/DispatcherRole"
    assert statement["Action"] == "iam:PassRole"
    assert statement["Resource"] == "Dispatcher/SchedulerRole.Arn"
    assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}


def test_the_scheduler_role_wakes_and_reports(templates: Templates) -> None:
    deployed = deploy(templates)
    statements = [one for name, one in grants(deployed) if name == "Dispatcher/SchedulerRole"]
    assert {(one["Action"], one["Resource"]) for one in statements} == {
        ("lambda:InvokeFunction", DISPATCHER_ALIAS),
        ("sqs:SendMessage", "Dispatcher/DeadLetters.Arn"),
    }
    (trust,) = deployed["Dispatcher/SchedulerRole"].properties["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "111122223333"}}


def test_the_target_of_schedules_is_the_alias_that_exists(templates: Templates) -> None:
    deployed = deploy(templates)
    alias = deployed["Dispatcher/DispatcherAliaslive"].properties
    function = deployed["Dispatcher/Dispatcher"].properties
    variables = function["Environment"]["Variables"]
    assert variables["TENUTO_SCHEDULER_TARGET_ARN"] == DISPATCHER_ALIAS
    assert DISPATCHER_ALIAS.endswith(f":{function['FunctionName']}:{alias['Name']}")
    (schedule,) = granted(deployed, "scheduler")
    assert schedule == (
        "Dispatcher/DispatcherRole",
        {"scheduler:CreateSchedule", "scheduler:DeleteSchedule"},
        {"arn:aws:scheduler:eu-west-1:111122223333:schedule/Dispatcher/Schedules/*"},
    )
    assert deployed[variables["TENUTO_SCHEDULER_GROUP"]].type == "AWS::Scheduler::ScheduleGroup"


@pytest.mark.parametrize(("variant", "group"), [("scaled, MSK", "tenuto.*"), ("always on, MSK", "tenuto")])
def test_msk_access_is_one_cluster_and_one_deployments_groups(templates: Templates, variant: str, group: str) -> None:
    found = granted(deploy(templates, **VARIANTS[variant]), "kafka-cluster")
    begin, _, cluster = CLUSTER.partition(":cluster/")
    assert [resources for _, _, resources in found] == [
        {f"{begin}:group/{cluster}/{group}"},
        {CLUSTER},
        {f"{begin}:topic/{cluster}/*"},
    ]


def test_a_mapping_asks_msk_for_what_it_needs(templates: Templates) -> None:
    assert [
        (actions, resources) for _, actions, resources in granted(deploy(templates, **VARIANTS["scaled, MSK"]), "kafka")
    ] == [({"kafka:DescribeClusterV2", "kafka:GetBootstrapBrokers"}, {CLUSTER})]


def test_a_secret_under_a_key_of_ones_own_can_be_read(templates: Templates) -> None:
    """MSK takes no other, and Lambda's poller reads it as the dispatcher's role."""
    key = "arn:aws:kms:eu-west-1:111122223333:key/0b6f0a4c"
    msk = {**VARIANTS["scaled, MSK"], "KafkaAuth": "Scram512", "KafkaSecretArn": "arn:secret"}
    deployed = deploy(templates, **msk, KafkaSecretKeyArn=key)
    ((_, statement),) = [one for one in grants(deployed) if one[1]["Action"] == "kms:Decrypt"]
    assert statement["Resource"] == key
    assert statement["Condition"] == {"StringEquals": {"kms:EncryptionContext:SecretARN": "arn:secret"}}
    assert not granted(deploy(templates, **msk), "kms")
