"""Producing a dead letter in the largest form that its topic takes.

Owns the order of tries. Does not own the forms (`core.routing`), nor what follows when even the smallest is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto_control.core.routing import DeadLetter
from tenuto_control.ports import RecordSink, RecordTooLargeError


async def produce_largest(sink: RecordSink, topic: str, forms: Sequence[DeadLetter]) -> DeadLetter:
    """Produce the first form that the topic takes. Raises LogUnavailableError, also when it takes none."""
    *larger, smallest = forms
    for form in larger:
        try:
            await sink.produce(topic, form.value, form.key, form.headers)
        except RecordTooLargeError:
            continue
        return form
    await sink.produce(topic, smallest.value, smallest.key, smallest.headers)
    return smallest
