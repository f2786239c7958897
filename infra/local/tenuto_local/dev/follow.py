"""Follows logs as they are written: whole lines, each once, from where they end when it begins.

Owns the places in the files. Does not own what a line looks like (`view`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

READ_BYTES_MAX: Final = 64 * 1024


def complete(data: bytes, *, grown: bool) -> int:
    """How many bytes of a log's end to show: whole lines, or what has no end of line and does not grow any more.

    Lambda's runtime client ends no line behind a traceback, so its last one would wait for the next record.
    """
    return data.rfind(b"\n") + 1 or (0 if grown and len(data) < READ_BYTES_MAX else len(data))


@dataclass(slots=True)
class Follower:
    """One file. Ask it for `lines` at intervals."""

    path: Path
    _place: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Begin where the file ends."""
        self._place = self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> Iterator[str]:
        """What was added since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as log:
            log.seek(self._place)
            data = log.read(READ_BYTES_MAX)
        end = complete(data, grown=len(data) > self._seen)
        self._place += end
        self._seen = len(data) - end
        if end:
            yield from data[:end].decode(errors="replace").removesuffix("\n").split("\n")
