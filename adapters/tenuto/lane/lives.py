"""Watermarks of topics that were deleted and created again: which are of a former life, and when they may go.

Owns the marks of former lives in a head. Does not own how a life is named (`tenuto_control.core.routing`), nor which is
the present one: that of a record that comes straight from Kafka.

A watermark of a former life refuses what of it is still in progress: in another process, or in the key's inbox. A day
after a newer life was met, no process has any of it (`TOMBSTONE_TTL_S` counts on the same), and the inbox of a lane
without a mark for it is empty. So then the watermark goes with whatever write of the head is next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from tenuto.lane.head import FORMER, WATERMARK, head_key
from tenuto.lane.writes import Update
from tenuto.protocol.ids import Lane
from tenuto.protocol.limits import TOMBSTONE_TTL_S
from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event, KafkaSource

_LIFE: Final = re.compile(r"(.*)\.(-?)[0-9a-f]{7,8}", re.DOTALL)
"""The epoch of a source: the subscription's and the topic's id, or with a minus what stands for any former one."""

Marks = Mapping[str, tuple[int, int]]
"""By source: when (ms) a newer life of its topic was met, and the watermark at that time."""


def newly_former(head: Head, events: Iterable[Event], now_ms: int) -> Marks:
    """Marks for the watermarks of other lives of the partitions that these events have just come from."""
    if len(head.watermarks) < 2:  # noqa: PLR2004 - one has no other beside it
        return {}
    present = {e.source.watermark for e in events if isinstance(e.source, KafkaSource) and _is_present(e.source.epoch)}
    lines = {_line(source) for source in present}
    former = {s: at for s, at in head.watermarks.items() if s not in present and _line(s) in lines}
    return {s: (now_ms, at) for s, at in former.items() if s not in head.former or head.former[s][1] != at}


def life_over(lane: Lane, marks: Marks) -> Update:
    """Note that incarnations of topics have ended.

    It needs no condition: a watermark that moves on makes its mark void.
    """
    return Update(head_key(lane), {FORMER + source: [at_ms, mark] for source, (at_ms, mark) in marks.items()})


def outlived(head: Head, now_ms: int) -> tuple[str, ...]:
    """Attributes of former lives that the next write of the head may remove."""
    if head.pend is not None:
        return ()
    gone = [
        source
        for source, (at_ms, mark) in head.former.items()
        if at_ms + TOMBSTONE_TTL_S * 1_000 < now_ms and head.watermarks.get(source, mark) == mark
    ]
    return tuple(prefix + source for source in gone for prefix in (WATERMARK, FORMER))


def _is_present(epoch: str) -> bool:
    found = _LIFE.fullmatch(epoch)
    return found is not None and not found[2]


def _line(source: str) -> tuple[str, str]:
    """What all lives of a partition have in common. A source without a life is a former one of those with one."""
    epoch, _, place = source.partition("|")
    found = _LIFE.fullmatch(epoch)
    return (epoch if found is None else found[1]), place
