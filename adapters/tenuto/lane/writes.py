"""Writes as data: what a single-item conditional write sets, removes and requires.

Owns the vocabulary (`Update`, `Put`, `Delete`, clauses) and its meaning on plain items. Does not own which writes a
lane takes (`transitions`), nor DynamoDB's expression language (`tenuto.store.dynamodb`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, assert_never

from msgspec import Struct


class Foreign(Struct, frozen=True):
    """A value that cannot be read, in DynamoDB's own form: an item that holds one can be moved without a loss.

    `reason` says why: its type is none that this project writes, or it does not open under its data key.
    """

    attribute: Mapping[str, Any]
    reason: str


Value: TypeAlias = str | int | bytes | list["Value"] | dict[str, "Value"] | Foreign | None
"""What an attribute may hold: DynamoDB's S, N, B, NULL, L and M. Only items that another process wrote hold Foreign."""

Item: TypeAlias = dict[str, Value]


class Key(Struct, frozen=True):
    """Primary key of an item."""

    pk: str
    sk: str


class Equals(Struct, frozen=True):
    """The attribute exists and equals the value."""

    label: str
    attribute: str
    value: str | int


class Absent(Struct, frozen=True):
    """The attribute does not exist."""

    label: str
    attribute: str


class AbsentOrAtMost(Struct, frozen=True):
    """The attribute does not exist or is at most the number."""

    label: str
    attribute: str
    number: int


class AbsentOrEquals(Struct, frozen=True):
    """The attribute does not exist or equals the text."""

    label: str
    attribute: str
    value: str


Clause: TypeAlias = Equals | Absent | AbsentOrAtMost | AbsentOrEquals
"""One term of a condition; a condition is the conjunction of its clauses. Mutation tests name clauses by label."""


class Update(Struct, frozen=True):
    """Create or change one item if every clause holds.

    With `quiet`, whoever writes it knows enough of the item: a table may answer that it was applied with no item at
    all. A refusal always brings the item.
    """

    key: Key
    sets: Mapping[str, Value] = {}
    removes: tuple[str, ...] = ()
    conditions: tuple[Clause, ...] = ()
    quiet: bool = False


class Put(Struct, frozen=True):
    """Replace one whole item if every clause holds."""

    key: Key
    attributes: Mapping[str, Value]
    conditions: tuple[Clause, ...] = ()


class Delete(Struct, frozen=True):
    """Delete one item; deleting what is not there is no error."""

    key: Key


Write: TypeAlias = Update | Put | Delete


class Applied(Struct, frozen=True):
    """The write took place; `item` is what it left (None after a delete, or a quiet update)."""

    item: Item | None


class Refused(Struct, frozen=True):
    """A clause did not hold; `item` is what was there instead (None: nothing)."""

    item: Item | None


Answer: TypeAlias = Applied | Refused


def holds(clause: Clause, item: Item | None) -> bool:
    """Whether a clause holds on an item (None: no item)."""
    attributes: Mapping[str, Value] = item or {}
    match clause:
        case Equals(_, attribute, value):
            return attribute in attributes and attributes[attribute] == value
        case Absent(_, attribute):
            return attribute not in attributes
        case AbsentOrAtMost(_, attribute, number):
            found = attributes.get(attribute)
            return attribute not in attributes or (isinstance(found, int) and found <= number)
        case AbsentOrEquals(_, attribute, value):
            return attribute not in attributes or attributes[attribute] == value
        case _:
            assert_never(clause)


def check_unconditional(puts: Sequence[Put]) -> None:
    """Raises ValueError unless these puts can be made together: what takes many at once takes no conditions."""
    if any(put.conditions for put in puts):
        raise ValueError("a put with a condition is made by itself")


def apply(write: Write, item: Item | None) -> Answer:
    """What a write does to an item: the reference for every table."""
    match write:
        case Delete():
            return Applied(None)
        case Put(key, attributes, conditions):
            if not all(holds(c, item) for c in conditions):
                return Refused(item)
            return Applied({"pk": key.pk, "sk": key.sk, **attributes})
        case Update(key, sets, removes, conditions):
            if not all(holds(c, item) for c in conditions):
                return Refused(item)
            changed: Item = dict(item) if item is not None else {"pk": key.pk, "sk": key.sk}
            for attribute in removes:
                changed.pop(attribute, None)
            changed.update(sets)
            return Applied(changed)
        case _:
            assert_never(write)
