"""Room: how much of one kind this process holds at once, in number and in bytes, and the refusal of what is beyond.

Owns the arithmetic. Does not own what is held, nor how a refusal is worded in HTTP (`ingress`), nor how much of it one
function may have (`core.shares`).
"""

from __future__ import annotations

from tenuto_control.core.shares import may_take
from tenuto_control.ports import OverloadedError

UNOWNED = ""
"""What is held for no function that is known. Nothing is kept for it."""


class Room:
    """Bounds what is held together. `items` and `size` (bytes) are what is held now."""

    def __init__(self, items_max: int, bytes_max: int, functions: int = 1) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._functions = functions
        self._items: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self.items = 0
        self.size = 0

    def held(self, owner: str = UNOWNED) -> Held:
        """A holding that is empty so far, of the function that it is for."""
        return Held(self, owner)

    def enter(self, owner: str = UNOWNED) -> None:
        """One more. Raises OverloadedError."""
        if self.items >= self._items_max:
            raise OverloadedError(f"{self.items:,} requests wait in this control plane already; try again later")
        if not self._within(owner, 1, self._items, self._items_max):
            own = self._items.get(owner, 0)
            raise OverloadedError(f"{own:,} requests for this function wait in this control plane; try again later")
        self.items += 1
        _add(self._items, owner, 1)

    def check(self, size: int, owner: str = UNOWNED) -> None:
        """Raises OverloadedError when so many bytes more would not fit."""
        if self.size + size > self._bytes_max:
            raise OverloadedError(
                f"the requests that wait in this control plane hold {self.size:,} bytes already; try again later"
            )
        if not self._within(owner, size, self._sizes, self._bytes_max):
            own = self._sizes.get(owner, 0)
            raise OverloadedError(
                f"the requests for this function hold {own:,} bytes of this control plane; try again later"
            )

    def add(self, size: int, owner: str = UNOWNED) -> None:
        """So many bytes more. Raises OverloadedError."""
        self.check(size, owner)
        self.size += size
        _add(self._sizes, owner, size)

    def leave(self, items: int, size: int, owner: str = UNOWNED) -> None:
        """What was held is no longer."""
        self.items -= items
        self.size -= size
        _add(self._items, owner, -items)
        _add(self._sizes, owner, -size)

    def _within(self, owner: str, more: int, held: dict[str, int], most: int) -> bool:
        """Whether a function leaves the others what is kept for them."""
        others = (size for other, size in held.items() if other != owner)
        return may_take(more, held.get(owner, 0), others, most, self._functions)


def _add(held: dict[str, int], owner: str, more: int) -> None:
    there = held.get(owner, 0) + more
    if there:
        held[owner] = there
    else:
        held.pop(owner, None)


class Held:
    """What one request holds of a room."""

    __slots__ = ("_items", "_owner", "_room", "_size")

    def __init__(self, room: Room, owner: str = UNOWNED) -> None:
        self._room = room
        self._owner = owner
        self._items = 0
        self._size = 0

    def enter(self) -> None:
        """Count this request among those that wait, once. Raises OverloadedError."""
        if self._items == 0:
            self._room.enter(self._owner)
            self._items = 1

    def check(self, size: int) -> None:
        """Raises OverloadedError when so many bytes more would not fit."""
        self._room.check(size, self._owner)

    def add(self, size: int) -> None:
        """Hold more. Raises OverloadedError."""
        self._room.add(size, self._owner)
        self._size += size

    def release(self) -> None:
        """Hold nothing any more. May be repeated."""
        self._room.leave(self._items, self._size, self._owner)
        self._items = self._size = 0
