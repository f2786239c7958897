"""The type hint of the result of a step, read from its callable.

Owns finding the annotation and resolving it, once for each function. Does not own the meaning of a hint
(`tenuto.serde`). Never raises: without a usable hint, the result of a step is plain JSON.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any, Final

_AWAITABLES: Final = (collections.abc.Awaitable, collections.abc.Coroutine)
_NO_RESULT: Final = (typing.NoReturn, typing.Never)

_UNKNOWN: Final = object()

# By function, which is compared by identity: two of the same code may have different globals.
_resolved: weakref.WeakKeyDictionary[types.FunctionType, Any] = weakref.WeakKeyDictionary()


def result_hint(action: object) -> Any:
    """The hint for what an action returns or its coroutine gives; None when there is none that can be resolved.

    Partials, bound methods, wrappers and objects with `__call__` are looked through. A class is no function, so it has
    no hint. Names that are imported for type checkers only cannot be resolved.
    """
    try:
        function = _function_of(action)
        if function is None:
            return None
        # Reading annotations again at every step would take longer than the rest of the call.
        hint = function.__annotations__.get("return")
        if hint is None or type(hint) is type:
            return hint
        found = _resolved.get(function, _UNKNOWN)
        if found is _UNKNOWN:
            found = _resolved[function] = _resolve(function, hint)
        return found
    except Exception:  # noqa: BLE001 - annotations are code of the user's, and may raise anything
        return None


def inspectable(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action, or a call of it when it is a proxy that raises on being asked what it is."""
    try:
        inspect.iscoroutinefunction(action)
    except Exception:  # noqa: BLE001 - attributes of a proxy may raise anything
        return functools.partial(_call, action)
    return action


def _call(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return action(*args, **kwargs)


def _function_of(action: object) -> types.FunctionType | None:
    if type(action) is types.FunctionType:
        return action
    while isinstance(action, functools.partial):
        action = action.func
    if isinstance(action, types.MethodType):
        action = action.__func__
    if isinstance(action, type):
        return None
    if not isinstance(action, types.FunctionType) and callable(action):
        # A cache or another wrapper shows what it wraps; an object with `__call__` has its annotations there.
        wrapped = inspect.unwrap(action)
        action = wrapped if isinstance(wrapped, types.FunctionType) else type(action).__dict__.get("__call__")
    return action if isinstance(action, types.FunctionType) else None


def _resolve(function: types.FunctionType, hint: Any) -> Any:
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        holder = types.SimpleNamespace(__annotations__={"return": hint})
        found = typing.get_type_hints(holder, globalns=scope, include_extras=True)["return"]
    except Exception:  # noqa: BLE001 - evaluating text may raise anything, and is not tried again
        return None
    if typing.get_origin(found) in _AWAITABLES:
        found = typing.get_args(found)[-1]
    return None if found in _NO_RESULT else found
