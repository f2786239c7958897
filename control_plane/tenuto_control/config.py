"""Reads `tenuto.toml` and the environment into one checked `Config`.

Owns the file's shape, its defaults, what the environment overrides, which rule a value has to satisfy, and how a
mistake is named. Does not own the rules (`core.settings`) nor what the values do. Secrets belong in the environment; a
file may hold them, and no message or `repr` shows them.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias

import msgspec
from msgspec import Struct

from tenuto_control.core import settings
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
    "TENUTO_HTTP_HEALTH_PORT": ("http", "health_port"),
    "TENUTO_SCHEDULER_GROUP": ("scheduler", "group"),
    "TENUTO_SCHEDULER_ROLE_ARN": ("scheduler", "role_arn"),
    "TENUTO_SCHEDULER_TARGET_ARN": ("scheduler", "target_arn"),
    "TENUTO_SCHEDULER_DLQ_ARN": ("scheduler", "dlq_arn"),
    "TENUTO_HOLD_SLEEP_MS": ("limits", "hold_sleep_ms"),
    "TENUTO_DEV_HTTP_PORT": ("dev", "http_port"),
    "TENUTO_DEV_KAFKA_PORT": ("dev", "kafka_port"),
    "TENUTO_DEV_AWS_PORT": ("dev", "aws_port"),
    "TENUTO_DEV_ENGINES": ("dev", "engines"),
}
"""Environment variables and the section and key they replace.

AWS endpoints and credentials follow AWS's own variables.
"""

FUNCTION_VARIABLE = "TENUTO_FUNCTION_"
"""Followed by a function's name in capitals, `-` written `_`: the name or ARN of that function."""

NUMBERS = ("port", "health_port", "hold_sleep_ms", "http_port", "kafka_port", "aws_port")
"""Keys of ENVIRONMENT that hold whole numbers."""

SWITCHES = ("iam",)
"""Keys of ENVIRONMENT that hold `true` or `false`."""


DIGITS_MAX: Final = 18
"""Longest whole number that a variable may hold: below what fits into 64 bits."""


class ConfigError(Exception):
    """The configuration cannot be used. The message names the file or variable, the key, and the way out."""


class _MistakeError(Exception):
    """A mistake at a place in the file, such as "http.port". The text is the rest of a sentence about it."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


Text: TypeAlias = Annotated[str, settings.text_problem]
Secret: TypeAlias = Annotated[str, settings.secret_problem]
TopicName: TypeAlias = Annotated[str, settings.topic_name_problem]


class KafkaConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kafka]`: how to reach the brokers.

    `iam` signs in to Amazon MSK with the process's AWS credentials.
    """

    bootstrap_servers: Annotated[str, settings.brokers_problem] = "127.0.0.1:9092"
    group_id: Text = "tenuto"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: Text | None = None
    sasl_password: Secret | None = None
    ssl_cafile: Text | None = None
    ssl_certfile: Text | None = None
    ssl_keyfile: Text | None = None
    ssl_key_password: Secret | None = None
    iam: bool = False

    def __repr__(self) -> str:
        return f"KafkaConfig({self.bootstrap_servers!r}, group_id={self.group_id!r}, {self.security_protocol})"


class TableConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[table]`: the DynamoDB table of lanes."""

    name: Annotated[str, settings.table_problem] = "tenuto"


class EncryptionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[encryption]`: payloads are encrypted before they are stored, under data keys of this KMS key.

    `kms_key_id` is its id, ARN or alias.
    """

    kms_key_id: Text


class AwsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[aws]`: the region; None leaves it to AWS's own environment variables and files."""

    region: Annotated[str, settings.region_problem] | None = None


class FunctionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[functions.<name>]`: a Lambda function by name or ARN; `function` defaults to the section's name.

    `concurrency` bounds this control plane's simultaneous invocations: stay below the function's reserved concurrency.
    A control plane ignores the other keys, which are for what starts or deploys the function: `handler` is where its
    code is, "module:name"; `memory_mb`, `timeout_s` and `environment` are what it gets; `policies` go to its role.
    """

    function: Annotated[str, settings.function_problem] | None = None
    qualifier: Annotated[str, settings.function_problem] | None = None
    concurrency: Annotated[int, settings.concurrency_problem] = 100
    handler: Annotated[str, settings.handler_problem] | None = None
    memory_mb: Annotated[int, settings.memory_problem] | None = None
    timeout_s: Annotated[int, settings.timeout_problem] | None = None
    environment: Annotated[dict[str, str | dict[str, str]], settings.environment_problem] | None = None
    policies: Annotated[tuple[str, ...], settings.policies_problem] = ()


class TopicConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[topics.<name>]`: a topic that `tenuto dev` creates, besides those of subscriptions and their dead letters."""

    partitions: Annotated[int, settings.partitions_problem] = 4


class SubscriptionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[subscriptions]]`: a topic and the handler that takes its records. `target` is "service/handler"."""

    topic: TopicName
    target: Annotated[str, settings.target_problem]
    key: Text = "utf-8"
    ordering: Ordering = "key"
    dead_letter: TopicName | None = None
    epoch: Annotated[str, settings.epoch_problem] = "0"
    start: Start = "earliest"


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[http]`: where the ingress listens, by which names it is addressed, and from which pages browsers may call.

    `cors_origins` are origins such as "https://app.example"; "*" are all. Without it no page may. `hosts` are names
    such as "tenuto.example"; without it, an ingress on 127.0.0.1 takes names of its own machine alone, others any name.
    `health_port` has `/health` alone, whatever waits at `port`; 0: no such port.
    """

    host: Annotated[str, settings.listened_problem] = "127.0.0.1"
    port: Annotated[int, settings.port_problem] = 8080
    health_port: Annotated[int, settings.health_port_problem] = 0
    cors_origins: Annotated[tuple[str, ...], settings.origins_problem] = ()
    hosts: Annotated[tuple[str, ...], settings.hosts_problem] = ()


class SchedulerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[scheduler]`: EventBridge Scheduler, for wake-ups that no process here is needed for.

    `dlq_arn` is a queue for wake-ups that could not be delivered: hints all of them, but a sign of trouble.
    """

    role_arn: Text
    target_arn: Text
    group: Text = "default"
    dlq_arn: Text | None = None


class DevConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[dev]`: what `tenuto dev` listens on and runs on; a control plane ignores it. A port of 0 is any that is free.

    `http_port` defaults to the port of `[http]`.
    """

    http_port: Annotated[int, settings.local_port_problem] | None = None
    kafka_port: Annotated[int, settings.local_port_problem] = 9092
    aws_port: Annotated[int, settings.local_port_problem] = 4599
    engines: Literal["auto", "native", "reference"] = "auto"


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
    topics: Mapping[str, TopicConfig] = field(default_factory=dict)
    dev: DevConfig = field(default_factory=DevConfig)
    limits: Limits = field(default_factory=Limits)


_SECTIONS: Mapping[str, type[Any]] = {
    "kafka": KafkaConfig,
    "table": TableConfig,
    "encryption": EncryptionConfig,
    "aws": AwsConfig,
    "http": HttpConfig,
    "scheduler": SchedulerConfig,
    "dev": DevConfig,
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
    except (ValueError, RecursionError) as e:
        # Not only TOMLDecodeError: a number may have too many digits, and arrays may nest too deeply.
        raise ConfigError(f"{file}: not TOML: {e}") from e
    variables: dict[str, str] = {}
    try:
        return _config(raw, environment, limits, variables)
    except _MistakeError as e:
        variable = variables.get(e.where)
        raise ConfigError(f"{variable}: {e.problem}" if variable else f"{file}: {e}") from e


def _config(
    raw: dict[str, Any], environment: Mapping[str, str], limits: Mapping[str, int] | None, variables: dict[str, str]
) -> Config:
    """The configuration. `variables` gets the places that environment variables set. Raises _MistakeError."""
    _check_names(raw, [*_SECTIONS, "functions", "subscriptions", "topics"], "")
    if limits:
        raw["limits"] = {**limits, **_table(raw.get("limits", {}), "limits")}
    _check_functions(_table(raw.get("functions", {}), "functions"))
    _apply(environment, raw, variables)

    sections = {name: _convert(raw[name], kind, name) for name, kind in _SECTIONS.items() if name in raw}
    functions = {
        name: _convert(value, FunctionConfig, f"functions.{name}") for name, value in raw.get("functions", {}).items()
    }
    if not functions:
        raise _MistakeError("functions", "none is configured; add a section such as [functions.my-function]")
    config = Config(functions=functions, subscriptions=_subscriptions(raw), topics=_topics(raw), **sections)
    _check_kafka(config.kafka)
    return config


def _apply(environment: Mapping[str, str], raw: dict[str, Any], variables: dict[str, str]) -> None:
    """Lay environment variables over the file's values. An empty variable counts as absent."""
    for variable, (section, key) in ENVIRONMENT.items():
        text = environment.get(variable)
        if not text:
            continue
        where = f"{section}.{key}"
        variables[where] = variable
        value: str | int = text
        if key in SWITCHES:
            if text not in ("true", "false"):
                raise _MistakeError(where, f"expected true or false, not {text!r}")
            value = text == "true"
        if key in NUMBERS:
            if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX:
                raise _MistakeError(where, f"expected a whole number, not {settings.quoted(text)}")
            value = int(text)
        _table(raw.setdefault(section, {}), section)[key] = value
    for name, section_value in raw.get("functions", {}).items():
        variable = function_variable(name)
        text = environment.get(variable)
        if text:
            variables[f"functions.{name}.function"] = variable
            _table(section_value, f"functions.{name}")["function"] = text


def function_variable(function: str) -> str:
    """The variable that holds a function's name or ARN, by the name of its section."""
    return FUNCTION_VARIABLE + function.upper().replace("-", "_")


def _check_functions(functions: Mapping[str, Any]) -> None:
    """Names of functions, each with its own variable."""
    named: dict[str, str] = {}
    for name in functions:
        problem = settings.label_problem(name)
        if problem is not None:
            raise _MistakeError("functions", problem)
        first = named.setdefault(function_variable(name), name)
        if first != name:
            raise _MistakeError(
                f"functions.{name}",
                f"shares the variable {function_variable(name)} with functions.{first}; rename one of the two",
            )


def _topics(raw: Mapping[str, Any]) -> dict[str, TopicConfig]:
    topics = _table(raw.get("topics", {}), "topics")
    for name in topics:
        problem = settings.topic_name_problem(name)
        if problem is not None:
            raise _MistakeError(f"topics.{settings.quoted(name)}", problem)
    return {name: _convert(value, TopicConfig, f"topics.{name}") for name, value in topics.items()}


def _subscriptions(raw: Mapping[str, Any]) -> tuple[Subscription, ...]:
    listed = raw.get("subscriptions", [])
    if not isinstance(listed, list):
        raise _MistakeError("subscriptions", "write each one as a [[subscriptions]] section, with double brackets")
    subscriptions: dict[str, Subscription] = {}
    for index, value in enumerate(listed):
        where = f"subscriptions[{index}]"
        subscription = _subscription(_convert(value, SubscriptionConfig, where), where)
        if subscription.topic in subscriptions:
            raise _MistakeError(
                f"{where}.topic",
                f'"{subscription.topic}" has a subscription already; a topic has one handler, which can send on to '
                "others",
            )
        subscriptions[subscription.topic] = subscription
    return tuple(subscriptions.values())


def _subscription(section: SubscriptionConfig, where: str) -> Subscription:
    service, _, handler = section.target.partition("/")
    try:
        rule = parse_key_rule(section.key)
    except ValueError as e:
        raise _MistakeError(f"{where}.key", str(e)) from e
    subscription = Subscription(
        topic=section.topic,
        service=service,
        handler=handler,
        key=rule,
        ordering=section.ordering,
        dead_letter=section.dead_letter,
        epoch=section.epoch,
        start=section.start,
    )
    dead_letters = subscription.dead_letter_topic
    if dead_letters == subscription.topic:
        raise _MistakeError(f"{where}.dead_letter", f'"{dead_letters}" is its own dead-letter topic; name another')
    if settings.topic_name_problem(dead_letters) is not None:
        raise _MistakeError(
            f"{where}.topic", "its name is too long for that of its dead-letter topic; name one with dead_letter"
        )
    return subscription


def _check_kafka(kafka: KafkaConfig) -> None:
    if kafka.iam and kafka.security_protocol not in ("PLAINTEXT", "SASL_SSL"):
        raise _MistakeError("kafka.security_protocol", "iam uses SASL_SSL; leave it out, or iam")
    if not kafka.iam and kafka.security_protocol.startswith("SASL"):
        for key, variable in (
            ("sasl_username", "TENUTO_KAFKA_SASL_USERNAME"),
            ("sasl_password", "TENUTO_KAFKA_SASL_PASSWORD"),
        ):
            if not getattr(kafka, key):
                raise _MistakeError(f"kafka.{key}", f"{kafka.security_protocol} needs it; set {variable}")


# --- one section -----------------------------------------------------------------------------------------------------


def _convert(value: Any, kind: type[Any], where: str) -> Any:
    """A section as its class, each value of its type and by its rule. Raises _MistakeError."""
    names = kind.__struct_fields__ if issubclass(kind, Struct) else tuple(one.name for one in fields(kind))
    hints = typing.get_type_hints(kind, include_extras=True)
    _check_names(_table(value, where), names, where)
    try:
        section = msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        _explain(e, hints, where)
    for name in value:
        for rule in _rules(hints[name]):
            found = getattr(section, name)
            problem = None if found is None else rule(found)
            if problem is not None:
                raise _MistakeError(f"{where}.{name}", problem)
    return section


def _explain(error: msgspec.ValidationError, hints: Mapping[str, Any], where: str) -> NoReturn:
    """Say by key, and in TOML's words, what msgspec refuses. Raises _MistakeError."""
    # msgspec ends its messages with " - at `$.key`"; the key reads better in front, where every other error has it.
    message, _, place = str(error).partition(" - at `$")
    at = where + place.rstrip("`")
    hint = hints.get(place.strip(".`").partition("[")[0])
    if message.startswith("Object missing required field `"):
        raise _MistakeError(f"{at}.{message.split('`')[1]}", "is missing") from error
    if message.startswith("Invalid enum value") or typing.get_origin(hint) is Literal:
        raise _MistakeError(at, f"expected {_one_of(typing.get_args(hint))}") from error
    if message.startswith("Expected `"):
        in_list = place.endswith("]`") and "dict[" not in str(hint)
        expected = next((words for name, words in _EXPECTED.items() if message.startswith(f"Expected `{name}")), None)
        if expected is not None:
            raise _MistakeError(at, f"expected {expected}{' in each place of the list' if in_list else ''}") from error
    # A check of a class, such as of `Limits`, which names its field itself.
    name, _, problem = message.partition(" ")
    if name in hints:
        raise _MistakeError(f"{at}.{name}", problem) from error
    raise _MistakeError(at, f"{message[:1].lower()}{message[1:]}") from error


_EXPECTED: Final = {
    "str | object": 'text in quotes, or { parameter = "Name" }',
    "str": "text; write it in quotes",
    "int": "a whole number, without quotes",
    "bool": "true or false, without quotes",
    "array": 'a list of texts, such as ["one", "two"]',
    "object": "a section of its own, or values in braces",
}
"""What a value of the wrong type should have been, by msgspec's name for the type."""


def _one_of(values: tuple[Any, ...]) -> str:
    """`"a", "b" or "c"`."""
    texts = [f'"{value}"' for value in values]
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def _rules(hint: Any) -> list[Any]:
    """The rules of `core.settings` in a hint, also in one such as `Text | None`."""
    own = list(getattr(hint, "__metadata__", ()))
    return own + [rule for part in typing.get_args(hint) if not own for rule in _rules(part)]


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _MistakeError(where, f"expected a section, written [{where}], not a single value")
    return value


def _check_names(value: Mapping[str, Any], known: list[str] | tuple[str, ...], where: str) -> None:
    for name in value:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(sorted(known))
        raise _MistakeError(f"{where + '.' if where else ''}{name}", f"unknown key; {hint}")
