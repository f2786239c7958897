"""Type hints: what they are made of, and those of a handler.

Owns how hints are looked into and named, and which shape of parameters a handler may have. Does not own what becomes of
a hint (`tenuto.serde.serdes`). Pydantic is never imported here.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, TypeVar

import msgspec
import msgspec.inspect

T = TypeVar("T")

HINTS_KEPT_MAX: Final = 1024
"""Hints for which something is kept: a program has few; the bound is for hints that are made at run time."""

HANDLER_PARAMETERS_MAX: Final = 2
"""The context and one input."""


AT_RUN_TIME: Final = (
    "its types must exist at run time: define or import them at module level, above `aws.handler(...)`, and not under "
    "`if TYPE_CHECKING:`"
)
"""What to do about a name in a hint that stands for nothing."""


class Missing(enum.Enum):
    """The type of `MISSING`, so that checkers can tell it from every hint."""

    MISSING = "MISSING"


MISSING: Final = Missing.MISSING
"""The input hint of a handler that takes no input."""


def parts(hint: Any) -> Iterator[Any]:
    """Every type that `hint` is made of, itself included, and the metadata of Annotated.

    Enters the fields of Structs, dataclasses, TypedDicts and NamedTuples too. Each part comes once, so recursive types
    end.
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
            yield origin
            waiting.extend(args)
            if isinstance(origin, type):
                waiting.extend(_field_types(origin))
        else:
            yield part
            # NewType and the `type` statement name another type.
            waiting.extend(getattr(part, name) for name in ("__supertype__", "__value__") if hasattr(part, name))
            if isinstance(part, type):
                waiting.extend(_field_types(part))


def _field_types(cls: type) -> list[Any]:
    """The types of the fields of a class whose fields msgspec reads; of any other class none."""
    has_fields = (
        is_struct(cls)
        or dataclasses.is_dataclass(cls)
        or typing.is_typeddict(cls)
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )
    if not has_fields:
        return []
    try:
        return list(typing.get_type_hints(cls, include_extras=True).values())
    except (NameError, AttributeError) as error:
        raise unresolved(cls, error) from error


def is_struct(part: Any) -> bool:
    """Whether `part` is a msgspec Struct."""
    return isinstance(part, type) and issubclass(part, msgspec.Struct)


def is_from_pydantic(part: Any) -> bool:
    """Whether only pydantic knows what `part` (a type, or metadata of Annotated) means."""
    if hasattr(part, "__get_pydantic_core_schema__") or hasattr(part, "__pydantic_validator__"):
        return True
    owner = part if isinstance(part, type) else type(part)
    return owner.__module__.partition(".")[0] in ("pydantic", "pydantic_core", "annotated_types")


def require_msgspec_support(hint: Any) -> None:
    """Raises TypeError unless msgspec, with the help of pydantic for its own types, decodes to `hint`."""
    try:
        root = msgspec.inspect.type_info(hint)
    except NameError as error:
        raise unresolved(hint, error) from error
    except Exception as error:  # Whatever the hint's own code raises.
        raise unsupported(hint, _first_line(error)) from error
    waiting: list[Any] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            problem = _problem_of(node)
            if problem is not None:
                raise unsupported(hint, problem)
            waiting.extend(getattr(node, name) for name in node.__struct_fields__)


def _problem_of(node: Any) -> str | None:
    """Why no value of a type can be read from JSON, though msgspec makes a decoder for it."""
    match node:
        case msgspec.inspect.CustomType(cls) if not is_from_pydantic(cls):
            return f"{name_of(cls)} has no JSON form"
        case msgspec.inspect.DictType(key_type=key) if not _may_be_key(key):
            return "the keys of a dict are text, numbers, dates, ids or enums, since those of a JSON object are text"
        case msgspec.inspect.SetType(item_type=item) | msgspec.inspect.FrozenSetType(item_type=item):
            return None if _is_hashable(item) else "the items of a set are hashable: frozen dataclasses, tuples, text"
        case _:
            return None


def _may_be_key(node: Any) -> bool:
    """Whether the name of a JSON object's member can be read as a type."""
    if isinstance(node, msgspec.inspect.UnionType):
        return any(map(_may_be_key, node.types))
    inspected = msgspec.inspect
    never = (inspected.BoolType, inspected.NoneType, inspected.CollectionType, inspected.TupleType, inspected.DictType)
    fields = (inspected.StructType, inspected.DataclassType, inspected.TypedDictType, inspected.NamedTupleType)
    return not isinstance(node, never + fields)


def _is_hashable(node: Any) -> bool:
    inspected = msgspec.inspect
    match node:
        case inspected.UnionType():
            return any(map(_is_hashable, node.types))
        case inspected.TupleType():
            return all(map(_is_hashable, node.item_types))
        case inspected.StructType() | inspected.DataclassType():
            return node.cls.__hash__ is not None
        case inspected.ListType() | inspected.SetType() | inspected.DictType() | inspected.TypedDictType():
            return False
        case _:
            return True


def unresolved(hint: Any, error: Exception) -> TypeError:
    """The error for a hint, or for any of them, with a name that stands for nothing."""
    named = "a type hint" if hint is None else f"the type hint {name_of(hint)}"
    return TypeError(f"{named} cannot be resolved: {_first_line(error)}; {AT_RUN_TIME}")


def _first_line(error: Exception) -> str:
    """What an error says, without the lines of an address or an example below."""
    return str(error).partition("\n")[0]


def unsupported(hint: Any, reason: str) -> TypeError:
    """The error for a hint that no serde takes."""
    return TypeError(
        f"the type hint {name_of(hint)} is not supported: {reason}. "
        "Use a dataclass, TypedDict, msgspec Struct, pydantic model, plain JSON or bytes, or pass a Serde."
    )


def per_hint(make: Callable[[Any], T]) -> Callable[[Any], T]:
    """Keep what `make` gives for a hint.

    Hints that are equal need not mean the same: of A | B and B | A, pydantic prefers the first. So their names count as
    well.
    """

    @functools.lru_cache(maxsize=HINTS_KEPT_MAX)
    def kept(hint: Any, _name: str | None) -> T:
        return make(hint)

    @functools.wraps(make)
    def made(hint: Any) -> T:
        try:
            hash(hint)
        except TypeError:
            return make(hint)  # Annotated and Literal may hold values that cannot be keys of a cache.
        return kept(hint, None if isinstance(hint, type) else repr(hint))

    return made


def name_of(hint: Any) -> str:
    """How a hint or the type of a value is called in messages."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__
    return repr(hint).replace("typing.", "")


# Handlers -----------------------------------------------------------------------------------------


def shape_of(handler: Callable[..., Any]) -> inspect.Signature:
    """The signature of a handler: a context and at most one input, both given by position.

    Raises TypeError for any other, and for a signature that cannot be read.
    """
    try:
        signature = inspect.signature(handler)
    except Exception as error:  # From Python 3.14 on, annotations are evaluated here.
        raise TypeError(f"the signature of {_name_of(handler)} cannot be read: {_first_line(error)}") from error
    parameters = list(signature.parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    in_place = all(parameter.kind in positional for parameter in parameters)
    if in_place and 1 <= len(parameters) <= HANDLER_PARAMETERS_MAX:
        return signature
    name = _name_of(handler)
    variadic = any(
        parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for parameter in parameters
    )
    fitting = [parameter for parameter in parameters if parameter.kind in positional][:HANDLER_PARAMETERS_MAX]
    more = [
        repr(str(parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)))
        for parameter in parameters
        if parameter not in fitting
    ]
    raise TypeError(
        f"handler {name}{signature} must take the context and at most one input"
        + (f"; leave out {', '.join(more)}: " if more else ": ")
        + f"async def {name.rpartition('.')[2]}(ctx, event: T) -> R"
        + ("; a decorator keeps the signature of what it wraps by functools.wraps" if variadic else "")
    )


def hints_of(handler: Callable[..., Any]) -> tuple[Any, Any]:
    """The hints of a handler `async def h(ctx, event: T) -> R`: `(T, R)`.

    The input is `MISSING` when the handler takes none; a hint that is not given is Any. Annotations that
    are text (`from __future__ import annotations`) are resolved; that of the context is not looked at here
    (`tenuto.declarations`). Raises TypeError for any other shape of parameters and
    for an annotation that cannot be resolved.
    """
    signature = shape_of(handler)
    takes = [
        resolved(parameter.annotation, f"'{parameter.name}'", handler)
        for parameter in list(signature.parameters.values())[1:]
    ]
    output = resolved(signature.return_annotation, "the result", handler)
    return (takes[0] if takes else MISSING), output


def resolved(annotation: Any, of: str, handler: Callable[..., Any]) -> Any:
    """What an annotation of a handler means; Any for none. Raises TypeError for one that cannot be resolved."""
    if annotation is inspect.Signature.empty:
        return Any
    function = _code_of(handler)
    # Type variables of `def h[T](...)`, which no module holds.
    variables = {one.__name__: one for one in getattr(function, "__type_params__", ())}
    try:
        holder = types.SimpleNamespace(__annotations__={"hint": annotation})
        scope: dict[str, Any] = getattr(function, "__globals__", {})
        return typing.get_type_hints(holder, scope, variables, include_extras=True)["hint"]
    except Exception as error:  # Text that is no annotation may raise anything.
        advice = f"; {AT_RUN_TIME}" if isinstance(error, NameError | AttributeError) else ""
        raise TypeError(
            f"the annotation {annotation!r} of {of} cannot be resolved: {_first_line(error)}{advice}"
        ) from error


def _innermost(handler: Callable[..., Any]) -> Any:
    """The function inside wrappers and partials."""
    function: Any = inspect.unwrap(handler)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function


def _name_of(handler: Callable[..., Any]) -> str:
    function = _innermost(handler)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _code_of(handler: Callable[..., Any]) -> Any:
    """The function whose annotations a handler shows."""
    function = _innermost(handler)
    function = getattr(function, "__func__", function)  # of a bound method
    return function if inspect.isfunction(function) else type(function).__call__
