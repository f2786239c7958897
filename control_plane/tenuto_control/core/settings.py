"""What a value in `tenuto.toml` has to be, besides its type.

Owns one rule for each kind of value: a function that returns what is wrong, as the end of a sentence that begins with
the key, or None. Does not own which key has which rule (`tenuto_control.config`) nor reading the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tenuto.protocol.limits import TARGET_NAME_BYTES_MAX
from tenuto.protocol.topics import topic_problem
from tenuto_control.core.log_fields import shown
from tenuto_control.core.manifests import name_is_possible

PORT_MAX: Final = 65_535

LOCAL_PORT_MAX: Final = 32_767
"""Highest port that `tenuto dev` listens on: Linux hands out higher ones to outgoing connections."""

CONCURRENCY_MAX: Final = 1_000_000
"""Far above the concurrent executions an account may have."""

PARTITIONS_MAX: Final = 1_000
"""Of a topic on one machine; each is a folder of the broker."""

LABEL_CHARACTERS_MAX: Final = 64
"""Longest name of a function (AWS Lambda quotas), and longest epoch, which is part of every watermark's name."""

MEMORY_MB: Final = (128, 10_240)
"""Least and most memory of a function (AWS Lambda quotas)."""

TIMEOUT_S_MAX: Final = 900
"""Longest time of an invocation (AWS Lambda quotas)."""

RESERVED_VARIABLES: Final = ("AWS_", "LAMBDA_", "TENUTO_", "POWERTOOLS_")
"""How variables begin that Lambda or a deployment of tenuto sets."""

QUOTED_CHARACTERS_MAX: Final = 120
"""So much of a value is quoted."""

_LABEL: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{LABEL_CHARACTERS_MAX}}}")
_FUNCTION: Final = re.compile(r"[A-Za-z0-9_:$-]{1,256}")
_HANDLER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,255}")
_PARAMETER: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,254}")
_POLICY: Final = re.compile(r"arn:aws[a-z-]*:iam::[A-Za-z0-9:/+=,.@_-]{1,500}|[A-Za-z0-9+=,.@_/-]{1,128}")
_TABLE: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}|arn:[A-Za-z0-9_.:/-]{1,1000}")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")
_EPOCH: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{LABEL_CHARACTERS_MAX}}}")
_BROKER: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_LISTENED: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9]+)?")
_ORIGIN: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(?::[0-9]{1,5})?|[a-z]+://\[[0-9a-f:.]+\](?::[0-9]{1,5})?"
)
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9a-f:.]+")


def quoted(value: object) -> str:
    """A value as a message shows it: on one line, and bounded."""
    return shown(f'"{value}"' if isinstance(value, str) else str(value), QUOTED_CHARACTERS_MAX)


def text_problem(value: str) -> str | None:
    """Any text that stands for something: not empty, printable, without spaces at its ends."""
    if not value.strip():
        return "is empty; write a value, or leave the key out"
    if value != value.strip():
        return f"{quoted(value)} begins or ends with a space; remove it"
    return None if value.isprintable() else f"{quoted(value)} holds a control character; remove it"


def secret_problem(value: str) -> str | None:
    """A password: anything but nothing. No message shows it."""
    return None if value else "is empty; write a value, or leave the key out"


def port_problem(value: int) -> str | None:
    """A port to listen on."""
    return None if 1 <= value <= PORT_MAX else f"expected 1 to {PORT_MAX}, not {quoted(value)}"


def health_port_problem(value: int) -> str | None:
    """The same, or 0 for none."""
    return None if value == 0 else port_problem(value)


def local_port_problem(value: int) -> str | None:
    """A port of `tenuto dev`; 0 is any that is free."""
    return None if 0 <= value <= LOCAL_PORT_MAX else f"expected 0 (any) to {LOCAL_PORT_MAX}, not {quoted(value)}"


def concurrency_problem(value: int) -> str | None:
    """A number of simultaneous invocations."""
    if value < 1:
        return f"must be at least 1, not {quoted(value)}"
    return None if value <= CONCURRENCY_MAX else f"must be at most {CONCURRENCY_MAX:,}, not {quoted(value)}"


def partitions_problem(value: int) -> str | None:
    """A number of partitions."""
    return None if 1 <= value <= PARTITIONS_MAX else f"expected 1 to {PARTITIONS_MAX:,}, not {quoted(value)}"


def table_problem(value: str) -> str | None:
    """The name or ARN of a DynamoDB table (DynamoDB naming rules)."""
    if _TABLE.fullmatch(value):
        return None
    return f"{quoted(value)} is not a valid table name: 3 to 255 of the characters a-z A-Z 0-9 _ . and -"


def topic_name_problem(value: str) -> str | None:
    """The name of a Kafka topic."""
    problem = topic_problem(value)
    return None if problem is None else shown(problem)


def label_problem(value: str) -> str | None:
    """The name of a section [functions.<name>]: environment variables and log lines name it."""
    if _LABEL.fullmatch(value):
        return None
    return (
        f"{quoted(value)} is not a valid function name: 1 to {LABEL_CHARACTERS_MAX} of a-z A-Z 0-9 _ and -; "
        "an ARN belongs into the key function"
    )


def function_problem(value: str) -> str | None:
    """The name or ARN of a Lambda function, or a version or alias of one."""
    if _FUNCTION.fullmatch(value):
        return None
    return f"{quoted(value)} is not the name or ARN of a Lambda function: the characters are a-z A-Z 0-9 _ - : and $"


def handler_problem(value: str) -> str | None:
    """The place of a function's handler in the project's code, which is imported by this name."""
    if _HANDLER.fullmatch(value):
        return None
    return f'{quoted(value)} is not a handler; write "module:name", such as "orders.handlers:handler"'


def memory_problem(value: int) -> str | None:
    """Memory of a function, in MB (AWS Lambda quotas)."""
    low, high = MEMORY_MB
    return None if low <= value <= high else f"expected {low} to {high:,}, not {quoted(value)}"


def timeout_problem(value: int) -> str | None:
    """The time an invocation has, in seconds (AWS Lambda quotas)."""
    return None if 1 <= value <= TIMEOUT_S_MAX else f"expected 1 to {TIMEOUT_S_MAX}, not {quoted(value)}"


def environment_problem(value: Mapping[str, str | Mapping[str, str]]) -> str | None:
    """Environment variables of a function: a text, or the parameter of a deployment that gives it."""
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name):
            return f"{quoted(name)} is not the name of an environment variable"
        if name.startswith(RESERVED_VARIABLES):
            return f"{quoted(name)} belongs to Lambda or to tenuto; choose another name"
        if not isinstance(text, str) and (text.keys() != {"parameter"} or not _PARAMETER.fullmatch(text["parameter"])):
            return f'{name}: write a text, or {{ parameter = "Name" }} with the name of a parameter of the deployment'
    return None


def policies_problem(value: tuple[str, ...]) -> str | None:
    """Managed policies: AWS's own by name, others by ARN."""
    wrong = next((one for one in value if not _POLICY.fullmatch(one)), None)
    return None if wrong is None else f"{quoted(wrong)} is not the name or ARN of a managed policy"


def region_problem(value: str) -> str | None:
    """A region of AWS."""
    return None if _REGION.fullmatch(value) else f'{quoted(value)} is no region; write one such as "eu-central-1"'


def epoch_problem(value: str) -> str | None:
    """An operator's name for one pass over a topic."""
    if _EPOCH.fullmatch(value):
        return None
    return f"{quoted(value)} is not an epoch: 1 to {LABEL_CHARACTERS_MAX} of the characters a-z A-Z 0-9 . _ and -"


def target_problem(value: str) -> str | None:
    """A "service/handler" that can be declared."""
    service, slash, handler = value.partition("/")
    if not service or not slash or not handler or "/" in handler:
        return f'expected "service/handler", not {quoted(value)}'
    if name_is_possible(service) and name_is_possible(handler):
        return None
    return (
        f"{quoted(value)} names what no function can serve: names of services and handlers have 1 to "
        f"{TARGET_NAME_BYTES_MAX} bytes of printable characters"
    )


def brokers_problem(value: str) -> str | None:
    """Addresses of brokers, with commas between them."""
    brokers = [one.strip() for one in value.split(",") if one.strip()]
    if not brokers:
        return "is empty; write host:port, several with commas between"
    for broker in brokers:
        found = _BROKER.fullmatch(broker)
        if found is None or (found[1] is not None and port_problem(int(found[1]))):
            return f"{quoted(broker)} is not a broker address; write host:port, several with commas between"
    return None


def listened_problem(value: str) -> str | None:
    """A name or address to listen on."""
    if _LISTENED.fullmatch(value):
        return None
    return f'{quoted(value)} is not a host; write an address without scheme and port, such as "127.0.0.1" or "0.0.0.0"'


def origins_problem(value: tuple[str, ...]) -> str | None:
    """Origins of pages that may call, or "*"."""
    for origin in value:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            return (
                f"{quoted(origin)} is not an origin; write scheme and host as a browser does, such as "
                '"https://app.example" or "http://localhost:3000", or "*" for all'
            )
    return None


def hosts_problem(value: tuple[str, ...]) -> str | None:
    """Names by which the ingress is addressed."""
    for host in value:
        if _HOST.fullmatch(host) is None:
            return f'{quoted(host)} is not a host; write a name without scheme and port, such as "api.example"'
    return None
