"""What a test is shown: invocations, records, dead letters, journals.

Owns these values and their forms for people. Does not own how they are found (`world`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Invocation(Generic[T]):
    """What `send` and `event` have begun. `handler` is "service/handler", `key` the lane's key."""

    id: str
    handler: str
    key: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a topic. `data` are its bytes, None for a tombstone."""

    topic: str
    key: bytes | None
    data: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def value(self) -> Any:
        """The value as JSON, or its bytes where it is none; None for a tombstone."""
        if self.data is None:
            return None
        try:
            return msgspec.json.decode(self.data)
        except msgspec.DecodeError:
            return self.data

    def header(self, name: str) -> str | None:
        """The last value of a header as text; None when there is none."""
        found = next((value for n, value in reversed(self.headers) if n == name), None)
        return None if found is None else found.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that ended as failed. `topic` is its dead-letter topic, None for one that the table keeps.

    `handler` and `invocation` are empty for a record that never became an event.
    """

    reason: str
    handler: str
    key: str
    data: bytes | None
    topic: str | None = None
    invocation: str = ""

    @property
    def value(self) -> Any:
        """See `Record.value`."""
        return Record("", None, self.data).value


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A command of an invocation. `command` reads as "run 'pay'" or "sleep"; `result` is what is known of its end.

    `result` is None while the command is not done; otherwise a value as JSON, or the text of a failure.
    """

    index: int
    command: str
    done: bool
    result: Any = None
    failed: bool = False
