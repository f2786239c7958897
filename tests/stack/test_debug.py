"""`tenuto dev --debug FUNCTION --debugger pdb` at a terminal: a breakpoint stops there, for as long as a person looks.

Owns the debugger of the terminal. That of an editor is in `tests/local/test_dev_project.py`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenuto_local.system import import_path
from tests.support.programs import Program
from tests.support.terminals import Terminal

pytestmark = [pytest.mark.stack, pytest.mark.slow]

CONFIG = """
[functions.shop]
handler = "shop:handler"
timeout_s = 2

[functions.other]
handler = "other:handler"
"""

SHOP = '''"""Looks at a name."""

from tenuto import ObjectContext, VirtualObject, aws

shop = VirtualObject("shop")


def look_up(name: str) -> str:
    found = name.title()
    breakpoint()
    return found


@shop.handler()
async def greet(ctx: ObjectContext) -> str:
    name = await ctx.run("look up", look_up, ctx.key)
    import pdb; pdb.set_trace()
    return f"Hello, {name}"


handler = aws.handler(shop)
'''

OTHER = '''"""Has a breakpoint, and is not debugged."""

from tenuto import Context, Service, aws

other = Service("other")
breakpoint()


@other.handler()
async def greet(ctx: Context) -> str:
    breakpoint()
    return "Hello"


handler = aws.handler(other)
'''
LONGER_THAN_ITS_TIMEOUT_S = 3.0


@pytest.fixture
def environment() -> dict[str, str]:
    path = import_path("tenuto", "tenuto_control", "tenuto_local", "tenuto_cli")
    return {**os.environ, "PYTHONPATH": path, "TERM": "dumb"}


@pytest.fixture
def dev(tmp_path: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    for name, text in (("tenuto.toml", CONFIG), ("shop.py", SHOP), ("other.py", OTHER)):
        (tmp_path / name).write_text(text, "utf-8")
    ports = ("--http-port", "0", "--kafka-port", "0", "--aws-port", "0")
    command = [sys.executable, "-m", "tenuto_cli", "dev", "--debug", "shop", "--debugger", "pdb", *ports]
    terminal = Terminal(command, tmp_path, environment)
    try:
        terminal.shows("Its log follows")
        yield terminal
    finally:
        terminal.close()


def test_a_breakpoint_stops_in_the_terminal(dev: Terminal, tmp_path: Path, environment: dict[str, str]) -> None:
    def tenuto(log: str, *arguments: str) -> Program:
        return Program([sys.executable, "-m", "tenuto_cli", *arguments], tmp_path / log, cwd=tmp_path, env=environment)

    calling = tenuto("call.log", "call", "shop", "ann", "greet")
    try:
        # In a step, by breakpoint(); in the handler, by pdb.set_trace().
        place = dev.shows(r"shop\.py\(\d+\)look_up\(\)[^(]*\(Pdb\) $")
        dev.type("p found\n")
        place = dev.shows(r"'Ann'\n\(Pdb\) $", place)
        # Nobody's patience ends meanwhile: neither the function's nor the caller's.
        time.sleep(LONGER_THAN_ITS_TIMEOUT_S)
        dev.type("c\n")
        place = dev.shows(r"shop\.py\(\d+\)greet\(\)[^(]*\(Pdb\) $", place)
        dev.type("name = 'Bo'\n")
        place = dev.shows(r"\(Pdb\) $", place + len("name = 'Bo'\n"))
        dev.type("c\n")
        assert calling.wait() == 0, calling.output
        assert calling.output.splitlines()[-1] == '"Hello, Bo"'
    finally:
        calling.close()

    # One that is not debugged runs past its breakpoint, and the log says how to stop there.
    other = tenuto("other.log", "call", "other", "greet")
    try:
        assert other.wait() == 0, other.output
    finally:
        other.close()
    dev.shows(r"the breakpoint at \S+other\.py:11 is passed over: `tenuto dev --debug other` stops there")

    dev.type("\x03")
    assert dev.wait() == 130
    assert "Traceback" not in dev.shown


def test_without_a_terminal_there_is_no_pdb(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "tenuto.toml").write_text(CONFIG, "utf-8")
    command = [sys.executable, "-m", "tenuto_cli", "dev", "--debug", "shop", "--debugger", "pdb"]
    program = Program(command, tmp_path / "log", cwd=tmp_path, env=environment)
    assert program.wait() == 2
    assert program.output.startswith("tenuto dev: pdb needs a terminal, and standard input is not one")
    assert program.output.count("\n") == 1
