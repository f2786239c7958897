"""The values that environments return: invocations, records, dead letters and journal entries.

Owns these values. Does not own how they are found (`world`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Invocation(Generic[T]):
    """An invocation that `send` or `event` started."""

    id: str
    """Id of the invocation. It begins with `inv_`."""
    handler: str
    """Name of the handler, as "service/handler"."""
    key: str
    """Key of the virtual object; for a service, an internal id."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a Kafka topic."""

    topic: str
    """Name of the topic."""
    key: bytes | None
    """Key of the record; None if it has none."""
    data: bytes | None
    """Value of the record as bytes; None for a tombstone."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """Headers in order. A name may occur more than once."""

    @property
    def value(self) -> Any:
        """Value decoded from JSON, or its bytes if it is not JSON; None for a tombstone."""
        if self.data is None:
            return None
        try:
            return msgspec.json.decode(self.data)
        except msgspec.DecodeError:
            return self.data

    def header(self, name: str) -> str | None:
        """Return the last value of a header as text, or None if the record has no such header."""
        found = next((value for n, value in reversed(self.headers) if n == name), None)
        return None if found is None else found.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that failed for good, or a record that could not be produced."""

    reason: str
    """Why it failed, such as the exception of the last attempt."""
    handler: str
    """Name of the handler, as "service/handler"; empty for a record."""
    key: str
    """Key of the virtual object, or of the record."""
    data: bytes | None
    """Value as bytes; None for a tombstone or an empty input."""
    topic: str | None = None
    """Dead-letter topic that holds it; None if it is kept in the table."""
    invocation: str = ""
    """Id of the failed invocation; empty for a record that never became an event."""

    @property
    def value(self) -> Any:
        """Value decoded from JSON, or its bytes if it is not JSON; None if it has none."""
        return Record("", None, self.data).value


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A command that a handler issued, and its outcome."""

    index: int
    """Position in the journal, from 0."""
    command: str
    """Kind and name of the command, such as "run 'pay'" or "sleep"."""
    done: bool
    """Whether the command has completed."""
    result: Any = None
    """Result decoded from JSON, or the message of the failure; None if the command is not done."""
    failed: bool = False
    """Whether the command failed."""
