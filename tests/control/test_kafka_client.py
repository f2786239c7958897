"""Signing in to Amazon MSK by IAM: the token is made here, from whatever credentials the process has."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import parse_qs, urlsplit

import pytest

from tenuto_control.config import ConfigError, KafkaConfig
from tenuto_control.drivers.kafka_client import connection_settings
from tenuto_control.limits import Limits


def test_a_token_is_a_request_to_connect_signed_for_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(name, value)

    async def scenario() -> str:
        settings = connection_settings(KafkaConfig(bootstrap_servers="b:9098", iam=True), Limits())
        assert (settings["security_protocol"], settings["sasl_mechanism"]) == ("SASL_SSL", "OAUTHBEARER")
        return str(await settings["sasl_oauth_token_provider"].token())

    token = asyncio.run(scenario())
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    query = parse_qs(url.query)
    assert url.netloc == "kafka.eu-west-1.amazonaws.com"
    assert query["Action"] == ["kafka-cluster:Connect"]
    assert query["X-Amz-Credential"][0].startswith("AKIDEXAMPLE/")


def test_a_token_needs_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(ConfigError, match="set AWS_REGION"):
        connection_settings(KafkaConfig(bootstrap_servers="b:9098", iam=True), Limits())
