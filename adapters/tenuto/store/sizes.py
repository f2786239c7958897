"""What an item weighs.

Owns the one way to count it. Does not own what follows from it: DynamoDB's limit (`memory`), its price (`dynamodb`).
"""

from __future__ import annotations

from tenuto.lane.writes import Item


def item_bytes(item: Item) -> int:
    """Size of an item as DynamoDB counts it, to within a few bytes."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: object) -> int:
    match value:
        case str():
            return len(value.encode())
        case bytes():
            return len(value)
        case int():
            return len(str(value)) // 2 + 2
        case list():
            return 3 + sum(1 + _value_bytes(v) for v in value)
        case dict():
            return 3 + sum(1 + len(str(k).encode()) + _value_bytes(v) for k, v in value.items())
        case _:
            return 1
