"""`tenuto dev [FOLDER]`: its arguments. Does not own what it does (`tenuto_local.dev`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from tenuto_cli.parsing import Parser
from tenuto_control.arguments import SHOWN_CHARACTERS_MAX

DEBUG_PORT: Final = 5678


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(
        prog="tenuto dev",
        description="Run a project on this machine: its functions, a broker, a table and a control plane. Code is "
        "reloaded on save. Topics, table and logs are kept in the project's folder .tenuto/.",
    )
    made.add_argument(
        "folder",
        nargs="?",
        help="the project: a folder with tenuto.toml; default: the current folder, or the nearest one above it",
    )
    made.add_argument(
        "--fresh", action="store_true", help="delete the topics, table and logs of earlier sessions first"
    )
    made.add_argument("--json", action="store_true", help="print the addresses as one line of JSON, for scripts")
    made.add_argument("--verbose", action="store_true", help="show the whole log of the control plane")
    made.add_argument(
        "--debug", metavar="FUNCTION", help="run this function in one process, without timeouts, under a debugger"
    )
    made.add_argument(
        "--debugger",
        choices=("debugpy", "pdb"),
        help="debugpy listens for an editor, pdb stops in this terminal at breakpoint(); "
        "default: debugpy if it is installed",
    )
    made.add_argument("--debug-port", type=port, default=DEBUG_PORT, metavar="PORT", help="default: %(default)s")
    made.add_argument("--http-port", type=port, metavar="PORT", help="default: http_port of [dev], else port of [http]")
    made.add_argument("--kafka-port", type=port, metavar="PORT", help="default: kafka_port of [dev], 9092; 0: any")
    made.add_argument("--aws-port", type=port, metavar="PORT", help="default: aws_port of [dev], 4599; 0: any")
    made.add_argument(
        "--engines",
        choices=("auto", "native", "reference"),
        help="engines of broker and table: native ones, the reference ones (Java), or the best available; "
        "default: engines of [dev], auto",
    )
    made.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    return made


def port(text: str) -> int:
    """A port to listen on. Raises ArgumentTypeError."""
    from tenuto_control.core.settings import local_port_problem

    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARACTERS_MAX]!r} is not a port number") from None
    problem = local_port_problem(number)
    if problem is not None:
        raise argparse.ArgumentTypeError(problem)
    return number


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    # An interrupt first: what follows takes a while, in which a Ctrl-C may come.
    from tenuto_local import interrupts

    interrupts.end_at_once()
    options = parser().parse_args(arguments)
    from tenuto_local.dev.command import start

    status = start(options)
    interrupts.over()
    return status
