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
    except NameError as error:
        raise unsupported(cls, f"{error}; define that type before the handler, at module level") from error


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
    except (TypeError, NameError, AttributeError) as error:
        raise unsupported(hint, str(error)) from error
    waiting: list[Any] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, msgspec.inspect.CustomType) and not is_from_pydantic(node.cls):
                raise unsupported(hint, f"{name_of(node.cls)} has no JSON form")
            waiting.extend(getattr(node, name) for name in node.__struct_fields__)


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


def hints_of(handler: Callable[..., Any]) -> tuple[Any, Any]:
    """The hints of a handler `async def h(ctx, event: T) -> R`: `(T, R)`.

    The input is `MISSING` when the handler takes none; a hint that is not given is Any. Annotations that
    are text (`from __future__ import annotations`) are resolved; that of the context is not looked at here
    (`tenuto.declarations`). Raises TypeError for any other shape of parameters and
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
