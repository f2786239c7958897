"""What the Kafka drivers add to their client: sign-in to Amazon MSK by IAM, and cancellations that stay its own."""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

import pytest
import uvloop
from aiokafka.errors import KafkaConnectionError, KafkaError
from botocore.credentials import Credentials

from tenuto_control.config import ConfigError, KafkaConfig
from tenuto_control.drivers.kafka_client import connection_settings, kafka_errors_only
from tenuto_control.drivers.msk_tokens import MskTokens, NoCredentialsError, token_of
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


def test_a_token_is_signed_as_brokers_check_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature is the one that AWS's own signer (aws-msk-iam-sasl-signer-python 1.0.2) makes of the same."""
    now = datetime(2026, 3, 1)  # noqa: DTZ001 - botocore compares times without a zone
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: now)
    token = token_of(Credentials("AKIDEXAMPLE", "secret", "tok/en+="), "eu-west-1")
    query = parse_qs(urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()).query)
    assert query["X-Amz-Expires"] == ["900"]
    assert query["X-Amz-Security-Token"] == ["tok/en+="]
    assert query["X-Amz-Signature"] == ["8d943105caf893c9507811a34d3e5570a4610a507658f5e8e37ff8cdc4fa28b2"]


def test_without_credentials_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.session.Session.get_credentials", lambda _: None)
    with pytest.raises(NoCredentialsError, match="give the process a role"):
        asyncio.run(MskTokens("eu-west-1").token())


def test_a_token_needs_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(ConfigError, match="set AWS_REGION"):
        connection_settings(KafkaConfig(bootstrap_servers="b:9098", iam=True), Limits())


# --- cancellations ---------------------------------------------------------------------------------------------------


async def cancels_its_own() -> None:
    """What aiokafka does with tasks of its own."""
    own = asyncio.create_task(asyncio.sleep(1))
    own.cancel()
    await own


def test_a_cancellation_that_escapes_from_the_client_is_an_error_of_the_client() -> None:
    async def scenario() -> None:
        with pytest.raises(KafkaError, match="cancelled a task of its own"), kafka_errors_only():
            await cancels_its_own()
        with pytest.raises(KafkaError), kafka_errors_only():
            async with asyncio.timeout(10):
                await cancels_its_own()

    asyncio.run(scenario())


def test_a_cancellation_that_is_meant_stays_one() -> None:
    async def scenario() -> None:
        async def guarded() -> None:
            with kafka_errors_only():
                await asyncio.sleep(10)

        task = asyncio.create_task(guarded())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError), kafka_errors_only():
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)

    asyncio.run(scenario())


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_connection_that_ended_between_two_requests_is_an_error_of_the_client() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        transport.abort()
        await asyncio.sleep(0.01)
        with pytest.raises(KafkaConnectionError), kafka_errors_only():
            transport.write(b"request")
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def test_another_error_of_the_client_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="a bug"), kafka_errors_only():
        raise RuntimeError("a bug")
