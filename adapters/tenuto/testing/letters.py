"""The dead letters of a world: those in topics, and those that the table keeps.

Owns reading both as one list. Does not own how they come about.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from tenuto.protocol.records import Event, PublishOut
from tenuto.store.port import Table
from tenuto.testing.views import DeadLetter, Record
from tenuto_control.admin.dead_letters import DeadLetterOffice
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock, RecordSink


async def dead_letters(
    table: Table, sink: RecordSink, clock: Clock, topics: Iterable[Sequence[Record]]
) -> list[DeadLetter]:
    """All dead letters: those of topics in the order of arrival, then those of the table, oldest first."""
    found = [_of_record(record) for records in topics for record in records]
    numbers = itertools.count(1)
    office = DeadLetterOffice(table, sink, clock, Limits(), lambda: f"tests.{next(numbers)}")
    for letter in await office.listed():
        _, held = await office.read(letter.id)
        if isinstance(held, Event):
            lane = held.invocation.lane
            handler = f"{lane.service}/{held.handler}"
            found.append(DeadLetter(letter.reason, handler, lane.key, held.input, None, held.id))
        elif isinstance(held, PublishOut):
            key = (held.key or b"").decode(errors="replace")
            found.append(DeadLetter(letter.reason, "", key, held.value))
    return found


def _of_record(record: Record) -> DeadLetter:
    return DeadLetter(
        record.header("tenuto-reason") or "",
        record.header("tenuto-handler") or "",
        (record.key or b"").decode(errors="replace"),
        record.data,
        record.topic,
        record.header("tenuto-invocation") or "",
    )
