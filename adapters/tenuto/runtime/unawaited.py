"""A value that still waits for its `await`: the mistake is named, where a serde would only say that it has no form.

Owns finding such a value, also inside others, and the words about it. Does not own writing values (`tenuto.serde`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from tenuto.protocol.limits import FAILURE_TEXT_BYTES_MAX
from tenuto.protocol.texts import cut, type_name
from tenuto.runtime.futures import DurableFuture

VALUES_LOOKED_AT_MAX: Final = 10_000
"""So many values are searched, and only where one was refused already: the kind of the error depends on it, no more."""


def refuse_unawaited(value: object, what: str, before: str = "") -> None:
    """Raise TypeError when `value` is, or holds, what should have been awaited.

    `what` begins the message, such as "the result of orders/place"; `before` stands before the `await` in it. A mistake
    in the code, so no TerminalError: a corrected deployment heals it.
    """
    found = _unawaited_in(value)
    if found is None:
        return
    is_or_holds = "is" if found is value else "holds"
    if isinstance(found, DurableFuture):
        text = f'a durable future that was not awaited: write "{before}await {found.awaited_as}"'
    else:
        if inspect.iscoroutine(found):
            found.close()  # Python would warn of it as well, later and elsewhere.
        text = f'a {type_name(found)} that was not awaited: write "{before}await" in front of the call'
    # What the serde said of it helps nobody, so it is not chained.
    raise TypeError(cut(f"{what} {is_or_holds} {text}", FAILURE_TEXT_BYTES_MAX)) from None


def _unawaited_in(value: object) -> object | None:
    """The first thing to await in a value: itself, or in containers, fields and attributes."""
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < VALUES_LOOKED_AT_MAX:
        node = waiting.pop()
        if id(node) in seen or node is None or isinstance(node, str | bytes | int | float | type):
            continue
        seen.add(id(node))
        if inspect.isawaitable(node):
            return node
        waiting.extend(reversed(_parts(node)))
    return None


def _parts(node: object) -> list[object]:
    try:
        if isinstance(node, Mapping):
            return [*node.keys(), *node.values()]
        if isinstance(node, list | tuple | set | frozenset):
            return list(node)
        if isinstance(node, Struct):
            return [getattr(node, name, None) for name in node.__struct_fields__]
        # Fields alone: any other object, such as a client, may have tasks of its own.
        kind = type(node)
        names = (*getattr(kind, "__dataclass_fields__", ()), *getattr(kind, "__pydantic_fields__", ()))
        return [getattr(node, name, None) for name in names]
    except Exception:  # noqa: BLE001 - a container of the user's may raise anything; then the serde's words stand
        return []
