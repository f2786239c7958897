"""The page about the commands says what the code does, and every command line that a page shows is one that there is.

Owns the comparison and the reading of command lines. Does not own the page, which `tools/document_commands.py` writes.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from tenuto_cli.commands import COMMANDS, CONTROL, named
from tenuto_cli.init import TEMPLATES
from tenuto_cli.program import command_word
from tests.tidy import tree
from tools import document_commands as documented

FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
END_OF_COMMAND = {"|", "||", "&", "&&", ";", ">", ">>", "<"}
PAGES = (tree.ROOT / "README.md", *sorted((tree.ROOT / "docs").rglob("*.md")))


def shown_lines(text: str) -> list[str]:
    """The command lines of tenuto in the shell fences of a page."""
    lines = [line.strip() for fence in FENCE.findall(text) for line in fence.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("tenuto ")]


LINES = sorted(
    {line for path in PAGES for line in shown_lines(path.read_text("utf-8"))}
    | {line for template in TEMPLATES.values() for line in template.commands}
)


def words_of(line: str) -> list[str]:
    """The words behind `tenuto`, up to where the shell takes over."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    _, *words = lexer
    return words[: next((at for at, word in enumerate(words) if word in END_OF_COMMAND), None)]


def test_the_committed_page_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Defaults that variables of this machine set are none of the page's.
    for variable in ("TENUTO_CONFIG_FILE", "TENUTO_LOG_LEVEL", "TENUTO_LOG_FORMAT"):
        monkeypatch.delenv(variable, raising=False)
    assert documented.PAGE.read_text("utf-8") == documented.page(), "run `python tools/document_commands.py`"


def test_no_default_names_this_machine() -> None:
    assert str(Path.home()) not in documented.page()


def test_every_argument_says_what_it_means() -> None:
    rows = [line for line in documented.page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if "SUPPRESS" in row or row.endswith("|  |")] == []


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_a_page_shows_is_understood(line: str) -> None:
    words = words_of(line)
    if words in (["--help"], ["--version"]):
        return
    command = named(command_word(words) or "")
    assert command is not None, "there is no such command"
    parser: argparse.ArgumentParser = importlib.import_module(command.module).parser()
    try:
        parser.parse_args(words if command.module == CONTROL else words[words.index(command.name) + 1 :])
    except SystemExit as ended:
        # `--help` ends the process as well.
        if ended.code != 0:
            pytest.fail(f"`{line}` is refused")


def test_the_lines_are_found() -> None:
    assert {"replay", "journal", "call", "dev"} <= {command_word(words_of(line)) for line in LINES}
    assert {command_word(words_of(line)) for line in LINES} <= {command.name for command in COMMANDS} | {None}
