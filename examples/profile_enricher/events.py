"""Events for `profile`, and what must be true once they are handled.

Owns the generator and the offline truth. Two topics have no order between them and `emit` comes after a
second of real time, so which features make it is open; the truth says what holds in every case. Pure: a seed
gives the same events everywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

USERS_TOPIC = "user-events"
FEATURES_TOPIC = "feature-events"

Event = tuple[str, str, bytes]
"""Topic, key and value of a record."""

Record = tuple[str, str, bytes]
"""The `tenuto-id` header, key and value of a record of the downstream topic."""


def events(seed: int, count: int, keys: int) -> list[Event]:
    """One registration for each of `keys` users, then features (numbered per user) up to `count` events."""
    draw = random.Random(seed)
    users = [f"user-{i:03d}" for i in range(keys)]
    made: list[Event] = []
    for user in users[:count]:
        value = {"id": user, "name": draw.choice(["Ada", "Grace", "Edsger", "Barbara"])}
        made.append((USERS_TOPIC, user, json.dumps(value).encode()))
    sent = dict.fromkeys(users, 0)
    for _ in range(count - len(made)):
        user = draw.choice(users)
        sent[user] += 1
        made.append((FEATURES_TOPIC, user, json.dumps(f"feature-{sent[user]}").encode()))
    return made


def expected(made: Iterable[Event]) -> dict[str, tuple[str, list[str]]]:
    """For each user, who gets exactly one record: the name in it, and the features sent in order.

    No state is left: what a user had is cleared with the record, and later features are refused.
    """
    names: dict[str, str] = {}
    features: dict[str, list[str]] = {}
    for topic, user, value in made:
        if topic == USERS_TOPIC:
            names[user] = json.loads(value)["name"]
        else:
            features.setdefault(user, []).append(json.loads(value))
    return {user: (name, features.get(user, [])) for user, name in names.items()}


def differences(made: Iterable[Event], published: Iterable[Record]) -> list[str]:
    """What is wrong with the records of the downstream topic; empty when all is well.

    The features of a record are a run of those sent, without gap, repetition or change of order. Records that
    share an id are one: the outbox delivers at least once.
    """
    truth = expected(made)
    records: dict[str, list[bytes]] = {}
    for key, value in {record_id: (key, value) for record_id, key, value in published}.values():
        records.setdefault(key, []).append(value)
    wrong = [f"{user}: a record, but no registration" for user in records if user not in truth]
    for user, (name, sent) in truth.items():
        got = records.get(user, [])
        if len(got) != 1:
            wrong.append(f"{user}: {len(got)} records, expected 1")
            continue
        record = json.loads(got[0])
        if (record["id"], record["name"]) != (user, name):
            wrong.append(f"{user}: the record is of {record['id']!r}, {record['name']!r}")
        if not _is_run(record["features"], sent):
            wrong.append(f"{user}: features {record['features']} are no run of {sent}")
    return wrong


def _is_run(part: Sequence[str], whole: Sequence[str]) -> bool:
    return any(list(whole[i : i + len(part)]) == list(part) for i in range(len(whole) - len(part) + 1))
