"""The types of the decorators that declare handlers: what a function has to be, and which handler it becomes.

Owns what type checkers know of a declaration: the context, the input and the result. Does not own the decorators
(`tenuto.service`), which check the same when the program runs. No function imports it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, overload

from tenuto.context import Context, ObjectContext, ObjectSharedContext
from tenuto.handler import ObjectHandler, ServiceHandler, SharedHandler

I = TypeVar("I")  # noqa: E741 - the handler's input
O = TypeVar("O")  # noqa: E741 - the handler's output


class DeclaresService(Protocol):
    """The decorator of a handler of a service."""

    # An input that may be left out counts as one, so functions with an input come first.
    @overload
    def __call__(self, function: Callable[[Context, I], Awaitable[O]], /) -> ServiceHandler[I, O]: ...

    @overload
    def __call__(self, function: Callable[[Context], Awaitable[O]], /) -> ServiceHandler[None, O]: ...


class DeclaresObject(Protocol):
    """The decorator of an exclusive handler of a virtual object."""

    @overload
    def __call__(self, function: Callable[[ObjectContext, I], Awaitable[O]], /) -> ObjectHandler[I, O]: ...

    @overload
    def __call__(self, function: Callable[[ObjectContext], Awaitable[O]], /) -> ObjectHandler[None, O]: ...


class DeclaresShared(Protocol):
    """The decorator of a shared handler of a virtual object."""

    @overload
    def __call__(self, function: Callable[[ObjectSharedContext, I], Awaitable[O]], /) -> SharedHandler[I, O]: ...

    @overload
    def __call__(self, function: Callable[[ObjectSharedContext], Awaitable[O]], /) -> SharedHandler[None, O]: ...
