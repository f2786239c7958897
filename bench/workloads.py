"""The five workloads: how many events over how many keys, to which handler.

Owns sizes, scaling and the events themselves. Pure: the same workload gives the same events everywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

EVENT_BYTES: Final = 200
SEED: Final = 20_240_601
COUNTED_SHARE: Final = 0.1
"""The part of a workload that is run a second time to count requests, behind a proxy that slows them."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`events` over `keys`; each key gets the same number of them, give or take one, in a shuffled order."""

    name: str
    title: str
    handler: str
    events: int
    keys: int
    kind: Literal["kafka", "rpc"] = "kafka"

    def scaled(self, factor: float) -> Workload:
        """The same with fewer (or more) events and keys; a key keeps its number of events. One key stays one."""
        events = max(10, round(self.events * factor))
        keys = 1 if self.keys == 1 else min(events, max(2, round(self.keys * factor)))
        return replace(self, events=events, keys=keys)

    def stream(self) -> list[tuple[str, bytes]]:
        """Key and value of each event."""
        keys = [f"key-{i % self.keys:04d}" for i in range(self.events)]
        random.Random(SEED).shuffle(keys)
        return [(key, _value(number)) for number, key in enumerate(keys)]

    def per_key(self) -> dict[str, int]:
        """How many events each key gets."""
        whole, rest = divmod(self.events, self.keys)
        return {f"key-{i:04d}": whole + (i < rest) for i in range(self.keys)}


WORKLOADS: Final[Mapping[str, Workload]] = {
    w.name: w
    for w in (
        Workload("w1", "get and set a counter, backlog", "count", 20_000, 1_000),
        Workload("w2", "three steps and a set, backlog", "steps", 10_000, 1_000),
        Workload("w3", "get and set a counter, one key", "count", 2_000, 1),
        Workload("w4", "user updates with a sleep of 1 s", "user_update", 2_000, 500),
        Workload("w5", "calls over HTTP, get and set", "add", 10_000, 1_000, "rpc"),
    )
}


def _value(number: int) -> bytes:
    bare = len(json.dumps({"number": number, "pad": ""}))
    return json.dumps({"number": number, "pad": "x" * (EVENT_BYTES - bare)}).encode()
