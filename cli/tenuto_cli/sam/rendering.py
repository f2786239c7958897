"""The files of a project's deployment, made of the templates of tenuto's own.

Owns the names of the files, and what stands for a function and a topic in them. Pure: texts in, texts out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from tenuto.protocol.ids import Lane
from tenuto_cli.sam.blocks import EXAMPLE, FUNCTION, TOPIC, expanded
from tenuto_cli.sam.model import Function, Given, Project, Topic
from tenuto_control.config import function_variable

ROOT: Final = "tenuto.yaml"
MAKEFILE: Final = "lambda/Makefile"
DOCKERFILE: Final = "Dockerfile"

PLACES: Final[Mapping[str, str]] = {
    "template.yaml": ROOT,
    "infra/control_plane.yaml": "control_plane.yaml",
    "infra/dispatcher.yaml": "dispatcher.yaml",
    "infra/functions.yaml": "functions.yaml",
    "infra/http_api.yaml": "http_api.yaml",
    "infra/kafka_source.yaml": "kafka_source.yaml",
    "infra/msk_access.yaml": "msk_access.yaml",
    "infra/observability.yaml": "observability.yaml",
    "infra/rest_api.yaml": "rest_api.yaml",
    "infra/table.json": "table.json",
    "infra/lambda/Makefile": MAKEFILE,
    "requirements/control.txt": "requirements/control.txt",
    "requirements/function.txt": "requirements/function.txt",
    "requirements/function_kms.txt": "requirements/function_kms.txt",
    "Dockerfile": DOCKERFILE,
}
"""Where each file of tenuto's own deployment goes in the folder that is written."""

WRITTEN_BY: Final = "Written by `tenuto sam` from tenuto.toml, which writes it anew: change tenuto.toml instead."

_FOLDER_OF: Final = "import importlib.util as u, sys; print(u.find_spec(sys.argv[1]).submodule_search_locations[0])"
_NOT_INSTALLED: Final = (
    "tenuto is not installed for $(PYTHON): activate its environment, or name its interpreter by PYTHON="
)

_IAM_WILDCARDS: Final = str.maketrans({"*": "${*}", "?": "${?}", "$": "${$}"})
"""What IAM takes for a pattern, and how it is written for itself (IAM, "policy variables")."""


def files(templates: Mapping[str, str], project: Project, folder: str) -> dict[str, str]:
    """The files of a project's deployment, by their place in its folder, such as "deploy".

    `templates` are the texts of PLACES. Raises MarkError where a template's marks are wrong.
    """
    return {place: _file(name, templates[name], project, folder) for name, place in PLACES.items()}


def parameters_of(template: str) -> frozenset[str]:
    """The names of a template's parameters."""
    section = re.search(r"^Parameters:\n((?:(?: .*)?\n)+)", template, re.MULTILINE)
    return frozenset(re.findall(r"^  ([A-Za-z0-9]+):", section[1] if section else "", re.MULTILINE))


def _file(name: str, text: str, project: Project, folder: str) -> str:
    if name.endswith(".json"):
        return text
    blocks = {
        FUNCTION: lambda block: [_for_function(block, one) for one in project.functions],
        TOPIC: lambda block: [_for_topic(block, one) for one in project.topics],
        EXAMPLE: lambda _block: [],
    }
    lines = {
        "parameters": [f"{parameter}: {{ Type: String }}" for parameter in project.parameters],
        "passed on": [f"{parameter}: !Ref {parameter}" for parameter in project.parameters],
        "places": _places(folder),
        "functions": _targets(project),
        "commands": _commands(folder),
        "files": ["COPY build/image /app"],
    }
    made = expanded(text, blocks, lines)
    if name == "template.yaml":
        made = made.replace("Location: infra/", "Location: ")
    return f"# {WRITTEN_BY}\n{made}"


def _for_function(block: str, function: Function) -> str:
    """The example's block with another function's names and settings."""
    patterns = [Lane(service, "").pk.translate(_IAM_WILDCARDS) + "*" for service in function.services]
    instead = {
        "The service userUpdates,": f"{_listed(function.services)},",
        '["userUpdates/*"]': json.dumps(patterns),
        "examples.user_updates.handler.handler": function.entry,
        "MemorySize: 512": f"MemorySize: {function.memory_mb}",
        "UserUpdates": function.logical,
        function_variable("user_updates"): function_variable(function.name),
        "user_updates": function.name,
        "user-updates": function.dashed,
    }
    if function.timeout_s is not None:
        instead["Timeout: !Ref Timeout"] = f"Timeout: {function.timeout_s}"
    # In one pass, so that nothing of the project's own is taken for something of the example's.
    made = re.sub("|".join(map(re.escape, instead)), lambda found: instead[found[0]], block)
    return expanded(
        made,
        {EXAMPLE: lambda _block: []},
        {
            "environment": [f"{name}: {_value(value)}" for name, value in function.environment.items()],
            "managed policies": _policies(function.policies),
        },
    )


def _for_topic(block: str, topic: Topic) -> str:
    made = re.sub(r"^( *)KafkaSource:$", rf"\1{topic.logical}:", block, flags=re.MULTILINE)
    made = re.sub(r"!Ref Topic$", lambda _found: json.dumps(topic.name), made, flags=re.MULTILINE)
    return re.sub(r"!Ref TopicStart$", topic.start, made, flags=re.MULTILINE)


def _listed(services: Sequence[str]) -> str:
    # In a template an unquoted text must not begin or continue like something else.
    plain = [service if re.fullmatch(r"[A-Za-z0-9_.-]+", service) else "…" for service in services]
    return ("The service " if len(plain) == 1 else "The services ") + ", ".join(plain)


def _value(value: str | Given) -> str:
    return f"!Ref {value.parameter}" if isinstance(value, Given) else json.dumps(value)


def _policies(policies: Sequence[str]) -> list[str]:
    """Managed policies by ARN, or AWS's own by name."""
    own = "arn:${AWS::Partition}:iam::aws:policy/"
    lines = [f"  - {json.dumps(one)}" if one.startswith("arn:") else f'  - !Sub "{own}{one}"' for one in policies]
    return ["ManagedPolicyArns:", *lines] if lines else []


def _places(folder: str) -> list[str]:
    """Where the Makefile finds things: the project around it, and tenuto where it is installed."""
    up = "/".join([".."] * (len(folder.split("/")) + 1))
    return [
        f"ROOT := $(abspath $(dir $(firstword $(MAKEFILE_LIST)))/{up})",
        f"LOCKS := $(ROOT)/{folder}/requirements",
        f"installed = $(shell $(PYTHON) -c '{_FOLDER_OF}' $(1) 2>/dev/null)",
        f"SDK := $(or $(call installed,tenuto),$(error {_NOT_INSTALLED}))",
        "CONTROL_PLANE := $(call installed,tenuto_control)",
        "DEFAULT_CONFIG := tenuto.toml",
    ]


def _targets(project: Project) -> list[str]:
    """One target for each function. All hold the same code; each has its own handler."""
    lines: list[str] = []
    if project.requirements is not None:
        lines += [
            "define dependencies",
            "@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input --no-compile --upgrade \\",
            "\t--only-binary :all: --implementation cp --python-version $(TENUTO_RUNTIME:python%=%) \\",
            "\t--platform manylinux2014_$(MACHINE) --platform manylinux_2_28_$(MACHINE) \\",
            f'\t--target "$(ARTIFACTS_DIR)" --requirement "$(ROOT)/{project.requirements}"',
            "endef",
            "",
        ]
    names = [f"build-{one.logical}" for one in project.functions]
    lines += [f".PHONY: {' '.join(names)}", f"{' '.join(names)}:"]
    if project.requirements is not None:
        lines.append("\t$(call dependencies)")
    lines += ["\t$(call install,$(FUNCTION_LOCK))", "\t$(call copy,$(SDK),.)"]
    if project.packages:
        lines += [f"\t$(call copy,$(ROOT)/{project.source}/{one},.)" for one in project.packages]
    else:
        lines.append(f"\t$(call copy,$(ROOT)/{project.source}/.,.)")
    return [*lines, "\t$(call finish)"]


def _commands(folder: str) -> list[str]:
    return [
        f'#     make -f {folder}/{MAKEFILE} image ARTIFACTS_DIR="$PWD/build/image"',
        f"#     docker build --platform linux/arm64 --file {folder}/{DOCKERFILE} --tag tenuto .",
    ]
