"""The command line of `tenuto`: finds the command that is asked for, imports its module, and runs it.

Owns the help, the version, the line about an extra that is not installed, and a quiet exit when nothing reads the
output any more. Does not own any command.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from tenuto_cli.commands import COMMANDS, CONTROL, OPTIONS_WITH_VALUE, Command, extra_of, named
from tenuto_local import interrupts

HELP_COLUMN = 18
EXIT_USAGE = 2
EXIT_UNREAD = 141
"""What a shell reports for a program that was ended by SIGPIPE."""

HELP = frozenset({"-h", "--help"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    try:
        try:
            return _commanded(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return EXIT_UNREAD
    except KeyboardInterrupt:
        return interrupts.EXIT_INTERRUPTED


def _discard_output() -> None:
    """Discard buffered output, which would fail again when the process flushes it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _commanded(given: list[str]) -> int:
    name = command_word(given)
    if name is None:
        if "--version" in given:
            print(version_line())
            return 0
        if given and not HELP & set(given):
            print(f"tenuto: there is no option {given[0]!r} before a command; see tenuto --help", file=sys.stderr)
            return EXIT_USAGE
        print(help_text())
        return 0 if given else EXIT_USAGE
    command = named(name)
    if command is None:
        from tenuto_cli.parsing import did_you_mean

        hint = did_you_mean(name, (known.name for known in COMMANDS))
        hint = hint if hint.endswith("?") else f"{hint}."
        print(f"tenuto: there is no command {name!r}; {hint} See tenuto --help", file=sys.stderr)
        return EXIT_USAGE
    return run(command, given)


def run(command: Command, arguments: Sequence[str]) -> int:
    """Run one command. A missing extra is reported in one line, with the way to install it."""
    try:
        if command.asks_session:
            _ask_session(command, arguments)
        module = importlib.import_module(command.module)
        interrupts.raise_again()
        # The control plane's parser knows every one of its commands, and what may stand before them.
        own = arguments if command.module == CONTROL else arguments[arguments.index(command.name) + 1 :]
        status: int = module.main(own)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = extra_of(missing)
        if extra is None:
            raise
        extras = ",".join(dict.fromkeys([*command.extras, extra]))
        print(
            f"tenuto: {command.name} needs the extra {extra!r}, which is not installed (no package {missing}): "
            f'pip install "tenuto[{extras}]"',
            file=sys.stderr,
        )
        return EXIT_USAGE
    return status


def _ask_session(command: Command, arguments: Sequence[str]) -> None:
    """Point a command at the `tenuto dev` that runs for this folder, if there is one."""
    from tenuto_cli.addresses import of_session

    variables, told = of_session(command.name, arguments)
    if variables:
        os.environ.update(variables)
        print(told, file=sys.stderr)


def command_word(arguments: Sequence[str]) -> str | None:
    """Return the first word that is neither an option nor the value of one."""
    words = iter(arguments)
    for word in words:
        if word in OPTIONS_WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return word
        elif word in {"-h", "--help", "--version"}:
            return None
    return None


def help_text() -> str:
    """What `tenuto --help` prints."""
    lines = [f"  {command.name:<{HELP_COLUMN}}{command.help}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: tenuto COMMAND ...",
            "",
            "Durable handlers for Kafka events and calls.",
            "",
            "commands:",
            *lines,
            "",
            "tenuto COMMAND --help has the arguments of one; tenuto --version says which tenuto this is.",
        ]
    )


def version_line() -> str:
    """Such as `tenuto 0.1.0 (Python 3.13.1)`."""
    import platform
    from importlib.metadata import version

    return f"tenuto {version('tenuto')} (Python {platform.python_version()})"
