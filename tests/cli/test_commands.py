"""What words on a command line become: calls, records, completions; and what a mistake is answered with.

Owns the pure parts. Does not own a running system (`tests/stack/test_dev.py`).
"""

from __future__ import annotations

import argparse
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tenuto_cli import addresses, http
from tenuto_cli.call import Call, body_of, understood
from tenuto_cli.call import parser as call_parser
from tenuto_cli.commands import COMMANDS
from tenuto_cli.completion import next_words, options_of, parser_of
from tenuto_cli.parsing import UsageError
from tenuto_cli.program import command_word, main
from tenuto_cli.records import Record, of_lines, repeated
from tenuto_cli.send import parser, wanted
from tenuto_local import running

SERVICES: Any = {
    "orders": {"kind": "virtual object", "handlers": [{"name": "place"}, {"name": "status"}]},
    "mail": {"kind": "service", "handlers": [{"name": "send"}]},
}


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["orders", "o-1", "place", "{}"], Call("orders", "o-1", "place", "{}")),
        (["orders", "o-1", "status"], Call("orders", "o-1", "status", None)),
        (["mail", "send", "hello"], Call("mail", None, "send", "hello")),
        (["mail", "send"], Call("mail", None, "send", None)),
    ],
)
def test_which_word_is_the_key_follows_from_the_service(words: list[str], call: Call) -> None:
    assert understood(words, SERVICES) == call


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["order", "o-1", "place"], "there is no service 'order'; did you mean 'orders'?"),
        (["orders", "o-1", "plase"], "has no handler 'plase'; did you mean 'place'?"),
        (["orders", "place"], "has no handler"),
        (["orders"], "is a virtual object: write tenuto call orders KEY HANDLER"),
        (["mail", "ann", "send", "x"], "is a service without keys: write tenuto call mail HANDLER"),
        (["zzz"], "there is mail, orders"),
    ],
)
def test_a_call_of_what_is_not_there_is_refused(words: list[str], complaint: str) -> None:
    if words == ["orders", "place"]:
        complaint = "is a virtual object"
    with pytest.raises(UsageError) as caught:
        understood(words, SERVICES)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_is_encoded() -> None:
    assert Call("orders", "a/b c", "place", None).path("call") == "/call/orders/a%2Fb%20c/place"


@pytest.mark.parametrize(
    ("text", "as_text", "body"),
    [
        (None, False, None),
        ('{"a": 1}', False, b'{"a": 1}'),
        ("7", False, b"7"),
        ("7", True, b'"7"'),
        ("Hello", False, b'"Hello"'),
        ("@ann", True, b'"@ann"'),
    ],
)
def test_a_body_is_json_or_text(text: str | None, as_text: bool, body: bytes | None) -> None:
    assert body_of(text, as_text=as_text) == body


def test_a_body_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text("[1, 2]", "utf-8")
    assert body_of(f"@{tmp_path / 'body.json'}", as_text=False) == b"[1, 2]"
    with pytest.raises(UsageError, match="cannot be read"):
        body_of("@nowhere", as_text=False)
    with pytest.raises(UsageError, match="not JSON"):
        body_of('{"a": ', as_text=False)


@pytest.mark.parametrize("words", [["X", "--text", "5"], ["X", "5", "--text"], ["--text", "X", "5"]])
def test_options_may_stand_between_the_words(words: list[str]) -> None:
    options = call_parser().parse_args(words)
    assert (options.words, options.text) == (["X", "5"], True)


@pytest.mark.parametrize(
    ("value", "doubted"),
    [
        ("{bad", "write it in single quotes: '{\"a\": 1}'"),
        ('["a"', "write it in single quotes"),
        ("{item: tea}", "write it in single quotes"),
        ("Hi", "a JSON string is written so: '\"Hi\"'"),
        ("it's", "a JSON string is written so: '\"it'\"'\"'s\"'"),
        ("x" * 200, "a JSON string is written so: '\"text\"'"),
        ("2x", "'\"2x\"'"),
        ("NaN", "'\"NaN\"'"),
        ('{"n": {n}}', None),
        ('"Hi"', None),
        ("null", None),
        ("-1.5", None),
        ("", None),
    ],
)
def test_a_value_that_is_not_json_is_sent_with_a_note(
    value: str, doubted: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = wanted(parser().parse_args(["t", "k", value]))
    assert record.value == value.replace("{n}", "1")
    said = capsys.readouterr().err
    if doubted is None:
        assert said == ""
    else:
        assert said.startswith("tenuto send: note: VALUE is not JSON, and is sent unchanged (")
        assert said.count("\n") == 1
        assert doubted in said


def test_the_first_value_of_a_file_that_is_not_json_is_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'a:1\nb:{"x": 1}\n\nc:tea\nd:milk\n'
    (tmp_path / "records").write_text(text, "utf-8")
    said = "tenuto send: note: line 4: the value is not JSON, and is sent unchanged ("
    assert len(asked("t", "--file", str(tmp_path / "records"))) == 4
    noted = capsys.readouterr().err
    assert noted.startswith(said)
    assert noted.count("\n") == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert len(asked("t", "--file", "-")) == 4
    assert capsys.readouterr().err == noted
    (tmp_path / "records").write_text("a:1\nb:\n", "utf-8")
    assert len(asked("t", "--file", str(tmp_path / "records"))) == 2
    assert capsys.readouterr().err == ""


def test_a_delay_without_a_message_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "orders", "o-1", "place", "{}", "--delay", "5s"]) == 2
    assert "--delay needs --send" in capsys.readouterr().err


def test_an_estimate_takes_numbers_with_commas(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for number in ("2,500,000", "2500000"):
        assert main(["cost", "--events", number, "--json"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    with pytest.raises(SystemExit):
        main(["cost", "--events", "1,x"])
    assert "argument --events: '1,x' is not a number, such as" in capsys.readouterr().err


def asked(*arguments: str) -> list[Record]:
    options: argparse.Namespace = parser().parse_args(arguments)
    return list(wanted(options))


def test_records_from_words(tmp_path: Path) -> None:
    assert asked("t", "k", "v", "--header", "a=1") == [Record("k", "v", (("a", b"1"),))]
    assert asked("t", "k", "--null") == [Record("k", None)]
    assert asked("t", "k{n}", "v{n}", "--count", "2") == [Record("k1", "v1"), Record("k2", "v2")]
    (tmp_path / "records").write_text("a:1\n\nb:x:y\n", "utf-8")
    assert asked("t", "--file", str(tmp_path / "records")) == [Record("a", "1"), Record("b", "x:y")]
    assert list(repeated(Record("k", None), 2)) == [Record("k", None)] * 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("t", "k"), "write TOPIC KEY VALUE"),
        (("t", "k", "v", "--null"), "write TOPIC KEY VALUE"),
        (("t", "k", "v", "--header", "x"), "write NAME=VALUE"),
        (("t", "k", "v", "--file", "f"), "leave out KEY, VALUE and --count"),
        (("t", "--file", "nowhere"), "nowhere cannot be read"),
    ],
)
def test_records_that_make_no_sense_are_refused(arguments: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(*arguments)
    assert complaint in str(caught.value)


def test_a_file_is_checked_before_anything_of_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a:1\nb:2\nnothing\n", "utf-8")
    with pytest.raises(UsageError, match="line 3: expected KEY:VALUE"):
        wanted(parser().parse_args(["t", "--file", str(tmp_path / "records")]))


def test_a_line_without_a_key_is_named() -> None:
    with pytest.raises(UsageError, match="line 2: expected KEY:VALUE"):
        list(of_lines(["a:1", "nothing"], ":", ()))


def test_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tenuto.toml").write_text('[[subscriptions]]\ntopic = "orders"\n[topics.offers]\n', "utf-8")
    assert next_words(["sen"]) == ["send"]
    assert next_words(["send", "o"]) == ["offers", "orders", "orders.dead-letter"]
    assert next_words(["dev", "--deb"]) == ["--debug", "--debug-port", "--debugger"]
    assert next_words(["run", "--conf"]) == ["--config"]
    assert next_words(["call", ""]) == []
    assert next_words(["nothing", ""]) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_parser_with_help(command: Any) -> None:
    made = parser_of(command.module, command.name)
    assert made.description
    assert "--help" in options_of(command.module, command.name)


def test_the_command_is_the_first_word_that_is_no_option() -> None:
    assert command_word(["--log-format", "json", "run"]) == "run"
    assert command_word(["--version"]) is None
    assert command_word([]) is None


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sned"]) == 2
    assert "did you mean 'send'?" in capsys.readouterr().err


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose session is this process."""
    for variable in (addresses.URL_VARIABLE, addresses.BROKERS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    state = tmp_path / "shop" / ".tenuto"
    state.mkdir(parents=True)
    (tmp_path / "shop" / "src").mkdir()
    monkeypatch.chdir(tmp_path / "shop" / "src")
    return state


def test_addresses_are_those_of_the_running_session(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no `tenuto dev` runs for this folder"):
        addresses.ingress(None)
    found = running.Running(1, "shop", "http://127.0.0.1:1", "127.0.0.1:2", "d", "a", {})
    running.write(session, found)
    assert (addresses.ingress(None), addresses.brokers(None)) == ("http://127.0.0.1:1", "127.0.0.1:2")
    assert addresses.ingress("http://other/") == "http://other"
    monkeypatch.setenv(addresses.URL_VARIABLE, "http://third")
    assert addresses.ingress(None) == "http://third"
    running.forget(session)
    with pytest.raises(UsageError):
        addresses.brokers(None)


def test_a_session_that_is_starting_is_waited_for(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running.begins(session)

    def comes_up() -> None:
        running.write(session, running.Running(1, "shop", "http://127.0.0.1:1", "127.0.0.1:2", "d", "a", {}))
        running.begun(session)

    timer = threading.Timer(3 * addresses.LOOK_S, comes_up)
    timer.start()
    assert addresses.brokers(None) == "127.0.0.1:2"
    timer.join()
    said = f"tenuto: the `tenuto dev` of {session.parent} is starting; waiting for it\n"
    assert capsys.readouterr().err == said


def test_a_session_whose_start_has_failed_is_not_waited_for(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running.begins(session)
    timer = threading.Timer(3 * addresses.LOOK_S, running.begun, [session])
    timer.start()
    with pytest.raises(UsageError, match="no `tenuto dev` runs for this folder"):
        addresses.ingress(None)
    timer.join()
    assert "is starting" in capsys.readouterr().err
    (session / running.STARTING).write_text(str(2**22 - 1), "utf-8")
    with pytest.raises(UsageError, match="no `tenuto dev` runs for this folder"):
        addresses.ingress(None)
    assert capsys.readouterr().err == "", "its process has ended"


def test_a_session_that_does_not_come_up_is_not_waited_for_indefinitely(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "START_WAIT_S_MAX", 0.0)
    running.begins(session)
    with pytest.raises(UsageError, match="is still starting after 0 s; try again"):
        addresses.ingress(None)
    assert addresses.ingress("http://other/") == "http://other"


def test_commands_of_the_control_plane_ask_the_running_session(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (addresses.CONFIG_VARIABLE, *addresses.AWS_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    (session.parent / "tenuto.toml").write_text('[functions.a-b]\nhandler = "x:y"\n')
    assert addresses.of_session("journal", ["journal", "a/b"]) == ({}, "")
    running.write(session, running.Running(1, str(session.parent), "u", "b", "d", "a", {}))
    assert addresses.of_session("journal", ["journal", "a/b"]) == ({}, ""), "its addresses are not there yet"
    (session / running.AWS_ENVIRONMENT).write_text(
        "export AWS_REGION=us-east-1\nexport AWS_ENDPOINT_URL='http://x y'\n"
    )
    found, told = addresses.of_session("journal", ["journal", "a/b"])
    assert (found["AWS_REGION"], found["AWS_ENDPOINT_URL"], found["TENUTO_TABLE"]) == (
        "us-east-1",
        "http://x y",
        "tenuto",
    )
    assert found[addresses.CONFIG_VARIABLE] == str(session / "tenuto.toml")
    assert found["TENUTO_FUNCTION_A_B"] == "a-b"
    assert told == f"tenuto journal: using the `tenuto dev` of {session.parent} (process 1)"
    found, _ = addresses.of_session("check", ["check"])
    assert found[addresses.CONFIG_VARIABLE] == str(session.parent / "tenuto.toml"), "from a folder below the project"
    for arguments in (["check", "--offline"], ["check", "--config", "x"], ["check", "--config=x"], ["check", "--help"]):
        assert addresses.of_session("check", arguments) == ({}, "")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert addresses.of_session("check", ["check"]) == ({}, "")


def test_a_session_whose_process_has_ended_is_none(session: Path) -> None:
    running.write(session, running.Running(2**22 - 1, "shop", "u", "b", "d", "a", {}))
    assert running.read(session) is None
    (session / "dev.json").write_text(json.dumps({"pid": 1}), "utf-8")
    assert running.read(session) is None


@pytest.mark.parametrize(("option", "advised"), [([], True), (["--idempotency-key", "k"], False)])
def test_an_answer_503_advises_a_key_only_where_none_was_given(
    option: list[str], advised: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[dict[str, str]] = []

    def request(_base: str, _method: str, _path: str, _body: bytes | None, headers: dict[str, str]) -> http.Answer:
        sent.append(headers)
        return http.Answer(503, b'{"error": {"message": "the table did not answer"}}', None)

    monkeypatch.setattr(http, "listing", lambda _base: SERVICES)
    monkeypatch.setattr(http, "request", request)
    assert main(["call", "mail", "send", "--url", "http://127.0.0.1:1", *option]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tenuto call: mail/send: the table did not answer (503)")
    assert ("a call with --idempotency-key KEY can be repeated safely" in said) is advised
    assert ("idempotency-key" in sent[0]) is not advised
