"""`tenuto dev [FOLDER]`: its arguments. Does not own what it does (`tenuto_local.dev`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from tenuto_cli.parsing import Parser

DEBUG_PORT: Final = 5678
KAFKA_PORT: Final = 9092
AWS_PORT: Final = 4599
"""Of the local Lambda and Scheduler; 4566 is LocalStack's."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = Parser(
        prog="tenuto dev",
        description="Run a project on this machine: its functions, a broker, a table and a control plane. Code is "
        "reloaded when it is saved. Topics, table and logs are kept in .tenuto/ of the project.",
    )
    made.add_argument("folder", nargs="?", default=".", help="the project: a folder with tenuto.toml; default: here")
    made.add_argument("--fresh", action="store_true", help="forget topics, table and logs of earlier sessions first")
    made.add_argument("--json", action="store_true", help="print the addresses as one line of JSON, for scripts")
    made.add_argument("--verbose", action="store_true", help="show every line of the control plane's log")
    made.add_argument(
        "--debug", metavar="FUNCTION", help="run this function in one process, without timeouts, under debugpy"
    )
    made.add_argument("--debug-port", type=int, default=DEBUG_PORT, metavar="PORT", help="default: %(default)s")
    made.add_argument("--http-port", type=int, metavar="PORT", help="default: that of [http], else 8080; 0: any")
    made.add_argument("--kafka-port", type=int, default=KAFKA_PORT, metavar="PORT", help="default: %(default)s; 0: any")
    made.add_argument("--aws-port", type=int, default=AWS_PORT, metavar="PORT", help="default: %(default)s; 0: any")
    made.add_argument(
        "--engines",
        choices=("auto", "native", "reference"),
        default="auto",
        help="what broker and table run on: native engines, the reference ones (Java), or the best that there is",
    )
    made.add_argument("--kafka", metavar="HOST:PORT", help="use this broker, and start none")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    # An interrupt first: what follows takes a while, in which a Ctrl-C may come.
    from tenuto_local import interrupts

    interrupts.end_at_once()
    options = parser().parse_args(arguments)
    from tenuto_local.dev.command import start

    status = start(options)
    interrupts.over()
    return status
