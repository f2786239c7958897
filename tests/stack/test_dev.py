"""`tenuto dev` at work on a project: sending, calling, saving code that works and code that does not, a restart.

Owns what a developer sees of one session after another. The scenario is one story, told by tests in their order.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenuto_cli.program import main
from tenuto_local.system import import_path
from tests.support.programs import Program

pytestmark = [pytest.mark.stack, pytest.mark.slow]

START_TIMEOUT_S = 90.0
EVENTUALLY_S = 40.0
ANY_PORTS = ("--http-port", "0", "--kafka-port", "0", "--aws-port", "0")

CONFIG = """
[functions.greeter]
handler = "shop.greeting:handler"

[functions.counter]
handler = "shop.counting:handler"

[[subscriptions]]
topic = "greetings"
target = "greeter/greet"

[topics.counted]
partitions = 3
"""

GREETING = '''"""Greets."""

import logging
from datetime import timedelta

from shop.words import word
from tenuto import ObjectContext, TerminalError, VirtualObject, aws

logger = logging.getLogger("shop")
greeter = VirtualObject("greeter")
failed: list[str] = []


def look_up(name: str) -> str:
    print("looking up", name)
    return name.title()


@greeter.handler()
async def greet(ctx: ObjectContext, wish: str) -> str:
    if wish == "fails" and not failed:
        failed.append(wish)
        raise ValueError("no route")
    name = await ctx.run("look up", look_up, ctx.key)
    logger.info("greeting %s", name)
    if wish == "terminal":
        raise TerminalError("no more", status_code=409)
    if wish.startswith("sleep"):
        await ctx.sleep(timedelta(seconds=float(wish[5:])))
    return f"{word()}, {name}!"


handler = aws.handler(greeter)
'''

COUNTING = '''"""Counts."""

import os

from tenuto import Context, Service, aws

counter = Service("counter")


@counter.handler()
async def process(ctx: Context) -> int:
    return os.getpid()


handler = aws.handler(counter)
'''
WORDS = 'def word() -> str:\n    return "Hello"\n'


class Dev:
    """A project in a folder of its own, and `tenuto` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "src" / "shop"
        self.package.mkdir(parents=True)
        (folder / "tenuto.toml").write_text(CONFIG, "utf-8")
        for name, text in (("__init__", ""), ("greeting", GREETING), ("counting", COUNTING), ("words", WORDS)):
            (self.package / f"{name}.py").write_text(text, "utf-8")
        self._log = folder.parent / "dev.log"
        self._program: Program | None = None
        self._environment = {
            **os.environ,
            "PYTHONPATH": import_path("tenuto", "tenuto_control", "tenuto_local", "tenuto_cli"),
        }

    @property
    def program(self) -> Program:
        assert self._program is not None, "dev was never started"
        return self._program

    @property
    def output(self) -> str:
        return self.program.output

    def begin(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tenuto_cli", "dev", *ANY_PORTS, *arguments]
        self._program = Program(command, self._log, cwd=self.folder, env=self._environment)

    def start(self, *arguments: str) -> None:
        self.begin(*arguments)
        self.until(self.is_up, START_TIMEOUT_S)

    def is_up(self) -> bool:
        return "Its log follows" in self.output

    def stop(self) -> int:
        return self.program.interrupt(EVENTUALLY_S)

    def close(self) -> None:
        if self._program is not None:
            self._program.close()

    def until(self, holds: Callable[[], object], timeout_s: float = EVENTUALLY_S) -> None:
        self.program.until(holds, timeout_s)

    def shown(self, pattern: str) -> None:
        """Wait until the output shows it."""
        self.program.shows(pattern, EVENTUALLY_S)

    def tenuto(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command: one that only asks a session in this process, since its start takes longer than its answer.

        As processes of their own they run in `tests/install`.
        """
        if arguments[0] in {"call", "send", "tail"}:
            said, complained = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
            with (
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(complained),
            ):
                status = main(arguments)
            said.seek(0)
            return subprocess.CompletedProcess(arguments, status, said.read(), complained.getvalue())
        return subprocess.run(
            [sys.executable, "-m", "tenuto_cli", *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=EVENTUALLY_S,
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        ended = self.tenuto(*arguments)
        assert ended.returncode == 0, f"{ended.stderr}\n{self.output}"
        return ended.stdout.strip()

    def save(self, name: str, text: str) -> None:
        (self.package / f"{name}.py").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    made = Dev(tmp_path_factory.mktemp("dev") / "shop")
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_session(dev: Dev) -> None:
    calls_and_records(dev)
    only_what_changed_is_reloaded(dev)
    a_mistake_on_save_replaces_nothing(dev)
    a_saved_configuration_is_taken_up(dev)
    a_journal_is_read_and_replayed(dev)
    a_sleeping_invocation_goes_on_with_new_code(dev)
    everything_survives_a_restart(dev)


def calls_and_records(dev: Dev) -> None:
    assert dev.ok("call", "greeter", "ann", "greet", "Hi") == '"Hello, Ann!"'
    dev.shown(r"greeter/ann greet #1 ~\w{6}  looking up ann$")
    dev.shown(r"greeter/ann greet #1 ~\w{6}  greeting Ann$")
    assert dev.ok("send", "greetings", "k{n}", '"Hi"', "--count", "2").startswith("sent 2 records to greetings")
    dev.shown(r"greeter/k2 greet #1 ~\w{6}  greeting K2$")
    records = [json.loads(line) for line in dev.ok("tail", "greetings", "--json").splitlines()]
    assert sorted((record["key"], record["value"]) for record in records) == [("k1", '"Hi"'), ("k2", '"Hi"')]
    dev.ok("call", "greeter", "eve", "greet", "fails")
    dev.shown(r"greeter/eve greet .*greeting Eve")
    assert dev.output.count("ValueError: no route") == 1, dev.output
    dev.ok("send", "greetings", "bo", '"terminal"')
    dev.shown(r"greeter/bo greet .*✗ greeter/greet failed for good: TerminalError: no more$")
    dev.shown(r'^ +src/shop/greeting.py:27 in greet   raise TerminalError\("no more"')
    dev.shown(r"greeter/bo greet .*✗ greet ended greetings/\d offset \d by a terminal error \(409\): no more$")
    refused = dev.tenuto("call", "greeter", "ann", "gret")
    assert (refused.returncode, "did you mean 'greet'?" in refused.stderr) == (2, True)
    refused = dev.tenuto("send", "greting", "ann", "x")
    assert (refused.returncode, "did you mean 'greetings'?" in refused.stderr) == (2, True)
    failed = dev.tenuto("call", "greeter", "ann", "greet", "terminal")
    assert (failed.returncode, failed.stderr) == (1, "tenuto call: greeter/greet: no more (409)\n")


def only_what_changed_is_reloaded(dev: Dev) -> None:
    process = dev.ok("call", "counter", "process")
    dev.save("words", WORDS.replace("Hello", "Good day"))
    dev.shown(r"reloaded greeter after a change of src/shop/words.py")
    assert dev.ok("call", "greeter", "ann", "greet", "Hi") == '"Good day, Ann!"'
    assert dev.ok("call", "counter", "process") == process, "the other function goes on in its process"
    added = COUNTING.replace(
        "handler =", "@counter.handler()\nasync def two(ctx: Context) -> int:\n    return 2\n\n\nhandler ="
    )
    dev.save("counting", added)
    dev.shown(r"reloaded counter after a change of src/shop/counting.py")
    dev.until(lambda: dev.tenuto("call", "counter", "two").stdout == "2\n")


def a_mistake_on_save_replaces_nothing(dev: Dev) -> None:
    dev.save("words", "def word() -> str\n")
    dev.shown(
        r"greeter  ✗ SyntaxError: expected ':'\n(.*\n)* +src/shop/words.py:1   def word\(\) -> str\n +→ the previous"
    )
    assert dev.ok("call", "greeter", "ann", "greet", "Hi") == '"Good day, Ann!"'
    dev.save("words", "import nothing_of_that_name\n")
    dev.shown(
        r"✗ ModuleNotFoundError: No module named 'nothing_of_that_name'\n.*src/shop/greeting.py:.*\n.*/words.py:1"
    )
    dev.save("words", WORDS.replace("Hello", "Welcome"))
    dev.until(lambda: dev.ok("call", "greeter", "ann", "greet", "Hi") == '"Welcome, Ann!"')
    assert dev.output.count("SyntaxError") == 1


def a_saved_configuration_is_taken_up(dev: Dev) -> None:
    file = dev.folder / "tenuto.toml"
    file.write_text(CONFIG + "[topics.more]\npartitons = 1\n", "utf-8")
    dev.shown(r"tenuto.toml: topics.more.partitons: unknown key; did you mean \"partitions\"\?")
    file.write_text(CONFIG + "[topics.more]\npartitions = 1\n", "utf-8")
    dev.shown(r"tenuto.toml is in force")
    assert dev.ok("send", "more", "k", "v") == "sent 1 record to more, partition 0 offset 0"
    assert dev.ok("call", "greeter", "ann", "greet", "Hi") == '"Welcome, Ann!"'


def a_journal_is_read_and_replayed(dev: Dev) -> None:
    # It sleeps for longer than any machine takes to read its journal.
    dev.ok("call", "greeter", "eve", "greet", "sleep3600", "--send")
    dev.shown(r"greeter/eve greet #1 .*greeting Eve")
    dev.until(lambda: dev.tenuto("journal", "greeter/eve").returncode == 0)
    (dev.folder / "journal.json").write_text(dev.ok("journal", "greeter/eve"), "utf-8")
    assert "greeter/greet takes the same way" in dev.ok("replay", "journal.json")
    assert "greeter: greet" in dev.ok("check")


def a_sleeping_invocation_goes_on_with_new_code(dev: Dev) -> None:
    sleeping = json.loads(dev.ok("call", "greeter", "cy", "greet", "sleep6", "--send"))["invocation_id"]
    dev.shown(r"greeter/cy greet #1 .*greeting Cy")
    dev.save("words", WORDS.replace("Hello", "Later"))

    dev.until(lambda: '"Later, Cy!"' in dev.ok("call", "greeter", "cy", "greet", "Hi"))
    assert sleeping.startswith("inv_")


def everything_survives_a_restart(dev: Dev) -> None:
    dev.ok("call", "greeter", "dora", "greet", "sleep8", "--send")
    dev.shown(r"greeter/dora greet #1 .*greeting Dora")
    assert dev.stop() == 130
    assert "Traceback" not in dev.output
    dev.save("words", WORDS.replace("Hello", "Again"))
    dev.begin()
    dev.until(lambda: (dev.folder / ".tenuto" / "starting").exists() or dev.is_up(), START_TIMEOUT_S)
    # A command waits for a session that is starting. The call is queued behind the sleeper of the session before.
    assert dev.ok("call", "greeter", "dora", "greet", "Hi") == '"Again, Dora!"'
    dev.until(dev.is_up)
    assert not (dev.folder / ".tenuto" / "starting").exists()
    assert len(dev.ok("tail", "greetings").splitlines()) == 3
    second = dev.tenuto("dev", *ANY_PORTS)
    assert second.returncode == 2
    assert "is already running: process" in second.stderr
    assert dev.stop() == 130
