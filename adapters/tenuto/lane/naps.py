"""Naps: sleeps so short that the control plane keeps the lane meanwhile.

Owns the write, which is 5 and 6 in one. Does not own which sleeps are naps (function runtime), nor who begins the
attempt after one (`tenuto_control.core.lane_policy`).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from tenuto.lane.head import OWN, head_key, slot_attribute
from tenuto.lane.transitions import Progress, let_go
from tenuto.lane.writes import Absent, AbsentOrEquals, Equals, Update
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import ClaimedRun


class Nap(Struct, frozen=True):
    """Until when a run naps, whose the lane is meanwhile and in the attempt that follows, and when that lease ends.

    `slept` has the slots of the sleeps that are over then: before that no attempt begins.
    """

    wake_ms: int
    holder: str
    lease_ms: int
    slept: Mapping[str, bytes]


def nap(
    lane: Lane,
    ver: int,
    run: ClaimedRun,
    progress: Progress,
    state: Mapping[str, bytes | None],
    base: Mapping[str, bytes | None],
    sleep: Nap,
    tok: str,
    own: str,
) -> Update:
    """5 and 6 in one: release the function until a sleep ends, with the lane taken over for the next attempt already.

    Its next holder begins that attempt without a write. No other process does before the lease ends, so the offset or
    guard of the run's claim points to it throughout, and no timer is put. Refused when the run is suspended already,
    by an earlier write of this attempt whose response was lost. `base` is as in `suspend`.
    """
    sets, drop = let_go(run, progress, state, base)
    sets |= {slot_attribute(run.ver, slot): data for slot, data in sleep.slept.items()}
    sets |= {"ver": ver + 1, "tok": tok, "att": run.attempt + 1, "holder": sleep.holder}
    sets |= {"lease": sleep.lease_ms, "wake": sleep.wake_ms}
    if run.failures:
        sets["fails"] = 0
    if run.error is not None:
        drop.append("err")
    clauses = (Equals("nap.ver", "ver", ver), AbsentOrEquals("nap.own", OWN, own), Absent("nap.awake", "awaits"))
    return Update(head_key(lane), sets, (*drop, OWN), clauses)
