"""Parses the keys, values and headers of records for `tenuto send`.

Owns the forms in which records are written on a command line and in a file. Pure. Does not own Kafka.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from tenuto_cli.parsing import UsageError

NUMBER: Final = "{n}"
"""In a key or a value, with --count: the number of the record, from 1."""

JSON_BEGINS: Final = frozenset('{["')
SHOWN_CHARACTERS_MAX: Final = 60
_SINGLE_QUOTES: Final = """; in a shell, write it in single quotes: '{"a": 1}'"""


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


def of_lines(
    lines: Iterable[str], separator: str, headers: tuple[tuple[str, bytes], ...]
) -> Iterator[tuple[int, Record]]:
    """Each line that is not empty, by its number, as a record: the key, the separator, the value.

    Raises UsageError with the line.
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text:
            continue
        key, found, value = text.partition(separator)
        if not found or not key:
            raise UsageError(f"line {number}: expected KEY{separator}VALUE; --separator names another separator")
        yield number, Record(key, value, headers)


def not_json(value: str | None, *, in_shell: bool) -> str | None:
    """What to write instead of a value that is not JSON, which handlers take by default; None for JSON and for nothing.

    `in_shell`: it was written on a command line, where a shell may have removed its quotes.
    """
    if not value:
        return None
    try:
        json.loads(value.replace(NUMBER, "1"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if value.lstrip()[:1] in JSON_BEGINS:
            return f"{error}{_SINGLE_QUOTES if in_shell else ''}"
        text = json.dumps(value if len(value) <= SHOWN_CHARACTERS_MAX else "text", ensure_ascii=False)
        return f"a JSON string is written so: {shlex.quote(text) if in_shell else text}"
    return None


def _no_constant(name: str) -> NoReturn:
    """NaN and the infinities, which Python reads and JSON does not have. Raises ValueError."""
    raise ValueError(f"{name} is no JSON")


def headers_of(pairs: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """Parse headers of the form NAME=VALUE, in order. Raises UsageError."""
    headers = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--header {pair!r}: write NAME=VALUE")
        headers.append((name, value.encode()))
    return tuple(headers)
