"""The test kit over the real system: the same requests as in memory, in real time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

from tenuto import TerminalError
from tenuto.testing import (
    HarnessError,
    NoSuchHandlerError,
    NothingWaitsError,
    RealEnvironment,
    StillWaitingError,
    real,
    real_topics,
)
from tests.kit import shop
from tests.kit.shop import Order, Receipt, add, greet, greeter, orders, place


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEnvironment]:
    root = tmp_path_factory.mktemp("function")
    (root / "deployed_shop.py").write_text(
        Path(shop.__file__).read_text("utf-8") + "\nfrom tenuto import aws\n\nhandler = aws.handler(orders, greeter)\n"
    )
    with RealEnvironment(
        orders,
        greeter,
        handler="deployed_shop:handler",
        root=root,
        topics={"orders": place, "amounts": add},
        publishes=["drivers"],
    ) as env:
        yield env


def test_calls_messages_and_answers(env: RealEnvironment) -> None:
    assert env.call(greet, "Ann").result() == "hello Ann"
    placed = env.send(place, "o-1", Order("tea", 3)).result()
    env.eventually(lambda: env.call("orders/status", "o-1"), "packing").result()
    answer = env.eventually_one(lambda: env.published("drivers")).result().value["answer"]
    env.resolve_awakeable(answer, "Bo").result()
    assert env.result(placed).result() == Receipt("tea", "Bo")
    with pytest.raises(NothingWaitsError):
        env.resolve_awakeable(answer, "Cy").result()
    with pytest.raises(TerminalError, match="above zero") as refused:
        env.call(place, "o-2", Order("tea", 0)).result()
    assert (refused.value.status_code, refused.value.metadata) == (409, {"price": "0"})


def test_events_state_and_dead_letters(env: RealEnvironment) -> None:
    for amount in (1, 2, "much", 3):
        env.event("amounts", "k", amount).result()
    env.eventually(lambda: env.state(orders, "k"), {"total": 6}).result()
    assert env.state(orders, "k", "total", int).result() == 6
    assert env.published("amounts").result() == []
    letter = env.eventually_one(env.dead_letters).result()
    assert (letter.handler, letter.key, letter.value) == ("orders/add", "k", "much")


def test_a_topic_is_one_of_the_environment_and_not_too_large(
    env: RealEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoSuchHandlerError, match=r"no topic nowhere; it has amounts, .*publishes=\['nowhere'\]"):
        env.published("nowhere").result()
    env.event("orders", "o-3", {"item": "tea", "price": 0}).result()
    env.event("orders", "o-4", {"item": "tea", "price": 0}).result()
    monkeypatch.setattr(real_topics, "BYTES_MAX", 10)
    with pytest.raises(HarnessError, match="the records of topic orders have more than 10 bytes"):
        env.published("orders").result()
    monkeypatch.setattr(real_topics, "RECORDS_MAX", 1)
    with pytest.raises(HarnessError, match=r"topic orders has \d+ records, and env.published returns at most 1"):
        env.published("orders").result()


def test_an_end_that_is_out_of_date_hides_nothing_that_the_test_has_put_there(
    env: RealEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.event("orders", "o-6", {"item": "tea", "price": 0}).result()
    env.event("orders", "o-7", {"item": "tea", "price": 0}).result()
    monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", AIOKafkaConsumer.beginning_offsets)
    monkeypatch.setattr(real_topics, "RECORDS_MAX", 1)
    with pytest.raises(HarnessError, match=r"topic orders has \d+ records"):
        env.published("orders").result()


def test_a_broker_that_does_not_answer_is_not_waited_for(env: RealEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    running = env._behind
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(running, "topics", replace(running.topics, servers=f"127.0.0.1:{silent.getsockname()[1]}"))
        monkeypatch.setattr(running, "timeout_s", 0.1)
        monkeypatch.setattr(real, "OVER_S", 0.1)
        with pytest.raises(StillWaitingError, match=r"env\.published\('drivers'\) has not ended after 0\.1 s"):
            env.published("drivers").result()
        with pytest.raises(StillWaitingError, match=r"env\.event\('orders', \.\.\.\) has not ended after"):
            env.event("orders", "o-5", {"item": "tea", "price": 1}).result()


def test_a_broker_that_is_gone_is_named(env: RealEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    running = env._behind
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(running, "topics", replace(running.topics, servers=f"127.0.0.1:{port}"))
    with pytest.raises(HarnessError, match=r"env\.published\('drivers'\): a part .* does not answer \(Kafka"):
        env.published("drivers").result()


async def call(env: RealEnvironment) -> str:
    return await env.call(greet, "Bo")


def test_in_a_coroutine(env: RealEnvironment) -> None:
    import asyncio

    assert asyncio.run(call(env)) == "hello Bo"
