"""The state a handler sees: what was stored, with its own changes laid over it.

Owns reading, changing and measuring state as bytes. Does not own serialisation or storage.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenuto import checks
from tenuto.errors import StateTooLargeError, TerminalError
from tenuto.protocol.limits import STATE_BYTES_MAX, WRITE_ATTRIBUTES_MAX

STATE_KEYS_MAX = WRITE_ATTRIBUTES_MAX // 4
"""Names a lane's state may have: a suspending write can name each twice, as published and as first seen."""


class StateView:
    """State as one invocation sees it. `initial` is what its first attempt found."""

    def __init__(self, initial: Mapping[str, bytes]) -> None:
        self.initial = dict(initial)
        self.changed: dict[str, bytes | None] = {}
        self._size = sum(_size_of_name(k) + len(v) for k, v in initial.items())

    def get(self, name: str) -> bytes | None:
        """The value of a name, None when it has none."""
        return self.changed[name] if name in self.changed else self.initial.get(name)

    def set(self, name: str, value: bytes) -> None:
        """Raises StateTooLargeError when the lane's state would no longer fit its head. Names were checked before."""
        before = self.get(name)
        grown = self._size + len(value) - (len(before) if before is not None else -_size_of_name(name))
        if grown > STATE_BYTES_MAX:
            raise StateTooLargeError(f"{checks.where()}state with {name!r}", grown, STATE_BYTES_MAX)
        if before is None and len(self.names()) >= STATE_KEYS_MAX:
            raise TerminalError(
                f"{checks.where()}an object may have {STATE_KEYS_MAX} state names; put {name!r} inside another value",
                413,
            )
        self._size = grown
        self.changed[name] = value

    def clear(self, name: str) -> None:
        """Forget a name; one that has no value is no error."""
        before = self.get(name)
        if before is not None:
            self._size -= len(before) + _size_of_name(name)
            self.changed[name] = None

    def names(self) -> list[str]:
        """Names that have a value, sorted."""
        return sorted(n for n in {*self.initial, *self.changed} if self.get(n) is not None)

    def initial_of_changed(self) -> dict[str, bytes | None]:
        """What the first attempt found of each changed name."""
        return {name: self.initial.get(name) for name in self.changed}


def _size_of_name(name: str) -> int:
    return len(name) if name.isascii() else len(name.encode())
