"""What only some endpoints have: HTTP APIs and event source mappings from Kafka. Elsewhere it skips with the reason."""

from __future__ import annotations

import json
from urllib.request import urlopen

import pytest

from tests.localstack.conftest import Client
from tests.localstack.deployment import Deployment


@pytest.mark.usefixtures("http_api")
def test_an_http_api_reaches_a_function(client: Client, deployment: Deployment, run_name: str) -> None:
    gateway = client("apigatewayv2")
    api = gateway.create_api(Name=run_name, ProtocolType="HTTP", Target=deployment.function("where"))
    try:
        with urlopen(api["ApiEndpoint"], timeout=30) as answer:
            assert set(json.loads(answer.read())) == {"tenuto", "msgspec"}
    finally:
        gateway.delete_api(ApiId=api["ApiId"])


@pytest.mark.usefixtures("kafka_mapping")
def test_a_kafka_mapping_takes_the_settings_of_the_template(
    client: Client, deployment: Deployment, run_name: str
) -> None:
    lambda_ = client("lambda")
    mapping = lambda_.create_event_source_mapping(
        FunctionName=deployment.function("observe"),
        Topics=[run_name],
        StartingPosition="TRIM_HORIZON",
        Enabled=False,
        FunctionResponseTypes=["ReportBatchItemFailures"],
        SelfManagedEventSource={"Endpoints": {"KAFKA_BOOTSTRAP_SERVERS": ["127.0.0.1:9092"]}},
        SourceAccessConfigurations=[
            {"Type": "BASIC_AUTH", "URI": "arn:aws:secretsmanager:us-east-1:000000000000:secret:suite"}
        ],
    )
    try:
        stored = lambda_.get_event_source_mapping(UUID=mapping["UUID"])
        assert stored["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    finally:
        lambda_.delete_event_source_mapping(UUID=mapping["UUID"])
