"""Wishes about tasks, and which reminders must come of them.

Owns the generator and the offline truth. Pure: a seed gives the same events everywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

WISHES_TOPIC = "task-wishes"

Event = tuple[float, str, str, bytes]
"""Seconds after the beginning, then topic, key and value of a record."""


def events(seed: int, count: int, keys: int, start_s: int) -> list[Event]:
    """Wishes of `keys` tasks, some seconds apart: set, moved or cancelled; due times are whole minutes of an hour."""
    draw = random.Random(seed)
    made: list[Event] = []
    at_s = 0.0
    for number in range(count):
        at_s += draw.uniform(1, 30)
        due_s = None if draw.random() < 0.25 else start_s + 60 * draw.randint(1, 60)
        value = {"text": f"wish {number}", "due_s": due_s}
        made.append((at_s, WISHES_TOPIC, f"t-{draw.randrange(keys):03d}", json.dumps(value).encode()))
    return made


def expected(made: Iterable[Event], start_s: int) -> dict[str, list[str]]:
    """For each task, the texts of its reminders, in order: those whose time came before another wish did."""
    wishes: dict[str, list[tuple[float, str, float | None]]] = {}
    for at_s, _topic, task, value in made:
        wish = json.loads(value)
        due_s = None if wish["due_s"] is None else max(at_s, wish["due_s"] - start_s)
        wishes.setdefault(task, []).append((at_s, wish["text"], due_s))
    reminders: dict[str, list[str]] = {}
    for task, told in wishes.items():
        ends = [at_s for at_s, _, _ in told[1:]] + [float("inf")]
        reminders[task] = [
            text for (_, text, due_s), end in zip(told, ends, strict=True) if due_s is not None and due_s < end
        ]
    return reminders
