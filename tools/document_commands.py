# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Writes `docs/reference/cli.md` from the parsers of `tenuto`.

    python tools/document_commands.py           # write the page
    python tools/document_commands.py --check   # exit 1 when the page differs from the code

Owns the form of the page. Commands, arguments, defaults and texts come from the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tenuto_cli.commands import COMMANDS, Command
from tenuto_cli.completion import actions_of, parser_of

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "cli.md"
INTRODUCTION: Final = (
    "# Commands",
    "",
    "<!-- Written by tools/document_commands.py: change the code, and run it. -->",
    "",
    "`pip install tenuto` installs the command `tenuto`. If a command needs an [extra](../guides/install.md) that is",
    "missing, it says so in one line. The exit status is 0 for success, 1 for a failed operation, 2 for wrong usage",
    "and 130 for an interrupt. `tenuto completion bash` and `tenuto completion zsh` print a script for completion.",
    "",
    "`send`, `tail`, `call` and `resolve` use the running `tenuto dev` of the project in the current folder.",
    "`TENUTO_URL` and `TENUTO_BOOTSTRAP_SERVERS`, or the options `--url` and `--kafka`, name another control plane and",
    "broker. `check` and `journal` use the running `tenuto dev` as well, unless `--config`, `TENUTO_CONFIG_FILE` or",
    "one of AWS's variables for region, endpoint and profile is set. `check --offline` connects to nothing.",
    "",
)


def page() -> str:
    """The whole page."""
    lines = [*INTRODUCTION, "| command | what it does | extras |", "|---|---|---|"]
    lines += [f"| [`{one.name}`](#tenuto-{one.name}) | {one.help} | {_extras(one)} |" for one in COMMANDS]
    for command in COMMANDS:
        lines += ["", *_section(command)]
    return "\n".join(lines) + "\n"


def _extras(command: Command) -> str:
    return ", ".join(f"`{extra}`" for extra in command.extras) or "none"


def _section(command: Command) -> Iterator[str]:
    made = parser_of(command.module, command.name)
    yield f"## `tenuto {command.name}`"
    yield ""
    yield _cell(made.description or command.help)
    rows = list(_rows(made))
    if rows:
        yield from ("", "| argument | meaning |", "|---|---|", *rows)


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in actions_of(parser):
        if "--help" in action.option_strings:
            continue
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        if action.option_strings:
            name = ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")
        else:
            name = str(value) if action.nargs not in {"?", "*"} else f"[{value}]"
        yield f"| `{name.replace('|', chr(92) + '|')}` | {_cell(_help(parser, action))} |"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()  # noqa: SLF001 - what `--help` itself does
    return formatter._expand_help(action) if action.help else ""  # noqa: SLF001 - what `--help` itself does


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write docs/reference/cli.md.")
    parser.add_argument("--check", action="store_true", help="compare only")
    if parser.parse_args().check:
        return int(PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
