"""JSON text: how msgspec and pydantic write and read values, and what their failures say.

Owns the encoders and decoders, and messages that never quote a value. Does not own whether what is read back is what
was written (`tenuto.serde.sameness`), nor which rules a hint is read by (`tenuto.serde.serdes`). Pydantic is never
imported here unless a hint or a value comes from it, which means it is loaded already.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from tenuto.errors import BadInputError, UnserialisableError
from tenuto.serde.hints import is_from_pydantic, name_of, per_hint, unresolved, unsupported
from tenuto.serde.sameness import NO_BYTES, NO_NAN

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

NESTING_LEVELS_MAX: Final = 400
"""Objects and arrays inside one another in what is written.

Every level costs the reader one of Python's 1,000 levels of recursion, of which the handler that reads may have used
many itself.
"""

TOO_DEEP: Final = f"it contains itself, or nests too deeply ({NESTING_LEVELS_MAX} levels at most)"

_TEXT_IN_JSON: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))

PROBLEMS_SHOWN_MAX: Final = 3
"""Places that one decoding error names at most."""


def _encode_foreign(value: Any) -> Any:
    """msgspec calls this for a value of a type it does not know."""
    if "pydantic" in sys.modules and is_from_pydantic(type(value)):
        return _pydantic_tree(adapter_of(type(value)), value)
    raise TypeError(f"{name_of(type(value))} has no JSON form")


def _decode_foreign(hint: Any, tree: Any) -> Any:
    """msgspec calls this for a hint it does not know: a pydantic type inside a Struct."""
    # By way of JSON, because pydantic reads Python objects more strictly than JSON (a date is no text).
    return adapter_of(hint).validate_json(msgspec.json.encode(tree), by_alias=True, by_name=True)


ENCODER: Final = msgspec.json.Encoder(order="deterministic", enc_hook=_encode_foreign)
PLAIN_DECODER: Final = msgspec.json.Decoder()


def encode(value: Any) -> bytes:
    """Deterministic JSON of a value of any type, in which NaN is null; raises UnserialisableError."""
    try:
        try:
            data = ENCODER.encode(value)
        except TypeError:
            # The ordered encoder takes no dict with other keys than str; it does once they are text.
            tree = _builtins_of(value)
            _refuse_merged_keys(value)
            data = ENCODER.encode(tree)
    except UnserialisableError as error:
        raise UnserialisableError(name_of(type(value)), error.problem) from None
    except UnicodeEncodeError:
        raise UnserialisableError(name_of(type(value)), "text with a lone surrogate is not Unicode") from None
    except RecursionError:
        raise UnserialisableError(name_of(type(value)), TOO_DEEP) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UnserialisableError(name_of(type(value)), str(error)) from error
    refuse_deep(value, data)
    return data


def refuse_deep(value: Any, data: bytes) -> None:
    """Raises UnserialisableError when `data`, written of `value`, nests so deeply that a reader may not get through."""
    if data.count(b"[") + data.count(b"{") <= NESTING_LEVELS_MAX:
        return
    brackets = _TEXT_IN_JSON.sub(b"", data).translate(None, _NO_BRACKETS)
    steps = (1 if bracket in b"[{" else -1 for bracket in brackets)
    if max(itertools.accumulate(steps), default=0) > NESTING_LEVELS_MAX:
        raise UnserialisableError(name_of(type(value)), TOO_DEEP)


def refuse_lost_floats(value: Any, data: bytes) -> None:
    """Raises UnserialisableError when a null in `data`, which `encode` made of `value`, was a NaN or an infinity."""
    if b"null" in data and _nulls_in(_builtins_of(value)) != _nulls_in(PLAIN_DECODER.decode(data)):
        raise UnserialisableError(name_of(type(value)), NO_NAN)


def refuse_bytes(value: Any) -> None:
    """Raises UnserialisableError for bytes in plain containers, which would come back as base64 text.

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
            raise UnserialisableError(name_of(type(value)), NO_BYTES)


def _refuse_merged_keys(value: Any) -> None:
    """Raises UnserialisableError for a dict with two keys that are one as text, such as 1 and "1"."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if len(_builtins_of(dict.fromkeys(node))) < len(node):
                raise UnserialisableError(name_of(type(value)), "two keys of a dict are the same as text")
            waiting.extend(node.values())
        elif isinstance(node, list | tuple):
            waiting.extend(node)


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


def decoder_for(hint: Any) -> msgspec.json.Decoder[Any]:
    """The decoder for a hint; raises TypeError when msgspec, with the help of pydantic for its types, has none."""
    try:
        return msgspec.json.Decoder(hint, dec_hook=_decode_foreign)
    except TypeError as error:
        raise unsupported(hint, str(error)) from error


def decode(decoder: msgspec.json.Decoder[T], data: bytes, expected: str) -> T:
    """The value in `data`; raises BadInputError, which says that it is no `expected` and quotes nothing."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        at, problem = _describe_msgspec(error)
    except UnicodeDecodeError:
        at, problem = "$", "the text is not UTF-8"
    except RecursionError:
        at, problem = "$", "it nests too deeply"
    except Exception as error:  # noqa: BLE001 - whatever a check of the user's raises is this input's fault
        at, problem = "$", _refused_by_check(error)
    # Raised outside the handlers, so that nothing that quotes the data is chained to it.
    raise BadInputError(expected, problem, at)


def _refused_by_check(error: BaseException) -> str:
    # The error's own text may quote the input.
    return f"refused by a check of the type ({type(error).__name__})"


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
        # Raised by a check of the user's (`__post_init__`) or by pydantic.
        return at, _refused_by_check(cause)
    message = message[: place.start()] if place else message
    if _SAFE_PROBLEM.match(message):
        return at, message
    for prefix, problem in _REDACTED_PROBLEMS:
        if message.startswith(prefix):
            return at, problem
    return at, "the value does not fit the type"


# Pydantic -----------------------------------------------------------------------------------------


@per_hint
def adapter_of(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's adapter for a hint; raises TypeError when pydantic has no schema for it."""
    from pydantic import TypeAdapter  # loaded already: the hint comes from it

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        adapter.rebuild(raise_errors=True)
    except NameError as error:
        raise unresolved(hint, error) from error
    except (RuntimeError, TypeError, AttributeError) as error:  # pydantic's own derive from these
        raise unsupported(hint, str(error).partition("\n")[0].rstrip(".")) from error
    unreadable = _unreadable_in(adapter.core_schema)
    if unreadable is not None:
        raise unsupported(hint, f"{unreadable} has no JSON form; a BeforeValidator can make one of JSON")
    return adapter


def _unreadable_in(schema: Any) -> str | None:
    """What a pydantic schema requires that no JSON can hold: an instance of an arbitrary class, a callable, a class.

    A field with a default may be left out, and a validator may make such a value: neither is looked into.
    """
    inner: Iterable[Any] = ()
    match schema:
        case {"type": "is-instance" | "is-subclass", "cls": cls}:
            return name_of(cls)
        case {"type": "callable"}:
            return "a callable"
        case {"type": "model-fields" | "typed-dict", "fields": fields}:
            inner = fields.values()
        case {"type": "dataclass-args", "fields": fields}:
            inner = fields
        case {"type": "list" | "set" | "frozenset", "items_schema": item}:
            inner = (item,)
        case {"type": "dict", "values_schema": value}:
            inner = (value,)
        case {"type": "model" | "dataclass" | "definitions" | "model-field" | "dataclass-field" | "typed-dict-field"}:
            inner = (schema["schema"],)
        case _:
            pass
    return next((found for found in map(_unreadable_in, inner) if found is not None), None)


def pydantic_text(adapter: TypeAdapter[Any], value: Any, *, nulls_checked: bool = True) -> bytes:
    """Deterministic JSON of `value` by pydantic's rules; raises UnserialisableError. See `_pydantic_tree`."""
    tree = _pydantic_tree(adapter, value, nulls_checked=nulls_checked)
    try:
        return encode(tree)
    except UnserialisableError as error:
        raise UnserialisableError(name_of(type(value)), error.problem) from None


def _pydantic_tree(adapter: TypeAdapter[Any], value: Any, *, nulls_checked: bool = True) -> Any:
    """`value` as builtins, as pydantic would write it to JSON; raises UnserialisableError.

    Without `nulls_checked` a NaN may have become None: the caller compares what is read back.
    """
    before = None
    try:
        data = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
        tree = PLAIN_DECODER.decode(data)
        if nulls_checked and b"null" in data:
            before = adapter.dump_python(value, mode="json", by_alias=True, round_trip=True)
    except Exception as error:  # noqa: BLE001 - a serialiser of the user's may raise anything
        # Pydantic's text quotes the value, so only the kind of the error is passed on.
        problem = (
            f"pydantic could not write it ({type(error).__name__}): is each field of its type? Bytes that are not "
            'UTF-8 need ser_json_bytes="base64" and val_json_bytes="base64" in the model\'s config'
        )
        raise UnserialisableError(name_of(type(value)), problem) from None
    if before is not None and _nulls_in(before) != _nulls_in(tree):
        raise UnserialisableError(name_of(type(value)), NO_NAN)
    return tree


def pydantic_value(adapter: TypeAdapter[T], data: bytes, hint: Any) -> T:
    """The checked value in `data`; raises BadInputError, which says that it is no `hint` and quotes nothing."""
    from pydantic import ValidationError  # loaded already: the hint comes from it

    try:
        return adapter.validate_json(data, by_alias=True, by_name=True)
    except ValidationError as error:
        at, problem = _describe_pydantic(error, hint)
    except Exception as error:  # noqa: BLE001 - whatever a validator of the user's raises is this input's fault
        at, problem = "$", _refused_by_check(error)
    # Raised outside the handlers: pydantic's own text quotes the input.
    raise BadInputError(name_of(hint), problem, at)


def _describe_pydantic(error: ValidationError, hint: Any) -> tuple[str, str]:
    """Where and why validation failed, without any of the input.

    Only the names of fields and types are shown of a location (keys of a dict are input), and of a problem only what
    its code stands for (pydantic's messages quote tags, and those of user checks anything).
    """
    known = _names_in_schema(adapter_of(hint).core_schema)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    places: list[tuple[str, str]] = []
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        path = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" if step in known else "[...]"
            for step in problem["loc"]
        )
        places.append((f"${path}", _words_of(problem["type"])))
    at, first = places[0]
    if len(problems) == 1:
        return at, first
    hidden = len(problems) - len(places)
    listed = "; ".join(f"{place}: {words}" for place, words in places)
    return at, listed + (f"; and {hidden} more" if hidden else "")


_BY_CODE: Final = {
    "missing": "is missing",
    "extra_forbidden": "an unknown field",
    "enum": "not one of the allowed values",
    "literal_error": "not one of the allowed values",
    "union_tag_invalid": "the tag names no known type",
    "union_tag_not_found": "the tag is missing",
    "json_invalid": "JSON is malformed",
    "value_error": "refused by a check of the type",
    "assertion_error": "refused by a check of the type",
    "none_required": "expected null",
    "int_from_float": "expected a whole number",
    "finite_number": "expected a finite number",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "dataclass_type": "expected an object",
    "mapping_type": "expected an object",
    "string_pattern_mismatch": "does not match the pattern",
}
_BY_TYPE: Final = {
    "string": "text",
    "bytes": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "an object",
    "uuid": "a UUID",
    "url": "a URL",
    "date": "a date",
    "datetime": "a date and time",
    "time": "a time",
    "time_delta": "a duration",
}
_OF_TYPE: Final = ("_type", "_parsing", "_parsing_size", "_from_date_parsing", "_from_datetime_parsing")


def _words_of(code: str) -> str:
    """What pydantic's code of a problem stands for. One that is not known here is shown with spaces."""
    if code in _BY_CODE:
        return _BY_CODE[code]
    for ending in _OF_TYPE:
        expected = _BY_TYPE.get(code.removesuffix(ending)) if code.endswith(ending) else None
        if expected is not None:
            return f"expected {expected}"
    return f"does not fit the type ({code.replace('_', ' ')})"


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
