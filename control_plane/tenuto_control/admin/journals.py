"""The journal of an invocation that has not ended, as a file: what a replay of it needs, and nothing else.

Owns the file's form, and reading it from the table. Does not own replaying it, which is a function's business.

The file holds the invocation's input, its results and the state of its key, as plain as the handler sees them: treat it
as the payloads that it is made of.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from tenuto.lane.head import HEAD_SK, head_key, parse_head
from tenuto.lane.writes import Foreign, Item, Value
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.store.port import Table

KIND: Final = "tenuto-journal"
VERSION: Final = 1
PAGE_ITEMS: Final = 100
NEEDED: Final = ("J#", "V#", "A#")
"""Beginnings of the sort keys of what a run has beside its head: segments of its journal, its input, large answers."""


class NoJournalError(Exception):
    """There is no such journal. The message says why, fit for a user."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What is known of an invocation: its lane's items, as they were at `at_ms` (milliseconds since the epoch)."""

    invocation: str
    handler: str
    at_ms: int
    items: tuple[Item, ...]

    @property
    def lane(self) -> Lane:
        """The lane of the invocation."""
        return InvocationId.parse(self.invocation).lane


async def read(table: Table, named: str, now_ms: int) -> Journal:
    """The journal of an invocation by its id, or of the one at work by "service/key". Raises NoJournalError."""
    lane, wanted = _named(named)
    at = head_key(lane)
    item = await table.get(at)
    run = parse_head(item).run
    if item is None or run is None:
        raise NoJournalError(
            f"no invocation of this key of {lane.service} is unfinished, and a journal ends with its invocation"
        )
    if wanted is not None and run.event.id != wanted:
        raise NoJournalError(f"this invocation is not running; the one that runs for its key is {run.event.id}")
    items, after = [item], None
    while True:
        page = await table.query(lane.pk, "A", "W", limit=PAGE_ITEMS, after=after)
        items += [one for one in page.items if str(one["sk"]).startswith(NEEDED)]
        after = page.last
        if after is None:
            return Journal(run.event.id, run.event.handler, now_ms, tuple(items))


def write(journal: Journal) -> bytes:
    """The file of a journal: JSON, bytes in base64."""
    record = {
        "kind": KIND,
        "version": VERSION,
        "invocation": journal.invocation,
        "handler": f"{journal.lane.service}/{journal.handler}",
        "at_ms": journal.at_ms,
        "items": [{name: plain(value) for name, value in item.items()} for item in journal.items],
    }
    return json.dumps(record, indent=1).encode() + b"\n"


def parse(data: bytes) -> Journal:
    """The journal in a file. Raises NoJournalError for anything else."""
    try:
        record = json.loads(data)
        if record["kind"] != KIND or record["version"] != VERSION:
            raise NoJournalError(f"this is not a journal of version {VERSION}: make one with `tenuto journal`")
        items = tuple({name: _value(value) for name, value in item.items()} for item in record["items"])
        found = Journal(record["invocation"], record["handler"].rpartition("/")[2], record["at_ms"], items)
        lane = found.lane
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise NoJournalError("this is not a journal: make one with `tenuto journal INVOCATION`") from e
    if not any(item.get("pk") == lane.pk and item.get("sk") == HEAD_SK for item in items):
        raise NoJournalError("this journal lacks the record of its key: run `tenuto journal INVOCATION` again")
    return found


def _named(named: str) -> tuple[Lane, str | None]:
    if named.startswith("inv_"):
        try:
            return InvocationId.parse(named).lane, named
        except ValueError as e:
            raise NoJournalError("this is not an invocation id; one begins with inv_ and appears in the logs") from e
    service, slash, key = named.partition("/")
    if not (service and slash and key):
        raise NoJournalError(f'"{named}" does not name a journal: give an invocation id, or SERVICE/KEY')
    return Lane(service, key), None


def plain(value: Any) -> Any:
    """A value of an item as JSON has it, bytes in base64. One that cannot be read is as the table has it."""
    match value:
        case Foreign(attribute, reason):
            return {"unreadable": reason, "attribute": plain(attribute)}
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case Mapping():
            return {"map": {name: plain(one) for name, one in value.items()}}
        case list() | tuple():
            return [plain(one) for one in value]
        case _:
            return value


def _value(value: Any) -> Value:
    match value:
        case {"base64": str(text)}:
            return base64.b64decode(text, validate=True)
        case {"map": dict(named)}:
            return cast("Value", {name: _value(one) for name, one in named.items()})
        case list():
            return cast("Value", [_value(one) for one in value])
        case _:
            return cast("Value", value)
