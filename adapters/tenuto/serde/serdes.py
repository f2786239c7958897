"""The serdes, and which of them a type hint gets.

Owns the rule that nothing is lost: `_read_back` is the one place where a write is compared with its reading. Does not
own how text is written and read (`tenuto.serde.text`) nor what counts as the same value (`tenuto.serde.sameness`).
"""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import msgspec

from tenuto.errors import BadInputError, UnserialisableError
from tenuto.serde.hints import (
    is_from_pydantic,
    is_struct,
    name_of,
    parts,
    per_hint,
    require_msgspec_support,
    unsupported,
)
from tenuto.serde.sameness import NO_BYTES, NO_NAN, Difference, difference, form_of, is_plain
from tenuto.serde.text import (
    PLAIN_DECODER,
    TOO_DEEP,
    adapter_of,
    decode,
    decoder_for,
    encode,
    pydantic_text,
    pydantic_value,
    refuse_bytes,
    refuse_lost_floats,
)

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_NO_HINTS: Final = (None, types.NoneType, Any, object)

_NO_RESULT: Final = (typing.NoReturn, typing.Never)
"""Result hints of a handler that always raises."""

_SURE_HINTS: Final = (int, str, bool)
"""Hints that give back every value of exactly their type: reading it back would prove nothing."""


class Serde(Protocol[T]):
    """Encodes values as bytes and decodes them. A protocol: pass an object with these methods to `RunOptions`.

    An implementation must be stateless, since several threads may share it.
    """

    def serialize(self, value: T) -> bytes:
        """Encode a value. Raises UnserialisableError if decoding the bytes would not return an equal value."""
        ...

    def deserialize(self, data: bytes) -> T:
        """Decode a value. Raises BadInputError, whose message must not quote the data."""
        ...


class BytesSerde:
    """Serde of raw bytes, which are stored unchanged.

    It refuses None, because every sequence of bytes already stands for a value.
    """

    def serialize(self, value: bytes) -> bytes:
        """Return the value itself. Raises UnserialisableError for anything other than bytes."""
        # The annotation says bytes, but what arrives is whatever a handler returned.
        candidate: object = value
        if type(candidate) is bytes:
            return candidate
        problem = "a value declared as raw bytes must be bytes"
        if isinstance(candidate, bytes | bytearray | memoryview):
            data = bytes(candidate)
            # Not so for a view of larger items, or a subclass with its own equality.
            if candidate == data and not getattr(candidate, "__dict__", None):
                return data
        elif candidate is None:
            problem += "; return b'' for an empty value, clear a state value to remove it"
        raise UnserialisableError(name_of(type(candidate)), problem)

    def deserialize(self, data: bytes) -> bytes:
        """Return the data itself."""
        return data


class JsonSerde:
    """Serde of plain JSON: dict with text keys, list, str, int, float, bool and None. Other values need a type hint."""

    def serialize(self, value: Any) -> bytes:
        """Encode a value. Raises UnserialisableError, whose message shows a type hint that fits the value."""
        data = encode(value)
        if not is_plain(value):
            _read_back(value, data, self.deserialize, _advice_without_hint)
        return data

    def deserialize(self, data: bytes) -> Any:
        """Decode a JSON value. Raises BadInputError."""
        return decode(PLAIN_DECODER, data, "JSON")


class TypedSerde(Generic[T]):
    """JSON by msgspec's rules, checked against the hint when it is written and when it is read."""

    def __init__(self, hint: Any) -> None:
        """Raises TypeError when msgspec cannot decode to `hint`."""
        self._hint = hint
        self._expected = name_of(hint)
        require_msgspec_support(hint)
        self._decoder: msgspec.json.Decoder[T] = decoder_for(hint)

    def serialize(self, value: T) -> bytes:
        """JSON of `value`. Raises UnserialisableError."""
        data = encode(value)
        if type(value) is not self._hint or self._hint not in _SURE_HINTS:
            _read_back(value, data, self.deserialize, _advice_with_hint)
        return data

    def write(self, value: T) -> bytes:
        """JSON of `value` that is not compared with what would be read back. Raises UnserialisableError."""
        data = encode(value)
        refuse_lost_floats(value, data)
        return data

    def deserialize(self, data: bytes) -> T:
        """The checked value in `data`. Raises BadInputError."""
        return decode(self._decoder, data, self._expected)


class PydanticSerde(Generic[T]):
    """JSON by pydantic's rules (2.11 and later), for models and for whatever contains them.

    Written by alias and without computed fields, so that what is written can be read; read by alias or by name. Which
    fields were set explicitly is not kept: all of them are written.
    """

    def __init__(self, hint: Any) -> None:
        """Raises TypeError when pydantic has no schema for `hint`."""
        self._hint = hint
        self._adapter: TypeAdapter[T] = adapter_of(hint)

    def serialize(self, value: T) -> bytes:
        """JSON of `value`. Raises UnserialisableError."""
        data = pydantic_text(self._adapter, value, nulls_checked=False)
        _read_back(value, data, self.deserialize, _advice_with_hint)
        return data

    def write(self, value: T) -> bytes:
        """JSON of `value` that is not compared with what would be read back. Raises UnserialisableError."""
        return pydantic_text(self._adapter, value)

    def deserialize(self, data: bytes) -> T:
        """The checked value in `data`. Raises BadInputError."""
        return pydantic_value(self._adapter, data, self._hint)


@per_hint
def serde_for(hint: Any) -> Serde[Any]:
    """The serde for a type hint; the same hint gives the same serde.

    Raises TypeError, naming the hint, when values of it cannot be read from JSON: call this where handlers
    are declared, so that the mistake shows when the module is imported.
    """
    if hint in _NO_HINTS:
        return JsonSerde()
    if hint is bytes or hint == bytes | None:
        return BytesSerde()
    if isinstance(hint, str):
        raise unsupported(hint, "it is text; pass the type itself")
    every = list(parts(hint))
    from_pydantic = "pydantic" in sys.modules and any(is_from_pydantic(part) for part in every)
    # Pydantic cannot hold a Struct, but msgspec can hold a pydantic model (by its `dec_hook`).
    if from_pydantic and not any(is_struct(part) for part in every):
        return PydanticSerde[Any](hint)
    return TypedSerde[Any](hint)


def output_serde_for(hint: Any) -> Serde[Any]:
    """The serde for the result of a handler. Without a hint nothing of tenuto reads it: it is for the caller."""
    return OutboundSerde() if hint in _NO_HINTS or hint in _NO_RESULT else serde_for(hint)


# The rule -----------------------------------------------------------------------------------------


def _read_back(
    value: Any, data: bytes, deserialize: Callable[[bytes], Any], advice: Callable[[Difference, Any], str]
) -> None:
    """Raises UnserialisableError unless `deserialize` makes of `data` what `value` is."""
    problem = None
    try:
        found = difference(value, deserialize(data))
    except BadInputError as error:
        problem, at = error.problem, error.at
    else:
        if found is None:
            return
        raise UnserialisableError(name_of(type(value)), f"at {found.at}, {found.problem}{advice(found, value)}")
    # A field that is a float by its hint cannot read the null that a NaN became: that is the better reason.
    refuse_lost_floats(value, data)
    raise UnserialisableError(name_of(type(value)), f"it could not be read back: {problem} (at {at})")


def _advice_without_hint(found: Difference, value: Any) -> str:
    if not found.retyped:
        return ""
    return (
        f"; give the type, such as {form_of(value)}: annotate the step that returns it or the handler that takes "
        "it, with a name that exists at run time, or pass `type_hint`"
    )


def _advice_with_hint(found: Difference, _value: Any) -> str:
    return "; the declared type must be that of the value (for several types a union of them)" if found.retyped else ""


# Without the reader's hint ------------------------------------------------------------------------


class OwnTypesSerde:
    """State and answers to awakeables that are written without a hint: the reader gives each value's own class.

    A Struct, dataclass, model, Enum, datetime and the like must come back equal when its class is the hint, alone or
    inside lists and dicts. A tuple, a set and a dict with other keys than text are refused: without a hint they come
    back as something that looks right.
    """

    def serialize(self, value: Any) -> bytes:
        """JSON of `value`, or its bytes when it is bytes. Raises UnserialisableError."""
        kind = type(value)
        if isinstance(value, bytes):
            return BytesSerde().serialize(value)
        try:
            data = encode(value)
        except UnserialisableError:
            data = None  # Its own class may know better than msgspec how to write it.
        if data is not None and is_plain(value):
            return data
        try:
            return encode(_own_tree(value))
        except RecursionError:
            raise UnserialisableError(name_of(kind), TOO_DEEP) from None
        except UnserialisableError as error:
            inside = "" if error.value_type == name_of(kind) else f"{error.value_type} inside it: "
            raise UnserialisableError(name_of(kind), f"{inside}{error.problem}") from None

    def deserialize(self, data: bytes) -> Any:
        """The JSON value in `data`, for a reader without a hint. Raises BadInputError."""
        return decode(PLAIN_DECODER, data, "JSON")


class OutboundSerde:
    """JSON for others than tenuto: what is published, and results of handlers that declare no type.

    Nothing reads it back here, so it may say less than the value: a tuple is a list, a key is text. What would be
    another value for any reader is refused: NaN, bytes, two keys that become one.
    """

    def serialize(self, value: Any) -> bytes:
        """JSON of `value`, by its own type. Raises UnserialisableError."""
        serde = None if isinstance(value, _PLAIN_BASES) else _own_serde(value)
        if isinstance(serde, TypedSerde | PydanticSerde):
            data = serde.write(value)
        else:
            data = encode(value)
            refuse_lost_floats(value, data)
        refuse_bytes(value)
        return data

    def deserialize(self, data: bytes) -> Any:
        """The JSON value in `data`. Raises BadInputError."""
        return decode(PLAIN_DECODER, data, "JSON")


_PLAIN_BASES: Final = (dict, list, tuple, set, frozenset, str, int, float, bool, type(None), bytes)


def _own_serde(value: Any) -> Serde[Any]:
    """The serde for the value's own class; raises UnserialisableError when there is none."""
    try:
        return serde_for(type(value))
    except TypeError:
        raise UnserialisableError(name_of(type(value)), "it has no JSON form") from None


def _own_tree(value: Any) -> Any:
    """`value` with each object as the JSON of its own class; raises UnserialisableError when that would not be it."""
    kind = type(value)
    if value is None or kind in (str, int, bool):
        return value
    bare = not getattr(value, "__dict__", None)
    if isinstance(value, list) and bare:
        return [_own_tree(item) for item in value]
    if isinstance(value, dict) and bare and all(type(key) is str for key in value):
        return {key: _own_tree(item) for key, item in value.items()}
    if kind is float and math.isfinite(value):
        return value
    if kind is float:
        raise UnserialisableError(name_of(kind), NO_NAN)
    if kind is bytes:
        raise UnserialisableError(name_of(kind), NO_BYTES)
    if kind in (dict, tuple, set, frozenset):
        problem = (
            "it would come back as something else; pass its type where it is written and where it is read, such as"
        )
        raise UnserialisableError(name_of(kind), f"{problem} {form_of(value)}")
    return msgspec.Raw(_own_serde(value).serialize(value))
