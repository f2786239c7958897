"""The stream of the demo: three examples, their functions and topics, and the events in one sequence.

Owns the mix and how the functions are set up. Does not own the events, the handlers, nor what must come out of them
(each example's `events`). Pure: a seed gives the same stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from examples.food_order import events as order_events
from examples.ledger import DIRECTORY_VARIABLE, LATENCY_VARIABLE
from examples.profile_enricher import events as profile_events
from examples.profile_enricher.handler import PROFILES_TOPIC
from examples.user_updates import events as update_events
from tenuto.protocol.ids import Lane
from tenuto_local.lambda_service.function_spec import FunctionSpec

EXAMPLES: Final = ("user_updates", "profile_enricher", "food_order")
UPDATES_SERVICE, PROFILE_SERVICE, ORDERS_SERVICE = "userUpdates", "profile", "orders"
TOPICS: Final = {
    update_events.TOPIC: 4,
    profile_events.USERS_TOPIC: 4,
    profile_events.FEATURES_TOPIC: 4,
    order_events.TOPIC: 4,
    PROFILES_TOPIC: 1,
}
_SERVICES: Final = {
    update_events.TOPIC: UPDATES_SERVICE,
    profile_events.USERS_TOPIC: PROFILE_SERVICE,
    profile_events.FEATURES_TOPIC: PROFILE_SERVICE,
    order_events.TOPIC: ORDERS_SERVICE,
}

FUNCTION_TIMEOUT_S: Final = 10.0
CONCURRENCY: Final = {"user_updates": 5, "profile_enricher": 2, "food_order": 3}
"""Processes of each function; two cores start them all in a few seconds."""

QUEUE_LIMIT: Final = 500
LATENCY_MS: Final = 100
"""What each call of the outside takes: long enough to be watched, and to be killed before the next."""

UPDATE_SHARE, PROFILE_SHARE = 0.4, 0.4
EVENTS_PER_USER: Final = 5
EVENTS_PER_PROFILE: Final = 4
HTTP_EVERY: Final = 2
"""Each second registration comes over HTTP."""

Event = tuple[str, str, bytes]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event and the way it takes."""

    event: Event
    way: Literal["kafka", "http"]

    @property
    def lane(self) -> Lane:
        """The lane it will run in."""
        topic, key, _ = self.event
        return Lane(_SERVICES[topic], key)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent, by example and as one sequence."""

    updates: list[Event]
    profiles: list[Event]
    orders: list[Event]
    deliveries: list[Delivery]


def workload(seed: int, count: int) -> Workload:
    """`count` events, the three examples mixed evenly; the order within a topic's key is the examples' own."""
    updates_count, profiles_count = int(count * UPDATE_SHARE), int(count * PROFILE_SHARE)
    orders_count = count - updates_count - profiles_count
    updates = update_events.events(seed, updates_count, max(2, updates_count // EVENTS_PER_USER))
    profiles = profile_events.events(seed, profiles_count, max(1, profiles_count // EVENTS_PER_PROFILE))
    orders = order_events.events(seed, orders_count, max(1, orders_count // 2))
    # A profile leaves a second after its registration: what belongs to it comes close behind.
    by_user = sorted(profiles, key=lambda event: event[1])
    placed: list[tuple[float, Delivery]] = []
    registrations = 0
    for events in (updates, by_user, orders):
        for i, event in enumerate(events):
            registration = event[0] == profile_events.USERS_TOPIC
            registrations += registration
            over_http = registration and registrations % HTTP_EVERY == 0
            placed.append(((i + 0.5) / len(events), Delivery(event, "http" if over_http else "kafka")))
    placed.sort(key=lambda place: place[0])
    return Workload(updates, profiles, orders, [delivery for _, delivery in placed])


def functions(root: Path, ledgers: Path, latency_ms: int = LATENCY_MS) -> list[FunctionSpec]:
    """The examples' functions, whose outside keeps its records in `ledgers`."""
    return [
        FunctionSpec(
            name=name,
            handler=f"examples.{name}.handler.handler",
            root=str(root),
            timeout_s=FUNCTION_TIMEOUT_S,
            environment={DIRECTORY_VARIABLE: str(ledgers), LATENCY_VARIABLE: str(latency_ms)},
            concurrency=CONCURRENCY[name],
            queue_limit=QUEUE_LIMIT,
        )
        for name in EXAMPLES
    ]


def config_text(root: Path) -> str:
    """The examples' configurations in one."""
    return "\n".join((root / "examples" / name / "tenuto.toml").read_text("utf-8") for name in EXAMPLES)
