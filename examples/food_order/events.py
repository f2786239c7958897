"""Events for `orders`, and what must be true once they are handled.

Owns the generator and the offline truth. Pure: a seed gives the same events everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from examples.food_order.outside import Order, driver_answer
from examples.ledger import Call, finished_calls, repeated_finished_steps

TOPIC = "orders"
DRIVER = "Robin"
REFUSAL = "too far"

Event = tuple[str, str, bytes]
"""Topic, key and value of a record."""


def events(seed: int, count: int, keys: int) -> list[Event]:
    """`count` orders of `keys` customers, each under an id of its own. One in eight cards is declined."""
    draw = random.Random(seed)
    made: list[Event] = []
    for i in range(count):
        order = Order(
            id=f"customer-{draw.randrange(keys):03d}-order-{i:04d}",
            dish=draw.choice(["ramen", "pizza", "thali"]),
            price_cents=draw.randrange(900, 4_000, 50),
            card=draw.choices(("valid", "declined"), weights=(7, 1))[0],
            distance_km=draw.choices((3, 8, 30, 80), weights=(5, 5, 2, 1))[0],
        )
        made.append((TOPIC, order.id, order.model_dump_json().encode()))
    return made


def expected(made: Iterable[Event]) -> dict[str, tuple[list[str], str]]:
    """For each order the systems called, in order, and the status that is left."""
    return {key: _course(Order.model_validate_json(value)) for _, key, value in made}


def _course(order: Order) -> tuple[list[str], str]:
    if order.card == "declined":
        return ["take payment"], "cancelled: card declined"
    calls = ["take payment", "order preparation", "offer to drivers"]
    undone = [*calls, "cancel preparation", "refund"]
    match driver_answer(order.distance_km):
        case "accept":
            return calls, f"on its way with {DRIVER}"
        case "refuse":
            return undone, f"cancelled: {REFUSAL}"
        case "silence":
            return undone, "cancelled: no driver answered"


def differences(made: Iterable[Event], calls: list[Call], status: Mapping[str, str | None]) -> list[str]:
    """What differs between the truth and the ledger or the objects' status; empty when all is well."""
    truth, seen = expected(made), finished_calls(calls)
    wrong = [f"{o}: called {seen.get(o, [])}, expected {c}" for o, (c, _) in truth.items() if seen.get(o) != c]
    wrong += [f"{o}: is {status.get(o)!r}, expected {s!r}" for o, (_, s) in truth.items() if status.get(o) != s]
    wrong += [f"{o}: calls for an order that was never sent" for o in seen if o not in truth]
    wrong += [f"{c.event}: finished step {c.system} ran again" for c in repeated_finished_steps(calls)]
    return wrong
