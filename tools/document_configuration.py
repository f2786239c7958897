# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Writes `docs/reference/configuration.md` from `tenuto_control.config` and `tenuto_control.limits`.

    python tools/document_configuration.py           # write the page
    python tools/document_configuration.py --check   # exit 1 when the page differs from the code

Owns the form of the page and the meaning of each key. Sections, keys, types, defaults and variables come from the code,
and a test compares the two: a key without a meaning here, or a meaning without a key, is an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tenuto.aws import PAYLOAD_KEY_VARIABLE
from tenuto.store.aws_client import CLIENT_VARIABLE
from tenuto_control import memory
from tenuto_control.config import (
    DEFAULT_FILE,
    ENVIRONMENT,
    FUNCTION_VARIABLE,
    AwsConfig,
    DevConfig,
    EncryptionConfig,
    FunctionConfig,
    HttpConfig,
    KafkaConfig,
    SchedulerConfig,
    SubscriptionConfig,
    TableConfig,
    TopicConfig,
)
from tenuto_control.drivers.log_lines import FORMAT_VARIABLE
from tenuto_control.lambda_entry import CONFIG_VARIABLE, PARTIAL_VARIABLE
from tenuto_control.limits import MIB, SERVERLESS, Limits

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "configuration.md"
NO_DEFAULT: Final = object()

Meanings = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the file: its title, its class, what it is for, and what each key means."""

    title: str
    kind: type[Any]
    about: str
    meanings: Meanings


SECTIONS: Final = (
    Section(
        "[kafka]",
        KafkaConfig,
        "How to reach the brokers. Passwords belong in the environment.",
        {
            "bootstrap_servers": "brokers as `host:port`, separated by commas",
            "group_id": "the consumer group",
            "security_protocol": "protocol of the connections",
            "sasl_mechanism": "SASL mechanism, with a SASL protocol",
            "sasl_username": "user name, with a SASL protocol",
            "sasl_password": "password, with a SASL protocol",
            "ssl_cafile": "path of the CA certificates of the brokers; by default those of the system",
            "ssl_certfile": "path of the client's certificate",
            "ssl_keyfile": "path of the client's private key",
            "ssl_key_password": "the password of that key",
            "iam": "authenticate to Amazon MSK with the AWS credentials of the process, over `SASL_SSL`",
        },
    ),
    Section("[table]", TableConfig, "The DynamoDB table.", {"name": "name of the table"}),
    Section(
        "[encryption]",
        EncryptionConfig,
        "With this section, payloads are [encrypted](../guides/security.md#encryption) before they are stored.",
        {"kms_key_id": "id, ARN or alias of the KMS key that wraps the data keys"},
    ),
    Section(
        "[aws]",
        AwsConfig,
        "Endpoints and credentials come from AWS's own variables.",
        {"region": "the region; by default from AWS's own variables and files"},
    ),
    Section(
        "[functions.<name>]",
        FunctionConfig,
        "One section for each Lambda function with handlers; at least one.",
        {
            "function": "name or ARN of the function; by default `<name>`",
            "qualifier": "version or alias to invoke",
            "concurrency": (
                "concurrent invocations by one control plane; keep it below the reserved concurrency of the function"
            ),
            "handler": (
                "import path of the handler, `module:name`; this key and the next are for `tenuto dev` and `sam`"
            ),
            "memory_mb": "memory of the deployed function in MB, 128 to 10,240; by default 512",
            "timeout_s": "timeout of an invocation in seconds, 1 to 900; by default 15 in `tenuto dev`",
            "environment": (
                'environment variables; the value `{ parameter = "Name" }` is a parameter of the deployment'
            ),
            "policies": "managed policies of the role of the deployed function: those of AWS by name, others by ARN",
        },
    ),
    Section(
        "[topics.<name>]",
        TopicConfig,
        "Topics that `tenuto dev` creates in addition to those of subscriptions and their dead letters: topics that "
        "handlers publish to, and topics with another number of partitions. A control plane creates no topics.",
        {"partitions": "number of partitions"},
    ),
    Section(
        "[[subscriptions]]",
        SubscriptionConfig,
        "One section for each topic. [Kafka](../guides/kafka.md#subscriptions) explains them.",
        {
            "topic": "the topic; each has one subscription",
            "target": "the handler, as `service/handler`",
            "key": "the object's key: the record's key as `utf-8` or `bytes`, or `json:<field>[.<field>]` of its value",
            "ordering": "records that run sequentially: those of a `key`, of a `partition`, or `none`",
            "dead_letter": "topic for records that cannot be processed; by default the topic with `.dead-letter`",
            "epoch": "one pass over the topic; a new value [replays](../guides/kafka.md#replaying-on-purpose) it",
            "start": "where a group without offsets starts; always on only",
        },
    ),
    Section(
        "[http]",
        HttpConfig,
        "Where calls are served. [HTTP](http.md#browsers) explains origins and hosts.",
        {
            "host": "address to listen on",
            "port": "port to listen on",
            "health_port": "port that serves only `/health`, for a load balancer; 0: none. Always on only",
            "cors_origins": 'origins whose pages may call, such as `"https://app.example"`; `"*"` allows every page',
            "hosts": (
                "additional host names to serve; by default, a control plane on 127.0.0.1 serves only the names of the "
                "machine, and one on another address serves any name"
            ),
        },
    ),
    Section(
        "[scheduler]",
        SchedulerConfig,
        "EventBridge Scheduler, which wakes a dispatcher that scales to zero. The template sets it by variables.",
        {
            "role_arn": "ARN of the role that the Scheduler assumes to invoke the target",
            "target_arn": "ARN of the function that wake-ups invoke",
            "group": "schedule group",
            "dlq_arn": "ARN of the queue for wake-ups that could not be delivered",
        },
    ),
    Section(
        "[dev]",
        DevConfig,
        "What `tenuto dev` listens on and runs on. Its options come before the variables, and these before the file. "
        "Where a port is in use, it takes the next free one, and says so; 0 is any. A control plane ignores it.",
        {
            "http_port": "port for calls; without it, that of `[http]`",
            "kafka_port": "port of the broker",
            "aws_port": "port of the local Lambda and Scheduler",
            "engines": (
                "what broker and table [run on](../guides/develop.md#engines): native engines, the reference ones "
                "(Java), or the best that there is"
            ),
        },
    ),
)

LIMITS: Final[Mapping[str, Meanings]] = {
    "Records in a process": {
        "partition_records_max": "unfinished records of a partition; it pauses at this limit until half are finished",
        "partition_bytes_max": "size of the unfinished records of a partition",
        "process_records_max": "unfinished records of all partitions of the process",
        "process_bytes_max": "size of the unfinished records of the process and of the lanes that wait with them",
        "poll_records_max": "records that one poll returns",
        "poll_bytes_max": "size at which a poll returns no further records",
        "fetch_bytes_max": "size of a broker's answer to a fetch; a larger batch is returned alone",
        "batch_inflated_bytes_max": "size of a decompressed batch; a larger one becomes a dead letter",
        "poll_timeout_ms": "longest wait of a poll for records",
        "commit_interval_ms": "time between two commits of offsets",
        "quarantine_concurrency": "concurrent moves of records to dead-letter topics",
        "topic_patience_ms": (
            "how long a record waits for a topic that is missing or forbidden, before it is kept in the table"
        ),
        "handler_patience_ms": (
            "how long a message waits for a handler that no function serves, before it is kept in the table"
        ),
    },
    "Lanes": {
        "lanes_at_work_max": "concurrently active lanes; others wait",
        "lanes_at_work_bytes_max": "size of the heads of active lanes",
        "lanes_max": "active and waiting lanes; beyond this, hints are dropped and the sweep resumes paused lanes",
        "lane_cache_max": "heads of idle lanes in memory",
        "lane_cache_bytes_max": "size of the heads of idle lanes in memory",
        "lane_calls_max": "calls and events that wait for one key; further calls get 503",
        "batch_events_max": "events of one key in one invocation",
        "batch_bytes_max": "size of the inputs of one invocation",
        "spill_after_ms": "time after which events that wait for a busy key move to its inbox",
        "spill_records_max": "number of waiting events of a key at which they move to its inbox earlier",
        "lease_margin_ms": "time for which an expired lease of another process is respected; clocks may differ by it",
        "call_look_ms": "while a call waits: time after which a head that other processes may change is read again",
        "event_look_ms": "while an event waits: time after which a head that other processes may change is read again",
        "owner_ms": "time during which a lane is left to the process that last changed its head",
        "keep_events_ms": "time for which events wait for another process's run that should be over by then",
        "guard_delay_ms": "delay of the guard of a few writes",
        "commit_guard_ms": "delay of the guard of a commit with messages of calls",
    },
    "Invocations": {
        "invoke_concurrency_max": "concurrent invocations of all functions",
        "quick_in_a_row": "activations of a handler in a row that are quick and write nothing, before lanes share them",
        "gather_ms": "time that a lane waits for others to share its invocation, while two of its function are running",
        "invoke_bytes_max": "size of the requests of running invocations, copies included; further ones wait",
        "answers_bytes_max": "size of uncommitted answers of functions, copies included; further ones are not read yet",
        "invoke_connect_timeout_ms": "timeout of a connection to Lambda",
        "invoke_read_timeout_ms": "timeout of an answer; longer than the longest timeout of a function (900 s)",
        "invoke_retry_initial_ms": "first pause after an invocation that Lambda refused",
        "invoke_retry_max_ms": "longest pause after an invocation that Lambda refused",
        "aws_connect_timeout_ms": "timeout of a connection to another AWS service",
        "aws_read_timeout_ms": "timeout of an answer of another AWS service",
        "aws_connections_max": "connections to one AWS service",
    },
    "Kafka group and failures": {
        "drain_timeout_ms": "time for running work to finish at a rebalance or stop",
        "session_timeout_ms": "time without a heartbeat after which a member loses its partitions",
        "heartbeat_interval_ms": "time between two heartbeats",
        "log_request_timeout_ms": "timeout of a request to Kafka, commits and produced records included",
        "topic_lives_timeout_ms": "time that a batch of a mapping waits for the ids of its topics before it fails",
        "topic_lives_request_timeout_ms": "timeout of one request for topic ids",
        "log_retry_initial_ms": "first pause after a failed request to Kafka",
        "log_retry_max_ms": "longest pause after a failed request to Kafka",
        "unreadable_retry_initial_ms": "first pause of a partition that cannot be read",
        "unreadable_retry_max_ms": "longest pause of a partition that cannot be read",
        "unreadable_after_ms": "duration of a failure after which a partition counts as unreadable",
        "unreadable_log_max_ms": "longest pause between two log lines about an unreadable partition",
        "table_retry_initial_ms": "first pause after a request that the table did not answer",
        "table_retry_max_ms": "longest pause after a request that the table did not answer",
        "table_refused_retry_max_ms": "longest pause of a lane whose write the table refuses",
        "failure_log_interval_ms": "shortest pause between two log lines about one lasting failure",
    },
    "Timers and sweeps": {
        "sweep_interval_ms": "time between two sweeps",
        "sweep_lanes_max": "active lanes at which the sweep starts no more",
        "sweep_lookback_ms": "age of the oldest timers in a wide sweep",
        "sweep_wide_interval_ms": "time between two wide sweeps",
        "sweep_deep_interval_ms": "time between two deep sweeps, which look for older timers",
        "sweep_deep_buckets_max": "minutes of timers in one deep sweep",
        "timers_wide_per_s": "activations a second at which near timers are spread over 32 partitions instead of 4",
        "timer_postpone_ms": "time by which a due timer that is still needed is postponed; doubles up to an hour",
        "hold_sleep_ms": "longest sleep that is held in the function",
        "nap_sleep_ms": "longest sleep during which the control plane keeps the lane, which saves writes",
        "naps_max": "lanes in such a sleep at a time; beyond, short sleeps suspend",
        "nap_slack_ms": "delay of the end of such a sleep after which the lane is taken over",
        "wheel_horizon_ms": "timers due within this time are held in memory",
        "wheel_bytes_max": "size of the timers in memory; the sweep finds the others",
        "scheduler_threshold_ms": "shortest sleep that also gets an EventBridge schedule",
        "scheduler_lead_ms": "time before the end of a sleep at which its schedule fires",
        "linger_ms": "scaled to zero: time that an invocation waits for the next due timer",
    },
    "HTTP": {
        "http_wait_ms_max": "longest wait of a call; after that, the answer is an id to attach to",
        "hand_over_ms_max": "time for a call to become durable after its wait; after that, 503",
        "accept_ms_max": "time for a send to become durable; after that, 503",
        "results_awaited_max": "callers that wait for a result of another process; further ones get 202 at once",
        "result_poll_initial_ms": "first pause between two queries for a result of another process",
        "result_poll_max_ms": "longest pause between two queries for a result of another process",
        "calls_max": "waiting requests, and waiting or running calls; further ones get 503",
        "calls_bytes_max": "size of their bodies and unsent results",
        "http_connections_max": "open connections, at least 512 below the limit of open files",
        "http_keep_alive_ms": "time that an idle connection stays open; longer than a load balancer keeps it",
    },
    "Metrics": {"metrics_interval_ms": "always on: time between two writes of metrics"},
}

VARIABLES: Final[Mapping[str, str]] = {
    "TENUTO_CONFIG_FILE": f"the configuration file; `{DEFAULT_FILE}` without it. `--config` comes before it",
    "TENUTO_LOG_LEVEL": "`debug`, `info` (default), `warning`, `error` or `critical`. `--log-level` comes before it",
    FORMAT_VARIABLE: "`text` or `json`: [logs](../guides/operate.md#logs). `--log-format` comes before it",
    memory.VARIABLE: "memory of the process in MiB, by which its limits are [checked](../guides/operate.md#scale)",
    CONFIG_VARIABLE: "dispatcher function: path of the file in its artefact",
    PARTIAL_VARIABLE: (
        "dispatcher function: `true` if its mapping takes [partial answers](../guides/deploy.md#which-kafka)"
    ),
}
"""Variables of the control plane that replace no key of the file."""

OTHER_VARIABLES: Final[Mapping[str, Meanings]] = {
    "Functions": {
        PAYLOAD_KEY_VARIABLE: (
            "if set, the function [encrypts](../guides/security.md#encryption) its writes, even if the control plane "
            "does not ask for it"
        ),
        CLIENT_VARIABLE: (
            "`botocore` uses botocore's client for [AWS requests](../guides/operate.md#aws-requests), in functions and "
            "in the control plane"
        ),
    },
    "Commands": {
        "TENUTO_URL": "`call`, `resolve`: address of a control plane. `--url` overrides it",
        "TENUTO_BOOTSTRAP_SERVERS": "`send`, `tail`: brokers as `host:port`. `--kafka` overrides it",
        "TENUTO_CONFIG_FILE": f"`check`, `journal`, `replay`: the configuration file; by default `{DEFAULT_FILE}`",
    },
    "`tenuto dev` and the embedded stack": {
        "TENUTO_BROKER_ENGINE": "`kafka` or `tansu`; by default, the [best available](../guides/develop.md#engines)",
        "TENUTO_TABLE_ENGINE": "`dynamodb-local` or `dynoxide`; by default, the best available",
        "TENUTO_DYNOXIDE": (
            "a dynoxide of your own, used instead of the [pinned one](../internals/engines.md#a-faster-dynoxide)"
        ),
        "TENUTO_CACHE": "folder for downloaded engines; by default `~/.cache/tenuto`",
        "AWS_ENDPOINT_URL_DYNAMODB": "an existing DynamoDB endpoint, used instead of a table engine",
    },
    "`sam build`": {
        "TENUTO_ARCHITECTURE": "`arm64` (default) or `x86_64`",
        "TENUTO_RUNTIME": "Lambda runtime to build for; by default `python3.13`",
        "TENUTO_ENCRYPTION": "`true` adds [payload encryption](../guides/deploy.md#encrypt-payloads) to the functions",
        "TENUTO_CONFIG_FILE": "configuration file of the dispatcher function",
        "PYTHON": "interpreter for the build; by default `python3`",
    },
}
"""Variables of everything but the control plane."""

UNDOCUMENTED: Final = frozenset(
    {
        "TENUTO_DEV_DEBUG_PORT",
        "TENUTO_DEV_HANDLER",
        "TENUTO_DEV_ROOTS",
        "TENUTO_DEV_TERMINAL",
        "TENUTO_EXAMPLE_DIR",
        "TENUTO_GATEWAY_SECRET",
        "TENUTO_LAMBDA_PYTHON",
    }
)
"""Variables that one process of the stack passes to another."""


def page() -> str:
    """The whole page."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by tools/document_configuration.py: change the code or the tool, and run it. -->",
        "",
        f"A control plane reads one TOML file, by default `{DEFAULT_FILE}`, and checks",
        "the whole file when it starts. An environment variable overrides its key in the file; an empty variable is",
        "ignored. `tenuto check` validates both and reports errors. Keys without a default are required.",
        "",
    ]
    for section in SECTIONS:
        lines += [f"## `{section.title}`", "", section.about, "", *_table(section), ""]
    lines += [
        "## `[limits]`",
        "",
        "Limits of one control plane process; all are above zero. A different default for scale to zero follows in",
        "brackets. [Scale](../guides/operate.md#scale) and [Limits](../guides/operate.md#limits) describe what happens",
        "at a limit.",
        "",
    ]
    for title, meanings in LIMITS.items():
        lines += [f"### {title}", "", "| key | default | unit | meaning |", "|---|---|---|---|"]
        lines += [_limit_row(name, meaning) for name, meaning in meanings.items()] + [""]
    lines += ["## Environment variables of the control plane", "", "| variable | sets |", "|---|---|"]
    lines += [f"| `{name}` | `{key}` of `[{section}]` |" for name, (section, key) in ENVIRONMENT.items()]
    of_function = "`function` of `[functions.<name>]`, the name in capitals and `-` written `_`"
    lines.append(f"| `{FUNCTION_VARIABLE}<NAME>` | {of_function} |")
    lines += [f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items()]
    lines += [
        "",
        "AWS's region, credentials and endpoints, and OpenTelemetry's [exporter](../guides/operate.md#traces), have",
        "their own variables.",
        "",
        "## Other environment variables",
        "",
    ]
    for title, meanings in OTHER_VARIABLES.items():
        lines += [f"### {title}", "", "| variable | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in meanings.items()] + [""]
    return "\n".join(lines)


def missing() -> list[str]:
    """Keys of the code without a meaning here, and meanings without a key."""
    found = [
        f"{section.title} {name}"
        for section in SECTIONS
        for name in {one.name for one in msgspec.structs.fields(section.kind)} ^ set(section.meanings)
    ]
    told = [name for meanings in LIMITS.values() for name in meanings]
    found += [f"[limits] {name}" for name in {one.name for one in dataclasses.fields(Limits)} ^ set(told)]
    found += [f"[limits] {name} twice" for name in set(told) if told.count(name) > 1]
    return sorted(found)


def _table(section: Section) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    hints = typing.get_type_hints(section.kind)
    for one in msgspec.structs.fields(section.kind):
        default = "" if one.required else _value(one.default)
        yield f"| `{one.name}` | {_type(hints[one.name])} | {default} | {section.meanings[one.name]} |"


def _limit_row(name: str, meaning: str) -> str:
    """A row about a limit, whose unit is the end of its name."""
    size = "_bytes_" in name
    parts = name.split("_")
    unit = "bytes" if size else "ms" if "ms" in parts else ""
    default = _number(getattr(Limits(), name), size=size)
    if name in SERVERLESS:
        default += f" ({_number(SERVERLESS[name], size=size)})"
    return f"| `{name}` | {default} | {unit} | {meaning} |"


def _number(value: int, *, size: bool) -> str:
    return f"{value:,} ({value // MIB} MiB)" if size and value % MIB == 0 else f"{value:,}"


def _type(hint: Any) -> str:
    """A type in a reader's words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "table"
    return {str: "text", int: "whole number", bool: "true or false"}[hint]


def _value(default: Any) -> str:
    if default is None:
        return "none"
    return f"`{json.dumps(list(default) if isinstance(default, tuple) else default)}`"


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write docs/reference/configuration.md.")
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    if missing():
        raise SystemExit("without a meaning, or without a key: " + ", ".join(missing()))
    if arguments.check:
        return int(PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
