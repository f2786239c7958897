"""Starting a control plane: what discovery accepts, which subscriptions it refuses and in which words.

Virtual time: repeated questions cost none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tenuto.protocol.messages import Fenced, HandlerManifest, Manifest, Rejected, ServiceManifest, encode
from tenuto.protocol.records import Failure
from tenuto_control.admin import deployments as module
from tenuto_control.admin.deployments import DISCOVERY_TRIES_MAX, Deployments, check_subscriptions
from tenuto_control.config import Config, ConfigError, FunctionConfig
from tenuto_control.core.routing import Ordering, Subscription
from tenuto_control.ports import (
    AnswerHolder,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    InvokeError,
)
from tests.support.virtual_time import run_virtual

Answers = Mapping[str, Sequence[bytes | InvokeError]]

ORDERS = ServiceManifest(
    "orders", keyed=True, handlers=(HandlerManifest("place", "exclusive"), HandlerManifest("status", "shared"))
)
MAIL = ServiceManifest("mail", keyed=False, handlers=(HandlerManifest("post", "stateless"),))


class Functions:
    """Functions that answer discovery from a list; the last answer goes on for ever."""

    def __init__(self, answers: Answers) -> None:
        self._answers = {name: list(listed) for name, listed in answers.items()}
        self.asked: list[str] = []

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        self.asked.append(function)
        answers = self._answers[function]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, InvokeError):
            raise answer
        return answer


def manifest(*services: ServiceManifest, timeout_ms: int = 10_000) -> bytes:
    return encode(Manifest(services, timeout_ms))


def deployments(
    answers: Answers, *subscriptions: Subscription, concurrency: int = 100
) -> tuple[Deployments, Functions]:
    functions = Functions(answers)
    config = Config(
        functions={name: FunctionConfig(concurrency=concurrency) for name in answers}, subscriptions=subscriptions
    )
    return Deployments(config, functions), functions


def refusal(answers: Answers, *subscriptions: Subscription) -> str:
    """The words with which the first discovery ends."""
    found, _ = deployments(answers, *subscriptions)
    with pytest.raises(ConfigError) as caught:
        run_virtual(found.discover(100.0))
    assert found.listed() == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reasons(answers: Answers) -> dict[str, str]:
    """Why answers do not count, by function, at the first discovery."""
    found, _ = deployments(answers)
    run_virtual(found.discover(100.0))
    assert not any("\n" in reason for reason in found.unanswered.values())
    return dict(found.unanswered)


def test_services_are_found_at_the_functions_that_serve_them() -> None:
    found, functions = deployments(
        {"shop": [manifest(ORDERS, timeout_ms=3_000)], "post": [manifest(MAIL)]},
        Subscription("orders", "orders", "place"),
        Subscription("letters", "mail", "post", ordering="none"),
        concurrency=7,
    )
    assert found.find("orders") is None
    run_virtual(found.discover(100.0))
    target = found.find("orders")
    assert target is not None
    assert (target.function, target.manifest, target.timeout_ms, target.concurrency) == ("shop", ORDERS, 3_000, 7)
    assert found.find("nothing") is None
    assert found.listed() == [MAIL, ORDERS]
    assert functions.asked == ["shop", "post"]


def test_a_function_that_does_not_exist_is_named_at_once(caplog: pytest.LogCaptureFixture) -> None:
    found, functions = deployments({"shop": [FunctionMissingError("function shop-prod does not exist")]})
    run_virtual(found.discover(100.0))
    assert "[functions.shop] cannot be asked: function shop-prod does not exist; deploy it, or" in caplog.text
    assert functions.asked == ["shop"]


def test_a_function_that_does_not_answer_is_asked_again_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    away = FunctionUnreachableError("no answer within 3 s")
    found, functions = deployments({"shop": [away, away, manifest(ORDERS)]})
    with caplog.at_level(logging.WARNING, "tenuto.deployments"):
        run_virtual(found.discover(100.0))
    assert found.find("orders") is not None
    assert len(functions.asked) == len(caplog.records) + 1 == 3
    assert "does not answer discovery, asking again: no answer within 3 s" in caplog.text

    found, functions = deployments({"shop": [away]})
    run_virtual(found.discover(100.0))
    # What it exports cannot be known, so nothing is said about it.
    assert found.unanswered["shop"] == "does not answer discovery: no answer within 3 s"
    assert len(functions.asked) == DISCOVERY_TRIES_MAX


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"statusCode": 200, "body": "hello"}', "does not answer discovery"),
        (b"null", "does not answer discovery"),
        (b"\xff\x00", "does not answer discovery"),
        (b"", "does not answer discovery"),
        (encode(Fenced("lost the lane")), "it answered Fenced"),
    ],
    ids=["another handler", "nothing", "bytes", "empty", "another message"],
)
def test_a_function_that_answers_rubbish_is_told_what_to_export(answer: bytes, said: str) -> None:
    words = reasons({"shop": [answer]})["shop"]
    assert said in words
    assert words.endswith("It has to export a handler made by aws.handler(...)")


def test_a_function_of_another_version_says_so_itself() -> None:
    rejected = encode(Rejected(Failure("protocol 9 is not spoken here: deploy the control plane's version")))
    assert reasons({"shop": [rejected]}) == {
        "shop": "refuses discovery: protocol 9 is not spoken here: deploy the control plane's version"
    }


def test_two_functions_cannot_serve_one_service() -> None:
    found = reasons({"shop": [manifest(ORDERS)], "shop-old": [manifest(MAIL, ORDERS)]})
    assert found == {
        "shop-old": "claims a service that [functions.shop] serves: rename it, or remove one of the two",
    }


def test_a_function_needs_time_to_work_in() -> None:
    words = reasons({"shop": [manifest(ORDERS, timeout_ms=1_400)]})["shop"]
    assert words.startswith("has a timeout that leaves 1,400 ms")
    assert words.endswith("give it 3 seconds or more")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("order/place", "there is no handler 'order/place'; did you mean 'orders/place'?"),
        ("orders/plase", "there is no handler 'orders/plase'; did you mean 'orders/place'?"),
        ("x/y", "there is no handler 'x/y'; the functions serve mail/post, orders/place, orders/status"),
        ("orders/status", "'orders/status' is a shared handler, which only reads; events need an exclusive one"),
    ],
)
def test_a_subscription_needs_a_handler_that_takes_events(target: str, said: str) -> None:
    service, _, handler = target.partition("/")
    words = refusal({"shop": [manifest(ORDERS, MAIL)]}, Subscription("t", service, handler))
    assert words == f"subscription of 't': {said}"


def test_without_any_service_a_subscription_is_told_that_there_is_none() -> None:
    with pytest.raises(ConfigError, match="the functions serve nothing"):
        check_subscriptions([Subscription("t", "orders", "place")], {})


@pytest.mark.parametrize("ordering", ["partition", "none"])
def test_an_objects_keys_are_never_made_up(ordering: Ordering) -> None:
    services = {"orders": ORDERS, "mail": MAIL}
    with pytest.raises(ConfigError) as caught:
        check_subscriptions([Subscription("t", "orders", "place", ordering=ordering)], services)
    assert str(caught.value) == (
        f"subscription of 't': ordering = '{ordering}' makes up the keys, and 'orders' is a virtual object, whose keys "
        "have state: leave `ordering` out, or name a handler of a service without keys"
    )
    check_subscriptions([Subscription("t", "mail", "post", ordering=ordering)], services)


def test_discovery_is_repeated_at_once_when_it_is_told_to() -> None:
    grown = ServiceManifest("orders", keyed=True, handlers=(*ORDERS.handlers, HandlerManifest("cancel", "exclusive")))

    async def scenario() -> None:
        found, _ = deployments({"shop": [manifest(ORDERS), manifest(grown)]})
        await found.discover(100.0)
        refreshing = asyncio.create_task(found.refresh())
        await asyncio.sleep(1)
        assert found.listed() == [ORDERS]
        found.look_again()
        await asyncio.sleep(1)
        assert found.listed() == [grown]
        refreshing.cancel()

    run_virtual(scenario())


def test_discovery_repeats_and_keeps_what_it_knew_when_that_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH_INTERVAL_S", 5.0)
    missing = FunctionMissingError("function shop does not exist")
    grown = ServiceManifest("orders", keyed=True, handlers=(*ORDERS.handlers, HandlerManifest("cancel", "exclusive")))

    async def scenario() -> None:
        found, _ = deployments({"shop": [manifest(ORDERS), missing, manifest(grown)]})
        await found.discover(100.0)
        refreshing = asyncio.create_task(found.refresh())
        await asyncio.sleep(6)
        assert found.listed() == [ORDERS]
        assert "[functions.shop] cannot be asked: function shop does not exist" in caplog.text
        assert "what it served before stays in force" in caplog.text
        await asyncio.sleep(5)
        assert found.listed() == [grown]
        refreshing.cancel()

    with caplog.at_level(logging.WARNING, "tenuto.deployments"):
        run_virtual(scenario())


# --- a dispatcher that cannot wait for all of them -------------------------------------------------------------------


def test_a_function_that_is_throttled_stops_no_other_functions_services(caplog: pytest.LogCaptureFixture) -> None:
    """Found from outside: under load, exactly the environments that scaled out failed, by a configuration error."""
    throttled = FunctionThrottledError("Rate Exceeded")
    subscriptions = (Subscription("orders", "orders", "place"), Subscription("letters", "mail", "post"))

    async def scenario() -> None:
        found, functions = deployments(
            {"shop": [manifest(ORDERS)], "post": [*[throttled] * 9, manifest(MAIL)]}, *subscriptions
        )
        began = asyncio.get_running_loop().time()
        await found.discover(3.0)
        assert asyncio.get_running_loop().time() - began <= 3.0
        assert (found.listed(), tuple(found.unanswered)) == ([ORDERS], ("post",))
        assert functions.asked[:2] == ["shop", "post"], "all are asked at once"
        assert "[functions.post] does not answer discovery in 3 s; its work waits" in caplog.text
        await found.discover(100.0)
        await found.discover(100.0)
        assert (found.listed(), tuple(found.unanswered)) == ([MAIL, ORDERS], ())

    with caplog.at_level(logging.WARNING, "tenuto.deployments"):
        run_virtual(scenario())


@pytest.mark.parametrize("answer", [FunctionMissingError("404"), b"rubbish", encode(Rejected(Failure("no")))])
def test_what_a_broken_function_served_before_is_kept(answer: bytes | InvokeError) -> None:
    async def scenario() -> None:
        found, _ = deployments({"shop": [manifest(ORDERS)], "post": [manifest(MAIL), answer]})
        await found.discover(100.0)
        await found.discover(100.0)
        assert (found.listed(), tuple(found.unanswered)) == ([MAIL, ORDERS], ("post",))

    run_virtual(scenario())


def test_what_the_functions_that_answer_contradict_is_still_an_error() -> None:
    async def scenario() -> None:
        found, _ = deployments(
            {"shop": [manifest(ORDERS)], "post": [FunctionUnreachableError("away")]},
            Subscription("t", "orders", "plaec"),
        )
        with pytest.raises(ConfigError, match="did you mean 'orders/place'"):
            await found.discover(1.0)

    run_virtual(scenario())


# --- what `tenuto check` tells ---------------------------------------------------------------------------------------


def test_a_survey_names_everything_that_cannot_be_seen() -> None:
    found, functions = deployments(
        {
            "shop": [manifest(ORDERS)],
            "post": [FunctionUnreachableError("no answer")],
            "gone": [FunctionMissingError("404")],
        },
        Subscription("orders", "orders", "place"),
        Subscription("letters", "mail", "post", ordering="none"),
        Subscription("typos", "orders", "plaec"),
        Subscription("reads", "orders", "status"),
    )
    survey = run_virtual(found.survey())
    assert survey.services == (ORDERS,)
    assert functions.asked == ["shop", "post", "gone"], "a person waits: each is asked once"
    told = "\n".join(survey.problems)
    assert len(survey.problems) == 5
    for words in (
        "[functions.post] does not answer discovery: no answer",
        "[functions.gone] cannot be asked: 404; deploy it, or correct its name",
        "subscription of 'letters': mail/post cannot be seen: no function that answers serves it, and post, gone",
        "subscription of 'typos': there is no handler 'orders/plaec'; did you mean 'orders/place'?",
        "subscription of 'reads': 'orders/status' is a shared handler",
    ):
        assert words in told


def test_a_survey_of_what_is_right_finds_nothing_wrong() -> None:
    found, _ = deployments({"shop": [manifest(ORDERS)]}, Subscription("orders", "orders", "place"))
    assert run_virtual(found.survey()).problems == ()


def test_check_tells_on_the_command_line(tmp_path: Path) -> None:
    """From another folder, with the file named by an absolute path in the environment."""
    file = tmp_path / "some where" / "tenuto.toml"
    file.parent.mkdir()
    file.write_text('[functions.f]\n[[subscriptions]]\ntopic = "t"\ntarget = "s/h"\n')
    environment = {
        **os.environ,
        "TENUTO_CONFIG_FILE": str(file),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }

    def check(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tenuto_control", "check", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    ended = check()
    assert ended.returncode == 1
    assert f"{file}: 1 function, 1 subscription" in ended.stdout
    assert "[functions.f] does not answer discovery" in ended.stderr
    assert "subscription of 't': s/h cannot be seen" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert check("--offline").returncode == 0
