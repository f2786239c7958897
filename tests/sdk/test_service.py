"""Declaring services: what a decorator accepts, what it refuses, and what discovery tells of it.

Owns declaration. Does not own what a running handler may do (`test_context`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tenuto import (
    Context,
    InvocationRetryPolicy,
    ObjectContext,
    Service,
    TenutoError,
    UnserialisableError,
    VirtualObject,
)
from tenuto.protocol.messages import RetryPolicy
from tenuto.service import Services


@dataclass
class Order:
    """An input with a type of its own."""

    item: str
    count: int = 1


async def place(ctx: Any, order: Order) -> str:
    return order.item


async def ping(ctx: Any) -> None:
    return None


@pytest.mark.parametrize("kind", [Service, VirtualObject])
@pytest.mark.parametrize("name", ["", "a/b", "a\x1fb", "line\nbreak", "x" * 129])
def test_a_name_that_cannot_be_part_of_an_id_is_refused(kind: type[Service | VirtualObject], name: str) -> None:
    with pytest.raises(ValueError, match="not a valid service name"):
        kind(name)


@pytest.mark.parametrize("name", ["a/b", "/"])
def test_a_handler_name_that_cannot_be_part_of_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid handler name"):
        Service("orders").handler(name)(place)


def test_a_handler_is_declared_once() -> None:
    orders = Service("orders")
    orders.handler()(place)
    with pytest.raises(ValueError, match="orders/place is declared twice"):
        orders.handler()(place)
    orders.handler("place_again")(place)
    assert list(orders.handlers) == ["place", "place_again"]


def test_a_declared_handler_is_still_the_function() -> None:
    handler = Service("orders").handler()(place)
    coroutine = handler(None, Order("tea"))
    with pytest.raises(StopIteration) as ended:
        coroutine.__await__().send(None)
    assert ended.value.value == "tea"


def test_a_message_is_written_by_the_type_of_the_handlers_input() -> None:
    orders = Service("orders")
    handler = orders.handler()(place)
    encoded = handler.encode(Order("tea", 2))
    assert handler.spec.input.deserialize(encoded or b"") == Order("tea", 2)


def test_a_message_without_an_input_is_for_handlers_that_can_be_called_without_one() -> None:
    async def maybe(ctx: object, order: Order | None) -> None: ...
    async def raw(ctx: object, body: bytes) -> None: ...

    orders = Service("orders")
    for handler in (orders.handler()(maybe), orders.handler()(raw)):
        assert handler.encode(None) is None
    with pytest.raises(UnserialisableError, match="the message to orders/place of type NoneType"):
        orders.handler()(place).encode(None)


def test_a_message_that_cannot_be_written_names_its_receiver() -> None:
    handler = Service("orders").handler()(place)
    with pytest.raises(UnserialisableError, match="the message to orders/place"):
        handler.encode(object())


def test_a_handler_without_input_takes_none() -> None:
    handler = Service("orders").handler()(ping)
    assert handler.encode(None) is None
    with pytest.raises(TenutoError, match="orders/ping takes no input"):
        handler.encode(1)


@pytest.mark.parametrize(
    "policy",
    [
        {"initial_interval": timedelta()},
        {"initial_interval": timedelta(seconds=2), "max_interval": timedelta(seconds=1)},
        {"factor": 0.5},
        {"max_attempts": 0},
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a retry policy needs|at least 1"):
        InvocationRetryPolicy(**policy)


def test_the_default_policy_goes_on_for_ever_from_50_ms_to_a_minute() -> None:
    assert InvocationRetryPolicy().wire() == RetryPolicy(50, 2.0, 60_000, None)


def test_a_handlers_policy_goes_before_its_services() -> None:
    orders = Service("orders", retry_policy=InvocationRetryPolicy(max_attempts=5))
    orders.handler()(place)
    orders.handler(retry_policy=InvocationRetryPolicy(max_attempts=2))(ping)
    assert {n: h.spec.retry.max_attempts for n, h in orders.handlers.items()} == {"place": 5, "ping": 2}


def test_discovery_tells_names_kinds_and_policies() -> None:
    orders, cart = Service("orders"), VirtualObject("cart")

    @orders.handler()
    async def accept(ctx: Context, order: Order) -> None:
        return None

    @cart.handler()
    async def add(ctx: ObjectContext, order: Order) -> None:
        return None

    cart.handler("look", kind="shared")(ping)
    manifest = Services([orders, cart]).manifest(timeout_ms=3_000)
    told = [(s.name, s.keyed, [(h.name, h.kind) for h in s.handlers]) for s in manifest.services]
    assert told == [
        ("orders", False, [("accept", "stateless")]),
        ("cart", True, [("add", "exclusive"), ("look", "shared")]),
    ]
    assert manifest.timeout_ms == 3_000


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two services are called 'cart'"):
        Services([VirtualObject("cart"), Service("cart")])


def test_what_is_no_service_is_refused() -> None:
    with pytest.raises(TypeError, match="a Service or VirtualObject is expected, not function"):
        Services([place])  # type: ignore[list-item]  # the mistake under test


def test_an_unknown_handler_is_not_found() -> None:
    orders = Service("orders")
    orders.handler()(place)
    services = Services([orders])
    assert services.find("orders", "place") is orders.handlers["place"].spec
    assert services.find("orders", "other") is None
    assert services.find("other", "place") is None


def test_a_sync_function_is_no_handler() -> None:
    def sync(ctx: Any) -> None:
        return None

    with pytest.raises((TypeError, ValueError), match="async"):
        Service("orders").handler()(sync)  # type: ignore[arg-type]  # the mistake under test


def test_the_parentheses_of_the_decorator_must_not_be_forgotten() -> None:
    with pytest.raises((TypeError, ValueError), match=r"handler\(\)"):
        Service("orders").handler(place)  # type: ignore[arg-type]  # the mistake under test
