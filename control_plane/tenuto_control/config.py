"""Reads `tenuto.toml` and the environment into one checked `Config`.

Owns the file's shape, its defaults, what the environment overrides, and the words that explain a mistake.
Does not own what the values do. Secrets belong in the environment; a file may hold them, and no message or
`repr` shows them.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from tenuto_control.core.routing import Ordering, Start, Subscription, parse_key_rule
from tenuto_control.limits import Limits

DEFAULT_FILE = "tenuto.toml"

ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "TENUTO_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"),
    "TENUTO_GROUP_ID": ("kafka", "group_id"),
    "TENUTO_KAFKA_SECURITY_PROTOCOL": ("kafka", "security_protocol"),
    "TENUTO_KAFKA_SASL_MECHANISM": ("kafka", "sasl_mechanism"),
    "TENUTO_KAFKA_SASL_USERNAME": ("kafka", "sasl_username"),
    "TENUTO_KAFKA_SASL_PASSWORD": ("kafka", "sasl_password"),
    "TENUTO_KAFKA_IAM": ("kafka", "iam"),
    "TENUTO_KAFKA_SSL_CAFILE": ("kafka", "ssl_cafile"),
    "TENUTO_KAFKA_SSL_KEY_PASSWORD": ("kafka", "ssl_key_password"),
    "TENUTO_TABLE": ("table", "name"),
    "TENUTO_KMS_KEY_ID": ("encryption", "kms_key_id"),
    "TENUTO_REGION": ("aws", "region"),
    "TENUTO_HTTP_HOST": ("http", "host"),
    "TENUTO_HTTP_PORT": ("http", "port"),
    "TENUTO_SCHEDULER_GROUP": ("scheduler", "group"),
    "TENUTO_SCHEDULER_ROLE_ARN": ("scheduler", "role_arn"),
    "TENUTO_SCHEDULER_TARGET_ARN": ("scheduler", "target_arn"),
    "TENUTO_SCHEDULER_DLQ_ARN": ("scheduler", "dlq_arn"),
    "TENUTO_HOLD_SLEEP_MS": ("limits", "hold_sleep_ms"),
}
"""Environment variables and the section and key they replace.

AWS endpoints and credentials follow AWS's own variables.
"""

FUNCTION_VARIABLE = "TENUTO_FUNCTION_"
"""Followed by a function's name in capitals, `-` written `_`: the name or ARN of that function."""

NUMBERS = ("port", "hold_sleep_ms")
"""Keys of ENVIRONMENT that hold whole numbers."""

SWITCHES = ("iam",)
"""Keys of ENVIRONMENT that hold `true` or `false`."""


class ConfigError(Exception):
    """The configuration cannot be used. The message names the file or variable, the key, and the way out."""


class KafkaConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kafka]`: how to reach the brokers.

    `iam` signs in to Amazon MSK with the process's AWS credentials.
    """

    bootstrap_servers: str = "127.0.0.1:9092"
    group_id: str = "tenuto"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_key_password: str | None = None
    iam: bool = False

    def __repr__(self) -> str:
        return f"KafkaConfig({self.bootstrap_servers!r}, group_id={self.group_id!r}, {self.security_protocol})"


class TableConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[table]`: the DynamoDB table of lanes."""

    name: str = "tenuto"


class EncryptionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[encryption]`: payloads are encrypted before they are stored, under data keys of this KMS key.

    `kms_key_id` is its id, ARN or alias.
    """

    kms_key_id: str


class AwsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[aws]`: the region; None leaves it to AWS's own environment variables and files."""

    region: str | None = None


class FunctionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[functions.<name>]`: a Lambda function by name or ARN; `function` defaults to the section's name.

    `concurrency` bounds this control plane's simultaneous invocations: stay below the function's reserved concurrency.
    """

    function: str | None = None
    qualifier: str | None = None
    concurrency: int = 100


class SubscriptionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[subscriptions]]`: a topic and the handler that takes its records. `target` is "service/handler"."""

    topic: str
    target: str
    key: str = "utf-8"
    ordering: Ordering = "key"
    dead_letter: str | None = None
    epoch: str = "0"
    start: Start = "earliest"


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[http]`: where the ingress listens, by which names it is addressed, and from which pages browsers may call.

    `cors_origins` are origins such as "https://app.example"; "*" are all. Without it no page may. `hosts` are names
    such as "tenuto.example"; without it, an ingress on 127.0.0.1 takes names of its own machine alone, others any name.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


class SchedulerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[scheduler]`: EventBridge Scheduler, for wake-ups that no process here is needed for.

    `dlq_arn` is a queue for wake-ups that could not be delivered: hints all of them, but a sign of trouble.
    """

    role_arn: str
    target_arn: str
    group: str = "default"
    dlq_arn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything an entry point needs to wire a control plane."""

    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    table: TableConfig = field(default_factory=TableConfig)
    encryption: EncryptionConfig | None = None
    aws: AwsConfig = field(default_factory=AwsConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    scheduler: SchedulerConfig | None = None
    functions: Mapping[str, FunctionConfig]
    subscriptions: tuple[Subscription, ...] = ()
    limits: Limits = field(default_factory=Limits)


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(?::[0-9]{1,5})?|[a-z]+://\[[0-9a-f:.]+\](?::[0-9]{1,5})?")

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9a-f:.]+")

_SECTIONS: Mapping[str, type[Any]] = {
    "kafka": KafkaConfig,
    "table": TableConfig,
    "encryption": EncryptionConfig,
    "aws": AwsConfig,
    "http": HttpConfig,
    "scheduler": SchedulerConfig,
    "limits": Limits,
}


def load(
    path: str | Path, environment: Mapping[str, str] | None = None, limits: Mapping[str, int] | None = None
) -> Config:
    """Read a configuration file and the environment (`os.environ` unless given). Raises ConfigError.

    `limits` are defaults that a way to run has of its own; the file's `[limits]` come before them.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: no such file; write one, or name another with --config") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e
    return parse(text, str(path), os.environ if environment is None else environment, limits)


def parse(text: str, file: str, environment: Mapping[str, str], limits: Mapping[str, int] | None = None) -> Config:
    """The configuration a TOML text and environment variables make.

    `file` names the text in errors. Raises ConfigError.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{file}: not TOML: {e}") from e
    _check_names(raw, [*_SECTIONS, "functions", "subscriptions"], file, "")
    if limits:
        raw["limits"] = {**limits, **_table(raw.get("limits", {}), file, "limits")}
    _apply(environment, raw, file)

    sections = {name: _convert(raw[name], kind, file, name) for name, kind in _SECTIONS.items() if name in raw}
    functions = {
        name: _convert(value, FunctionConfig, file, f"functions.{name}")
        for name, value in _table(raw.get("functions", {}), file, "functions").items()
    }
    if not functions:
        raise ConfigError(f"{file}: functions: none is configured; add a section such as [functions.my-function]")
    config = Config(functions=functions, subscriptions=_subscriptions(raw, file), **sections)
    _check_kafka(config.kafka, file)
    _check_origins(config.http.cors_origins, file)
    _check_hosts(config.http.hosts, file)
    return config


def _apply(environment: Mapping[str, str], raw: dict[str, Any], file: str) -> None:
    """Lay environment variables over the file's values. An empty variable counts as absent."""
    for variable, (section, key) in ENVIRONMENT.items():
        text = environment.get(variable)
        if not text:
            continue
        value: str | int = text
        if key in SWITCHES:
            if text not in ("true", "false"):
                raise ConfigError(f"{variable}: expected true or false, not {text!r}")
            value = text == "true"
        if key in NUMBERS:
            if not text.isascii() or not text.isdigit():
                raise ConfigError(f"{variable}: expected a whole number, not {text!r}")
            value = int(text)
        _table(raw.setdefault(section, {}), file, section)[key] = value
    for name, section_value in _table(raw.get("functions", {}), file, "functions").items():
        text = environment.get(FUNCTION_VARIABLE + name.upper().replace("-", "_"))
        if text:
            _table(section_value, file, f"functions.{name}")["function"] = text


def _subscriptions(raw: Mapping[str, Any], file: str) -> tuple[Subscription, ...]:
    listed = raw.get("subscriptions", [])
    if not isinstance(listed, list):
        raise ConfigError(f"{file}: subscriptions: write each one as a [[subscriptions]] section, with double brackets")
    subscriptions: dict[str, Subscription] = {}
    for index, value in enumerate(listed):
        where = f"subscriptions[{index}]"
        subscription = _subscription(_convert(value, SubscriptionConfig, file, where), file, where)
        if subscription.topic in subscriptions:
            raise ConfigError(
                f'{file}: {where}.topic: "{subscription.topic}" has a subscription already; '
                "a topic has one handler, which can send on to others"
            )
        subscriptions[subscription.topic] = subscription
    for subscription in subscriptions.values():
        if subscription.dead_letter_topic == subscription.topic:
            raise ConfigError(f'{file}: "{subscription.topic}" is its own dead-letter topic; name another')
    return tuple(subscriptions.values())


def _subscription(section: SubscriptionConfig, file: str, where: str) -> Subscription:
    if not section.topic:
        raise ConfigError(f"{file}: {where}.topic: is empty; name a Kafka topic")
    service, slash, handler = section.target.partition("/")
    if not service or not slash or not handler or "/" in handler:
        raise ConfigError(f'{file}: {where}.target: expected "service/handler", not "{section.target}"')
    try:
        rule = parse_key_rule(section.key)
    except ValueError as e:
        raise ConfigError(f"{file}: {where}.key: {e}") from e
    return Subscription(
        topic=section.topic,
        service=service,
        handler=handler,
        key=rule,
        ordering=section.ordering,
        dead_letter=section.dead_letter,
        epoch=section.epoch,
        start=section.start,
    )


def _check_origins(origins: tuple[str, ...], file: str) -> None:
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise ConfigError(
                f"{file}: http.cors_origins: {origin!r} is no origin; write scheme and host as a browser does, such as "
                '"https://app.example" or "http://localhost:3000", or "*" for all'
            )


def _check_hosts(hosts: tuple[str, ...], file: str) -> None:
    for host in hosts:
        if _HOST.fullmatch(host) is None:
            raise ConfigError(
                f'{file}: http.hosts: {host!r} is no host; write a name without scheme and port, such as "api.example"'
            )


def _check_kafka(kafka: KafkaConfig, file: str) -> None:
    if kafka.iam and kafka.security_protocol not in ("PLAINTEXT", "SASL_SSL"):
        raise ConfigError(f"{file}: kafka.security_protocol: iam uses SASL_SSL; leave it out, or iam")
    if not kafka.iam and kafka.security_protocol.startswith("SASL"):
        for key, variable in (
            ("sasl_username", "TENUTO_KAFKA_SASL_USERNAME"),
            ("sasl_password", "TENUTO_KAFKA_SASL_PASSWORD"),
        ):
            if not getattr(kafka, key):
                raise ConfigError(f"{file}: kafka.{key}: {kafka.security_protocol} needs it; set {variable}")
    if not kafka.bootstrap_servers.strip(" ,"):
        raise ConfigError(f"{file}: kafka.bootstrap_servers: is empty; write host:port, several with commas between")


def _convert(value: Any, kind: type[Any], file: str, where: str) -> Any:
    names = kind.__struct_fields__ if issubclass(kind, Struct) else tuple(one.name for one in fields(kind))
    _check_names(_table(value, file, where), names, file, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        # msgspec ends its messages with " - at `$.key`"; the key reads better in front, where every other
        # error has it.
        message, _, place = str(e).partition(" - at `$")
        raise ConfigError(f"{file}: {where}{place.rstrip('`')}: {message[:1].lower()}{message[1:]}") from e


def _table(value: Any, file: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {where}: expected a section, written [{where}], not a single value")
    return value


def _check_names(value: Mapping[str, Any], known: list[str] | tuple[str, ...], file: str, where: str) -> None:
    for name in value:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(sorted(known))
        raise ConfigError(f"{file}: {where + '.' if where else ''}{name}: unknown key; {hint}")
