"""Events for `userUpdates`, and what must be true once they are handled.

Owns the generator and the offline truth. Pure: a seed gives the same events everywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from examples.ledger import Call, finished_calls, repeated_finished_steps
from examples.user_updates.outside import TRIES_UNTIL_READY, UserUpdate

TOPIC = "user-updates"
KEYS_PER_NEW_USER = 10
"""Each tenth user is new: its profile is not ready at first."""

Event = tuple[str, str, bytes]
"""Topic, key and value of a record."""


def events(seed: int, count: int, keys: int) -> list[Event]:
    """`count` updates over `keys` users; the versions of each user rise by one."""
    draw = random.Random(seed)
    users = [f"user-{i:03d}" + ("-new" if i % KEYS_PER_NEW_USER == 0 else "") for i in range(keys)]
    versions = dict.fromkeys(users, 0)
    made: list[Event] = []
    for _ in range(count):
        user = draw.choice(users)
        versions[user] += 1
        value = {
            "user": user,
            "version": versions[user],
            "name": draw.choice(["Ada", "Grace", "Edsger", "Barbara"]),
            "permissions": draw.sample(["read", "write", "admin"], k=draw.randint(1, 3)),
            "resources": draw.sample(["bucket", "queue", "inbox"], k=draw.randint(1, 2)),
        }
        made.append((TOPIC, user, json.dumps(value).encode()))
    return made


def expected(made: Iterable[Event]) -> dict[str, list[str]]:
    """The calls of each event (`user/version` → systems in order), events in their order within each user."""
    truth: dict[str, list[str]] = {}
    for _, user, value in made:
        update = UserUpdate(**json.loads(value))
        first_of_new = user.endswith("-new") and update.version == 1
        tries = TRIES_UNTIL_READY if first_of_new else 1
        truth[update.id] = ["profiles"] * tries + ["permissions", "resources"]
    return truth


def differences(made: Iterable[Event], calls: list[Call]) -> list[str]:
    """What the ledger has that it should not, and the other way round; empty when all is well."""
    truth, seen = expected(made), finished_calls(calls)
    wrong = [f"{e}: called {seen.get(e, [])}, expected {s}" for e, s in truth.items() if seen.get(e) != s]
    wrong += [f"{e}: calls for an event that was never sent" for e in seen if e not in truth]
    wrong += [f"{c.event}: finished step {c.system} ran again" for c in repeated_finished_steps(calls)]
    last: dict[str, int] = {}
    for event in seen:
        user, _, version = event.rpartition("/")
        if int(version) != last.get(user, 0) + 1:
            wrong.append(f"{event}: began after version {last.get(user, 0)}")
        last[user] = int(version)
    return wrong
