"""Parses the keys, values and headers of records for `tenuto send`.

Owns the forms in which records are written on a command line and in a file. Pure. Does not own Kafka.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tenuto_cli.parsing import UsageError

NUMBER: Final = "{n}"
"""In a key or a value, with --count: the number of the record, from 1."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record to be sent. No value is a tombstone."""

    key: str
    value: str | None
    headers: tuple[tuple[str, bytes], ...] = ()


def repeated(record: Record, count: int) -> Iterator[Record]:
    """Repeat a record, with its number in place of `{n}`."""
    for number in range(1, count + 1):
        text = str(number)
        value = None if record.value is None else record.value.replace(NUMBER, text)
        yield Record(record.key.replace(NUMBER, text), value, record.headers)


def of_lines(lines: Iterable[str], separator: str, headers: tuple[tuple[str, bytes], ...]) -> Iterator[Record]:
    """A record for each line that is not empty: the key, the separator, the value. Raises UsageError with the line."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text:
            continue
        key, found, value = text.partition(separator)
        if not found or not key:
            raise UsageError(f"line {number}: expected KEY{separator}VALUE; --separator names another separator")
        yield Record(key, value, headers)


def headers_of(pairs: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """Parse headers of the form NAME=VALUE, in order. Raises UsageError."""
    headers = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--header {pair!r}: write NAME=VALUE")
        headers.append((name, value.encode()))
    return tuple(headers)
