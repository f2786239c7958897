"""What an endpoint can do beyond what every test needs, found out by asking it.

Owns the probes and the words of a skip. A probe leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

# AWS gives none of these for an operation that exists, called with sound arguments.
ABSENT_STATUSES = (404, 405, 501)
ABSENT_WORDS = ("not yet been emulated", "not yet implemented", "not implemented", "not supported", "unsupported")

Client = Callable[[str], Any]


def require(reason: str | None) -> None:
    """Skip the test with the reason, if there is one."""
    if reason is not None:
        pytest.skip(reason)


def why_lacking(error: ClientError) -> str | None:
    """The endpoint's own words, if it lacks the operation; None when it refused for another reason."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = str(error.response.get("Error", {}).get("Message", ""))
    lacks = status in ABSENT_STATUSES or any(word in message.lower() for word in ABSENT_WORDS)
    return (message or f"HTTP status {status}") if lacks else None


def http_api(client: Client) -> str | None:
    """Why there are no HTTP APIs (API Gateway v2), None when there are."""
    try:
        client("apigatewayv2").get_apis()
    except ClientError as error:
        return f"no HTTP API: {why_lacking(error) or error}"
    return None


def kafka_mapping(client: Client, function: str) -> str | None:
    """Why a function cannot be fed from Kafka, None when it can.

    LocalStack remembers a mapping that it then fails to make: only one that can be read again counts.
    """
    lambda_ = client("lambda")
    uuid = None
    try:
        created = lambda_.create_event_source_mapping(
            FunctionName=function,
            Topics=["probe"],
            StartingPosition="LATEST",
            Enabled=False,
            SelfManagedEventSource={"Endpoints": {"KAFKA_BOOTSTRAP_SERVERS": ["127.0.0.1:9092"]}},
            SourceAccessConfigurations=[
                {"Type": "BASIC_AUTH", "URI": "arn:aws:secretsmanager:us-east-1:000000000000:secret:probe"}
            ],
        )
        uuid = created["UUID"]
        lambda_.get_event_source_mapping(UUID=uuid)
    except ClientError as error:
        return f"no event source mapping from Kafka: {why_lacking(error) or error}"
    finally:
        if uuid is not None:
            lambda_.delete_event_source_mapping(UUID=uuid)
    return None
