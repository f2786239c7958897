"""`tenuto completion SHELL`: completion of commands, options, topics, services and handlers in bash and zsh.

Owns the scripts, and the words that may come next. The scripts ask this module each time, so that topics and services
are those of the project at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tenuto_cli import addresses, http
from tenuto_cli.commands import COMMANDS, CONTROL, named
from tenuto_cli.parsing import Parser, UsageError

WORDS: Final = "words"
BASH: Final = """_tenuto() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(tenuto completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" \\
        -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _tenuto tenuto
"""
ZSH: Final = """#compdef tenuto
_tenuto() {
    local -a found
    found=("${(@f)$(tenuto completion words -- "${words[@]:1:$((CURRENT - 1))}" 2>/dev/null)}")
    compadd -a found || _files
}
compdef _tenuto tenuto
"""
SCRIPTS: Final = {"bash": BASH, "zsh": ZSH}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(
        prog="tenuto completion",
        description='Print the completion script of tenuto for a shell. In ~/.bashrc: eval "$(tenuto completion bash)"',
    )
    made.add_argument("shell", choices=tuple(SCRIPTS), metavar="SHELL", help="bash or zsh")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    if list(arguments[:2]) == [WORDS, "--"]:
        # A line of words may hold anything, so no parser sees it.
        print("\n".join(next_words(arguments[2:])))
        return 0
    print(SCRIPTS[parser().parse_args(arguments).shell], end="")
    return 0


def next_words(line: Sequence[str]) -> list[str]:
    """Return the words that may come next. The last word of `line` is being typed."""
    *before, current = line or [""]
    if not before:
        return _beginning(current, (command.name for command in COMMANDS))
    command = named(before[0])
    if command is None:
        return []
    if current.startswith("-"):
        return _beginning(current, options_of(command.module, command.name))
    return _beginning(current, _arguments(command.name, [word for word in before[1:] if not word.startswith("-")]))


def _beginning(current: str, words: Iterable[str]) -> list[str]:
    return sorted(word for word in words if word.startswith(current))


def parser_of(module: str, command: str) -> argparse.ArgumentParser:
    """The parser of a command. Raises ModuleNotFoundError when an extra is missing."""
    made: argparse.ArgumentParser = importlib.import_module(module).parser()
    if module != CONTROL:
        return made
    # argparse has no public way to ask a parser for its commands.
    kind = argparse._SubParsersAction  # noqa: SLF001 - argparse shows it in no other way
    (commands,) = (action for action in actions_of(made) if isinstance(action, kind))
    found: argparse.ArgumentParser = commands.choices[command]
    return found


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser."""
    return parser._actions  # noqa: SLF001 - argparse shows them in no other way


def options_of(module: str, command: str) -> list[str]:
    """The options of a command, by their long names."""
    with contextlib.suppress(ModuleNotFoundError):
        return [
            option
            for action in actions_of(parser_of(module, command))
            for option in action.option_strings
            if option.startswith("--")
        ]
    return []


def _arguments(command: str, before: Sequence[str]) -> Iterable[str]:
    if command in {"send", "tail"} and not before:
        return topics(Path.cwd())
    if command == "call":
        return _called(before)
    if command == "completion" and not before:
        return SCRIPTS
    return ()


def _called(before: Sequence[str]) -> Iterable[str]:
    try:
        services = http.listing(addresses.ingress(None))
    except UsageError:
        return ()
    if not before:
        return services
    service: Any = services.get(before[0])
    if service is None:
        return ()
    keyed = service["kind"] == "virtual object"
    return [handler["name"] for handler in service["handlers"]] if len(before) == (2 if keyed else 1) else ()


def _topics_of(found: dict[str, Any]) -> list[str]:
    subscribed = [str(subscription["topic"]) for subscription in found.get("subscriptions", [])]
    return [*subscribed, *(f"{topic}.dead-letter" for topic in subscribed), *found.get("topics", {})]


def topics(folder: Path) -> list[str]:
    """The topics that the nearest `tenuto.toml` names."""
    for candidate in (folder, *folder.parents):
        file = candidate / "tenuto.toml"
        if file.is_file():
            try:
                return _topics_of(tomllib.loads(file.read_text("utf-8")))
            except (OSError, ValueError, AttributeError, TypeError, KeyError):
                # A file with a mistake in it, which `tenuto check` names.
                return []
    return []
