"""What `tenuto dev` makes of a project: its file, its folders, its code, its ports and its engines.

Owns the decisions, which are functions of what is found. Does not own a session (`tests/stack/test_dev.py`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenuto_cli.dev import parser
from tenuto_local import broker_engine, dynoxide, tansu
from tenuto_local.dev import command, engines, ports
from tenuto_local.dev.code import PROBE_SECONDS_MAX, Code, after, concerned, probed
from tenuto_local.dev.command import prepare
from tenuto_local.dev.lines import Frame, Trouble, decoded
from tenuto_local.dev.probe import Found, look
from tenuto_local.dev.project import (
    DEV_VARIABLES,
    Function,
    local_config_text,
    made_project,
    project_folder,
    read_environment,
    read_project,
)
from tenuto_local.dev.project import import_path as import_path_of
from tenuto_local.dev.session import Debugged, check, function_spec, services_of
from tenuto_local.dev.watch import counts, saved, visible
from tenuto_local.errors import ConfigurationError, FetchFailed, PrerequisiteMissing
from tenuto_local.ports import bind_loopback_socket
from tenuto_local.system import import_path
from tenuto_local.topics import create_topics, wait_coordinator
from tests.support import bounded
from tests.tidy import tree

EXAMPLES = sorted(path.parent.name for path in (tree.ROOT / "examples").glob("*/tenuto.toml"))

CONFIG = """
[functions.intake]
handler = "shop.orders:handler"
timeout_s = 40

[functions.intake.environment]
MODE = "test"
QUEUE = { parameter = "QueueUrl" }

[functions.plain]

[[subscriptions]]
topic = "orders"
target = "order/place"
dead_letter = "lost"

[topics.orders]
partitions = 7

[topics.offers]
"""
HANDLER = """
from tenuto import ObjectContext, VirtualObject, aws

order = VirtualObject("order")

@order.handler()
async def place(ctx: ObjectContext, what: str) -> str:
    return what

handler = aws.handler(order)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "src" / "shop").mkdir(parents=True)
    (tmp_path / "src" / "shop" / "orders.py").write_text(HANDLER, "utf-8")
    (tmp_path / "tenuto.toml").write_text(CONFIG, "utf-8")
    return tmp_path


def test_functions_and_topics_come_from_the_file(folder: Path) -> None:
    project = read_project(folder, folder)
    assert project.functions == (
        Function("intake", "shop.orders:handler", 40, 4, {"MODE": "test"}),
        Function("plain", "handler:handler", 15, 4),
    )
    assert project.topics == {"lost": 4, "offers": 4, "orders": 7}
    assert project.import_path == (folder / "src", folder)
    assert read_project(folder, folder / "src" / "shop").import_path[-1] == folder / "src" / "shop"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_found_from_the_clone_and_from_its_own_folder(example: str) -> None:
    folder = tree.ROOT / "examples" / example
    for current in (tree.ROOT, folder):
        project = read_project(folder, current)
        assert tree.ROOT in project.import_path
        assert project.import_path[0] == folder


def test_a_broker_that_does_not_answer_is_said_in_one_line() -> None:
    with bind_loopback_socket() as closed:
        servers = f"127.0.0.1:{closed.getsockname()[1]}"
    for work in (create_topics(servers, {"orders": 1}), wait_coordinator(servers, "shop")):
        with pytest.raises(ConfigurationError, match=rf"Kafka at {servers} does not answer .*: is the broker running"):
            asyncio.run(work)


def test_a_project_inside_its_own_package(tmp_path: Path) -> None:
    root = tmp_path / "shop" / "orders"
    assert import_path_of(root, root, ["shop.orders.handler"]) == (root, tmp_path)
    assert import_path_of(root, root, ["shops.orders.handler", "orders"]) == (root,)


def test_a_project_is_found_from_a_folder_inside_it(folder: Path) -> None:
    inside = folder / "src" / "shop"
    assert project_folder(None, folder) == Path()
    assert project_folder(None, inside) == folder
    assert project_folder("other", inside) == Path("other")
    assert project_folder(None, Path(folder.anchor)) == Path()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "there is no tenuto.toml; `tenuto init NAME`"), ("[function.x]\n", 'did you mean "functions"?')],
)
def test_what_is_no_project_is_said_in_one_line(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "tenuto.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_project(tmp_path, tmp_path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variables_of_a_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# mine\nexport A=1\nB = 'x y'\n\nC=a=b\n", "utf-8")
    assert read_environment(tmp_path) == {"A": "1", "B": "x y", "C": "a=b"}
    (tmp_path / ".env").write_text("A=1\nnothing\n", "utf-8")
    with pytest.raises(ConfigurationError, match=r"\.env:2: expected NAME=value"):
        read_environment(tmp_path)


def test_what_only_aws_has_is_left_out_of_the_file() -> None:
    only_aws = "[encryption]\nkms_key_id = 'k'\n[scheduler] # wakes\nrole_arn = 'r'\n"
    text = f"[functions.f]\n{only_aws}[topics.t]\npartitions = 1\n"
    kept, told = local_config_text(text)
    assert kept == "[functions.f]\n\n\n\n\n[topics.t]\npartitions = 1\n"
    assert len(told) == 1
    assert "payloads stay readable" in told[0]


SERVES = """
from tenuto import Context, Service, aws

service = Service("service")


@service.handler()
async def process(ctx: Context) -> int:
    return 1


handler = aws.handler(service)
"""


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()" + SERVES, None, ""),
        ("import subprocess; subprocess.Popen(['sleep', '60'])" + SERVES, None, ""),
        ("print('x' * 1_000_000); import os; os.write(1, b'y')" + SERVES, None, ""),
        ("breakpoint()" + SERVES, None, ""),
        ("import nothing_like_it", "ModuleNotFoundError", "nothing_like_it"),
        ("x = undefined", "NameError", "'undefined' is not defined"),
        ("import sys; sys.exit(3)", "SystemExit", "3"),
        ("import os; os._exit(3)", "Ended", "importing shop.orders ended the process with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "Ended", "importing shop.orders ended the process by signal 9"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E", "(its text cannot be had"),
        ("raise ValueError('\\udcff')", "ValueError", "\\udcff"),
        ("input()", "EOFError", "EOF"),
        ("handler = 3", "Not found", "shop.orders has no handler called 'handler'"),
        ("def handler(event, context): return 1", "Not found", "shop.orders:handler is not a tenuto handler"),
        ("def handler(event, context): raise RuntimeError('mine')", "RuntimeError", "mine"),
    ],
    ids=range(15),
)
def test_whatever_a_module_does_when_it_is_imported(folder: Path, text: str, kind: str | None, words: str) -> None:
    (folder / "src" / "shop" / "orders.py").write_text(text, "utf-8")
    project = read_project(folder, folder)
    path = os.pathsep.join([str(folder / "src"), import_path("tenuto", "tenuto_local")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONBREAKPOINT": "0"}
    # Below what the import may take: nothing that it starts is waited for.
    trouble = bounded.run(probed(project, project.functions[0], environment), PROBE_SECONDS_MAX - 5).trouble
    if kind is None:
        assert trouble is None
        return
    assert trouble is not None
    assert (trouble.kind, words in trouble.text) == (kind, True), trouble
    assert kind == "Ended" or trouble.frames[-1].file.endswith("shop/orders.py")


def test_a_probe_finds_files_and_services(folder: Path) -> None:
    project = read_project(folder, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "src"), import_path("tenuto", "tenuto_local")]),
    }
    found = bounded.run(probed(project, project.functions[0], environment))
    code = after(Code(), found)
    assert code.files == {str(folder / "src" / "shop" / "orders.py")}
    assert [service.name for service in services_of(code)] == ["order"]
    check(project, {"intake": code, "plain": code})
    (folder / "tenuto.toml").write_text(CONFIG.replace("order/place", "order/plase"), "utf-8")
    with pytest.raises(ConfigurationError, match="did you mean 'order/place'"):
        check(read_project(folder, folder), {"intake": code, "plain": code})


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError", 1),
        ("x = 1\ndef f(:\n", "SyntaxError", 2),
        ("\n\nraise ValueError('no')\n", "ValueError", 3),
        ("import sys\nsys.exit(3)\n", "SystemExit", 2),
        ("other = 1\n", "Not found", 1),
    ],
)
def test_a_module_that_cannot_be_used_is_shown_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: str, line: int
) -> None:
    name = f"broken_{abs(hash(text)) % 10_000_000}"
    (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = look(f"{name}:handler", [str(tmp_path)])
    assert found.trouble is not None
    assert (found.trouble.kind, found.trouble.frames[-1].line) == (kind, line)
    sys.modules.pop(name, None)


def test_a_module_that_is_not_there_is_named_with_the_folders(tmp_path: Path) -> None:
    found = look("nowhere_at_all.handlers:handler", [str(tmp_path)])
    assert found.trouble is not None
    assert found.trouble.text == f"there is no module nowhere_at_all in {tmp_path}"


ONE, TWO = Function("one", "one:handler", 15, 4), Function("two", "two:handler", 15, 4)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"/p/a/one.py"}, ["one"]),
        ({"/p/shared.py"}, ["one", "two"]),
        ({"/p/a/new.py"}, ["one"]),
        ({"/p/b/data/x.json"}, ["two"]),
        ({"/elsewhere/x.py"}, []),
        (set(), []),
    ],
)
def test_a_change_concerns_the_functions_that_have_the_file(changed: set[str], names: list[str]) -> None:
    known = {"one": Code(frozenset({"/p/a/one.py"})), "two": Code(frozenset({"/p/b/two.py"}))}
    if "/p/shared.py" in changed:
        known = {name: Code(code.files | {"/p/shared.py"}) for name, code in known.items()}
    assert [function.name for function in concerned(known, (ONE, TWO), changed)] == names


def test_any_change_may_help_code_that_cannot_be_imported() -> None:
    known = {"one": Code(trouble=Trouble("ValueError", "no")), "two": Code(frozenset({"/p/b/two.py"}))}
    assert [function.name for function in concerned(known, (ONE, TWO), {"/q/x.py"})] == ["one"]


def test_code_that_cannot_be_imported_keeps_what_was_known() -> None:
    before = Code(frozenset({"/p/one.py"}), b'{"type":"manifest"}')
    broken = after(before, Found(("/p/two.py",), trouble=Trouble("SyntaxError", "no", (Frame("/p/three.py", 1),))))
    assert broken.files == {"/p/one.py", "/p/two.py", "/p/three.py"}
    assert broken.manifest == before.manifest
    assert not broken.sound


def test_a_function_that_is_debugged_has_one_process_and_no_timeout(folder: Path) -> None:
    project = read_project(folder, folder)
    plain = function_spec(project, project.functions[0], Debugged("plain", port=5678))
    debugged = function_spec(project, project.functions[1], Debugged("plain", port=5678))
    assert (plain.concurrency, plain.timeout_s, plain.environment["MODE"]) == (4, 40.0, "test")
    assert (debugged.concurrency, debugged.timeout_s) == (1, 900.0)
    assert debugged.environment["TENUTO_DEV_DEBUG_PORT"] == "5678"
    assert "TENUTO_DEV_DEBUG_PORT" not in plain.environment


def test_a_debugger_may_attach(folder: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    host = "import tenuto_local.dev.function_host as h, socket; s = socket.create_connection(('127.0.0.1', %d)); "
    asked = (
        "s.sendall(b'Content-Length: 2\\r\\n\\r\\n{}'); print('attached', callable(h.handler)); import os; os._exit(0)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "src"), import_path("tenuto", "tenuto_local")]),
        "TENUTO_DEV_HANDLER": "shop.orders:handler",
        "TENUTO_DEV_ROOTS": str(folder),
        "TENUTO_DEV_DEBUG_PORT": str(port),
    }
    ended = subprocess.run(
        [sys.executable, "-Xfrozen_modules=off", "-c", host % port + asked],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for text in ended.stdout.split("\n") if (line := decoded(text)) is not None]
    assert "attached True" in [line.text for line in lines], ended.stdout + ended.stderr


def test_only_a_persons_own_files_count(tmp_path: Path) -> None:
    for name in ("src", "data", ".venv", ".tenuto", "node_modules", "__pycache__"):
        (tmp_path / name).mkdir()
    assert {path.name for path in visible(tmp_path)} == {"src", "data"}
    for name, expected in (
        ("src/a.py", True),
        (".env", True),
        ("tenuto.toml", True),
        (".tenuto/kafka/x.py", False),
        ("src/__pycache__/a.py", False),
        ("src/.a.py.swp", False),
        ("src/a.pyc", False),
    ):
        assert counts(str(tmp_path / name), tmp_path) is expected, name
    assert not counts("/elsewhere/a.py", tmp_path)


def test_a_save_is_told_and_a_new_folder_is_watched(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()

    async def scenario() -> None:
        began_ns = time.time_ns()
        changes = saved(tmp_path, began_ns)
        # Before the watch begins, which it does at some moment after it was asked for.
        (tmp_path / "src" / "a.py").write_text("x = 1\n", "utf-8")
        assert str(tmp_path / "src" / "a.py") in await anext(changes)
        (tmp_path / "more").mkdir()
        (tmp_path / "more" / "b.py").write_text("x = 1\n", "utf-8")
        async with asyncio.timeout(20):
            async for files in changes:
                if str(tmp_path / "more" / "b.py") in files:
                    break
        await changes.aclose()  # type: ignore[attr-defined]  # an asynchronous generator

    bounded.run(scenario())


def test_a_port_that_is_taken_is_passed_over_with_a_line() -> None:
    with bind_loopback_socket() as sock:
        sock.listen()
        wanted = sock.getsockname()[1]
        chosen = ports.choose("HTTP", wanted, set(), "--http-port")
        assert chosen.port > wanted
        assert chosen.notice is not None
        assert f"port {wanted} is in use, so HTTP listens on {chosen.port}" in chosen.notice
    assert ports.choose("HTTP", 0, set(), "--http-port").notice is None


def test_fresh_forgets_and_the_folder_is_not_for_git(folder: Path) -> None:
    project = read_project(folder, folder)
    prepare(project, fresh=False)
    (project.state / "kafka").mkdir()
    assert "*" in (project.state / ".gitignore").read_text("utf-8").splitlines()
    prepare(project, fresh=False)
    assert (project.state / "kafka").exists()
    prepare(project, fresh=True)
    assert not (project.state / "kafka").exists()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which nothing is named by variables."""
    names = ("TENUTO_BOOTSTRAP_SERVERS", "AWS_ENDPOINT_URL_DYNAMODB", "TENUTO_BROKER_ENGINE", "TENUTO_TABLE_ENGINE")
    for name in (*names, *DEV_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("java", "native", "chosen"),
    [
        (True, True, engines.Engines("kafka", "dynoxide")),
        (True, False, engines.Engines("kafka", "dynamodb-local")),
        (False, True, engines.Engines("tansu", "dynoxide")),
    ],
)
def test_the_best_engines_there_are(
    machine: pytest.MonkeyPatch, java: bool, native: bool, chosen: engines.Engines
) -> None:
    machine.setattr(engines, "missing_for", lambda _jars: None if java else "Java: not found.")
    machine.setattr(engines, "native_table_available", lambda: native)
    machine.setattr(tansu, "available", lambda: native)
    assert engines.choose(None, engines.AUTO) == chosen
    assert ("topics are gone" in chosen.line) is (chosen.broker == "tansu")
    assert engines.choose(engines.REFERENCE, engines.NATIVE) == engines.Engines("kafka", "dynamodb-local")
    assert engines.choose(None, engines.NATIVE) == engines.Engines("tansu", "dynoxide")


def test_an_option_comes_before_a_variable_and_that_before_the_file(machine: pytest.MonkeyPatch, folder: Path) -> None:
    machine.setenv("TENUTO_BROKER_ENGINE", "tansu")
    assert engines.choose(None, engines.REFERENCE) == engines.Engines("tansu", "dynamodb-local")
    assert engines.choose(engines.REFERENCE, engines.NATIVE) == engines.Engines("kafka", "dynamodb-local")

    configured = '[dev]\nkafka_port = 19092\nengines = "native"\n'
    (folder / "tenuto.toml").write_text((folder / "tenuto.toml").read_text("utf-8") + configured, "utf-8")
    machine.setenv("TENUTO_DEV_AWS_PORT", "14599")
    machine.setenv("TENUTO_DEV_KAFKA_PORT", "19093")
    dev = read_project(folder, folder).config.dev
    assert (dev.http_port, dev.kafka_port, dev.aws_port, dev.engines) == (None, 19093, 14599, "native")
    machine.setenv("TENUTO_DEV_ENGINES", "naitve")
    with pytest.raises(ConfigurationError, match='TENUTO_DEV_ENGINES: expected "auto", "native" or "reference"'):
        read_project(folder, folder)


@pytest.mark.parametrize(
    ("option", "variable", "key", "section", "wanted"),
    [
        (["--http-port", "20001"], "20002", 20003, 20004, 20001),
        ([], "20002", 20003, 20004, 20002),
        ([], None, 20003, 20004, 20003),
        ([], None, None, 20004, 20004),
        ([], None, None, None, 8080),
    ],
)
def test_the_port_of_calls(
    machine: pytest.MonkeyPatch,
    folder: Path,
    option: list[str],
    variable: str | None,
    key: int | None,
    section: int | None,
    wanted: int,
) -> None:
    machine.setattr(ports, "is_free", lambda _port: True)
    if variable is not None:
        machine.setenv("TENUTO_DEV_HTTP_PORT", variable)
    more = "" if key is None else f"[dev]\nhttp_port = {key}\n"
    more += "" if section is None else f"[http]\nport = {section}\n"
    project = made_project(folder, (folder / "tenuto.toml").read_text("utf-8") + more, folder)
    found = command.chosen_ports(parser().parse_args(option), project, lambda _line: None)
    assert (found.http, found.kafka, found.aws) == (wanted, 9092, 4599)


def test_what_is_missing_is_said_in_one_line_with_the_ways_to_get_it(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(engines, "missing_for", lambda _jars: "Java: not found. Install with: apt-get install x.")
    machine.setattr(engines, "native_table_available", lambda: False)
    machine.setattr(tansu, "available", lambda: False)
    with pytest.raises(PrerequisiteMissing) as caught:
        engines.choose(None, engines.AUTO)
    for way in ("apt-get install x", 'pip install "tenuto[broker]"', "--kafka HOST:PORT"):
        assert way in str(caught.value)
    machine.setenv("TENUTO_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    with pytest.raises(PrerequisiteMissing, match="AWS_ENDPOINT_URL_DYNAMODB"):
        engines.choose(None, engines.AUTO)
    machine.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:8000")
    assert engines.choose(None, engines.AUTO) == engines.Engines(None, None)


def test_a_program_that_was_not_examined_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tansu"
    program.write_text("#!/bin/sh\n", "utf-8")
    monkeypatch.setenv("TENUTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tansu, "_packaged", lambda: program)
    with pytest.raises(FetchFailed, match="not the pinned tansu"):
        tansu.find_program()


def test_a_broker_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="may be kafka or tansu"):
        broker_engine.chosen_broker("rabbit")
    assert dynoxide.PROGRAM.name == "dynoxide"
