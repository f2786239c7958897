"""No value of `tenuto.toml` passes `tenuto check` and then stops `tenuto run`, or makes it wait for ever."""

from __future__ import annotations

import json
import socket
import typing
from dataclasses import fields
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenuto.protocol.topics import topic_problem
from tenuto_control import config as configuration
from tenuto_control.always_on import listening
from tenuto_control.config import ConfigError, HttpConfig, parse
from tenuto_control.limits import LIMIT_BYTES_MAX, LIMIT_MAX, Limits

FUNCTION = "[functions.shop]\n"
SUBSCRIPTION = '[[subscriptions]]\ntopic = "orders"\ntarget = "shop/order"\n'
SECTIONS = [one for one in vars(configuration).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)]


def mistake(text: str, environment: dict[str, str] | None = None) -> str:
    """What is said about a file."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "tenuto.toml", environment or {})
    said = str(caught.value)
    assert len(said) < 500
    assert said.isprintable()
    return said


def test_every_text_and_number_of_a_section_has_a_rule() -> None:
    sections = [kind for kind in SECTIONS if kind is not msgspec.Struct]
    assert len(sections) == 10
    for kind in sections:
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            parts = typing.get_args(hint) if typing.get_origin(hint) is not Literal else ()
            free = {str, int, tuple[str, ...]} & {hint, *(() if hasattr(hint, "__metadata__") else parts)}
            assert not free, f"{kind.__name__}.{name}"


@given(st.one_of(st.integers(max_value=0), st.integers(min_value=1_000_001)))
def test_a_concurrency_that_lets_nothing_run_is_refused(value: int) -> None:
    said = mistake(f"[functions.shop]\nconcurrency = {value}\n")
    assert said.startswith(f"tenuto.toml: functions.shop.concurrency: must be at {'least' if value < 1 else 'most'} ")


@given(st.one_of(st.integers(max_value=0), st.integers(min_value=65_536)))
def test_a_port_that_is_none_is_refused(value: int) -> None:
    assert mistake(f"{FUNCTION}[http]\nport = {value}\n").startswith("tenuto.toml: http.port: expected 1 to 65535, not")


@pytest.mark.parametrize("value", ["0", "65536", "99999", "9" * 5_000, "-1", "1e3", "٣"])
def test_a_variable_is_named_where_it_brought_the_value(value: str) -> None:
    assert mistake(FUNCTION, {"TENUTO_HTTP_PORT": value}).startswith("TENUTO_HTTP_PORT: expected ")


@pytest.mark.parametrize("name", [one.name for one in fields(Limits)])
def test_every_limit_has_two_ends(name: str) -> None:
    for value in (0, -1, -(10**30), 10**30, LIMIT_BYTES_MAX + 1):
        assert mistake(f"{FUNCTION}[limits]\n{name} = {value}\n").startswith(f"tenuto.toml: limits.{name}: must be ")
    assert LIMIT_MAX < LIMIT_BYTES_MAX


TEXT = st.text(max_size=300)
slowly = settings(suppress_health_check=[HealthCheck.too_slow])


def toml(value: object) -> str:
    """A value as it stands in a file."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@slowly
@given(TEXT)
def test_a_topic_is_one_that_a_broker_can_have(name: str) -> None:
    for key, text in (
        ("topic", f'[[subscriptions]]\ntopic = {toml(name)}\ntarget = "a/b"\n'),
        ("dead_letter", f"{SUBSCRIPTION}dead_letter = {toml(name)}\n"),
    ):
        written = FUNCTION + text
        if topic_problem(name) is None and topic_problem(name + ".dead-letter") is None and name != "orders":
            assert parse(written, "tenuto.toml", {}).subscriptions
        elif topic_problem(name) is not None:
            assert mistake(written).startswith(f"tenuto.toml: subscriptions[0].{key}: ")


def test_a_topic_whose_dead_letter_topic_has_too_long_a_name_needs_another() -> None:
    text = f'{FUNCTION}[[subscriptions]]\ntopic = "{"t" * 240}"\ntarget = "a/b"\n'
    assert "name one with dead_letter" in mistake(text)
    assert parse(f'{text}dead_letter = "graveyard"\n', "tenuto.toml", {}).subscriptions


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[table]\nname = ""', 'table.name: "" is not a valid table name: 3 to 255'),
        ('[table]\nname = "ab"', "table.name: "),
        ('[table]\nname = "a table"', "table.name: "),
        ('[kafka]\ngroup_id = ""', "kafka.group_id: is empty; write a value, or leave the key out"),
        ('[kafka]\ngroup_id = " g"', "kafka.group_id: "),
        (
            '[kafka]\nbootstrap_servers = "a:99999"',
            'kafka.bootstrap_servers: "a:99999" is not a broker address; write host:port',
        ),
        ('[kafka]\nbootstrap_servers = "http://a:1"', "kafka.bootstrap_servers: "),
        ('[kafka]\nssl_cafile = ""', "kafka.ssl_cafile: is empty"),
        ('[kafka]\nssl_key_password = ""', "kafka.ssl_key_password: is empty"),
        ('[aws]\nregion = "Frankfurt (Main)"', "aws.region: "),
        ('[http]\nhost = ""', "http.host: "),
        ('[http]\nhost = "http://localhost"', "http.host: "),
        ('[encryption]\nkms_key_id = ""', "encryption.kms_key_id: is empty"),
        ("[encryption]", "encryption.kms_key_id: is missing"),
        ('[scheduler]\nrole_arn = ""\ntarget_arn = "t"', "scheduler.role_arn: is empty"),
        ("[limits]\nheartbeat_interval_ms = 10000", "limits.heartbeat_interval_ms: must be below session_timeout_ms"),
        ("[limits]\nbatch_inflated_bytes_max = 1", "limits.batch_inflated_bytes_max: must be at least 16384, not 1"),
        ("[limits]\nhttp_keep_alive_ms = 999", "limits.http_keep_alive_ms: must be at least 1000, not 999"),
        ("[limits]\ncommit_interval_ms = 1.5", "limits.commit_interval_ms: expected a whole number"),
        ("[limits]\ncommit_interval_ms = true", "limits.commit_interval_ms: expected a whole number"),
        ("[kafka]\niam = 1", "kafka.iam: expected true or false, without quotes"),
        (
            "[kafka]\nsecurity_protocol = 'ssl'",
            'kafka.security_protocol: expected "PLAINTEXT", "SSL", "SASL_PLAINTEXT" or',
        ),
        ("[http]\nhosts = 'a'", 'http.hosts: expected a list of texts, such as ["one", "two"]'),
        ("[http]\nhosts = ['a', 1]", "http.hosts[1]: expected text; write it in quotes"),
        (SUBSCRIPTION + "epoch = 1", "subscriptions[0].epoch: expected text; write it in quotes"),
        (SUBSCRIPTION + "epoch = ''", "subscriptions[0].epoch: "),
        (SUBSCRIPTION + "start = 'newest'", 'subscriptions[0].start: expected "earliest" or "latest"'),
        (SUBSCRIPTION + "start = 1", 'subscriptions[0].start: expected "earliest" or "latest"'),
        (SUBSCRIPTION.replace("shop/order", "shop/.."), "subscriptions[0].target: "),
        (
            "[functions.a-b]\n[functions.a_b]",
            "functions.a_b: shares the variable TENUTO_FUNCTION_A_B with functions.a-b",
        ),
        ("[functions.a]\n[functions.A]", "functions.A: shares the variable TENUTO_FUNCTION_A with functions.a"),
        ('[functions."a b"]', "functions: "),
        ('[functions.a]\nfunction = ""', "functions.a.function: "),
        ('[functions.a]\nqualifier = "l ive"', "functions.a.qualifier: "),
        ("x = " + "[" * 5_000, "not TOML"),
        ("[http]\nport = 1\nport = 2", "not TOML"),
        ("[http]\nport = 1\n[http]\nport = 2", "not TOML"),
        ("http.port = 1\nhttp.port = 2", "not TOML"),
        ("x = " + "9" * 5_000, "not TOML"),
    ],
    ids=lambda text: text[-60:],
)
def test_what_cannot_be_is_refused_with_the_way_out(text: str, said: str) -> None:
    assert mistake(f"{FUNCTION}{text}\n").startswith(f"tenuto.toml: {said}")


@slowly
@given(st.dictionaries(st.sampled_from(["host", "port", "hosts", "cors_origins"]), st.one_of(TEXT, st.integers())))
def test_any_section_is_taken_or_refused_in_one_line(section: dict[str, Any]) -> None:
    lines = "".join(f"{key} = {toml(value)}\n" for key, value in section.items())
    text = f"{FUNCTION}[http]\n{lines}"
    try:
        taken = parse(text, "tenuto.toml", {})
    except ConfigError:
        assert mistake(text).startswith("tenuto.toml: http.")
    else:
        assert 1 <= taken.http.port <= 65_535


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7", "a" * 70, "a..b", "x\0y", "::zz"])
def test_an_address_that_cannot_be_had_is_one_line(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on "):
        listening(HttpConfig(host=host, port=18_000), 18_000)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use; set"):
            listening(HttpConfig(port=port), port)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('handler = "orders"', "handler: "),
        ('handler = "orders:"', "handler: "),
        ('handler = "../orders:handler"', "handler: "),
        ("memory_mb = 127", "memory_mb: expected 128 to 10,240"),
        ("memory_mb = 10241", "memory_mb: expected 128 to 10,240"),
        ("timeout_s = 0", "timeout_s: expected 1 to 900"),
        ("timeout_s = 901", "timeout_s: expected 1 to 900"),
        ('environment = "x"', "environment: expected a section of its own"),
        ("environment = { A = 1 }", "environment[...]: expected text in quotes"),
        ('environment = { "A-B" = "x" }', "environment: "),
        ('environment = { AWS_REGION = "x" }', "environment: "),
        ('environment = { TENUTO_TABLE = "x" }', "environment: "),
        ('environment = { A = { other = "B" } }', "environment: A: write a text"),
        ('environment = { A = { parameter = "B C" } }', "environment: A: write a text"),
        ('policies = ["a b"]', "policies: "),
        ('policies = ["arn:aws:s3:::bucket"]', "policies: "),
    ],
)
def test_what_deploys_no_function_is_refused(line: str, problem: str) -> None:
    assert mistake(f"[functions.shop]\n{line}\n").startswith(f"tenuto.toml: functions.shop.{problem}")


def test_what_deploys_a_function_is_read_whole() -> None:
    text = """
[functions.shop]
handler = "shop.handlers:handler"
memory_mb = 1024
timeout_s = 30
environment = { A = "x", B = { parameter = "QueueUrl" } }
policies = ["AmazonSQSReadOnlyAccess", "arn:aws:iam::111122223333:policy/mine"]
"""
    shop = parse(text, "tenuto.toml", {}).functions["shop"]
    assert (shop.handler, shop.memory_mb, shop.timeout_s) == ("shop.handlers:handler", 1024, 30)
    assert shop.environment == {"A": "x", "B": {"parameter": "QueueUrl"}}
    assert shop.policies == ("AmazonSQSReadOnlyAccess", "arn:aws:iam::111122223333:policy/mine")
