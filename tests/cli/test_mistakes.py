"""Every command with what it cannot use: one line that names the way out, status 2, no traceback, nothing left behind.

Owns mistakes on the command line and in the folder it is given in. Does not own mistakes within a `tenuto.toml`
(`tests/attack/test_settings.py`) nor a running session (`tests/stack/test_dev.py`).
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenuto_cli.addresses import AWS_VARIABLES, BROKERS_VARIABLE, CONFIG_VARIABLE, URL_VARIABLE
from tenuto_cli.commands import COMMANDS
from tenuto_cli.init import write_project
from tenuto_cli.program import EXIT_UNREAD, main
from tenuto_control.config import ENVIRONMENT
from tenuto_local.system import import_path
from tests.support.programs import Program

NOBODY = "127.0.0.1:1"
"""Where nobody listens."""

ELSEWHERE = ("--url", f"http://{NOBODY}")
END_SECONDS_MAX = 60.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, on a machine that names no system anywhere."""
    own = (BROKERS_VARIABLE, CONFIG_VARIABLE, URL_VARIABLE, *AWS_VARIABLES, *ENVIRONMENT)
    for variable in own:
        # Set first, so that it is taken away at the end if a command sets it.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    # No file of a person's own says what AWS's region is.
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(folder: Path) -> Path:
    """A project that was just made."""
    write_project(folder / "shop", "minimal")
    os.chdir(folder / "shop")
    return folder / "shop"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one line that answers a mistake."""
    before = files(Path.cwd())
    try:
        found = main(arguments)
    except SystemExit as ended:
        found = int(str(ended.code))
    said = capsys.readouterr()
    assert found == status, said
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("tenuto"), said.err
    assert said.err.strip().isprintable(), said.err
    assert len(said.err) < 700
    assert files(Path.cwd()) == before
    return said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-x"], "no option '-x' before a command; see tenuto --help"),
        (["sned"], "did you mean 'send'?"),
        (["init"], "NAME; see tenuto init --help"),
        (["init", ""], "is not a valid project name"),
        (["init", ".."], "is not a valid project name"),
        (["init", "class"], "Python itself uses"),
        (["init", "shop", "--template", "nope"], "choose from 'minimal'"),
        (["dev"], "there is no tenuto.toml; `tenuto init NAME` makes a project"),
        (["dev", "nowhere"], "nowhere: no such folder"),
        (["dev", "--http-port", "x"], "'x' is not a port number"),
        (["dev", "--http-port", "-1"], "expected 0 (any) to 32767"),
        (["dev", "--kafka-port", "70000"], "expected 0 (any) to 32767"),
        (["dev", "--engines", "best"], "choose from 'auto'"),
        (["send"], "TOPIC; see tenuto send --help"),
        (["send", "t"], "write TOPIC KEY VALUE"),
        (["send", "t", "k", "v"], "no `tenuto dev` runs for this folder; start one"),
        (["send", "t", "k", "v", "--kafka", "host:port"], '--kafka: "host:port" is not a broker address'),
        (["send", "t", "k", "v", "--kafka", "::::"], "is not a broker address"),
        (["send", "t", "k", "v", "--kafka", NOBODY], "does not answer"),
        (["send", "t", "k", "v", "--count", "0"], "'0' is not a whole number from 1 to"),
        (["send", "t", "k", "v", "--count", "9" * 5_000], "is not a whole number from 1 to"),
        (["send", "t", "k", "v", "--header", "a"], "write NAME=VALUE"),
        (["send", "t", "--file", "nowhere"], "nowhere cannot be read"),
        (["send", "t", "--file", "."], "cannot be read"),
        (["call"], "see tenuto call --help"),
        (["call", "x"], "no `tenuto dev` runs for this folder; start one"),
        (["call", "x", "--url", "nonsense"], "is not the address of a control plane"),
        (["call", "x", "--url", "http://127.0.0.1:99999"], "is not the address of a control plane"),
        (["call", "x", "--url", "http://127.0.0.1:abc"], "is not the address of a control plane"),
        (["call", "x", "--url", "http://[::1"], "is not the address of a control plane"),
        (["call", "x", *ELSEWHERE], "does not answer"),
        (["call", "x", "--header", "a", *ELSEWHERE], "write NAME=VALUE"),
        (["resolve"], "AWAKEABLE; see tenuto resolve --help"),
        (["resolve", "x"], "no `tenuto dev` runs for this folder; start one"),
        (["resolve", "x", "@nowhere", *ELSEWHERE], "nowhere cannot be read"),
        (["resolve", "\udcff", *ELSEWHERE], "is not text"),
        (["resolve", "x", "\udcff", *ELSEWHERE], "no"),
        (["resolve", "x", "--reject", "\udcff", *ELSEWHERE], "is not text"),
        (["tail"], "TOPIC; see tenuto tail --help"),
        (["tail", "t"], "no `tenuto dev` runs for this folder; start one"),
        (["tail", "t", "--kafka", "host:port"], "is not a broker address"),
        (["tail", "t", "--kafka", NOBODY], "does not answer; does `tenuto dev` run?"),
        (["tail", "t", "--count", "-1"], "'-1' is not a whole number from 1 to"),
        (["completion"], "SHELL"),
        (["completion", "fish"], "choose from 'bash'"),
        (["run"], "tenuto.toml: no such file; write one"),
        (["run", "--config", "."], "cannot be read"),
        (["run", "more"], "unrecognized arguments: more"),
        (["--log-level", "loud", "run"], "not 'loud'"),
        (["check"], "tenuto.toml: no such file; write one"),
        (["cost", "--events", "x"], "'x' is not a number"),
        (["cost", "--events", "nan"], "expected a number between 0"),
        (["cost", "--prices", "nowhere"], "nowhere: no such file"),
        (["journal"], "INVOCATION; see tenuto journal --help"),
        (["journal", "a/b"], "tenuto.toml: no such file; write one"),
        (["set-aside"], "see tenuto set-aside --help"),
        (["set-aside", "lose", "a/b"], "choose from 'list', 'show', 'restore', 'delete'"),
        (["set-aside", "list", "a/b"], "tenuto.toml: no such file; write one"),
        (["set-aside", "show", "a/b"], "show needs the NAME of an item"),
        (["set-aside", "list", "a/b", "--limit", "0"], "'0' is not a whole number from 1 to 10,000"),
        (["set-aside", "list", "a/b", "--limit", "001000000"], "is not a whole number from 1 to 10,000"),
        (["set-aside", "list", "a/b", "--limit", "²"], "is not a whole number from 1 to 10,000"),
        (["cost", "--events", "9" * 5_000], "expected a number between 0"),
        (["cost", "--steps", "9" * 5_000], "is not a whole number"),
        (["dev", "--debug-port", "9" * 5_000], "is not a port number"),
        (["call", "x", "--delay", "5s", *ELSEWHERE], "--delay needs --send"),
        (["replay"], "see tenuto replay --help"),
        (["replay", "nowhere", "json"], "the journal cannot be read"),
        (["sam"], "tenuto.toml: no such file; write one"),
        (["sam", "nowhere"], "there is no folder nowhere"),
        (["sam", "--out"], "expected one argument"),
        (["rotate-data-key"], "tenuto.toml: no such file; write one"),
    ],
    ids=lambda one: " ".join(one)[:40].encode("ascii", "replace").decode() if isinstance(one, list) else "",
)
def test_in_an_empty_folder(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in told(arguments, capsys)


NO_REGION = "no AWS region is set: set AWS_REGION, or region under [aws]; for a project on this machine, start"


@pytest.mark.parametrize(
    "command",
    [["run"], ["journal", "greeter/ann"], ["set-aside", "list", "greeter/ann"], ["check"]],
    ids=lambda one: one[0],
)
def test_without_a_session_and_without_aws(
    project: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert NO_REGION in told(command, capsys)


@pytest.mark.parametrize(
    ("file", "content", "arguments", "words"),
    [
        ("tenuto.toml", b"\xff", ["dev"], "cannot be read"),
        ("tenuto.toml", b"not = [toml", ["dev"], "not TOML"),
        ("tenuto.toml", b"functions = 3", ["dev"], "functions: expected a section"),
        ("tenuto.toml", b"[dev]\nhttp_prt = 1\n[functions.f]", ["check"], 'did you mean "http_port"?'),
        ("tenuto.toml", b"[dev]\nengines = 'best'\n[functions.f]", ["check"], 'expected "auto", "native" or'),
        ("tenuto.toml", b"[dev]\nkafka_port = 40000\n[functions.f]", ["check"], "dev.kafka_port: expected 0 (any)"),
        (".env", b"\xff", ["dev"], ".env cannot be read"),
        (".env", b"a b", ["dev"], ".env:1: expected NAME=value"),
        (".tenuto", b"", ["dev"], ".tenuto cannot be used"),
        ("nothing", b"", ["dev", "--debug", "nobody"], "--debug nobody: there is no such function; known: shop"),
        ("nothing", b"", ["dev", "--kafka", "host:port"], '"host:port" is not a broker address'),
    ],
)
def test_in_a_project(
    project: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes, arguments: list[str], words: str
) -> None:
    (project / file).write_bytes(content)
    assert words in told([*arguments, "--json"] if arguments[0] == "dev" else arguments, capsys)


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_a_file_is_not_replaced_by_a_project(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "taken").write_text("mine", "utf-8")
    assert "cannot be written" in told(["init", name], capsys)


def test_a_project_that_cannot_be_written_whole_is_not_written_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Path] = []

    def write(self: Path, data: str, *_: Any) -> int:
        written.append(self)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return self.write_bytes(data.encode())

    (folder / "empty").mkdir()
    monkeypatch.setattr(Path, "write_text", write)
    for name in ("shop", "empty"):
        written.clear()
        assert "No space left on device" in told(["init", name], capsys)
    assert list(folder.iterdir()) == [folder / "empty"]
    assert list((folder / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"pid": "x"}',
        *(
            json.dumps(
                dict.fromkeys(("project", "ingress", "bootstrap_servers", "dynamodb", "aws"), what) | more
            ).encode()
            for what, more in (
                ("x", {"pid": "x", "engines": {}}),
                ("x", {"pid": 0, "engines": {}}),
                ("x", {"pid": -1, "engines": {}}),
                ("x", {"pid": 2**70, "engines": {}}),
                (3, {"pid": 1, "engines": {}}),
            )
        ),
    ],
)
def test_a_session_that_somebody_has_written_over(
    project: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (project / ".tenuto").mkdir()
    (project / ".tenuto" / "dev.json").write_bytes(content)
    for command in (["call", "greeter"], ["send", "greetings", "k", "v"]):
        assert "no `tenuto dev` runs for this folder" in told(command, capsys)
    assert NO_REGION in told(["journal", "greeter/ann"], capsys)


@pytest.mark.parametrize(
    ("stdin", "words"), [(None, "standard input is closed"), (io.TextIOWrapper(io.BytesIO(b"\xff")), "standard input")]
)
@pytest.mark.parametrize(
    "command", [["resolve", "x", "-", *ELSEWHERE], ["send", "t", "--file", "-", "--kafka", NOBODY]]
)
def test_standard_input_that_gives_nothing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    stdin: io.TextIOWrapper | None,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    # Records are sent as they are read, so that the brokers come first.
    assert words in told(command, capsys) or command[0] == "send"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": import_path("tenuto", "tenuto_control", "tenuto_local", "tenuto_cli")}


@pytest.mark.parametrize("arguments", [["--help"], ["cost"], ["completion", "bash"]])
def test_output_that_nobody_reads_ends_a_command_quietly(folder: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tenuto_cli", *arguments]
    try:
        ended = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=END_SECONDS_MAX,
            check=False,
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (EXIT_UNREAD, b"")


WAITING = """
import sys
from tenuto_cli import http
from tenuto_cli.program import main

def request(*_, **__):
    print("asked", flush=True)
    while True:
        pass

http.request = request
sys.exit(main(["call", "x", "--url", "http://127.0.0.1:1"]))
"""


def test_an_interrupt_ends_a_command_quietly(folder: Path) -> None:
    program = Program([sys.executable, "-c", WAITING], folder / "log", env=environment())
    try:
        program.shows("^asked$")
        program.send(signal.SIGINT)
        assert program.wait() == 130
        assert program.output == "asked\n"
    finally:
        program.close()


IMPORTS = """
import os, signal, sys
from tenuto_cli.__main__ import main

class Interrupting:
    \"""Sends the process a Ctrl-C when the module that is counted down to is imported.\"""

    left = 0

    def find_spec(self, name, path=None, target=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

arguments, moments = sys.argv[1:-1], sys.argv[-1].split(",")
for moment in moments:
    child = os.fork()
    if child == 0:
        sys.argv[1:] = arguments
        Interrupting.left = int(moment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupting())
        sys.exit(main())
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MOMENTS = (1, 2, 3, 4, 6, 10, 20, 60, 200)
"""Imports of modules, counted from the first of the command line: some commands end before the last of them."""

INTERRUPTED = [["--version"], *([command.name, "x"] for command in COMMANDS)]


@pytest.mark.parametrize("arguments", INTERRUPTED, ids=lambda one: one[0])
def test_an_interrupt_at_any_import_is_quiet(folder: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-c", IMPORTS, *arguments, ",".join(map(str, MOMENTS))]
    ended = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=END_SECONDS_MAX, check=True
    )
    assert "Traceback" not in ended.stderr
    assert "KeyboardInterrupt" not in ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines() if line[:1].isdigit()]
    found = {int(moment): int(status) for moment, status in lines}
    assert [found[moment] for moment in MOMENTS[:4]] == [130] * 4
    assert set(found.values()) <= {130, 2, 0}


def test_an_interrupt_while_a_module_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["cost"]) == 130
