"""Timers: items by which somebody looks at a lane when a time has come, with their writes (4, 10, 18).

Owns the three kinds of timer, the form of their items, where these are, and how far they have been swept. Does not own
when one is put (function runtime and dispatcher), nor who comes by (`tenuto_control`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar, assert_never

from tenuto.lane.writes import Absent, AbsentOrAtMost, Delete, Key, Put, Update, Value
from tenuto.protocol.ids import Lane, digest
from tenuto.protocol.limits import GUARDED_WRITE_MS_MAX, TIMER_BUCKET_MS, TIMER_SHARDS, TIMER_SHARDS_WIDE

HTTP_SENDER: Final = "http"
"""The sender of a message that came over HTTP; no partition key looks like it."""


@dataclass(frozen=True, slots=True)
class SleepTimer:
    """The end of a sleep of an invocation, at `due_ms`; `nonce` tells it from others of its lane.

    A `wide` one is in a minute that is marked: see `spread`.
    """

    lane: Lane
    invocation: str
    due_ms: int
    nonce: str
    wide: bool = False

    @property
    def key(self) -> Key:
        """Where its item is."""
        return _key(self)


@dataclass(frozen=True, slots=True)
class GuardTimer:
    """Leads to a lane with unfinished work of an invocation, from `due_ms` on.

    One that was put before a write of the head carries the `ver` that write expects, and when it was put: by whichever
    clock the guard is due, the write may still come while the head is at that `ver`. One without a `ver` that says when
    it was put is shared: until it is due, it may have to protect what came later.
    """

    lane: Lane
    invocation: str
    due_ms: int
    nonce: str
    ver: int | None = None
    since_ms: int | None = None
    wide: bool = False

    @property
    def key(self) -> Key:
        """Where its item is."""
        return _key(self)


@dataclass(frozen=True, slots=True)
class SendTimer:
    """A delayed message for a lane: a packed outgoing entry, its sender's partition key and its place there."""

    lane: Lane
    invocation: str
    due_ms: int
    nonce: str
    message: bytes
    sender: str
    sequence: str

    @property
    def key(self) -> Key:
        """Where its item is."""
        return _key(self)


Timer: TypeAlias = SleepTimer | GuardTimer | SendTimer

Minutes: TypeAlias = tuple[int, int]
"""Minutes since the epoch: the first, and the one after the last."""

NOT_SPREAD: Final[Minutes] = (0, 0)

T = TypeVar("T", bound=SleepTimer | GuardTimer)


def spread(timer: T, marked: Minutes) -> T:
    """A timer where it is to be put: of a minute that is marked, it is one of `TIMER_SHARDS_WIDE` partitions."""
    first, after = marked
    return replace(timer, wide=True) if first <= timer.due_ms // TIMER_BUCKET_MS < after else timer


WIDE_MARK_SK: Final = "!wide"
"""Before all timers of its partition, and before where a sweep begins that knows no marks."""


def wide_mark(minute: int) -> Put:
    """Have sweeps look at all `TIMER_SHARDS_WIDE` partitions of a minute, before a timer is spread over them."""
    return Put(Key(timer_bucket(minute, 0), WIDE_MARK_SK), {"wide": 1})


def wide_mark_delete(minute: int) -> Delete:
    """Forget the mark of a minute whose partitions were all found empty, long after any timer may be put there."""
    return Delete(Key(timer_bucket(minute, 0), WIDE_MARK_SK))


def timer_bucket(minute: int, shard: int) -> str:
    """Partition key of a bucket of timers; `minute` counts from the epoch."""
    return f"T#{minute}#{shard}"


def leftovers_guard(lane: Lane, now_ms: int) -> GuardTimer:
    """Leads to what an attempt has left beside the head that was lost: due when none of its writes can come any more.

    There is one of a lane for each hour, however many attempts are lost.
    """
    due_ms = (now_ms // GUARDED_WRITE_MS_MAX + 2) * GUARDED_WRITE_MS_MAX
    return GuardTimer(lane, "", due_ms, "leftovers")


def timer_put(timer: Timer) -> Put:
    """4, 10. Idempotent: the same timer is the same item."""
    return Put(timer.key, _attributes(timer))


def timer_put_again(timer: SendTimer) -> Put:
    """10 of a delayed message whose acceptance was found: the first message stays, should its timer be there."""
    return Put(timer.key, _attributes(timer), (Absent("timer.absent", "pk"),))


def timer_delete(timer: Timer) -> Delete:
    """18. Only once its lane has nothing left for it to drive."""
    return Delete(timer.key)


def parse_timer(item: Mapping[str, Value]) -> Timer:
    """The timer in an item. Raises ValueError when it is none."""
    lane, kind, inv, due, nonce = (item.get(n) for n in ("lane", "kind", "inv", "due", "nonce"))
    if not (isinstance(lane, str) and isinstance(inv, str) and isinstance(due, int) and isinstance(nonce, str)):
        raise ValueError(f"not a timer: {sorted(item)}")  # noqa: TRY004 - bad data, not a bad call
    at, wide = (Lane.from_pk(lane), inv, due, nonce), item.get("wide") == 1
    match kind, item.get("msg"):
        case "sleep", _:
            return SleepTimer(*at, wide)
        case "guard", _:
            ver, since = item.get("ver"), item.get("since")
            return GuardTimer(
                *at, ver if isinstance(ver, int) else None, since if isinstance(since, int) else None, wide
            )
        case "send", bytes(message):
            sender, seq = item.get("sender"), item.get("seq")
            return SendTimer(
                *at, message, sender if isinstance(sender, str) else HTTP_SENDER, seq if isinstance(seq, str) else ""
            )
        case _:
            raise ValueError(f"not a timer: {sorted(item)}")


SWEEP_CURSOR = Key("C#sweep", "C")
"""Where the deep sweep has got to: no timer is in a bucket before its minute.

Not among the timers, where functions may write as well.
"""


def cursor_put(minute: int) -> Update:
    """How far timers have been swept; of several sweepers the furthest counts."""
    return Update(SWEEP_CURSOR, {"minute": minute}, (), (AbsentOrAtMost("cursor.further", "minute", minute),))


def cursor_reset(minute: int) -> Put:
    """Look for timers from here on, regardless of what has been swept: `cursor_put` does not move a cursor back."""
    return Put(SWEEP_CURSOR, {"minute": minute})


def _kind(timer: Timer) -> str:
    """What an item calls its kind."""
    match timer:
        case SleepTimer():
            return "sleep"
        case GuardTimer():
            return "guard"
        case SendTimer():
            return "send"
        case _:
            assert_never(timer)


def _key(timer: Timer) -> Key:
    """Ordered by due time within its bucket and shard."""
    pk = timer.lane.pk
    wide = not isinstance(timer, SendTimer) and timer.wide
    # Sums of bytes of like keys are alike: enough for four partitions, not for more.
    shard = zlib.crc32(pk.encode()) % TIMER_SHARDS_WIDE if wide else sum(pk.encode()) % TIMER_SHARDS
    bucket = timer_bucket(timer.due_ms // TIMER_BUCKET_MS, shard)
    # A digest, because a sort key holds half of what a partition key may.
    return Key(bucket, f"{timer.due_ms:015d}#{digest(pk)}#{_kind(timer)}#{timer.nonce}")


def _attributes(timer: Timer) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "lane": timer.lane.pk,
        "kind": _kind(timer),
        "inv": timer.invocation,
        "due": timer.due_ms,
        "nonce": timer.nonce,
    }
    if not isinstance(timer, SendTimer) and timer.wide:
        attributes["wide"] = 1
    match timer:
        case SleepTimer():
            return attributes
        case GuardTimer(ver=ver, since_ms=since_ms):
            optional: dict[str, Value] = {"ver": ver, "since": since_ms}
            return attributes | {name: value for name, value in optional.items() if value is not None}
        case SendTimer(message=message, sender=sender, sequence=sequence):
            return attributes | {"msg": message, "sender": sender, "seq": sequence}
        case _:
            assert_never(timer)
