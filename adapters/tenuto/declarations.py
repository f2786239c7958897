"""Checks of a handler's declaration: the context that it expects, its hints, and where it is.

Owns the allowed annotations of the parameters of a handler, and the file and line in errors of declarations. Does not
own the resolution of type hints (`tenuto.serde.hints`), or the context of each kind of handler (`tenuto.service`).
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tenuto.checks import shown
from tenuto.runtime.lines import line_of, place
from tenuto.serde.hints import resolved, shape_of

HELD_BY: Final = {
    "Context": "a handler of a service",
    "ObjectContext": "a handler of a virtual object",
    "ObjectSharedContext": "a shared handler, which only reads,",
}
"""Who is given which context."""

_OURS: Final = frozenset({"tenuto", "contextlib", "dataclasses"})
"""Packages between the user's line and the check of it."""

_NOTHING: Final = "a NoneType"

_HINTS_LOOKED_AT_MAX: Final = 1_000
"""So many members of unions and aliases are looked at: an alias may stand for itself."""


_PLACE: Final = " (declared at "


@contextmanager
def declaring(function: object = None, target: str = "") -> Iterator[None]:
    """Have each TypeError and ValueError of a declaration name its target, and file and line of the function or call.

    An error that names its place already keeps it: of two declarations, the inner one is at fault.
    """
    try:
        yield
    except (TypeError, ValueError) as e:
        line = None if _PLACE in str(e) else line_of(function) or _caller()
        if line is None:
            raise
        named = "" if str(e).startswith(target) else f"{target}: "
        raise type(e)(f"{named}{e}{_PLACE}{line})") from e.__cause__


def _caller() -> str | None:
    """The line outside tenuto that is being executed, as file and line."""
    frame: types.FrameType | None = sys._getframe()  # noqa: SLF001 - as the standard library's own warnings do
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _OURS:
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def require_hints(function: Callable[..., Any], given: type, target: str) -> None:
    """Refuse a handler without a hint for its context, input or result, or with another context than it is given.

    Raises TypeError.
    """
    signature = shape_of(function)
    first, *others = signature.parameters.values()
    hint = f"{first.name}: {given.__name__}"
    form = f"async def {target.rpartition('/')[2]}({hint}{f', {others[0].name}: T' if others else ''})"
    if first.annotation is inspect.Parameter.empty:
        raise TypeError(f"{target}: its context {first.name!r} has no type hint: write {hint}, as in {form}")
    wrong = _wrong_context(first, given, function)
    if wrong is not None:
        raise TypeError(f"{target}: {HELD_BY[given.__name__]} is given {_with_article(given)}, not {wrong}: {form}")
    if others and others[0].annotation is inspect.Parameter.empty:
        name = others[0].name
        raise TypeError(
            f"{target}: its input {name!r} has no type hint: write {name}: T, which is checked and converted, or "
            f"{name}: Any for plain JSON as it comes"
        )
    if signature.return_annotation is inspect.Signature.empty:
        raise TypeError(
            f"{target}: its result has no type hint: write -> T, which is checked, -> None if there is none, or "
            "-> Any for whatever has a JSON form"
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


def _wrong_context(parameter: inspect.Parameter, given: type, function: Callable[..., Any]) -> str | None:
    """The name of what a first parameter expects and never gets; None when it may be what is given.

    Raises TypeError for a hint that cannot be resolved.
    """
    waiting = [parameter.annotation]
    wrong: list[str] = []
    for _ in range(_HINTS_LOOKED_AT_MAX):
        if not waiting:
            break
        annotation = resolved(_text_of(waiting.pop()), f"'{parameter.name}'", function)
        stands_for = _meant(annotation)
        if stands_for is not None:
            waiting.extend(stands_for)
            continue
        kind = typing.get_origin(annotation) or annotation
        # A protocol is not looked into: whether a context has what it asks for, a type checker says.
        if kind is Any or getattr(kind, "_is_protocol", False) or (isinstance(kind, type) and issubclass(given, kind)):
            return None
        wrong.append(_with_article(kind) if isinstance(kind, type) else shown(annotation))
    return next((one for one in reversed(wrong) if one != _NOTHING), _NOTHING) if wrong else None


def _text_of(annotation: Any) -> Any:
    """A reference inside a bound or a constraint as the text that it was written as."""
    return annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation


def _meant(annotation: Any) -> Sequence[Any] | None:
    """What an annotation stands for, if it is no type itself: several, of which one has to fit, or one."""
    if isinstance(annotation, typing.TypeVar):
        return annotation.__constraints__ or ((Any,) if annotation.__bound__ is None else (annotation.__bound__,))
    if isinstance(annotation, typing.NewType):
        return (annotation.__supertype__,)
    if typing.get_origin(annotation) is typing.Annotated:
        return typing.get_args(annotation)[:1]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    # The `type` statement of Python 3.12.
    return (annotation.__value__,) if hasattr(annotation, "__value__") else None


def _with_article(kind: type) -> str:
    name = kind.__qualname__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
