"""Dead letters: the record that carries an event that can never be handled, and why.

Owns their headers. Does not own the decision (`tenuto.runtime`, `tenuto_control.dispatcher`).
"""

from __future__ import annotations

from tenuto.protocol.records import Event, KafkaSource, PublishOut

REASON_BYTES_MAX = 2_000


def dead_letter(event: Event, source: KafkaSource, reason: str, value_item: str | None = None) -> PublishOut:
    """The record that carries an event to its dead-letter topic, with where it came from and why it is there."""
    headers = (
        *event.headers,
        ("tenuto-reason", reason.encode()[:REASON_BYTES_MAX]),
        ("tenuto-source-topic", source.topic.encode()),
        ("tenuto-source-partition", str(source.partition).encode()),
        ("tenuto-source-offset", str(source.offset).encode()),
        ("tenuto-invocation", event.id.encode()),
    )
    value = event.input if value_item is None else None
    return PublishOut(source.dead_letter or "", value, source.raw_key, headers, dead=True, value_item=value_item)
