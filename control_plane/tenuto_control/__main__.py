"""The command line: `tenuto run`, `tenuto check`, `tenuto cost`, `tenuto journal`, `tenuto rotate-data-key`.

Owns the commands, their options and what a mistake is answered with. Does not own the control plane (`always_on`) nor
the estimate of `tenuto cost` (`core.costs`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence, Sized
from dataclasses import fields
from pathlib import Path

from tenuto_control import arguments
from tenuto_control.config import DEFAULT_FILE, Config, ConfigError, load
from tenuto_control.core import costs
from tenuto_control.core.log_fields import shown
from tenuto_control.drivers import log_lines
from tenuto_control.memory import memory_problem, task_to_be

CHECK_TEXT = (
    "Check the configuration, and ask each function which handlers it serves. Exit status 1 if a function or a "
    "handler cannot be found."
)

JOURNAL_TEXT = (
    "Print the journal of an unfinished invocation, for `tenuto replay`. It contains the payloads of the invocation "
    "and the state of its key."
)

EXIT_UNSEEN = 1
EXIT_USAGE = arguments.EXIT_USAGE
EXIT_INTERRUPTED = 130

CONFIG_VARIABLE = "TENUTO_CONFIG_FILE"
"""The file, unless --config names one. `sam build` reads the same variable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status; a user's mistake is one line on standard error."""
    options = parser().parse_args(arguments)
    try:
        log_lines.set_up(options.log_format, options.log_level)
        if options.command == "cost":
            return _cost(options)
        config = load(options.config)
        if options.command == "check":
            return _check(config, options)
        if options.command == "rotate-data-key":
            return _rotate(config)
        if options.command == "journal":
            return _journal(config, options.named)
        return _run(config)
    except ConfigError as e:
        _complain(e, options.log_format)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _complain(error: ConfigError, log_format: str) -> None:
    """Say what is wrong in one line, which whatever reads JSON lines can read as well."""
    if log_format.lower() == "json":
        logging.getLogger("tenuto").critical("%s", error)
    else:
        print(f"tenuto: {shown(str(error), log_lines.LINE_CHARACTERS_MAX)}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The arguments of every command of the control plane."""
    made = arguments.Parser(prog="tenuto", description="Durable handlers for Kafka events and calls.")
    level, form = (os.environ.get(name) for name in (log_lines.LEVEL_VARIABLE, log_lines.FORMAT_VARIABLE))
    made.add_argument("--log-level", default=level or "info", help="from debug to critical; default: info")
    made.add_argument("--log-format", default=form or "text", help="text, or json: one object a line; default: text")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "Run a control plane: consume, dispatch, sweep and serve HTTP."),
        ("check", CHECK_TEXT),
        (
            "rotate-data-key",
            "Create a new data key for payloads written from now on. Earlier payloads keep their keys.",
        ),
        ("journal", JOURNAL_TEXT),
    ):
        command = commands.add_parser(name, help=text, description=text)
        file = os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE
        command.add_argument("--config", default=file, help=f"default: {CONFIG_VARIABLE}, else {DEFAULT_FILE}")
        if name == "check":
            command.add_argument(
                "--offline", action="store_true", help="check only the file, without asking the functions"
            )
        if name == "journal":
            command.add_argument(
                "named", metavar="INVOCATION", help="its id, or SERVICE/KEY for the unfinished invocation of that key"
            )
    _add_cost(commands.add_parser("cost", help="estimate the cost of a month of events", description=_COST_TEXT))
    return made


_COST_TEXT = (
    "Estimate the cost of a month of events of one kind. Needs no configuration and no account. Prices are AWS's list "
    "prices in us-east-1; a TOML file overrides some of them."
)


def _int(text: str) -> int:
    """A whole number, such as 1,000,000. Raises ArgumentTypeError."""
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_start_of(text)!r} is not a whole number, such as 1,000,000") from None


def _float(text: str) -> float:
    """A number, such as 1,000.5. Raises ArgumentTypeError."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_start_of(text)!r} is not a number, such as 1,000.5") from None


def _start_of(text: str) -> str:
    return text[: arguments.SHOWN_CHARACTERS_MAX]


def _add_cost(command: argparse.ArgumentParser) -> None:
    """An option for each field of a workload, which knows its default and its bounds."""
    for one in fields(costs.Workload):
        name, text, default = "--" + one.name.replace("_", "-"), one.metadata["help"], one.default
        if isinstance(default, bool):
            command.add_argument(name, action="store_true", help=text)
        elif isinstance(default, str):
            choices = one.metadata["choices"]
            command.add_argument(name, choices=choices, default=default, help=f"{text} (default: {default})")
        elif default is None:
            command.add_argument(name, type=_float, metavar="N", help=text)
        else:
            shown = f"{text} (default: {default:,})".replace(".0)", ")")
            number = _float if isinstance(default, float) else _int
            command.add_argument(name, type=number, default=default, metavar="N", help=shown)
    command.add_argument("--prices", metavar="FILE.toml", help="overrides of the list prices of us-east-1")
    command.add_argument("--json", action="store_true", help="print one JSON document, for programs")


def _cost(options: argparse.Namespace) -> int:
    """Print an estimate. Raises ConfigError."""
    prices, names = costs.US_EAST_1, "AWS's list prices in us-east-1, which --prices FILE.toml replaces"
    try:
        if options.prices is not None:
            prices = costs.parse_prices(Path(options.prices).read_text(encoding="utf-8"))
            names = f"those of {options.prices}, and AWS's list prices in us-east-1 for the rest"
        workload = costs.Workload(**{one.name: getattr(options, one.name) for one in fields(costs.Workload)})
    except costs.PricesError as e:
        raise ConfigError(f"{options.prices}: {e}") from e
    except FileNotFoundError as e:
        raise ConfigError(f"{options.prices}: no such file; name a TOML file with --prices") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{options.prices}: cannot be read: {e}") from e
    except ValueError as e:
        raise ConfigError(str(e)) from e
    made, even = costs.estimate(workload, prices), costs.break_even(workload, prices)
    if options.json:
        print(json.dumps(costs.as_record(made, even) | {"prices": names}, indent=2))
    else:
        print(costs.as_text(made, even))
        print(f"Prices: {names}.\nNot included: free tiers, Kafka, network, logs, storage.")
    return 0


def _check(config: Config, options: argparse.Namespace) -> int:
    """Say what is configured, served, and wrong. Raises ConfigError."""
    found_text = f"{_counted(config.functions, 'function')}, {_counted(config.subscriptions, 'subscription')}"
    print(f"{options.config}: {found_text}", flush=True)
    too_much = memory_problem(config.limits, task_to_be(os.environ))
    if too_much is not None:
        print(f"warning: {too_much}", file=sys.stderr, flush=True)
    if options.offline:
        return 0
    from tenuto_control.assembly import survey

    found = asyncio.run(survey(config))
    for service in found.services:
        print(f"  {service.name}: {', '.join(handler.name for handler in service.handlers)}", flush=True)
    for problem in found.problems:
        _complain(ConfigError(problem), options.log_format)
    return EXIT_UNSEEN if found.problems else 0


def _counted(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _rotate(config: Config) -> int:
    """Make a new data key current. Raises ConfigError."""
    from tenuto_control.assembly import rotate_data_key

    number = asyncio.run(rotate_data_key(config))
    print(f"data key {number} of table {config.table.name!r} is current; every process uses it within 5 minutes")
    return 0


def _journal(config: Config, named: str) -> int:
    """Print the journal of an invocation. Raises ConfigError."""
    from tenuto_control.assembly import journal

    sys.stdout.buffer.write(asyncio.run(journal(config, named)))
    return 0


def _run(config: Config) -> int:
    # Imported here: the other commands need no client of anything.
    from tenuto_control.always_on import serve

    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(config))
    else:
        uvloop.run(serve(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
