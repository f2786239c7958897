"""Dead letters: what carries an event that ended without effect to where somebody finds it, and why.

Owns their headers, which events have one, and of which kind: a record of Kafka goes to its dead-letter topic, a message
to the table. Does not own the decision that an event has failed (`tenuto.runtime`, `tenuto_control.dispatcher`), nor
the items of the table's dead letters (`tenuto.lane.dead_letters`).
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from tenuto.protocol.records import (
    BuriedOut,
    CallSource,
    Event,
    Failed,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    Result,
)

REASON_BYTES_MAX = 2_000
REASON_HEADERS = 6
"""So many headers of a dead letter, the last ones, are not the event's own."""


def dead_letter(
    event: Event,
    reason: str,
    value_item: str | None = None,
    *,
    status_code: int = 500,
    at_ms: int = 0,
    first_ms: int = 0,
    attempts: int = 0,
) -> PublishOut | BuriedOut | None:
    """What carries a failed event to the dead letters, with where it came from and why it is there.

    None when a caller waits for its result, who hears of the failure. `value_item` names the item that holds its input.
    """
    source = event.source
    if isinstance(source, KafkaSource) and source.dead_letter is not None:
        return _record(event, source, source.dead_letter, reason, value_item)
    if not unseen(event):
        return None
    if value_item is not None:
        event = replace(event, input=None)
    return BuriedOut(event, cut(reason), status_code, at_ms, first_ms, attempts, value_item)


def ends_unseen(
    event: Event,
    result: Result,
    value_item: str | None = None,
    *,
    at_ms: int = 0,
    first_ms: int = 0,
    attempts: int = 0,
) -> BuriedOut | None:
    """The dead letter of a message whose handler ended it by a terminal error; None for every other end.

    A handler's terminal error is its decision, so a record of Kafka that ends by one is handled. Of a message, nobody
    would ever know.
    """
    if not isinstance(result, Failed) or isinstance(event.source, KafkaSource):
        return None
    failure = result.failure
    status, reason = failure.status_code, failure.message
    letter = dead_letter(
        event, reason, value_item, status_code=status, at_ms=at_ms, first_ms=first_ms, attempts=attempts
    )
    return replace(letter, foreign=failure.foreign) if isinstance(letter, BuriedOut) else None


def unseen(event: Event) -> bool:
    """Whether nobody waits for an event's result."""
    match event.source:
        case KafkaSource() | MessageSource():
            return True
        case CallSource(one_way=one_way):
            return one_way
        case _:
            assert_never(event.source)


def is_dead_letter(entry: Out) -> bool:
    """Whether an outgoing entry is a dead letter. Such a one goes past the outbox when it is large."""
    return isinstance(entry, BuriedOut) or (isinstance(entry, PublishOut) and entry.dead)


def item_of(entry: Out) -> str | None:
    """The item that an outgoing entry still needs when it is delivered: it must outlive the run that put it."""
    return entry.value_item if isinstance(entry, PublishOut | BuriedOut) else None


def buries(entry: Out, event_id: str) -> bool:
    """Whether an outgoing entry is the dead letter of this event."""
    match entry:
        case BuriedOut(event=event):
            return event.id == event_id
        case PublishOut(dead=True, headers=headers):
            return dict(headers[-REASON_HEADERS:]).get("tenuto-invocation") == event_id.encode()
        case _:
            return False


def cut(reason: str) -> str:
    """A reason as it is kept: encodable, and no longer than `REASON_BYTES_MAX`."""
    return reason.encode(errors="backslashreplace")[:REASON_BYTES_MAX].decode(errors="ignore")


def _record(event: Event, source: KafkaSource, topic: str, reason: str, value_item: str | None) -> PublishOut:
    headers = (
        *event.headers,
        ("tenuto-reason", cut(reason).encode()),
        ("tenuto-source-topic", source.topic.encode()),
        ("tenuto-source-partition", str(source.partition).encode()),
        ("tenuto-source-offset", str(source.offset).encode()),
        ("tenuto-handler", f"{event.invocation.lane.service}/{event.handler}".encode()),
        ("tenuto-invocation", event.id.encode()),
    )
    value = event.input if value_item is None else None
    return PublishOut(topic, value, source.raw_key, headers, dead=True, value_item=value_item)
