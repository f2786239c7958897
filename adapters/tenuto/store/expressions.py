"""Writes and reads in DynamoDB's own language: attribute values, expressions, requests.

Owns the translation between plain items and attribute values, and from `Write` to the arguments of
UpdateItem, PutItem, DeleteItem, GetItem, Query and BatchWriteItem. Does not own sending them
(`tenuto.store.dynamodb`). Pure. Source of facts: the DynamoDB API reference and "Expressions in DynamoDB" of
the developer guide.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, assert_never

from tenuto.lane.writes import (
    Absent,
    AbsentOrAtMost,
    AbsentOrEquals,
    Clause,
    Delete,
    Equals,
    Foreign,
    Item,
    Key,
    Put,
    Update,
    Value,
    Write,
)

AttributeValue: TypeAlias = dict[str, Any]
"""A value as DynamoDB writes it, such as {"N": "3"}. Binary values are raw bytes: the client encodes them."""

Arguments: TypeAlias = dict[str, Any]
"""The arguments of one request."""

NUMBER_DIGITS_MAX = 38
"""Significant digits a DynamoDB number keeps."""

_NUMBER_BOUND = 10**NUMBER_DIGITS_MAX
_INTEGER = re.compile(r"-?[0-9]{1,40}")


def marshal(value: Value) -> AttributeValue:
    """The attribute value of a plain one.

    Raises TypeError for a type that an attribute cannot hold (bool and float among them: they would come back
    as something else) and ValueError for an integer of more than 38 digits.
    """
    match value:
        case str():
            return {"S": value}
        case bytes():
            return {"B": value}
        # bool is a subclass of int, so it has to be turned away first.
        case bool():
            raise TypeError("an attribute cannot hold a bool: store 0 or 1, or let the attribute be absent")
        case int():
            if not -_NUMBER_BOUND < value < _NUMBER_BOUND:
                raise ValueError(f"DynamoDB would round an integer of more than {NUMBER_DIGITS_MAX} digits")
            return {"N": str(value)}
        case None:
            return {"NULL": True}
        case list():
            return {"L": [marshal(element) for element in value]}
        case dict():
            return {"M": marshal_item(value)}
        case Foreign(attribute):
            return dict(attribute)
        case _:
            raise TypeError(f"an attribute cannot hold a {type(value).__name__}")


def marshal_item(item: Mapping[str, Value]) -> dict[str, AttributeValue]:
    """An item as DynamoDB takes it. Raises as `marshal` does."""
    return {name: marshal(value) for name, value in item.items()}


def unmarshal(attribute: AttributeValue) -> Value:
    """The plain value of an attribute value; Foreign for one that only another process can have written.

    Raises ValueError, TypeError, AttributeError or RecursionError for what is no attribute value of DynamoDB.
    """
    ((kind, value),) = attribute.items()
    match kind:
        case "S" if isinstance(value, str):
            return value
        case "B":
            # Text where the response was read as plain JSON, bytes where a client's parser has decoded it.
            return binascii.a2b_base64(value) if isinstance(value, str) else bytes(value)
        case "N" if _INTEGER.fullmatch(value):
            return int(value)
        case "NULL":
            return None
        case "L":
            return [unmarshal(element) for element in value]
        case "M":
            return unmarshal_item(value)
        case "N":
            return Foreign(attribute, "a number that is not an integer")
        case "BOOL" | "SS" | "NS" | "BS":
            return Foreign(attribute, f"DynamoDB type {kind}")
        case _:
            raise ValueError(f"no attribute value of DynamoDB: {kind}")


def unmarshal_item(attributes: Mapping[str, AttributeValue]) -> Item:
    """The plain item. Raises as `unmarshal` does."""
    return {name: unmarshal(attribute) for name, attribute in attributes.items()}


def render_write(table: str, write: Write) -> Arguments:
    """The arguments of the UpdateItem, PutItem or DeleteItem that a write is. Raises as `marshal` does."""
    match write:
        case Update():
            return _render_update(table, write)
        case Put(key, attributes, conditions):
            placeholders = _Placeholders()
            arguments: Arguments = {
                "TableName": table,
                "Item": {"pk": {"S": key.pk}, "sk": {"S": key.sk}, **marshal_item(attributes)},
            }
            _add_condition(arguments, conditions, placeholders)
            return placeholders.add_to(arguments)
        case Delete(key):
            return {"TableName": table, "Key": render_key(key)}
        case _:
            assert_never(write)


def render_get(table: str, key: Key) -> Arguments:
    """A strongly consistent GetItem."""
    return {"TableName": table, "Key": render_key(key), "ConsistentRead": True}


def render_query(table: str, pk: str, low: str, high: str, *, limit: int, after: str | None) -> Arguments:
    """A strongly consistent Query for low <= sk <= high. `after`, a sort key in between, starts behind it."""
    arguments: Arguments = {
        "TableName": table,
        "KeyConditionExpression": "pk = :p AND sk BETWEEN :l AND :h",
        "ExpressionAttributeValues": {":p": {"S": pk}, ":l": {"S": low}, ":h": {"S": high}},
        "ConsistentRead": True,
        "Limit": limit,
    }
    if after is not None:
        arguments["ExclusiveStartKey"] = render_key(Key(pk, after))
    return arguments


def render_batch_get(table: str, keys: Iterable[Key]) -> Arguments:
    """A BatchGetItem of strongly consistent reads; at most 100 keys, all different."""
    return {"RequestItems": {table: {"Keys": [render_key(key) for key in keys], "ConsistentRead": True}}}


def render_batch_delete(table: str, keys: Iterable[Key]) -> Arguments:
    """A BatchWriteItem that deletes; at most 25 keys, all different."""
    return {"RequestItems": {table: [{"DeleteRequest": {"Key": render_key(key)}} for key in keys]}}


def render_batch_put(table: str, puts: Iterable[Put]) -> Arguments:
    """A BatchWriteItem that puts, whatever is there; at most 25 items, all different. Raises as `marshal` does."""
    items = ({**render_key(put.key), **marshal_item(put.attributes)} for put in puts)
    return {"RequestItems": {table: [{"PutRequest": {"Item": item}} for item in items]}}


def render_key(key: Key) -> dict[str, AttributeValue]:
    """A primary key."""
    return {"pk": {"S": key.pk}, "sk": {"S": key.sk}}


class _Placeholders:
    """Stand-ins for names and values: attribute names hold dots, and many are reserved words."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._values: dict[str, AttributeValue] = {}

    def name(self, attribute: str) -> str:
        """The stand-in of a name, the same wherever it is used again."""
        return self._names.setdefault(attribute, f"#a{len(self._names)}")

    def value(self, value: Value) -> str:
        """A new stand-in for a value."""
        placeholder = f":v{len(self._values)}"
        self._values[placeholder] = marshal(value)
        return placeholder

    def add_to(self, arguments: Arguments) -> Arguments:
        """Fill the maps in; DynamoDB refuses empty ones."""
        if self._names:
            arguments["ExpressionAttributeNames"] = {short: name for name, short in self._names.items()}
        if self._values:
            arguments["ExpressionAttributeValues"] = self._values
        return arguments


def _render_update(table: str, update: Update) -> Arguments:
    placeholders = _Placeholders()
    actions: list[str] = []
    if update.sets:
        sets = (f"{placeholders.name(a)}={placeholders.value(v)}" for a, v in update.sets.items())
        actions.append("SET " + ",".join(sets))
    # DynamoDB refuses an attribute named in both; what is set wins, as in `writes.apply`.
    removes = [placeholders.name(a) for a in dict.fromkeys(update.removes) if a not in update.sets]
    if removes:
        actions.append("REMOVE " + ",".join(removes))
    returned = "NONE" if update.quiet else "ALL_NEW"
    arguments: Arguments = {"TableName": table, "Key": render_key(update.key), "ReturnValues": returned}
    if actions:
        arguments["UpdateExpression"] = " ".join(actions)
    _add_condition(arguments, update.conditions, placeholders)
    return placeholders.add_to(arguments)


def _add_condition(arguments: Arguments, clauses: tuple[Clause, ...], placeholders: _Placeholders) -> None:
    if clauses:
        arguments["ConditionExpression"] = " AND ".join(_render_clause(c, placeholders) for c in clauses)
        arguments["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"


def _render_clause(clause: Clause, placeholders: _Placeholders) -> str:
    name = placeholders.name(clause.attribute)
    match clause:
        case Equals(_, _, value):
            return f"{name} = {placeholders.value(value)}"
        case Absent():
            return f"attribute_not_exists({name})"
        case AbsentOrAtMost(_, _, number):
            return f"(attribute_not_exists({name}) OR {name} <= {placeholders.value(number)})"
        case AbsentOrEquals(_, _, text):
            return f"(attribute_not_exists({name}) OR {name} = {placeholders.value(text)})"
        case _:
            assert_never(clause)
