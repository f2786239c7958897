"""The configuration file: defaults, overrides, and words for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenuto_control.config import ConfigError, FunctionConfig, HttpConfig, KafkaConfig, load, parse
from tenuto_control.core.routing import JsonKey, Subscription
from tenuto_control.drivers.kafka_client import connection_settings
from tenuto_control.limits import Limits

MINIMAL = "[functions.app]\n"


def test_a_file_may_say_no_more_than_its_functions() -> None:
    config = parse(MINIMAL, "tenuto.toml", {})
    assert config.functions == {"app": FunctionConfig()}
    assert config.kafka == KafkaConfig()
    assert config.table.name == "tenuto"
    assert config.http == HttpConfig()
    assert config.limits == Limits()
    assert config.scheduler is None
    assert config.subscriptions == ()


def test_everything_can_be_said() -> None:
    text = """
        [kafka]
        bootstrap_servers = "a:1,b:2"
        [table]
        name = "lanes"
        [functions.app]
        function = "arn:aws:lambda:eu-west-1:1:function:app"
        qualifier = "live"
        [[subscriptions]]
        topic = "orders"
        target = "order/placed"
        key = "json:order.id"
        dead_letter = "graveyard"
        start = "latest"
        epoch = "2"
        [[subscriptions]]
        topic = "clicks"
        target = "clicks/count"
        ordering = "partition"
        [http]
        port = 9000
        [limits]
        commit_interval_ms = 50
        [scheduler]
        role_arn = "r"
        target_arn = "t"
    """
    config = parse(text, "tenuto.toml", {})
    assert config.kafka.bootstrap_servers == "a:1,b:2"
    assert config.functions["app"].qualifier == "live"
    assert config.subscriptions == (
        Subscription("orders", "order", "placed", JsonKey(("order", "id")), "key", "graveyard", "2", "latest"),
        Subscription("clicks", "clicks", "count", ordering="partition"),
    )
    assert config.limits.commit_interval_ms == 50
    assert config.scheduler is not None
    assert config.scheduler.group == "default"


def test_the_environment_wins_over_the_file() -> None:
    environment = {
        "TENUTO_BOOTSTRAP_SERVERS": "env:9",
        "TENUTO_TABLE": "env-table",
        "TENUTO_HTTP_PORT": "18080",
        "TENUTO_KAFKA_SASL_PASSWORD": "hunter2",
        "TENUTO_GROUP_ID": "",
    }
    config = parse('[kafka]\nbootstrap_servers = "file:1"\ngroup_id = "g"\n' + MINIMAL, "tenuto.toml", environment)
    assert config.kafka.bootstrap_servers == "env:9"
    assert config.kafka.group_id == "g"
    assert config.table.name == "env-table"
    assert config.http.port == 18_080
    assert config.kafka.sasl_password == "hunter2"
    assert "hunter2" not in repr(config)


SUBSCRIPTION = '[[subscriptions]]\ntopic = "t"\ntarget = "s/h"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kafka", "tenuto.toml: not TOML"),
        ("", "tenuto.toml: functions: none is configured; add a section"),
        ("[kafak]\n", 'tenuto.toml: kafak: unknown key; did you mean "kafka"?'),
        (
            '[kafka]\nbootstrap_server = "x"\n',
            'kafka.bootstrap_server: unknown key; did you mean "bootstrap_servers"?',
        ),
        ("[kafka]\nzzz = 1\n", "kafka.zzz: unknown key; known are bootstrap_servers,"),
        (
            "[limits]\ncommit_intervall_ms = 1\n",
            'limits.commit_intervall_ms: unknown key; did you mean "commit_interval_ms"',
        ),
        ("[limits]\ncommit_interval_ms = 0\n", "limits.commit_interval_ms: must be above zero, not 0"),
        ('[limits]\ncommit_interval_ms = "1"\n', "limits.commit_interval_ms: expected a whole number, without quotes"),
        ('[http]\nport = "x"\n', "http.port: expected a whole number, without quotes"),
        ("[scheduler]\ngroup = 'g'\n", "scheduler.role_arn: is missing"),
        ("kafka = 1\n", "kafka: expected a section, written [kafka]"),
        ("[functions]\napp = 1\n", "functions.app: expected a section"),
        (
            "[functions.app]\nqualifer = 'x'\n",
            'functions.app.qualifer: unknown key; did you mean "qualifier"',
        ),
        ("[functions.app]\nhandler = 'app.handler'\n", 'functions.app.handler: "app.handler" is not a handler; write'),
        ("[functions.app]\ntimeout_s = 0\n", "functions.app.timeout_s: expected 1 to 900, not 0"),
        (MINIMAL + "[topics.t]\npartitions = 0\n", "topics.t.partitions: expected 1 to 1,000, not 0"),
        (MINIMAL + "[topics.'a b']\n", 'topics."a b": '),
        (MINIMAL + "[topics]\nt = 3\n", "topics.t: expected a section"),
        (MINIMAL + "[subscriptions]\ntopic = 't'\n", "with double brackets"),
        (
            MINIMAL + "[[subscriptions]]\ntopic = 't'\n",
            "subscriptions[0].target: is missing",
        ),
        (
            MINIMAL + "[[subscriptions]]\ntopic='t'\ntarget='h'\n",
            'subscriptions[0].target: expected "service/handler"',
        ),
        (
            MINIMAL + SUBSCRIPTION + "key = 'utf8'\n",
            'subscriptions[0].key: "utf8" is not a key rule: use "utf-8"',
        ),
        (
            MINIMAL + SUBSCRIPTION + "ordering = 'keys'\n",
            'subscriptions[0].ordering: expected "key", "partition" or "none"',
        ),
        (MINIMAL + SUBSCRIPTION + "dead_letter = 't'\n", '"t" is its own dead-letter topic'),
        (MINIMAL + SUBSCRIPTION + SUBSCRIPTION, 'subscriptions[1].topic: "t" has a subscription already'),
        (
            MINIMAL + "[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_username = 'u'\n",
            "set TENUTO_KAFKA_SASL_PASSWORD",
        ),
        (MINIMAL + "[kafka]\nbootstrap_servers = ' '\n", "kafka.bootstrap_servers: is empty"),
        (MINIMAL + "[kafka]\niam = true\nsecurity_protocol = 'SSL'\n", "iam uses SASL_SSL"),
    ],
)
def test_mistakes_are_named_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "tenuto.toml", {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match='TENUTO_HTTP_PORT: expected a whole number, not "eighty"'):
        parse(MINIMAL, "tenuto.toml", {"TENUTO_HTTP_PORT": "eighty"})


def test_a_function_and_switches_come_from_the_environment() -> None:
    environment = {"TENUTO_FUNCTION_APP": "arn:f:live", "TENUTO_KAFKA_IAM": "true", "TENUTO_HOLD_SLEEP_MS": "700"}
    config = parse(MINIMAL, "tenuto.toml", environment)
    assert config.functions["app"].function == "arn:f:live"
    assert config.kafka.iam
    assert config.limits.hold_sleep_ms == 700
    with pytest.raises(ConfigError, match="TENUTO_KAFKA_IAM: expected true or false, not 'yes'"):
        parse(MINIMAL, "tenuto.toml", {"TENUTO_KAFKA_IAM": "yes"})


def test_limits_of_a_way_to_run_give_way_to_those_of_the_file() -> None:
    text = MINIMAL + "[limits]\nhold_sleep_ms = 900\n"
    config = parse(text, "tenuto.toml", {}, {"hold_sleep_ms": 1, "scheduler_lead_ms": 2})
    assert (config.limits.hold_sleep_ms, config.limits.scheduler_lead_ms) == (900, 2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; write one"):
        load(tmp_path / "tenuto.toml", {})
    path = tmp_path / "here.toml"
    path.write_text(MINIMAL)
    assert load(path, {}).functions


def test_connection_settings_follow_the_protocol() -> None:
    plain = connection_settings(KafkaConfig(bootstrap_servers="a:1, b:2,"), Limits())
    assert plain["bootstrap_servers"] == ["a:1", "b:2"]
    assert "ssl_context" not in plain
    sasl = connection_settings(
        KafkaConfig(security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username="u", sasl_password="p"),
        Limits(),
    )
    assert (sasl["sasl_mechanism"], sasl["sasl_plain_username"], sasl["sasl_plain_password"]) == (
        "SCRAM-SHA-512",
        "u",
        "p",
    )
    assert sasl["ssl_context"] is not None


def test_certificates_that_cannot_be_read_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="certificate files cannot be used"):
        connection_settings(KafkaConfig(security_protocol="SSL", ssl_cafile="/nowhere.pem"), Limits())
