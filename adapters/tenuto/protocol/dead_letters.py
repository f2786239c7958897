"""Dead letters: the record that carries an event that can never be handled, and why.

Owns their headers, and which events have one. Does not own the decision that an event has failed (`tenuto.runtime`,
`tenuto_control.dispatcher`).
"""

from __future__ import annotations

from tenuto.protocol.records import Event, KafkaSource, PublishOut

REASON_BYTES_MAX = 2_000
REASON_HEADERS = 5
"""So many headers of a dead letter, the last ones, are not the event's own."""


def dead_letter(event: Event, reason: str, value_item: str | None = None) -> PublishOut | None:
    """The record that carries a failed event to its dead-letter topic, with where it came from and why it is there.

    None when it did not come from Kafka, or has no such topic. `value_item` names the item that holds its input.
    """
    source = event.source
    if not isinstance(source, KafkaSource) or source.dead_letter is None:
        return None
    headers = (
        *event.headers,
        ("tenuto-reason", reason.encode()[:REASON_BYTES_MAX]),
        ("tenuto-source-topic", source.topic.encode()),
        ("tenuto-source-partition", str(source.partition).encode()),
        ("tenuto-source-offset", str(source.offset).encode()),
        ("tenuto-invocation", event.id.encode()),
    )
    value = event.input if value_item is None else None
    return PublishOut(source.dead_letter, value, source.raw_key, headers, dead=True, value_item=value_item)
