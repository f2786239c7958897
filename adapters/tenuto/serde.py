"""How values become bytes and come back: inputs, outputs, state and results of runs.

`serde_for(hint)` picks a serde by type hint, `hints_of(handler)` reads the hints off a handler:

    bytes, bytes | None                     BytesSerde      as they are
    none given, None, Any, object           JsonSerde       plain JSON; a value is written by its own type
    pydantic models and what contains them  PydanticSerde   JSON by pydantic's rules
    all that msgspec knows                  TypedSerde      JSON by msgspec's rules: Struct, dataclass,
                                                            TypedDict, Enum, datetime, UUID, containers

Encoding is deterministic: equal values give equal bytes in every process, whatever the order of a dict's
keys or the hash order of a set. (One exception: a set inside a pydantic model is written in the order in
which the model dumps it.) So object keys come back sorted. JSON has its usual limits where no hint restores
the type: tuples and sets come back as lists, keys of dicts as strings. What would be lost in silence is
refused: bytes in untyped JSON, NaN and the infinities, which JSON would turn into null.

This module does not own what a missing value means (an empty body, a Kafka tombstone): callers decide that
before they decode. Pydantic is never imported here unless a hint or a value comes from it, which means it
is loaded already.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
import sys
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Protocol, TypeVar

import msgspec
import msgspec.inspect

from tenuto.errors import BadInputError, UnserialisableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import TypeAdapter, ValidationError

__all__ = [
    "MISSING",
    "BytesSerde",
    "JsonSerde",
    "PydanticSerde",
    "Serde",
    "TypedSerde",
    "hints_of",
    "problem_of",
    "serde_for",
]

T = TypeVar("T")

SERDE_CACHE_MAX: Final = 1024
"""Hints whose serde is kept: a program has few; the bound is for hints that are made at run time."""

PROBLEMS_SHOWN_MAX: Final = 3
"""Places that one decoding error names at most."""


HANDLER_PARAMETERS_MAX: Final = 2
"""The context and one input."""


class Missing(enum.Enum):
    """The type of `MISSING`, so that checkers can tell it from every hint."""

    MISSING = "MISSING"


MISSING: Final = Missing.MISSING
"""The input hint of a handler that takes no input."""


class Serde(Protocol[T]):
    """Turns values to bytes and back. Implementations hold no state and may be shared by threads."""

    def serialize(self, value: T) -> bytes:
        """The bytes of `value`. Raises UnserialisableError."""
        ...

    def deserialize(self, data: bytes) -> T:
        """The value in `data`. Raises BadInputError, which never quotes the data."""
        ...


class BytesSerde:
    """Bytes as they are.

    None is refused: raw bytes have no way to say it that could not be a value too.
    """

    def serialize(self, value: bytes) -> bytes:
        """The value itself. Raises UnserialisableError for anything but bytes."""
        # The annotation says bytes, but what arrives is whatever a handler returned.
        candidate: object = value
        if isinstance(candidate, bytes | bytearray | memoryview):
            return bytes(candidate)
        problem = "a value declared as raw bytes must be bytes"
        if candidate is None:
            problem += "; return b'' for an empty value, clear a state value to remove it"
        raise UnserialisableError(_name_of(type(candidate)), problem)

    def deserialize(self, data: bytes) -> bytes:
        """The data itself."""
        return data


class JsonSerde:
    """Plain JSON: reads to dict, list, str, int, float, bool and None; writes each value by its own type.

    Structs, dataclasses, pydantic models, datetimes and the like can be written, and are read back by
    giving a hint.
    """

    def serialize(self, value: Any) -> bytes:
        """JSON of `value`. Raises UnserialisableError."""
        data = _encode(value)
        _refuse_bytes(value)
        return data

    def deserialize(self, data: bytes) -> Any:
        """The JSON value in `data`. Raises BadInputError."""
        return _decode(_PLAIN_DECODER, data, "JSON")


class TypedSerde(Generic[T]):
    """JSON by msgspec's rules, checked against the hint when it is read.

    Writing does not check a value against the hint: type checkers do, and a check would cost a second pass.
    """

    def __init__(self, hint: Any) -> None:
        """Raises TypeError when msgspec cannot decode to `hint`."""
        self._expected = _name_of(hint)
        _require_msgspec_support(hint)
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(hint, dec_hook=_decode_foreign)
        shell = list(_parts(hint, into_fields=False))
        # A hint with an open place reads bytes back as text, unless it has bytes in it and so may mean them.
        self._refuses_bytes = any(part in _OPEN_HINTS for part in shell) and bytes not in shell

    def serialize(self, value: T) -> bytes:
        """JSON of `value`. Raises UnserialisableError."""
        data = _encode(value)
        if self._refuses_bytes:
            _refuse_bytes(value)
        return data

    def deserialize(self, data: bytes) -> T:
        """The checked value in `data`. Raises BadInputError."""
        return _decode(self._decoder, data, self._expected)


class PydanticSerde(Generic[T]):
    """JSON by pydantic's rules (2.11 and later), for models and for whatever contains them.

    Written by alias and without computed fields, so that what is written can be read; read by alias or by
    name.
    """

    def __init__(self, hint: Any) -> None:
        """Raises TypeError when pydantic has no schema for `hint`."""
        self._hint = hint
        self._adapter: TypeAdapter[T] = _adapter_of(hint)

    def serialize(self, value: T) -> bytes:
        """JSON of `value`. Raises UnserialisableError."""
        return _ENCODER.encode(_pydantic_tree(self._adapter, value))

    def deserialize(self, data: bytes) -> T:
        """The checked value in `data`. Raises BadInputError."""
        from pydantic import ValidationError  # loaded already: the hint comes from it

        try:
            return self._adapter.validate_json(data, by_alias=True, by_name=True)
        except ValidationError as error:
            at, problem = _describe_pydantic(error, self._hint)
            # Not chained: pydantic's own text quotes the input.
            raise BadInputError(_name_of(self._hint), problem, at) from None


def serde_for(hint: Any) -> Serde[Any]:
    """The serde for a type hint; the same hint gives the same serde.

    Raises TypeError, naming the hint, when values of it cannot be read from JSON: call this where handlers
    are declared, so that the mistake shows when the module is imported.
    """
    try:
        return _cached_serde(hint)
    except TypeError:
        if _is_hashable(hint):
            raise
        return _new_serde(hint)  # Annotated and Literal may hold values that cannot be keys of a cache


@functools.lru_cache(maxsize=SERDE_CACHE_MAX)
def _cached_serde(hint: Any) -> Serde[Any]:
    return _new_serde(hint)


def _new_serde(hint: Any) -> Serde[Any]:
    if hint in (None, types.NoneType, Any, object):
        return JsonSerde()
    if hint is bytes or hint == bytes | None:
        return BytesSerde()
    if isinstance(hint, str):
        raise _unsupported(hint, "it is text; pass the type itself")
    parts = list(_parts(hint))
    from_pydantic = "pydantic" in sys.modules and any(_is_from_pydantic(part) for part in parts)
    # Pydantic cannot hold a Struct, but msgspec can hold a pydantic model (by `_decode_foreign`).
    if from_pydantic and not any(_is_struct(part) for part in parts):
        return PydanticSerde[Any](hint)
    return TypedSerde[Any](hint)


def _is_hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


# Hints --------------------------------------------------------------------------------------------

# A bare container is open as well: its items may be anything.
_OPEN_HINTS: Final = (Any, object, dict, list, tuple, set, frozenset)


def _parts(hint: Any, *, into_fields: bool = True) -> Iterator[Any]:
    """Every type that `hint` is made of, itself included, and the metadata of Annotated.

    `into_fields` also enters the fields of Structs, dataclasses, TypedDicts and NamedTuples. Each part
    comes once, so recursive types end.
    """
    waiting: list[Any] = [hint]
    seen: set[int] = set()
    kept: list[Any] = []  # keeps every part alive while its id is in `seen`
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        kept.append(part)
        args = typing.get_args(part)
        origin = typing.get_origin(part)
        if origin is Annotated:
            waiting.append(args[0])
            yield from part.__metadata__
        elif origin is typing.Literal:
            continue
        elif args:
            yield origin if into_fields else part
            waiting.extend(args)
            if into_fields and isinstance(origin, type):
                waiting.extend(_field_types(origin))
        else:
            yield part
            # NewType and the `type` statement name another type.
            waiting.extend(getattr(part, name) for name in ("__supertype__", "__value__") if hasattr(part, name))
            if into_fields and isinstance(part, type):
                waiting.extend(_field_types(part))


def _field_types(cls: type) -> list[Any]:
    """The types of the fields of a class whose fields msgspec reads; of any other class none."""
    has_fields = (
        _is_struct(cls)
        or dataclasses.is_dataclass(cls)
        or typing.is_typeddict(cls)
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )
    if not has_fields:
        return []
    try:
        return list(typing.get_type_hints(cls, include_extras=True).values())
    except NameError as error:
        raise _unsupported(cls, f"{error}; define that type before the handler, at module level") from error


def _is_struct(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, msgspec.Struct)


def _is_from_pydantic(part: Any) -> bool:
    """Whether only pydantic knows what `part` (a type, or metadata of Annotated) means."""
    if hasattr(part, "__get_pydantic_core_schema__") or hasattr(part, "__pydantic_validator__"):
        return True
    owner = part if isinstance(part, type) else type(part)
    return owner.__module__.partition(".")[0] in ("pydantic", "pydantic_core", "annotated_types")


def _require_msgspec_support(hint: Any) -> None:
    """Raises TypeError unless msgspec, with the help of pydantic for its own types, decodes to `hint`."""
    try:
        root = msgspec.inspect.type_info(hint)
    except (TypeError, NameError, AttributeError) as error:
        raise _unsupported(hint, str(error)) from error
    waiting: list[Any] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, msgspec.inspect.CustomType) and not _is_from_pydantic(node.cls):
                raise _unsupported(hint, f"{_name_of(node.cls)} has no JSON form")
            waiting.extend(getattr(node, name) for name in node.__struct_fields__)


def _unsupported(hint: Any, reason: str) -> TypeError:
    return TypeError(
        f"the type hint {_name_of(hint)} is not supported: {reason}. "
        "Use a dataclass, TypedDict, msgspec Struct, pydantic model, plain JSON or bytes, or pass a Serde."
    )


def _name_of(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__
    return repr(hint).replace("typing.", "")


# JSON ---------------------------------------------------------------------------------------------


def _encode_foreign(value: Any) -> Any:
    """msgspec calls this for a value of a type it does not know."""
    if "pydantic" in sys.modules and _is_from_pydantic(type(value)):
        return _pydantic_tree(_adapter_of(type(value)), value)
    raise TypeError(f"{_name_of(type(value))} has no JSON form")


def _decode_foreign(hint: Any, tree: Any) -> Any:
    """msgspec calls this for a hint it does not know: a pydantic type inside a Struct."""
    # By way of JSON, because pydantic reads Python objects more strictly than JSON (a date is no text).
    return _adapter_of(hint).validate_json(msgspec.json.encode(tree), by_alias=True, by_name=True)


_ENCODER: Final = msgspec.json.Encoder(order="deterministic", enc_hook=_encode_foreign)
_PLAIN_DECODER: Final = msgspec.json.Decoder()


def _encode(value: Any) -> bytes:
    """Deterministic JSON of a value of any type; raises UnserialisableError."""
    try:
        try:
            data = _ENCODER.encode(value)
        except TypeError:
            # The ordered encoder takes no dict with other keys than str; it does once they are text.
            data = _ENCODER.encode(_builtins_of(value))
        if b"null" in data:
            _refuse_new_nulls(_builtins_of(value), _PLAIN_DECODER.decode(data))
    except UnserialisableError as error:
        raise UnserialisableError(_name_of(type(value)), error.problem) from None
    except UnicodeEncodeError:
        raise UnserialisableError(_name_of(type(value)), "text with a lone surrogate is not Unicode") from None
    except RecursionError:
        raise UnserialisableError(_name_of(type(value)), "it contains itself, or nests too deeply") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UnserialisableError(_name_of(type(value)), str(error)) from error
    return data


def _builtins_of(value: Any) -> Any:
    """`value` as JSON has it: dicts with text keys, lists, scalars; sets in order."""
    return msgspec.to_builtins(value, str_keys=True, order="deterministic", enc_hook=_encode_foreign)


def _nulls_in(tree: Any) -> int:
    count = 0
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if node is None:
            count += 1
        elif isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    return count


def _refuse_new_nulls(before: Any, after: Any) -> None:
    """Raises UnserialisableError when encoding made nulls of something: of NaN or an infinity."""
    if _nulls_in(before) != _nulls_in(after):
        raise UnserialisableError("float", "JSON has no NaN and no infinity; use None or text for them")


def _refuse_bytes(value: Any) -> None:
    """Raises UnserialisableError for bytes in untyped containers, which would come back as base64 text.

    Call it after encoding, which has proved that the value does not contain itself.
    """
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list | tuple | set | frozenset):
            waiting.extend(node)
        elif isinstance(node, bytes | bytearray | memoryview):
            problem = "plain JSON has no bytes; give a type hint (bytes, or a type with a bytes field) or a Serde"
            raise UnserialisableError(_name_of(type(value)), problem)


# What msgspec says, where it speaks of the schema alone; its other messages quote the input.
_SAFE_PROBLEM: Final = re.compile(
    r"Expected `|Object missing required field `|Invalid (?:RFC3339|ISO8601|UUID|decimal|base64|epoch)|"
    r"Input data was truncated|JSON is malformed|Number out of range"
)
_REDACTED_PROBLEMS: Final = (
    ("Invalid enum value", "not one of the allowed values"),
    ("Invalid value", "the tag names no known type"),
    ("Object contains unknown field", "the object contains an unknown field"),
)
_AT: Final = re.compile(r" - at ((?:`key` in )?`\$[^`]*`)$")


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, expected: str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        at, problem = _describe_msgspec(error)
    except UnicodeDecodeError:
        at, problem = "$", "the text is not UTF-8"
    except RecursionError:
        at, problem = "$", "it nests too deeply"
    # Raised outside the handlers, so that nothing that quotes the data is chained to it.
    raise BadInputError(expected, problem, at)


def problem_of(error: msgspec.DecodeError) -> str:
    """Where and why msgspec refused something, for an error or a log line: its own text may quote what it refused."""
    at, problem = _describe_msgspec(error)
    return f"{problem} (at {at})"


def _describe_msgspec(error: msgspec.DecodeError) -> tuple[str, str]:
    """Where and why decoding failed, without any of the input."""
    message = str(error)
    cause = error.__cause__
    place = _AT.search(message if cause is None else message.removeprefix(str(cause)))
    at = place[1].replace("`", "") if place else "$"
    if cause is not None:
        # Raised by a check of the user's (`__post_init__`) or by pydantic: its text may quote the input.
        return at, f"refused by a check of the type ({type(cause).__name__})"
    message = message[: place.start()] if place else message
    if _SAFE_PROBLEM.match(message):
        return at, message
    for prefix, problem in _REDACTED_PROBLEMS:
        if message.startswith(prefix):
            return at, problem
    return at, "the value does not fit the type"


# Pydantic -----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=SERDE_CACHE_MAX)
def _cached_adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # loaded already: the hint comes from it

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        adapter.rebuild(raise_errors=True)
    except (RuntimeError, TypeError, NameError, AttributeError) as error:  # pydantic's own derive from these
        raise _unsupported(hint, str(error).partition("\n")[0].rstrip(".")) from error
    return adapter


def _adapter_of(hint: Any) -> TypeAdapter[Any]:
    return _cached_adapter(hint) if _is_hashable(hint) else _cached_adapter.__wrapped__(hint)


def _pydantic_tree(adapter: TypeAdapter[Any], value: Any) -> Any:
    """`value` as builtins, as pydantic would write it to JSON; raises UnserialisableError."""
    try:
        data = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
        tree = _PLAIN_DECODER.decode(data)
        if b"null" in data:
            _refuse_new_nulls(adapter.dump_python(value, mode="json", by_alias=True, round_trip=True), tree)
    except UnserialisableError as error:
        raise UnserialisableError(_name_of(type(value)), error.problem) from None
    except (ValueError, TypeError, RecursionError) as error:
        # Pydantic's text quotes the value, so only the kind of the error is passed on.
        problem = f"pydantic could not write it ({type(error).__name__}): is each field of its type?"
        raise UnserialisableError(_name_of(type(value)), problem) from None
    return tree


def _describe_pydantic(error: ValidationError, hint: Any) -> tuple[str, str]:
    """Where and why validation failed, without any of the input.

    Only the names of fields and types are shown of a location (keys of a dict are input), and of a problem
    only its code, such as `int_parsing` or `missing` (pydantic's messages quote tags, and those of user
    checks anything).
    """
    known = _names_in_schema(_adapter_of(hint).core_schema)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    places: list[tuple[str, str]] = []
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        path = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" if step in known else "[...]"
            for step in problem["loc"]
        )
        places.append((f"${path}", problem["type"]))
    at, first = places[0]
    more = "".join(f"; {code} at {place}" for place, code in places[1:])
    hidden = len(problems) - len(places)
    return at, f"{first}{more}" + (f"; and {hidden} more" if hidden else "")


def _names_in_schema(schema: Any) -> set[str]:
    """Names of fields, their aliases and the classes in a pydantic core schema."""
    names: set[str] = set()
    waiting: list[Any] = [schema]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            fields = node.get("fields")
            if isinstance(fields, dict):
                names.update(fields)
            alias = node.get("validation_alias")
            if isinstance(alias, str):
                names.add(alias)
            if isinstance(node.get("cls"), type):
                names.add(node["cls"].__name__)
            if isinstance(node.get("name"), str):
                names.add(node["name"])
            waiting.extend(node.values())
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    return names


# Handlers -----------------------------------------------------------------------------------------


def hints_of(handler: Callable[..., Any]) -> tuple[Any, Any]:
    """The hints of a handler `async def h(ctx, event: T) -> R`: `(T, R)`.

    The input is `MISSING` when the handler takes none; a hint that is not given is Any. Annotations that
    are text (`from __future__ import annotations`) are resolved; that of the context is not looked at, so
    its type may be imported for type checkers only. Raises TypeError for any other shape of parameters and
    for an annotation that cannot be resolved.
    """
    function = inspect.unwrap(handler)
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    signature = inspect.signature(handler)
    parameters = list(signature.parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    in_place = all(parameter.kind in positional for parameter in parameters)
    if not (in_place and 1 <= len(parameters) <= HANDLER_PARAMETERS_MAX):
        raise TypeError(
            f"handler {name}{signature} must take the context and at most one input: "
            f"async def {name.rpartition('.')[2]}(ctx, event: T) -> R"
        )
    function = getattr(function, "__func__", function)  # of a bound method
    if not inspect.isfunction(function):
        function = type(function).__call__
    scope: dict[str, Any] = getattr(function, "__globals__", {})
    output = _resolved(signature.return_annotation, "the result", name, scope)
    if len(parameters) == 1:
        return MISSING, output
    return _resolved(parameters[1].annotation, f"'{parameters[1].name}'", name, scope), output


def _resolved(annotation: Any, of: str, handler: str, scope: dict[str, Any]) -> Any:
    if annotation is inspect.Signature.empty:
        return Any
    try:
        holder = types.SimpleNamespace(__annotations__={"hint": annotation})
        return typing.get_type_hints(holder, globalns=scope, include_extras=True)["hint"]
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(
            f"handler {handler}: the annotation {annotation!r} of {of} cannot be resolved: {error}. "
            "Types of inputs and results must be importable at run time: define them at module level, "
            "and not under `if TYPE_CHECKING:`."
        ) from error
