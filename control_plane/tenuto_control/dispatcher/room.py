"""Room: how much of one kind this process holds at once, in number and in bytes, and the refusal of what is beyond.

Owns the arithmetic. Does not own what is held, nor how a refusal is worded in HTTP (`ingress`), nor how much of it one
function may have (`core.shares`).

What is large is promised room before it comes. Many that come at once would otherwise fill the room together, none of
them whole, and be refused in the middle one after the other. A promise keeps no room from what is small, and is not
kept to who does not send.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tenuto_control.core.shares import may_take
from tenuto_control.ports import OverloadedError

UNOWNED = ""
"""What is held for no function that is known. Nothing is kept for it."""

PROMISED_S: Final = 0.5
"""How long a promise is kept to one who has sent nothing yet."""

PROMISED_BYTES_PER_S: Final = 1024 * 1024
"""How much one has to send in each second after that. Slower ones hold what has come."""

LOOKED_EVERY_S: Final = 0.1
"""How often it is looked for promises that need not be kept: otherwise each refusal would cost a look at all."""


class Room:
    """Bounds what is held together. `items` and `size` (bytes) are what is held now.

    `now_s` is any clock that only goes forward.
    """

    def __init__(
        self, items_max: int, bytes_max: int, functions: int = 1, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._functions = functions
        self._now_s = now_s
        self._items: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        # What was promised and has not come yet, and to whom.
        self._to_come: dict[str, int] = {}
        self._promised: dict[Held, float] = {}
        self._looked_s = now_s()
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
        self._check(size, owner, self._sizes, self.size)

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

    def promise(self, held: Held, size: int) -> None:
        """Keep room for so many bytes to come. Raises OverloadedError when others hold it, or were promised it."""
        try:
            self._check_promise(size, held.owner)
        except OverloadedError:
            if not self._break_promises():
                raise
            self._check_promise(size, held.owner)
        self._promised[held] = self._now_s()
        _add(self._to_come, held.owner, size)

    def came(self, held: Held, size: int) -> None:
        """So much of what was promised has come, or will not; nothing of it is left when `held` is promised no more."""
        _add(self._to_come, held.owner, -size)
        if not held.to_come:
            self._promised.pop(held, None)

    def _check_promise(self, size: int, owner: str) -> None:
        together = dict(self._sizes)
        for other, to_come in self._to_come.items():
            _add(together, other, to_come)
        self._check(size, owner, together, sum(together.values()))

    def _check(self, size: int, owner: str, sizes: dict[str, int], held: int) -> None:
        if held + size > self._bytes_max:
            raise OverloadedError(
                f"the requests that wait in this control plane hold {held:,} bytes already; try again later"
            )
        if not self._within(owner, size, sizes, self._bytes_max):
            own = sizes.get(owner, 0)
            raise OverloadedError(
                f"the requests for this function hold {own:,} bytes of this control plane; try again later"
            )

    def _break_promises(self) -> bool:
        """Promise nothing any more to those who are behind with sending. False when there are none."""
        now_s = self._now_s()
        if now_s < self._looked_s + LOOKED_EVERY_S:
            return False
        self._looked_s = now_s
        behind = [held for held, since_s in self._promised.items() if held.is_behind(now_s - since_s)]
        for held in behind:
            held.forgo()
        return bool(behind)

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
    """What one request holds of a room, and what of it was promised and is `to_come`."""

    __slots__ = ("_items", "_room", "_size", "owner", "to_come")

    def __init__(self, room: Room, owner: str = UNOWNED) -> None:
        self._room = room
        self._items = 0
        self._size = 0
        self.owner = owner
        self.to_come = 0

    def enter(self) -> None:
        """Count this request among those that wait, once. Raises OverloadedError."""
        if self._items == 0:
            self._room.enter(self.owner)
            self._items = 1

    def check(self, size: int) -> None:
        """Raises OverloadedError when so many bytes more would not fit."""
        self._room.check(size, self.owner)

    def promise(self, size: int) -> None:
        """Be promised room for so many bytes to come. Raises OverloadedError when there is none for them."""
        self._room.promise(self, size)
        self.to_come += size

    def add(self, size: int) -> None:
        """Hold more. Raises OverloadedError."""
        self._room.add(size, self.owner)
        self._size += size
        self._came(min(size, self.to_come))

    def exchange(self, size: int) -> None:
        """Hold so many bytes in the place of those held. Raises OverloadedError, and holds none, if they do not fit."""
        self._room.leave(0, self._size, self.owner)
        self._size = 0
        self.add(size)

    def is_behind(self, after_s: float) -> bool:
        """Whether too little has come in so many seconds, of what was promised."""
        return after_s > PROMISED_S and self._size <= (after_s - PROMISED_S) * PROMISED_BYTES_PER_S

    def forgo(self) -> None:
        """Be promised nothing any more."""
        self._came(self.to_come)

    def release(self) -> None:
        """Hold nothing any more. May be repeated."""
        self.forgo()
        self._room.leave(self._items, self._size, self.owner)
        self._items = self._size = 0

    def _came(self, size: int) -> None:
        if size:
            self.to_come -= size
            self._room.came(self, size)
