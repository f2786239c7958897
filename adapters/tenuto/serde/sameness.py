"""Whether a value that was read back is the value that was written, and where it is not.

Owns what "the same" means: equal in every part, and of the same type, but for the few types that stand for each other
without losing anything. `==` alone would not do. It takes True for 1, two datetimes of different zones for one, and
whatever a class's own `__eq__` leaves out for equal.

What may come back as another type, when the two are equal:

    an int as a float or Decimal            a field declared as float takes ints
    a member of a str or int Enum as its    the text or number equals the member; and the other way round
    value
    a subclass of dict or list as its base  when the instance has no attributes of its own
    bytes, bytearray and memoryview,        they compare equal
    set and frozenset, as one another

A class that defines no `__eq__` is compared by its attributes. As for `==`, it does not matter in which order a dict
has its keys, which fields of a pydantic model were set explicitly, and which fold a time with a fixed offset has. Does
not own how values are written or read.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import functools
import math
import operator
import uuid
from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal
from typing import Any, Final, cast

from tenuto.serde.hints import name_of

KINDS_KEPT_MAX: Final = 1024
"""Types whose way of comparing is kept: a program has few; the bound is for types that are made at run time."""

NO_NAN: Final = "JSON has no NaN and no infinity; use None or text for them"
NO_BYTES: Final = "plain JSON has no bytes; give a type hint (bytes, or a type with a bytes field) or a Serde"

FORM_ITEMS_MAX: Final = 3
"""Different types that a suggested hint names at most for the items of one container."""

FORM_DEPTH_MAX: Final = 3
"""Levels of containers that a suggested hint spells out."""

_Step = str | int
_Parts = list[tuple[_Step, Any, Any]]
_Compare = Callable[[Any, Any], _Parts | None]

_SAME: Final[_Parts] = []
_ABSENT: Final = object()
_PLAIN_SCALARS: Final = frozenset({type(None), bool, int, str, bytes, bytearray})
_BYTES: Final = (bytes, bytearray, memoryview)
_ANY_KEY: Final = "[...]"
"""A key of a dict is part of the value, which no error quotes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """The first place (`$.user.age`) where the two differ, and what became of it. Quotes nothing of the value.

    `retyped` says that another hint would have kept it.
    """

    at: str
    problem: str
    retyped: bool = False


def difference(written: Any, read: Any) -> Difference | None:
    """Compare; None when nothing is lost. `written` must not contain itself."""
    try:
        if _surely_same(written, read):
            return None
    except (RecursionError, AttributeError):
        pass  # The walk below does not recurse, and knows attributes that are missing.
    return _first_difference(written, read)


def _first_difference(written: Any, read: Any) -> Difference | None:
    # A stack instead of recursion: what JSON can nest, this can compare.
    waiting: list[tuple[Any, Any, Any]] = [(written, read, None)]
    while waiting:
        before, after, at = waiting.pop()
        kind = type(before)
        if kind is not type(after):
            parts = _converted(before, after)
        elif kind in _PLAIN_SCALARS:
            parts = _SAME if before == after else None
        else:
            parts = _compare_of(cast("Hashable", kind))(before, after)
        if parts is None:
            return _described(before, after, _place(at))
        waiting.extend((one, other, (at, step)) for step, one, other in parts)
    return None


def is_plain(value: Any) -> bool:
    """Whether plain JSON gives `value` back as it is: dicts with text keys, lists and scalars, no subclass of them."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind is str or kind is int or kind is bool or node is None:
            continue
        if kind is float:
            if not math.isfinite(node):
                return False
        elif kind is list:
            waiting.extend(node)
        elif kind is dict:
            for key in node:
                if type(key) is not str:
                    return False
            waiting.extend(node.values())
        else:
            return False
    return True


def form_of(value: Any, depth: int = FORM_DEPTH_MAX) -> str:
    """A hint that gives `value` back, as one would write it: `dict[str, tuple[int, int]]`."""
    kind = type(value)
    if value is None:
        return "None"
    if kind not in (dict, list, tuple, set, frozenset):
        return name_of(kind)
    if depth == 0 or not value:
        return "tuple[()]" if kind is tuple and not value else kind.__name__
    if kind is tuple and len(value) <= FORM_ITEMS_MAX:
        return f"tuple[{', '.join(form_of(item, depth - 1) for item in value)}]"
    inside = [value.keys(), value.values()] if kind is dict else [value]
    forms = [_form_of_all(items, depth - 1) for items in inside]
    return f"{kind.__name__}[{', '.join(forms)}{', ...' if kind is tuple else ''}]"


def _form_of_all(items: Iterable[Any], depth: int) -> str:
    forms = sorted({form_of(item, depth) for item in items}, key=lambda form: (form == "None", form))
    return " | ".join(forms) if len(forms) <= FORM_ITEMS_MAX else "..."


def zone_problem(value: dt.datetime | dt.time) -> str | None:
    """What JSON, which has offsets of whole minutes and no zones, loses of a datetime's zone; None when nothing."""
    zone = value.tzinfo
    if zone is None:
        return "its fold would be lost; convert it to UTC, or set fold=0" if value.fold else None
    try:
        # A zone with one fixed offset answers for None as well, any other has no answer.
        offset = zone.utcoffset(None)
    except Exception:  # noqa: BLE001 - a tzinfo of the user's: one that cannot answer is not fixed
        offset = None
    if offset is None:
        return (
            f"its time zone ({name_of(type(zone))}) would be lost; convert it to UTC or to a fixed offset "
            "(datetime.timezone), or give the zone as text"
        )
    if offset % dt.timedelta(minutes=1):
        return "its UTC offset has seconds, and JSON has whole minutes; convert it to UTC"
    return None


# The quick way ------------------------------------------------------------------------------------


def _surely_same(before: Any, after: Any) -> bool:
    """Whether values of the common types are the same. False proves nothing: the walk decides, and says where.

    Every write of a typed value passes here, so it takes no notes of places and asks C for as much as it can.
    """
    kind = type(before)
    if kind is not type(after):
        return kind is int and type(after) is float and bool(before == after)
    if kind in _PLAIN_SCALARS:
        return bool(before == after)
    if kind is list or kind is tuple:
        if set(map(type, before)) <= _PLAIN_SCALARS:
            return bool(before == after) and list(map(type, before)) == list(map(type, after))
        return len(before) == len(after) and all(map(_surely_same, before, after))
    if kind is dict:
        return _surely_same_dicts(before, after)
    if kind is float:
        return _floats(before, after) is not None
    values_of = _values_of(cast("Hashable", kind))
    if values_of is None:
        return _first_difference(before, after) is None
    one, other = values_of(before), values_of(after)
    if type(one) is dict:
        return _surely_same_dicts(one, other)
    return all(map(_surely_same, one, other))


@functools.lru_cache(maxsize=KINDS_KEPT_MAX)
def _values_of(kind: Any) -> Callable[[Any], Any] | None:
    """What gives all that an instance of a class with fields holds, as a tuple or dict; None for other types."""
    if hasattr(kind, "__pydantic_root_model__"):
        return _values_of_model
    names = getattr(kind, "__struct_fields__", ())
    if names and not kind.__dictoffset__:
        values_of = operator.attrgetter(*names)
        return values_of if len(names) > 1 else lambda value: (values_of(value),)
    has_slots = any("__slots__" in cls.__dict__ for cls in kind.__mro__[:-1])
    # The `__dict__` has the fields of a dataclass, and all else that was set on the instance.
    return operator.attrgetter("__dict__") if dataclasses.is_dataclass(kind) and not has_slots else None


def _values_of_model(model: Any) -> dict[str, Any]:
    values: dict[str, Any] = model.__dict__
    extra, private = model.__pydantic_extra__, model.__pydantic_private__
    return {**values, " extra": extra, " private": private} if extra or private else values


def _surely_same_dicts(before: dict[Any, Any], after: dict[Any, Any]) -> bool:
    if len(before) != len(after):
        return False
    for key, value in before.items():
        if type(key) is not str or key not in after or not _surely_same(value, after[key]):
            return False
    return True


# Values of one type -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=KINDS_KEPT_MAX)
def _compare_of(kind: Any) -> _Compare:
    """How two values of exactly this type are compared: None says they differ, parts what is left to compare."""
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if issubclass(kind, enum.Enum):
        return _by_equality
    for base, compare in _BY_BASE:
        if issubclass(kind, base):
            return compare
    if hasattr(kind, "__pydantic_root_model__"):
        return _models
    if hasattr(kind, "__struct_fields__"):
        return _by_names(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return _by_names(tuple(field.name for field in dataclasses.fields(kind)))
    if hasattr(kind, "__attrs_attrs__"):
        return _by_names(tuple(field.name for field in kind.__attrs_attrs__))
    if kind.__eq__ is object.__eq__:
        slots = [name for cls in kind.__mro__ for name in _slots_of(cls)]
        has_state = bool(slots) or kind.__dictoffset__ != 0
        return _by_names(tuple(slots)) if has_state else _never
    return _by_equality


def _slots_of(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _by_equality(before: Any, after: Any) -> _Parts | None:
    try:
        return _SAME if bool(before == after) else None
    except Exception:  # noqa: BLE001 - an `__eq__` of the user's that fails proves nothing equal
        return None


def _never(before: Any, after: Any) -> _Parts | None:
    """For objects without attributes or `__eq__`: nothing shows that two of them are the same."""
    return _SAME if before is after else None


def _floats(before: float, after: float) -> _Parts | None:
    return _SAME if before == after and math.copysign(1, before) == math.copysign(1, after) else None


def _decimals(before: Decimal, after: Decimal) -> _Parts | None:
    # By digits and exponent, since 1.0 == 1.00; a NaN equals nothing, so nobody could read it back equal.
    return _SAME if before.as_tuple() == after.as_tuple() and not before.is_nan() else None


def _times(before: Any, after: Any) -> _Parts | None:
    if zone_problem(before) is not None or before.utcoffset() != after.utcoffset():
        return None
    return _SAME if before == after else None


def _sequences(before: Any, after: Any) -> _Parts | None:
    if len(before) != len(after):
        return None
    parts: _Parts = [(index, one, other) for index, (one, other) in enumerate(zip(before, after, strict=True))]
    return _with_attributes(parts, before, after)


def _deques(before: Any, after: Any) -> _Parts | None:
    return _sequences(before, after) if before.maxlen == after.maxlen else None


def _dicts(before: Any, after: Any) -> _Parts | None:
    if before.keys() != after.keys():
        return None
    parts: _Parts = [(_ANY_KEY, value, after[key]) for key, value in before.items()]
    if not all(type(key) is str for key in before):
        parts += _elements(before, after)
    return _with_attributes(parts, before, after)


def _ordered_dicts(before: Any, after: Any) -> _Parts | None:
    return _dicts(before, after) if list(before) == list(after) else None


def _default_dicts(before: Any, after: Any) -> _Parts | None:
    return _dicts(before, after) if before.default_factory == after.default_factory else None


def _sets(before: Any, after: Any) -> _Parts | None:
    return _with_attributes(_elements(before, after), before, after) if before == after else None


def _elements(before: Iterable[Any], after: Iterable[Any]) -> _Parts:
    """Each element beside the one that equals it, which may still be of another type or zone."""
    found = {element: element for element in after}
    return [(_ANY_KEY, element, found[element]) for element in before]


def _models(before: Any, after: Any) -> _Parts | None:
    parts = _with_attributes([], before, after)
    for group, step in (("__pydantic_extra__", _ANY_KEY), ("__pydantic_private__", "")):
        one, other = (getattr(model, group, None) or {} for model in (before, after))
        if parts is None or one.keys() != other.keys():
            return None
        parts += [(step or f".{name}", value, other[name]) for name, value in one.items()]
    return parts


def _by_names(names: tuple[str, ...]) -> _Compare:
    """Compare the named attributes, which may be missing, and all that the instances hold beside them."""

    def compare(before: Any, after: Any) -> _Parts | None:
        parts: _Parts = []
        for name in names:
            one, other = getattr(before, name, _ABSENT), getattr(after, name, _ABSENT)
            if one is other:
                continue
            if one is _ABSENT or other is _ABSENT:
                return None
            parts.append((f".{name}", one, other))
        return _with_attributes(parts, before, after, names)

    return compare


def _with_attributes(parts: _Parts, before: Any, after: Any, known: tuple[str, ...] = ()) -> _Parts | None:
    """`parts`, joined by what the instances' `__dict__`s hold; cached properties come again when asked for."""
    one, other = getattr(before, "__dict__", None), getattr(after, "__dict__", None)
    if not one and not other:
        return parts
    kind = type(before)
    for name in {**(one or {}), **(other or {})}:
        if name in known or isinstance(getattr(kind, name, None), functools.cached_property):
            continue
        if one is None or other is None or name not in one or name not in other:
            return None
        parts.append((f".{name}", one[name], other[name]))
    return parts


_BY_TYPE: Final[dict[type, _Compare]] = {
    float: _floats,
    list: _sequences,
    dict: _dicts,
    tuple: _sequences,
    set: _sets,
    frozenset: _sets,
    uuid.UUID: _by_equality,
    dt.timedelta: _by_equality,
}
_BY_BASE: Final[tuple[tuple[type, _Compare], ...]] = (
    (dt.datetime, _times),
    (dt.time, _times),
    (Decimal, _decimals),
    (float, _floats),
    (collections.OrderedDict, _ordered_dicts),
    (collections.defaultdict, _default_dicts),
    (dict, _dicts),
    (collections.deque, _deques),
    (list, _sequences),
    (tuple, _sequences),
    (set, _sets),
    (frozenset, _sets),
)


# Values of two types ------------------------------------------------------------------------------


def _converted(before: Any, after: Any) -> _Parts | None:
    """As `_compare_of`, for a value that came back as another type."""
    if isinstance(before, bool) or isinstance(after, bool):
        return None
    if isinstance(before, enum.Enum) or isinstance(after, enum.Enum):
        one, other = (after, before) if isinstance(after, enum.Enum) else (before, after)
        mixed = isinstance(one, str | int) and type(other) in (str, int, float)
        return _by_equality(before, after) if mixed else None
    for family in (_BYTES, (set, frozenset)):
        if isinstance(before, family) and isinstance(after, family):
            return _sets(before, after) if family != _BYTES else _by_equality(before, after)
    if type(before) is int and type(after) in (float, Decimal):
        return _by_equality(before, after)
    if not isinstance(before, type(after)) or getattr(before, "__dict__", None):
        return None
    if type(after) is dict:
        return _dicts(before, after)
    if type(after) is list:
        return _sequences(before, after)
    return None


# Messages -----------------------------------------------------------------------------------------


def _place(at: Any) -> str:
    steps: list[str] = []
    while at is not None:
        at, step = at
        steps.append(f"[{step}]" if isinstance(step, int) else step)
    return "$" + "".join(reversed(steps))


def _described(before: Any, after: Any, at: str) -> Difference:
    name = name_of(type(before))
    if isinstance(before, float) and not math.isfinite(before):
        return Difference(at, NO_NAN)
    if isinstance(before, Decimal) and before.is_nan():
        return Difference(at, "a NaN equals nothing, so it cannot be read back equal; use None or text for it")
    if isinstance(before, dt.datetime | dt.time) and type(before) is type(after):
        return Difference(at, zone_problem(before) or f"{name} would come back changed")
    if isinstance(before, _BYTES) and isinstance(after, str):
        return Difference(at, NO_BYTES)
    if type(before) is not type(after):
        return Difference(at, f"{name} would come back as {name_of(type(after))}", retyped=True)
    if isinstance(before, dict) and not all(isinstance(key, str) for key in before):
        return Difference(at, f"keys of {name} would come back as other keys", retyped=True)
    if isinstance(before, dict) and before.keys() != after.keys():
        return Difference(at, f"{name} would come back with other keys than it has")
    return Difference(at, f"{name} would come back changed")
