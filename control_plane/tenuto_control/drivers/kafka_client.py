"""What consumer and producer have in common: connection settings, sign-in, and a quiet client log.

Owns the translation of `[kafka]` into aiokafka's arguments and of its errors into words. Does not own a
connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import (
    AuthenticationFailedError,
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.helpers import create_ssl_context

from tenuto_control import cancellation
from tenuto_control.config import ConfigError, KafkaConfig
from tenuto_control.limits import Limits

CLIENT_LOG_INTERVAL_S = 10.0
"""At most one line of the client library's own log in this time, which doubles while the storm continues.

The loops report what matters by themselves.
"""

CLIENT_LOG_INTERVAL_S_MAX = 600.0

RETRY_PAUSE_MS = 200
"""Between the client library's own tries to reach a broker."""

_log = logging.getLogger("tenuto_control.kafka")


CLOSED_CONNECTION: Final = "the handler is closed"
"""What uvloop says when something is written to a connection that has ended."""


@contextmanager
def kafka_errors_only() -> Iterator[None]:
    """Turns what escapes from aiokafka and is no error of Kafka's into a KafkaError.

    aiokafka cancels tasks of its own and awaits them. One that is cancelled before its first step, or where it does not
    expect that, raises CancelledError in whoever calls the client: a consumer, or the worker of a lane, would end
    without a word and for good. And where a connection ends between two requests, uvloop raises RuntimeError from the
    next write, which aiokafka hands on.
    """
    try:
        yield
    except asyncio.CancelledError as e:
        if cancellation.is_meant():
            raise
        raise KafkaError("the client cancelled a task of its own") from e
    except RuntimeError as e:
        if CLOSED_CONNECTION not in str(e):
            raise
        raise KafkaConnectionError(str(e)) from e


def connection_settings(kafka: KafkaConfig, limits: Limits) -> dict[str, Any]:
    """Keyword arguments for an aiokafka consumer or producer. Raises ConfigError."""
    settings: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",") if server.strip()],
        "client_id": "tenuto",
        "request_timeout_ms": limits.log_request_timeout_ms,
        "retry_backoff_ms": RETRY_PAUSE_MS,
    }
    if kafka.iam:
        return settings | {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_provider": _msk_tokens(),
            "ssl_context": _ssl_context(kafka),
        }
    settings["security_protocol"] = kafka.security_protocol
    if kafka.security_protocol.endswith("SSL"):
        settings["ssl_context"] = _ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        settings["sasl_plain_username"] = kafka.sasl_username
        settings["sasl_plain_password"] = kafka.sasl_password
    return settings


def describe(error: BaseException, kafka: KafkaConfig) -> str:
    """One line on what a client error means here and what could be done."""
    match error:
        case AuthenticationFailedError():
            return f"Kafka at {kafka.bootstrap_servers} refused the sign-in; check kafka.sasl_* ({error})"
        case TopicAuthorizationFailedError():
            return f"Kafka at {kafka.bootstrap_servers} denies access: {error}"
        case UnknownTopicOrPartitionError():
            return f"the topic does not exist ({error}); create it"
        case CommitFailedError() | IllegalStateError():
            return f"the partition belongs to another member of group {kafka.group_id!r} now"
        case KafkaConnectionError() | OSError() | TimeoutError():
            detail = str(error) or "no answer in time"
            way_out = "check kafka.bootstrap_servers"
            return f"Kafka at {kafka.bootstrap_servers} cannot be reached ({detail}); {way_out}"
        case _:
            return f"Kafka at {kafka.bootstrap_servers}: {str(error) or type(error).__name__}"


def quiet_client_log() -> None:
    """Turn aiokafka's storm of lines while brokers are away into one every few seconds."""
    client = logging.getLogger("aiokafka")
    if client.propagate and not any(isinstance(handler, _Digest) for handler in client.handlers):
        client.addHandler(_Digest(logging.WARNING))
        client.propagate = False


class _Digest(logging.Handler):
    """Passes on the first line of every interval and counts the others. Intervals grow until one is quiet."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._next_s = 0.0
        self._interval_s = CLIENT_LOG_INTERVAL_S
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            self._dropped += 1
            return
        more = f" (and {self._dropped} lines before)" if self._dropped else ""
        _log.warning("Kafka client: %s%s", record.getMessage(), more)
        if self._dropped:
            self._interval_s = min(2 * self._interval_s, CLIENT_LOG_INTERVAL_S_MAX)
        else:
            self._interval_s = CLIENT_LOG_INTERVAL_S
        self._next_s = now_s + self._interval_s
        self._dropped = 0


def _ssl_context(kafka: KafkaConfig) -> ssl.SSLContext:
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=kafka.ssl_cafile,
            certfile=kafka.ssl_certfile,
            keyfile=kafka.ssl_keyfile,
            password=kafka.ssl_key_password,
        )
    except (OSError, ValueError) as e:
        raise ConfigError(f"kafka.ssl_*: the certificate files cannot be used: {e}") from e
    return context


def _msk_tokens() -> AbstractTokenProvider:
    # Imported here, because only those who sign in by IAM need it.
    from tenuto_control.drivers.msk_tokens import MskTokens

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise ConfigError("kafka.iam: the token names a region; set AWS_REGION")
    return MskTokens(region)
