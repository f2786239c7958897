"""Room: how much of one kind this process holds at once, in number and in bytes, and the refusal of what is beyond.

Owns the arithmetic. Does not own what is held, nor how a refusal is worded in HTTP (`ingress`).
"""

from __future__ import annotations

from tenuto_control.ports import OverloadedError


class Room:
    """Bounds what is held together. `items` and `size` (bytes) are what is held now."""

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self.items = 0
        self.size = 0

    def held(self) -> Held:
        """A holding that is empty so far."""
        return Held(self)

    def enter(self) -> None:
        """One more. Raises OverloadedError."""
        if self.items >= self._items_max:
            raise OverloadedError(f"{self.items:,} requests wait in this control plane already; try again later")
        self.items += 1

    def check(self, size: int) -> None:
        """Raises OverloadedError when so many bytes more would not fit."""
        if self.size + size > self._bytes_max:
            raise OverloadedError(
                f"the requests that wait in this control plane hold {self.size:,} bytes already; try again later"
            )

    def add(self, size: int) -> None:
        """So many bytes more. Raises OverloadedError."""
        self.check(size)
        self.size += size

    def leave(self, items: int, size: int) -> None:
        """What was held is no longer."""
        self.items -= items
        self.size -= size


class Held:
    """What one request holds of a room."""

    __slots__ = ("_items", "_room", "_size")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._items = 0
        self._size = 0

    def enter(self) -> None:
        """Count this request among those that wait, once. Raises OverloadedError."""
        if self._items == 0:
            self._room.enter()
            self._items = 1

    def check(self, size: int) -> None:
        """Raises OverloadedError when so many bytes more would not fit."""
        self._room.check(size)

    def add(self, size: int) -> None:
        """Hold more. Raises OverloadedError."""
        self._room.add(size)
        self._size += size

    def release(self) -> None:
        """Hold nothing any more. May be repeated."""
        self._room.leave(self._items, self._size)
        self._items = self._size = 0
