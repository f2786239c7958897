"""What the Kafka drivers add to their client: sign-in to Amazon MSK by IAM, and cancellations that stay its own."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import parse_qs, urlsplit

import pytest
from aiokafka.errors import KafkaError

from tenuto_control.config import ConfigError, KafkaConfig
from tenuto_control.drivers.kafka_client import connection_settings, only_ours_cancels
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


# --- cancellations ---------------------------------------------------------------------------------------------------


async def cancels_its_own() -> None:
    """What aiokafka does with tasks of its own."""
    own = asyncio.create_task(asyncio.sleep(1))
    own.cancel()
    await own


def test_a_cancellation_that_escapes_from_the_client_is_an_error_of_the_client() -> None:
    async def scenario() -> None:
        with pytest.raises(KafkaError, match="cancelled a task of its own"), only_ours_cancels():
            await cancels_its_own()
        with pytest.raises(KafkaError), only_ours_cancels():
            async with asyncio.timeout(10):
                await cancels_its_own()

    asyncio.run(scenario())


def test_a_cancellation_that_is_meant_stays_one() -> None:
    async def scenario() -> None:
        async def guarded() -> None:
            with only_ours_cancels():
                await asyncio.sleep(10)

        task = asyncio.create_task(guarded())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError), only_ours_cancels():
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)

    asyncio.run(scenario())
