"""What is deployed and what is not, for each shape and each way to reach Kafka and to be called."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, get_args

import pytest

from tenuto_control.core.metrics import CountName, SampleName
from tenuto_control.core.routing import DEAD_LETTER_SUFFIX, Start
from tenuto_control.loops.serverless import HOPS_MAX
from tests.infra.deployment import Resource, Templates, deploy

GUIDE: Final = Path(__file__).resolve().parents[2] / "docs" / "guides" / "operate.md"
CLUSTER: Final = "arn:aws:kafka:eu-west-1:111122223333:cluster/events/0b6f0a4c-1"
LOOP_INVOCATIONS: Final = 16
"""About so many invocations in a row end as a loop (AWS Lambda developer guide, "recursive loop detection")."""

ACCOUNT_CONCURRENCY: Final = 1_000
"""What an account has for all its functions, unless it is new (AWS Lambda quotas)."""

NETWORK: Final = {"SubnetIds": "subnet-1,subnet-2", "SecurityGroupIds": "sg-1"}


def types(deployed: dict[str, Resource]) -> set[str]:
    """The types of what is deployed."""
    return {resource.type for resource in deployed.values()}


def mapping(deployed: dict[str, Resource]) -> dict[str, Any]:
    """The properties of the one event source mapping."""
    (found,) = [one for one in deployed.values() if one.type == "AWS::Lambda::EventSourceMapping"]
    return dict(found.properties)


def test_scaled_to_zero_nothing_runs_by_itself(templates: Templates) -> None:
    deployed = deploy(templates, BootstrapServers="b:9092")
    assert not {one for one in types(deployed) if one.startswith(("AWS::ECS::", "AWS::ElasticLoadBalancing"))}
    assert "Dispatcher/Dispatcher" in deployed
    # Pollers of its own would be paid for by the hour.
    assert "ProvisionedPollerConfig" not in mapping(deployed)
    rule = deployed["Dispatcher/DispatcherSweep"].properties
    assert rule["ScheduleExpression"] == "rate(1 minute)"
    assert [(one["Arn"], one["Input"]) for one in rule["Targets"]] == [
        ("Dispatcher/DispatcherAliaslive", '{"tenuto": "sweep"}')
    ]


def test_always_on_there_is_no_dispatcher_function(templates: Templates) -> None:
    deployed = deploy(templates, Shape="AlwaysOn", BootstrapServers="b:9092", **NETWORK)
    assert not {name for name in deployed if name.startswith(("Dispatcher/", "KafkaSource/", "HttpApi/", "RestApi/"))}
    assert not types(deployed) & {
        "AWS::Lambda::EventSourceMapping",
        "AWS::Events::Rule",
        "AWS::Scheduler::ScheduleGroup",
    }
    task = deployed["ControlPlane/Task"].properties
    assert task["RuntimePlatform"] == {"CpuArchitecture": "ARM64", "OperatingSystemFamily": "LINUX"}
    (container,) = task["ContainerDefinitions"]
    assert container["HealthCheck"]["Command"][0] == "CMD"
    assert "LoadBalancers" not in deployed["ControlPlane/Service"].properties


def test_always_on_calls_may_come_through_a_load_balancer(templates: Templates) -> None:
    deployed = deploy(templates, Shape="AlwaysOn", LoadBalancer="true", VpcId="vpc-1", **NETWORK)
    assert deployed["ControlPlane/Balancer"].properties["Scheme"] == "internal"
    assert deployed["ControlPlane/Targets"].properties["HealthCheckPath"] == "/health"
    (target,) = deployed["ControlPlane/Service"].properties["LoadBalancers"]
    assert target["TargetGroupArn"] == "ControlPlane/Targets"


@pytest.mark.parametrize("shape", ["ScaleToZero", "AlwaysOn"])
def test_handlers_are_published_versions_behind_an_alias(templates: Templates, shape: str) -> None:
    deployed = deploy(templates, Shape=shape, **NETWORK)
    alias = deployed["Functions/UserUpdatesAliaslive"]
    assert alias.properties["Name"] == "live"
    assert deployed[alias.properties["FunctionVersion"].removesuffix(".Version")].type == "AWS::Lambda::Version"


def test_without_brokers_there_is_no_mapping(templates: Templates) -> None:
    assert "AWS::Lambda::EventSourceMapping" not in types(deploy(templates))


def test_a_self_managed_kafka(templates: Templates) -> None:
    deployed = deploy(
        templates,
        BootstrapServers="a:9096,b:9096",
        KafkaAuth="Scram512",
        KafkaSecretArn="arn:secret",
        Topic="orders",
        **NETWORK,
    )
    source = mapping(deployed)
    assert source["FunctionName"] == "Dispatcher/DispatcherAliaslive"
    assert source["Topics"] == ["orders"]
    assert source["SelfManagedEventSource"] == {"Endpoints": {"KafkaBootstrapServers": ["a:9096", "b:9096"]}}
    assert source["SourceAccessConfigurations"] == [
        {"Type": "SASL_SCRAM_512_AUTH", "URI": "arn:secret"},
        {"Type": "VPC_SUBNET", "URI": "subnet:subnet-1"},
        {"Type": "VPC_SECURITY_GROUP", "URI": "security_group:sg-1"},
    ]
    assert "EventSourceArn" not in source
    variables = deployed["Dispatcher/Dispatcher"].properties["Environment"]["Variables"]
    assert variables["TENUTO_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
    assert variables["TENUTO_KAFKA_SASL_MECHANISM"] == "SCRAM-SHA-512"


def test_msk_with_iam(templates: Templates) -> None:
    deployed = deploy(templates, BootstrapServers="b:9098", MskClusterArn=CLUSTER, KafkaAuth="Iam", **NETWORK)
    source = mapping(deployed)
    assert source["EventSourceArn"] == CLUSTER
    assert "SelfManagedEventSource" not in source
    assert "SourceAccessConfigurations" not in source
    assert deployed["Dispatcher/DispatcherRole"].properties["ManagedPolicyArns"] == ["MskAccess/Policy"]


def test_partial_batches_need_pollers_and_a_dispatcher_that_knows(templates: Templates) -> None:
    for pollers, answered in (("0", None), ("2", ["ReportBatchItemFailures"])):
        deployed = deploy(templates, BootstrapServers="b:9092", ProvisionedPollers=pollers)
        source = mapping(deployed)
        assert source.get("FunctionResponseTypes") == answered
        # A destination for failures would bound retries, and give up a record that could be handled later.
        assert "DestinationConfig" not in source
        variables = deployed["Dispatcher/Dispatcher"].properties["Environment"]["Variables"]
        assert variables["TENUTO_PARTIAL_BATCHES"] == ("false" if answered is None else "true")


@pytest.mark.parametrize(("auth", "expected"), [("IAM", "AWS_IAM"), ("JWT", "JWT"), ("NONE", "NONE")])
def test_an_http_api_asks_who_calls(templates: Templates, auth: str, expected: str) -> None:
    deployed = deploy(templates, Api="Http", ApiAuth=auth, JwtIssuer="https://issuer", JwtAudience="me")
    routes = [one.properties for one in deployed.values() if one.type == "AWS::ApiGatewayV2::Route"]
    assert routes
    assert {route["AuthorizationType"] for route in routes} == {expected}
    assert all(("AuthorizerId" in route) == (auth == "JWT") for route in routes)
    assert "RestApi/Api" not in deployed


@pytest.mark.parametrize(("auth", "expected"), [("IAM", [{"sigv4": []}]), ("NONE", None)])
def test_a_rest_api_asks_who_calls(templates: Templates, auth: str, expected: object) -> None:
    deployed = deploy(templates, Api="Rest", ApiAuth=auth)
    paths = deployed["RestApi/Api"].properties["Body"]["paths"]
    assert [verb.get("security") for verbs in paths.values() for verb in verbs.values()] == [expected] * len(paths)
    assert "HttpApi/Api" not in deployed


def test_lambdas_own_brake_on_loops_is_on(templates: Templates) -> None:
    """That no chain comes near it is tested in `tests/control/test_continuations.py`."""
    functions = [one for one in deploy(templates).values() if one.type == "AWS::Lambda::Function"]
    assert [one.properties["RecursiveLoop"] for one in functions] == ["Terminate"] * 2
    assert 2 * HOPS_MAX <= LOOP_INVOCATIONS


@pytest.mark.parametrize(("dispatchers", "handlers"), [("100", "0"), ("0", "0"), ("50", "200")])
def test_dispatchers_leave_places_for_the_handlers_that_they_wait_for(
    templates: Templates, dispatchers: str, handlers: str
) -> None:
    deployed = deploy(templates, DispatcherConcurrency=dispatchers, HandlerConcurrency=handlers)
    for name, places in (("Dispatcher/Dispatcher", dispatchers), ("Functions/UserUpdates", handlers)):
        assert deployed[name].properties.get("ReservedConcurrentExecutions", "0") == places


def test_unless_told_otherwise_dispatchers_are_bounded(templates: Templates) -> None:
    reserved = int(deploy(templates)["Dispatcher/Dispatcher"].properties["ReservedConcurrentExecutions"])
    assert 0 < reserved <= ACCOUNT_CONCURRENCY // 2


def test_each_mapping_has_a_consumer_group_of_its_own(templates: Templates) -> None:
    """Two mappings of one group would be refused, or take each other's partitions."""
    groups = set()
    for topic in ("orders", "refunds"):
        for config in ({}, {"MskClusterArn": CLUSTER}):
            source = mapping(deploy(templates, BootstrapServers="b:9092", Topic=topic, **config, **NETWORK))
            kind = "AmazonManaged" if config else "SelfManaged"
            groups.add(source[f"{kind}KafkaEventSourceConfig"]["ConsumerGroupId"])
    assert groups == {"tenuto.orders", "tenuto.refunds"}


@pytest.mark.parametrize(("start", "position"), [("earliest", "TRIM_HORIZON"), ("latest", "LATEST")])
def test_a_mapping_begins_where_its_subscription_says(templates: Templates, start: Start, position: str) -> None:
    assert start in get_args(Start)
    source = mapping(deploy(templates, BootstrapServers="b:9092", TopicStart=start))
    assert source["StartingPosition"] == position


def test_the_dead_letter_topic_is_named(templates: Templates) -> None:
    output = templates["template.yaml"]["Outputs"]["DeadLetterTopic"]
    assert output["Value"] == {"Fn::Sub": f"${{Topic}}{DEAD_LETTER_SUFFIX}"}


def test_an_alarm_watches_invocations_for_each_record(templates: Templates) -> None:
    metrics = deploy(templates)["Observability/InvocationsAlarm"].properties["Metrics"]
    by_id = {metric["Id"]: metric for metric in metrics}
    assert by_id["excess"]["Expression"] == "invocations - 10 * FILL(events, 0)"
    events = by_id["events"]["MetricStat"]["Metric"]
    assert (events["Namespace"], events["MetricName"]) == ("tenuto", "EventsIn")
    assert events["MetricName"] in get_args(CountName)


@pytest.mark.parametrize("shape", ["ScaleToZero", "AlwaysOn"])
def test_alarms(templates: Templates, shape: str) -> None:
    deployed = deploy(templates, Shape=shape, AlarmTopicArn="arn:topic", **NETWORK)
    alarms = {name.rpartition("/")[2]: one for name, one in deployed.items() if one.type == "AWS::CloudWatch::Alarm"}
    common = {"ClockAlarm", "DeadLettersAlarm", "FunctionsUnansweredAlarm", "LagAlarm", "RecordsRefusedAlarm"}
    common |= {"UnreadableItemsAlarm", "UserUpdatesErrorsAlarm", "UserUpdatesThrottlesAlarm"}
    scaled = {"DispatcherErrorsAlarm", "DispatcherThrottlesAlarm", "InvocationsAlarm", "SweepAlarm", "WakeUpsAlarm"}
    always_on = {"LoopRestartsAlarm", "UnreadablePartitionsAlarm"}
    assert alarms.keys() == common | (scaled if shape == "ScaleToZero" else always_on)
    assert all(alarm.properties["AlarmActions"] == ["arn:topic"] for alarm in alarms.values())
    own = [one.properties for one in alarms.values() if one.properties.get("Namespace") == "tenuto"]
    counted = {*get_args(CountName), *get_args(SampleName)}
    assert {one["MetricName"] for one in own} <= counted, "an alarm on a metric that nobody counts never goes off"
    guide = GUIDE.read_text()
    for name in (alarm.properties["AlarmName"] for alarm in alarms.values()):
        assert f"`{name}`" in guide, f"the guide does not say what to do about {name}"
