"""Checks of a handler's declaration: the context that it expects, its hints, and where it is.

Owns the allowed annotations of the parameters of a handler, and the file and line in errors of declarations. Does not
own the resolution of type hints (`tenuto.serde.hints`), or the context of each kind of handler (`tenuto.service`).
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tenuto import context

KNOWN_CONTEXTS: Final = {
    one.__name__: one for one in (context.Context, context.ObjectContext, context.ObjectSharedContext)
}

HELD_BY: Final = {
    "Context": "a handler of a service",
    "ObjectContext": "a handler of a virtual object",
    "ObjectSharedContext": "a shared handler, which only reads,",
}
"""Who is given which context."""

_OURS: Final = frozenset({"tenuto", "contextlib", "dataclasses"})
"""Packages between the user's line and the check of it."""

_LAST_NAME: Final = re.compile(r"(\w+)['\"\s]*$")


@contextmanager
def declaring(function: object = None) -> Iterator[None]:
    """Have each TypeError and ValueError of a declaration name the file and line of the function, or of the call."""
    try:
        yield
    except (TypeError, ValueError) as e:
        line = line_of(function) or _caller()
        if line is None:
            raise
        raise type(e)(f"{e} (declared at {line})") from e.__cause__


def line_of(function: object) -> str | None:
    """Where a function is, as file and line; None for what has no code of its own."""
    plain = inspect.unwrap(function) if callable(function) else function
    while hasattr(plain, "func"):
        plain = plain.func
    if not hasattr(plain, "__code__") and callable(plain):
        plain = type(plain).__call__
    code = getattr(plain, "__code__", None)
    if code is None:
        return None
    return _place(code.co_filename, code.co_firstlineno)


def _caller() -> str | None:
    """The line outside tenuto that is being executed, as file and line."""
    frame: types.FrameType | None = sys._getframe()  # noqa: SLF001 - as the standard library's own warnings do
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _OURS:
            return _place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def _place(file: str, line: int) -> str:
    try:
        relative = os.path.relpath(file)
    except ValueError:
        relative = file  # On another drive.
    return f"{file if relative.startswith('..') else relative}:{line}"


def require_parameters(function: Callable[..., Any], given: type, target: str) -> None:
    """Refuse a handler that expects another context than it is given, or whose input has no hint. Raises TypeError."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        return  # Its shape is refused elsewhere.
    first, *others = parameters
    wrong = _wrong_context(first.annotation, given, function)
    if wrong is not None:
        form = f"async def {target.rpartition('/')[2]}({first.name}: {given.__name__}{', event: T' if others else ''})"
        raise TypeError(f"{target}: {HELD_BY[given.__name__]} is given {_with_article(given)}, not {wrong}: {form}")
    if others and others[0].annotation is inspect.Parameter.empty:
        name = others[0].name
        raise TypeError(
            f"{target}: its input {name!r} has no type hint: write {name}: T, which is checked and converted, or "
            f"{name}: Any for plain JSON as it comes"
        )


def require_no_default(function: Callable[..., Any], target: str, *, nullable: bool) -> None:
    """Refuse a default that an input never gets. Raises TypeError.

    None is one that it does get, if its type admits it: unit tests may leave it out as callers do.
    """
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.default is inspect.Parameter.empty or (parameter.default is None and nullable):
            continue
        name = parameter.name
        raise TypeError(
            f"{target}: the default of its input {name!r} is never used, since a missing input is None: write "
            f"{name}: T | None = None, and choose the value in the handler"
        )


def _wrong_context(annotation: Any, given: type, function: Callable[..., Any]) -> str | None:
    """The name of what a first parameter expects and never gets; None when it may be what is given."""
    if annotation is inspect.Parameter.empty:
        return None
    if isinstance(annotation, str):
        found = _resolved(annotation, function)
        if found is None:
            # Imported for type checkers alone, so only its name is known.
            named = _LAST_NAME.search(annotation)
            found = None if named is None else KNOWN_CONTEXTS.get(named[1])
        if found is None:
            return None
        annotation = found
    meant = _meant(annotation)
    if meant is not annotation:
        return None if meant is None else _wrong_context(meant, given, function)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        wrong = [_wrong_context(one, given, function) for one in typing.get_args(annotation)]
        return None if None in wrong else str(wrong[0])
    kind = typing.get_origin(annotation) or annotation
    # A protocol is not looked into: whether a context has what it asks for, a type checker says.
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or issubclass(given, kind):
        return None
    return _with_article(kind)


def _meant(annotation: Any) -> Any:
    """What an annotation stands for: what is annotated, the bound of a type variable, what a new type is made of."""
    if typing.get_origin(annotation) is typing.Annotated:
        return typing.get_args(annotation)[0]
    if isinstance(annotation, typing.TypeVar):
        return annotation.__bound__
    return annotation.__supertype__ if isinstance(annotation, typing.NewType) else annotation


def _resolved(annotation: str, function: Callable[..., Any]) -> Any:
    plain = inspect.unwrap(function)
    scope = getattr(getattr(plain, "__func__", plain), "__globals__", {})
    try:
        holder = types.SimpleNamespace(__annotations__={"hint": annotation})
        return typing.get_type_hints(holder, globalns=scope)["hint"]
    except Exception:  # noqa: BLE001 - text that is no annotation may raise anything; it is not needed at run time
        return None


def _with_article(kind: type) -> str:
    name = kind.__qualname__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
