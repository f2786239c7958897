"""The examples on the real runtime: the plain course, and a crash at every write of it.

Owns the claim that each example ends in its offline truth whatever happens to its functions. Does not own
the dispatcher.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from examples import ledger
from examples.food_order import events as order_events
from examples.food_order import outside as order_outside
from examples.food_order.handler import orders, place, status
from examples.profile_enricher import events as profile_events
from examples.profile_enricher.handler import (
    PROFILES_TOPIC,
    UserProfile,
    feature_event,
    profile,
    show,
    user_event,
)
from examples.user_updates import events as update_events
from examples.user_updates import outside as update_outside
from examples.user_updates.handler import update_user_event, user_updates
from tenuto import Handler, TerminalError, idempotency_key
from tenuto.testing import Environment
from tenuto_control.config import load
from tests.support.in_process import InProcess, Killed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCENARIO_TIMEOUT_S = 60.0
T = TypeVar("T")


@pytest.fixture(autouse=True)
def example_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ledger.DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, SCENARIO_TIMEOUT_S))


# --- user_updates ---------------------------------------------------------------------------------


async def updates(local: InProcess, made: list[update_events.Event]) -> None:
    for topic, key, value in made:
        await local.deliver(topic, key, update_user_event, value)
    await local.advance(timedelta(seconds=5 * update_outside.TRIES_UNTIL_READY))


def test_updates_reach_all_systems_in_order() -> None:
    made = update_events.events(seed=1, count=60, keys=12)
    run(updates(InProcess(user_updates), made))
    assert update_events.differences(made, update_outside.LEDGER.calls()) == []


def test_a_user_that_is_not_ready_sleeps_while_its_neighbours_run() -> None:
    async def scenario() -> None:
        local = InProcess(user_updates)
        made = update_events.events(seed=1, count=60, keys=12)
        new = next(key for _, key, _ in made if key.endswith("-new"))
        for topic, key, value in made:
            await local.deliver(topic, key, update_user_event, value)
        sleeping = local.head(user_updates, new).run
        assert sleeping is not None
        assert sleeping.suspended
        seen = ledger.finished_calls(update_outside.LEDGER.calls())
        assert seen.pop(f"{new}/1") == ["profiles"]
        assert not any(event.startswith(new) for event in seen)
        assert all(calls[-1] == "resources" for event, calls in seen.items() if not event.startswith("user-010"))
        await local.advance(timedelta(seconds=4))
        assert len(ledger.finished_calls(update_outside.LEDGER.calls())[f"{new}/1"]) == 1
        await local.advance(timedelta(seconds=11))
        assert update_events.differences(made, update_outside.LEDGER.calls()) == []

    run(scenario())


def test_a_function_killed_after_step_two_goes_on_at_step_three(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def die_once(user_id: str, role_id: str, update: update_outside.UserUpdate) -> list[str]:
        asked.append(idempotency_key())
        if len(asked) == 1:
            raise Killed
        return update_outside.provision_resources(user_id, role_id, update)

    monkeypatch.setattr("examples.user_updates.handler.provision_resources", die_once)
    made = update_events.events(seed=1, count=1, keys=2)
    local = InProcess(user_updates)
    run(updates(local, made))
    calls = update_outside.LEDGER.calls()
    assert local.kills == 1
    assert ledger.repeated_calls(calls) == []
    assert asked[0] == asked[1]
    assert update_events.differences(made, calls) == []


def test_updates_survive_a_crash_at_every_write(example_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [e for e in update_events.events(seed=3, count=200, keys=10) if e[1].endswith("-new")][:2]
    assert len(made) == 2
    runs = itertools.count()

    async def scenario(env: Environment) -> None:
        directory = example_directory / str(next(runs))
        directory.mkdir()
        monkeypatch.setenv(ledger.DIRECTORY_VARIABLE, str(directory))
        for topic, key, value in made:
            await env.event(topic, key, value)
        await env.advance(seconds=5 * update_outside.TRIES_UNTIL_READY)
        calls = update_outside.LEDGER.calls()
        assert update_events.differences(made, calls) == []
        assert len(ledger.repeated_calls(calls)) <= 1, "only the step in flight may come again"

    env = Environment(user_updates, topics={"user-updates": update_user_event})
    report = run(env.crash_everywhere(scenario))
    assert report.writes > 8, "a scenario of eight steps makes more writes than that"


def test_an_update_nobody_could_accept_ends_before_any_call() -> None:
    value = b'{"user": "ann", "version": 1, "name": " ", "permissions": [], "resources": []}'
    local = InProcess(user_updates)
    run(local.deliver("user-updates", "ann", update_user_event, value))
    assert update_outside.LEDGER.calls() == []
    assert local.published == []


def test_a_record_of_another_shape_goes_to_the_dead_letter_topic() -> None:
    local = InProcess(user_updates)
    run(local.deliver("user-updates", "ann", update_user_event, b'{"user": 7}'))
    ((_, record),) = local.published
    assert record.topic == "user-updates.dead-letter"
    assert record.value == b'{"user": 7}'
    assert b"userUpdates/update_user_event" in dict(record.headers)["tenuto-reason"]


# --- profile_enricher -----------------------------------------------------------------------------


async def enrich(local: InProcess, made: list[profile_events.Event]) -> None:
    handlers: dict[str, Handler[Any, Any]] = {
        profile_events.USERS_TOPIC: user_event,
        profile_events.FEATURES_TOPIC: feature_event,
    }
    for topic, key, value in made:
        await local.deliver(topic, key, handlers[topic], value)
    await local.advance(timedelta(seconds=2))


def records(local: InProcess) -> list[profile_events.Record]:
    return [
        (record_id, (entry.key or b"").decode(), entry.value or b"")
        for record_id, entry in local.published
        if entry.topic == PROFILES_TOPIC
    ]


def test_profiles_leave_with_their_features_and_leave_nothing_behind() -> None:
    made = profile_events.events(seed=1, count=80, keys=10)
    local = InProcess(profile)
    run(enrich(local, made))
    assert profile_events.differences(made, records(local)) == []
    assert [local.state(profile, key) for key in profile_events.expected(made)] == [{}] * 10


def test_a_registration_over_http_meets_features_from_kafka() -> None:
    async def scenario() -> None:
        local = InProcess(profile)
        with pytest.raises(TerminalError, match="user not found") as refused:
            await local.call(feature_event, "ann", "dark-mode")
        assert refused.value.status_code == 404
        await local.call(user_event, "ann", UserProfile("ann", "Ann"))
        await local.deliver("feature-events", "ann", feature_event, b'"dark-mode"')
        assert await local.call(show, "ann") == {"id": "ann", "name": "Ann", "features": ["dark-mode"]}
        await local.advance(timedelta(seconds=1))
        assert await local.call(show, "ann") is None
        assert [value for _, _, value in records(local)] == [b'{"id":"ann","name":"Ann","features":["dark-mode"]}']

    run(scenario())


# --- food_order -----------------------------------------------------------------------------------


async def orders_and_drivers(local: InProcess, made: list[order_events.Event]) -> dict[str, str | None]:
    for topic, key, value in made:
        await local.deliver(topic, key, place, value)
    parsed = {key: order_outside.Order.model_validate_json(value) for _, key, value in made}
    for order, offer in order_outside.open_offers().items():
        match order_outside.driver_answer(parsed[order].distance_km):
            case "accept":
                await local.resolve(offer, {"driver": order_events.DRIVER})
            case "refuse":
                await local.reject(offer, order_events.REFUSAL)
            case "silence":
                pass
    await local.advance(timedelta(seconds=11))
    return {key: await local.call(status, key) for key in parsed}


def test_orders_are_delivered_or_undone() -> None:
    made = order_events.events(seed=1, count=60, keys=10)
    endings = {left for _, left in order_events.expected(made).values()}
    assert len(endings) == 4, "the seed shows every ending"
    status_of = run(orders_and_drivers(InProcess(orders), made))
    assert order_events.differences(made, order_outside.LEDGER.calls(), status_of) == []


@pytest.mark.parametrize("distance_km", [3, 30, 80])
def test_an_order_survives_a_crash_at_every_write(
    example_directory: Path, monkeypatch: pytest.MonkeyPatch, distance_km: int
) -> None:
    order = order_outside.Order(id="o-1", dish="ramen", price_cents=1200, distance_km=distance_km)
    made = [(order_events.TOPIC, order.id, order.model_dump_json().encode())]
    runs = itertools.count()

    async def scenario(env: Environment) -> None:
        directory = example_directory / str(next(runs))
        directory.mkdir()
        monkeypatch.setenv(ledger.DIRECTORY_VARIABLE, str(directory))
        await env.event(*made[0])
        for offer in order_outside.open_offers().values():
            match order_outside.driver_answer(distance_km):
                case "accept":
                    await env.resolve_awakeable(offer, {"driver": order_events.DRIVER})
                case "refuse":
                    await env.reject_awakeable(offer, order_events.REFUSAL)
                case "silence":
                    pass
        await env.advance(seconds=11)
        status_of = {order.id: await env.call(status, order.id)}
        assert order_events.differences(made, order_outside.LEDGER.calls(), status_of) == []

    run(Environment(orders, topics={order_events.TOPIC: place}).crash_everywhere(scenario))


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "served"),
    [("user_updates", user_updates), ("profile_enricher", profile), ("food_order", orders)],
)
def test_every_subscription_has_its_handler(name: str, served: Any) -> None:
    config = load(EXAMPLES / name / "tenuto.toml", {})
    assert list(config.functions) == [name]
    assert {s.service for s in config.subscriptions} == {served.name}
    assert {s.handler for s in config.subscriptions} <= set(served.handlers)


# --- the oracles themselves -----------------------------------------------------------------------


def test_the_truth_of_updates_notices_what_is_wrong() -> None:
    made = update_events.events(seed=1, count=20, keys=3)
    run(updates(InProcess(user_updates), made))
    calls = update_outside.LEDGER.calls()
    assert update_events.differences(made, calls) == []
    assert update_events.differences(made, calls[:-1])
    assert update_events.differences(made[:-1], calls)
    in_flight, finished = [*calls, calls[-1]], [*calls, calls[-2]]
    assert update_events.differences(made, in_flight) == []
    assert update_events.differences(made, finished)
    assert update_events.differences(made, sorted(calls, key=lambda call: call.event, reverse=True))


def test_the_truth_of_profiles_notices_what_is_wrong() -> None:
    made = profile_events.events(seed=1, count=30, keys=3)
    local = InProcess(profile)
    run(enrich(local, made))
    good = records(local)
    record_id, key, value = good[0]
    assert len(json.loads(value)["features"]) > 2
    assert profile_events.differences(made, [*good, good[0]]) == []
    assert profile_events.differences(made, [*good, ("another id", key, value)])
    assert profile_events.differences(made, good[1:])
    sent = json.loads(value)["features"]
    for features in ([*sent[1:], sent[0]], [sent[0], *sent], [sent[0], *sent[2:]]):
        tampered = (record_id, key, json.dumps(json.loads(value) | {"features": features}).encode())
        assert profile_events.differences(made, [tampered, *good[1:]])


def test_open_offers_name_the_variable_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ledger.DIRECTORY_VARIABLE)
    with pytest.raises(LookupError, match=ledger.DIRECTORY_VARIABLE):
        order_outside.open_offers()
