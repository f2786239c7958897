"""Events for `delivery`, and what must be true once they are handled.

Owns the generator and the offline truth. Pure: a seed gives the same events everywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

from examples.delivery_twin.handler import NEAR_M, Place, metres

DELIVERIES_TOPIC = "deliveries"
LOCATIONS_TOPIC = "locations"
GOAL = Place(52.52, 13.40)

Event = tuple[str, str, bytes]
"""Topic, key and value of a record."""


def events(seed: int, count: int, keys: int) -> list[Event]:
    """A start for each of `keys` deliveries, then locations up to `count` events: some late, some sent twice."""
    draw = random.Random(seed)
    names = [f"d-{number:03d}" for number in range(keys)]
    made = [(DELIVERIES_TOPIC, name, json.dumps({"lat": GOAL.lat, "lon": GOAL.lon}).encode()) for name in names]
    clock = dict.fromkeys(names, 1_000)
    while len(made) < count:
        name = draw.choice(names)
        clock[name] += draw.randint(1, 20)
        at_s = clock[name] - (draw.randint(1, 60) if draw.random() < 0.2 else 0)
        place = {"lat": GOAL.lat + draw.uniform(-0.02, 0.02), "lon": GOAL.lon + draw.uniform(-0.02, 0.02)}
        record = (LOCATIONS_TOPIC, name, json.dumps({"at_s": at_s, "place": place}).encode())
        made += [record] * (2 if draw.random() < 0.1 else 1)
    return made[:count]


def expected(made: Iterable[Event]) -> dict[str, tuple[int, list[str]]]:
    """For each delivery: the time of its last location, and its notices while locations keep coming."""
    latest: dict[str, int] = {}
    near: set[str] = set()
    for topic, name, value in made:
        if topic == DELIVERIES_TOPIC:
            latest.setdefault(name, 0)
            continue
        location = json.loads(value)
        if location["at_s"] <= latest[name]:
            continue
        latest[name] = location["at_s"]
        if metres(Place(**location["place"]), GOAL) <= NEAR_M:
            near.add(name)
    return {name: (at_s, ["near"] if name in near else []) for name, at_s in latest.items()}


def differences(made: Sequence[Event], last: dict[str, int], notices: dict[str, list[str]]) -> list[str]:
    """What is wrong with the twins' last times and their notices; empty when all is well."""
    wrong: list[str] = []
    for name, (at_s, said) in expected(made).items():
        if last.get(name, 0) != at_s:
            wrong.append(f"{name}: the twin is at {last.get(name, 0)}, its last location was of {at_s}")
        if notices.get(name, []) != said:
            wrong.append(f"{name}: notices {notices.get(name, [])}, not {said}")
    return wrong
