"""What a deployment is made of, as far as it follows from a project: its functions and the topics that it reads.

Owns the names that are derived from theirs, and what such names may not be. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

MEMORY_MB: Final = 512
"""Memory of a function that `tenuto.toml` says nothing of."""

NAME_CHARACTERS_MAX: Final = 32
"""Lambda takes 64 characters; a deployment's name has up to 31, and a hyphen stands between."""

RESERVED: Final = frozenset({"control-plane", "dispatcher", "http-api", "rest-api"})
"""What the deployment itself calls functions and log groups."""

_PLAIN: Final = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z][a-z0-9]*)*")
"""Names whose words survive being written together, so that no two of them become one."""


class DeploymentError(Exception):
    """The project cannot be deployed as it is. The message is one line that names the key and the way out."""


@dataclass(frozen=True, slots=True)
class Given:
    """The value of an environment variable that the project's own template gives, as a parameter of this name."""

    parameter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that holds handlers.

    `name` is that of its section, `handler` is "module:attribute", `services` are the names of what it serves.
    `timeout_s` is None where the deployment's default applies; `policies` are names or ARNs of managed policies that
    its role gets besides its own.
    """

    name: str
    handler: str
    services: tuple[str, ...]
    memory_mb: int = MEMORY_MB
    timeout_s: int | None = None
    environment: Mapping[str, str | Given] = field(default_factory=dict)
    policies: tuple[str, ...] = ()

    @property
    def logical(self) -> str:
        """The logical id. It ends in "Function", so that none with a suffix (`…Role`) is that of another function."""
        return camel(self.name) + "Function"

    @property
    def dashed(self) -> str:
        """How resources are named, behind the deployment's own name."""
        return self.name.replace("_", "-")

    @property
    def entry(self) -> str:
        """The handler as Lambda names it."""
        return self.handler.replace(":", ".")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that a subscription reads, and where a mapping begins that has read nothing of it."""

    name: str
    start: Literal["earliest", "latest"] = "earliest"

    @property
    def logical(self) -> str:
        """The logical id of its event source mapping: the same for as long as the topic has this name."""
        plain = _PLAIN.fullmatch(self.name) is not None and "_" not in self.name
        return "KafkaSource" + (camel(self.name) if plain else camel(self.name) + _short_digest(self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What `tenuto.toml` says of a deployment.

    `source` is the folder that holds the functions' code, from the project's root: "src", or "." with `packages` as
    the only things in it that are copied. `requirements` is the file of the functions' dependencies, if there is one.
    """

    functions: tuple[Function, ...]
    topics: tuple[Topic, ...]
    source: str = "."
    packages: tuple[str, ...] = ()
    requirements: str | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters that environment variables ask for, each once."""
        values = (value for one in self.functions for value in one.environment.values())
        return tuple(dict.fromkeys(value.parameter for value in values if isinstance(value, Given)))


def camel(name: str) -> str:
    """Convert a name to a logical id, which consists of letters and digits."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))


def problems(project: Project, taken: frozenset[str]) -> Iterator[str]:
    """Return what prevents a project from being deployed. `taken` are the parameters of the templates."""
    seen: dict[str, str] = {}
    for function in project.functions:
        where = f"[functions.{function.name}]"
        if function.dashed.lower() in RESERVED:
            yield f"{where}: the deployment has a {function.dashed} of its own; rename the function"
        if len(function.dashed) > NAME_CHARACTERS_MAX:
            yield f"{where}: a deployed function's name has {NAME_CHARACTERS_MAX} characters at most; shorten it"
        if not function.name[0].isalpha():
            yield f"{where}: a deployed function's name begins with a letter; rename it"
        other = seen.setdefault(function.logical, function.name)
        if other != function.name:
            yield f"{where}: CloudFormation cannot tell it from [functions.{other}]; rename one of the two"
        if not function.services:
            yield f"{where}: {function.handler} serves nothing; pass services to aws.handler(...)"
    for parameter in project.parameters:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,254}", parameter):
            yield f"environment: {parameter!r} is not a valid parameter name: letters and digits, a letter first"
        elif parameter in taken or re.search(r"Function(Arn|Name|RoleName)?$", parameter):
            yield f"environment: the deployment has a parameter {parameter} of its own; choose another name"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
