"""Who looks after a lane that is not at rest, where no process is always on: one invocation of the dispatcher.

Owns the item that names that invocation, and the two writes it takes. Does not own when an invocation needs to be the
one (`tenuto_control.loops.continuations`). A lane that is at rest has no such item, or one that has run out.
"""

from __future__ import annotations

from tenuto.lane.writes import AbsentOrAtMost, Equals, Item, Key, Update, Value

CONTINUATION_SK = "N"

CONTINUATION_TTL_S = 3_600
"""How long after its end the item is kept: it says nothing any more, and time to live deletes it for nothing."""


def continuation_key(pk: str) -> Key:
    """Where the one that looks after a partition (of a lane, or of the sweep) is named."""
    return Key(pk, CONTINUATION_SK)


def continuation_begin(pk: str, owner: str, until_ms: int, now_ms: int) -> Update:
    """Become the only process that looks after a lane, until a time. `owner` is unique.

    A refused invocation leaves the lane alone: however often a batch is redelivered and the sweep visits it, one
    invocation at a time waits for it.
    """
    over = AbsentOrAtMost("continuation.over", "until", now_ms)
    return Update(continuation_key(pk), _named(owner, until_ms), (), (over,))


def continuation_pass(pk: str, owner: str, successor: str, until_ms: int) -> Update:
    """Hand a lane on to the invocation that is given `successor`, which takes it by this write as well.

    With a time that is over, the lane is unattended from then on.
    """
    own = Equals("continuation.own", "owner", owner)
    return Update(continuation_key(pk), _named(successor, until_ms), (), (own,))


def names(item: Item | None, owner: str) -> bool:
    """Whether an item names this owner: the response to its write may have been lost."""
    return item is not None and item.get("owner") == owner


def _named(owner: str, until_ms: int) -> dict[str, Value]:
    return {"owner": owner, "until": until_ms, "ttl": until_ms // 1000 + CONTINUATION_TTL_S}
