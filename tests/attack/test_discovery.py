"""A function answers discovery as it likes: the control plane goes on with what it knew, and with the others.

Owns answers to discovery, at the start and while a control plane runs. Does not own answers to activations
(`test_outcomes`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenuto.protocol.messages import (
    Fenced,
    HandlerManifest,
    Manifest,
    Rejected,
    RetryPolicy,
    ServiceManifest,
    Speculated,
    encode,
)
from tenuto.protocol.records import Failure
from tenuto_control.admin.deployments import Deployments
from tenuto_control.config import Config, ConfigError, FunctionConfig
from tenuto_control.core.log_fields import SHOWN_CHARACTERS_MAX
from tenuto_control.core.manifests import FUNCTION_TIMEOUT_MS_MAX, in_force
from tenuto_control.core.metrics import Tally
from tenuto_control.core.routing import Subscription
from tenuto_control.ports import AnswerHolder, FunctionMissingError, FunctionUnreachableError
from tests.attack.examples import examples
from tests.support.virtual_time import run_virtual

SHOP: Final = ServiceManifest("orders", keyed=True, handlers=(HandlerManifest("place", "exclusive"),))
POST: Final = ServiceManifest("mail", keyed=False, handlers=(HandlerManifest("post", "stateless"),))
GROWN: Final = ServiceManifest("mail", keyed=False, handlers=(*POST.handlers, HandlerManifest("fax", "stateless")))
SUBSCRIPTIONS: Final = (Subscription("orders", "orders", "place"), Subscription("letters", "mail", "post"))

Answer = bytes | Exception | float
"""What a function answers, what asking it raises, or for how many seconds it is silent."""


def one(name: str = "s", kind: Any = "exclusive", *, keyed: bool = True, **policy: Any) -> ServiceManifest:
    """A service with a handler."""
    return ServiceManifest(name, keyed, (HandlerManifest("act", kind, RetryPolicy(**policy)),))


def of(*services: ServiceManifest, **more: Any) -> bytes:
    """A manifest as it is answered."""
    return encode(Manifest(services, **more))


ODD: Final[dict[str, Answer]] = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "bytes": b"\xff\xfe\x00",
    "a page": b"<html>" * 1_000,
    "nested": b"[" * 300_000,
    "nested in an unknown field": b'{"type":"manifest","services":[],"x":' + b"[" * 300_000,
    "nested in a known one": b'{"type":"manifest","services":' + b"[" * 300_000,
    "a surrogate": b'{"type":"manifest","services":[{"name":"\\ud800","keyed":true,"handlers":[]}]}',
    "huge": of(*(one(f"s{n}") for n in range(20_000))),
    "larger than any answer": b"x" * 7_000_000,
    "an outcome": encode(Speculated(())),
    "lost": encode(Fenced("x" * 100_000)),
    "refused": encode(Rejected(Failure("\x1b[31mno\nERROR forged" * 10_000))),
    "another version": of(POST, version=2),
    "no version": of(POST, version=-1),
    "a version of many digits": of(POST, version=10**40),
    "no time": of(POST, timeout_ms=0),
    "less than no time": of(POST, timeout_ms=-(10**30)),
    "too much time": of(POST, timeout_ms=FUNCTION_TIMEOUT_MS_MAX + 1),
    "time of many digits": of(POST, timeout_ms=10**40),
    "an empty name": of(one("")),
    "a name of lines": of(one("mail\nERROR forged")),
    "a name that turns": of(one("mail\u202e")),
    "a name of a path": of(one("../mail")),
    "a long name": of(one("m" * 5_000)),
    "an odd handler": of(ServiceManifest("s", keyed=True, handlers=(HandlerManifest("\x1b[2J", "exclusive"),))),
    "a kind": of(one(kind="exclusive", keyed=False)),
    "an unknown kind": of(one(kind="other")),
    "another kind": of(one(kind="stateless")),
    "a service twice": of(one(), one()),
    "a handler twice": of(ServiceManifest("s", keyed=True, handlers=one().handlers * 2)),
    "too many services": of(*(ServiceManifest(f"s{n}", keyed=True, handlers=()) for n in range(1_001))),
    "too many handlers": of(
        ServiceManifest("s", keyed=True, handlers=tuple(HandlerManifest(f"h{n}", "exclusive") for n in range(1_001)))
    ),
    "a policy without attempts": of(one(max_attempts=0)),
    "a policy of the past": of(one(initial_ms=-1)),
    "a policy beyond time": of(one(max_ms=10**30)),
    "a policy without a number": of(one(factor=1.0)).replace(b'"factor":1.0', b'"factor":1e999'),
    "another's service": of(SHOP),
    "its own and another's": of(POST, SHOP),
    "gone": FunctionMissingError("function post does not exist\n" * 1_000),
    "away": FunctionUnreachableError("\x1b[31m" * 1_000),
    "broken": KeyError("Payload"),
    "silent": 10_000.0,
}
"""Answers of the function `post` that do not count."""


class Functions:
    """Two functions: `shop` answers as it should, and `post` whatever it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.shop = of(SHOP)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        if function == "shop":
            return self.shop
        if isinstance(self.answer, float):
            await asyncio.sleep(self.answer)
            return b""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def plane(functions: Functions, *, first: str = "shop", tally: Tally | None = None) -> Deployments:
    """What a control plane knows of functions, which it asks in this order."""
    names = ("shop", "post") if first == "shop" else ("post", "shop")
    config = Config(functions={name: FunctionConfig() for name in names}, subscriptions=SUBSCRIPTIONS)
    return Deployments(config, functions, tally)


def served(found: Deployments, service: str) -> tuple[str, ServiceManifest] | None:
    """Which function serves a service, and as what."""
    target = found.find(service)
    return None if target is None else (target.function, target.manifest)


def lines_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Each line is one, is short, and tells of nothing unforeseen."""
    assert all(line.isprintable() for line in caplog.messages)
    assert max(map(len, caplog.messages), default=0) < SHOWN_CHARACTERS_MAX + 300
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("name", ODD)
def test_a_running_control_plane_goes_on_with_what_it_knew(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        functions, tally = Functions(of(POST)), Tally()
        found = plane(functions, tally=tally)
        await found.discover(30.0)
        refreshing = asyncio.create_task(found.refresh())
        functions.answer = ODD[name]
        functions.shop = of(SHOP, one("news"))
        await asyncio.sleep(600)
        assert not refreshing.done()
        # The other function's new service is served all the same.
        news = one("news")
        assert sorted(service.name for service in found.listed()) == ["mail", "news", "orders"]
        assert [served(found, name) for name in ("orders", "mail", "news")] == [
            ("shop", SHOP),
            ("post", POST),
            ("shop", news),
        ]
        assert list(found.unanswered) == ["post"]
        assert tally.take().samples["FunctionsUnanswered"][-1] == 1
        functions.answer = of(GROWN)
        await asyncio.sleep(70)
        assert found.listed()[0] == GROWN
        assert found.unanswered == {}
        assert tally.take().samples["FunctionsUnanswered"][-1] == 0
        refreshing.cancel()

    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    lines_are_lines(caplog)
    told = [line for line in caplog.messages if line.startswith("[functions.post] ")]
    assert 2 < len(told) < 8, "less and less often, and once when it is over"
    assert len(caplog.messages) < 14
    assert told[-1].endswith("answers discovery again")


@pytest.mark.parametrize("first", ["shop", "post"])
@pytest.mark.parametrize("name", [name for name in ODD if "another's" not in name])
def test_a_control_plane_starts_with_the_others(name: str, first: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        functions = Functions(ODD[name])
        found = plane(functions, first=first)
        await found.discover(30.0)
        assert found.listed() == [SHOP]
        assert list(found.unanswered) == ["post"]
        refreshing = asyncio.create_task(found.refresh())
        functions.answer = of(POST)
        await asyncio.sleep(45)
        assert found.listed() == [POST, SHOP]
        refreshing.cancel()

    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    lines_are_lines(caplog)


def test_what_two_functions_claim_from_the_start_is_the_first_ones() -> None:
    async def scenario() -> None:
        found = plane(Functions(of(POST, SHOP)))
        await found.discover(30.0)
        assert served(found, "orders") == ("shop", SHOP)
        assert list(found.unanswered) == ["post"]

    run_virtual(scenario())


def test_a_service_moves_once_its_function_has_given_it_up() -> None:
    async def scenario() -> None:
        functions = Functions(of(POST))
        found = plane(functions)
        await found.discover(30.0)
        functions.answer = of(POST, SHOP)
        await found.discover(30.0)
        assert served(found, "orders") == ("shop", SHOP)
        functions.shop = of(one("news"))
        await found.discover(30.0)
        assert served(found, "orders") == ("post", SHOP)
        assert found.unanswered == {}

    run_virtual(scenario())


@pytest.mark.parametrize(
    "services",
    [(), (one("mail", keyed=True),), (one("mail", "stateless", keyed=False),), (one("post"),)],
    ids=["nothing", "objects", "another handler", "another service"],
)
def test_an_answer_that_contradicts_a_subscription_is_for_the_start_alone(
    services: tuple[ServiceManifest, ...],
) -> None:
    """A new deployment that has lost a handler is told of, and ends no process that runs."""

    async def scenario() -> None:
        functions = Functions(of(*services))
        with pytest.raises(ConfigError, match=r"^subscription of 'letters': "):
            await plane(functions).discover(30.0)
        functions.answer = of(POST)
        found = plane(functions)
        await found.discover(30.0)
        functions.answer = of(*services)
        functions.shop = of(SHOP, one("news"))
        await found.discover(30.0)
        assert [service.name for service in found.listed()] == ["mail", "news", "orders"]
        assert found.unanswered["post"].startswith("contradicts the configuration: subscription of 'letters': ")

    run_virtual(scenario())


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**40), 10**40),
        st.floats(allow_nan=False),
        st.sampled_from(["", "manifest", "orders", "mail", "act", "exclusive", "\u202e", "x" * 300, "a/b", "1\n2"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "services", "name", "keyed", "handlers", "kind", "retry", "timeout_ms", "version"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
names = st.sampled_from(["orders", "mail", "news", "", "a/b", "x" * 200])
handlers = st.builds(
    HandlerManifest,
    st.sampled_from(["place", "post", "act", "\n"]),
    st.sampled_from(["exclusive", "shared", "stateless"]),
    st.builds(RetryPolicy, st.integers(-1, 10), st.floats(allow_nan=False), st.integers(-1, 10), st.none()),
)
services = st.builds(ServiceManifest, names, st.booleans(), st.lists(handlers, max_size=3).map(tuple))
manifests = st.builds(Manifest, st.lists(services, max_size=3).map(tuple), st.integers(-1, 20_000), st.integers(0, 2))
answers = st.one_of(st.binary(max_size=60), values.map(msgspec.json.encode), manifests.map(encode))


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=st.lists(answers, min_size=1, max_size=3))
def test_whatever_a_function_answers_the_others_are_served(
    story: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        functions = Functions(of(POST))
        found = plane(functions)
        await found.discover(30.0)
        for functions.answer in story:
            await found.discover(30.0)
            assert served(found, "orders") == ("shop", SHOP)
            mail = found.find("mail")
            assert mail is not None
            assert any(handler.name == "post" for handler in mail.manifest.handlers)

    caplog.clear()
    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    lines_are_lines(caplog)


sets_of_services = st.sets(st.sampled_from("abcde"), max_size=3)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("123"), sets_of_services | st.none(), min_size=3), max_size=6))
def test_no_service_is_ever_two_functions_and_none_moves_against_the_will_of_its_own(
    story: list[dict[str, set[str] | None]],
) -> None:
    known: dict[str, Manifest] = {}
    for told in story:
        asked: dict[str, Manifest | str] = {
            name: "silent" if told[name] is None else Manifest(tuple(one(s) for s in sorted(told[name] or ())))
            for name in "123"
        }
        found = in_force(known, asked)
        served = [s.name for manifest in found.manifests.values() for s in manifest.services]
        assert len(served) == len(set(served))
        for name, manifest in known.items():
            asked_for = asked[name]
            kept = manifest if isinstance(asked_for, str) or name in found.problems else asked_for
            assert found.manifests[name] == kept
        for name, asked_for in asked.items():
            assert (name in found.problems) or found.manifests[name] == asked_for
        known = dict(found.manifests)
