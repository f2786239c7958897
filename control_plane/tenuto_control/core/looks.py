"""When to look next at a lane that other processes use, while work waits here for what they do.

Owns the times. Does not own what is done instead of waiting (`lane_policy`), nor what has been seen (`sightings`).

Nothing tells a process that a run of another has ended but a read of the head. So looks come when a run should be over:
by the pace of its handler, else by that of the runs before it on its key, else by how long it has lasted so far.
"""

from __future__ import annotations

from typing import Final

from tenuto_control.core.lane_bounds import Bounds
from tenuto_control.core.lane_facts import Turn
from tenuto_control.core.sightings import Sighting

HELD_BACK_MS: Final = 850
"""So long events wait here behind what was handed over before, while another process's run is at work. Then they are
handed over as well: the owner runs out of work unseen, and nobody would use the lane until the next look."""

RUNS_DIFFER_MS: Final = 60
"""By so much a run may last longer than the one before, and its end is seen by one look."""

LOOKS_GROW: Final = 4
CALL_LOOK_MS_MAX: Final = 250
"""While a call waits for a run that has lasted for longer than those before, the head is read again after a fourth of
that time, and at the latest after so long: a lane stands still for no longer."""

SHORT_RUN_MS: Final = 600
NEXT_LOOKS: Final = 2
"""Behind a run that has not lasted for so long, the pauses between the looks for a call that is next do not grow.
Behind a longer one each is so many times as long."""

LATE_PARTS: Final = 10
"""They grow again where that is less than so small a part of the time that the run has lasted."""

KEPT_MS: Final = 600
"""Where nothing tells when a run ends, events wait for one that has not lasted for half of that when they come, and for
no longer than that: two looks. A process whose `keep_events_ms` is less does not wait."""

BEHIND_LOOKS: Final = 2
"""So many times as long a look may be away while events that wait here are behind the run that is at work."""

AWAITED_LOOK_MS_MAX: Final = 900
"""How long a look may be away while a call waits: runs that are shorter than the ones before end unseen."""

FORESEEN_LOOK_MS_MAX: Final = 2_000
"""The same where runs of the handler last about as long as each other. One that fails early is seen that late."""


def look_ms(seen: Sighting, turn: Turn, bounds: Bounds) -> int:
    """When the head is to be read again while work waits here."""
    if turn.calls or turn.handed:
        most_ms = FORESEEN_LOOK_MS_MAX if turn.pace.usual_ms is not None else AWAITED_LOOK_MS_MAX
        return min(seen.read_ms + most_ms, _call_look_ms(seen, turn, bounds))
    if seen.began_ms is None:
        return seen.read_ms + bounds.event_look_ms
    if turn.behind or turn.begun:
        most_ms = seen.read_ms + BEHIND_LOOKS * bounds.event_look_ms
        at_ms = min(_behind_look_ms(seen, seen.began_ms, bounds, max(1, turn.behind), turn), most_ms)
        if turn.behind and seen.read_ms < turn.first_ms + HELD_BACK_MS:
            at_ms = min(at_ms, max(seen.read_ms, turn.first_ms) + HELD_BACK_MS)
        return at_ms
    if (until_ms := kept_until_ms(seen, turn, bounds)) is not None:
        return min(_kept_look_ms(seen, turn, bounds), max(until_ms, seen.read_ms + 1))
    return seen.read_ms + bounds.event_look_ms


def kept_until_ms(seen: Sighting, turn: Turn, bounds: Bounds) -> int | None:
    """Until when events wait for the end of a run rather than being handed over; None when that would be too late.

    To hand them over takes several requests here, and several where they are drained; to wait takes a look or two.
    """
    if seen.began_ms is None or turn.calls or turn.handed or turn.behind or turn.pace.varies:
        return None
    over_ms = ends_ms(seen, turn)
    if over_ms is None:
        # It may be a short one, if it has begun just now.
        until_ms = turn.first_ms + KEPT_MS
        soon = bounds.keep_events_ms >= KEPT_MS and turn.first_ms - seen.began_ms < KEPT_MS // 2
    else:
        until_ms = turn.first_ms + bounds.keep_events_ms
        soon = over_ms < until_ms
    return until_ms if soon and turn.now_ms < until_ms else None


def _kept_look_ms(seen: Sighting, turn: Turn, bounds: Bounds) -> int:
    """When the run that events wait for may have ended."""
    over_ms = ends_ms(seen, turn)
    if over_ms is None:
        return seen.read_ms + NEXT_LOOKS * bounds.call_look_ms
    return max(seen.read_ms + bounds.call_look_ms, over_ms + RUNS_DIFFER_MS)


def ends_ms(seen: Sighting, turn: Turn) -> int | None:
    """When the run at work should end; None when nothing tells."""
    if seen.began_ms is None or turn.pace.varies:
        return None
    # The end of a run is often seen late, so those on this key may have been shorter than they seem.
    lasts_ms = [] if seen.lasted_ms is None else [seen.lasts_ms]
    if turn.pace.recent:
        lasts_ms.append(max(turn.pace.recent))
    return seen.began_ms + min(lasts_ms) if lasts_ms else None


def lasts_on(seen: Sighting, turn: Turn, bounds: Bounds) -> bool:
    """Whether the run that was seen at work is still, most probably: work that is handed over is drained by its owner.

    Otherwise it would be drained from here, at the price of several requests.
    """
    over_ms = ends_ms(seen, turn)
    if turn.now_ms - seen.read_ms <= bounds.call_look_ms:
        return True
    if over_ms is not None:
        return turn.now_ms < over_ms
    # As long again as it has lasted: who has events in the inbox has less to lose.
    return turn.behind > 0 and seen.began_ms is not None and turn.now_ms - seen.read_ms <= seen.read_ms - seen.began_ms


def _behind_look_ms(seen: Sighting, began_ms: int, bounds: Bounds, runs: int, turn: Turn) -> int:
    """When what waits behind a run may have ended: not before so many runs have, and as much time again has gone."""
    pause_ms = max(seen.read_ms - began_ms, bounds.call_look_ms)
    lasts_ms = turn.pace.usual_ms or seen.lasts_ms
    return max(seen.read_ms + pause_ms, began_ms + runs * lasts_ms + RUNS_DIFFER_MS)


def _call_look_ms(seen: Sighting, turn: Turn, bounds: Bounds) -> int:
    """When what a call waits for may have happened: not before runs have ended so far, then less and less often."""
    if seen.began_ms is None:
        # Several calls wait: the lane is busy, and not all of them are next.
        least_ms = CALL_LOOK_MS_MAX if turn.handed > 1 else bounds.call_look_ms
        return seen.read_ms + min(max((seen.read_ms - seen.changed_ms) // LOOKS_GROW, least_ms), CALL_LOOK_MS_MAX)
    usual_ms, varies = turn.pace.usual_ms, turn.pace.varies
    over_ms = seen.began_ms + (0 if varies else seen.lasts_ms if usual_ms is None else usual_ms)
    if usual_ms is None and (varies or not turn.begun):
        pause_ms = _pause_behind_ms(seen, seen.began_ms, turn, bounds)
    elif turn.next_ms is not None and usual_ms is None and not seen.alike and seen.read_ms == seen.changed_ms:
        # What the one run before shows, or several unlike ones, is no more than a guess: this one may be over soon.
        return seen.read_ms + bounds.call_look_ms
    else:
        pause_ms = min((seen.read_ms - over_ms) // LOOKS_GROW, CALL_LOOK_MS_MAX)
    if usual_ms is not None and turn.next_ms is None and not turn.begun:
        # Two more runs, at least, end before its result is there: this one, and its own.
        over_ms += min(usual_ms, NEXT_LOOKS * bounds.call_look_ms)
    return max(seen.read_ms + max(pause_ms, bounds.call_look_ms), over_ms + RUNS_DIFFER_MS)


def _pause_behind_ms(seen: Sighting, began_ms: int, turn: Turn, bounds: Bounds) -> int:
    """How long to leave a run alone that is another's, where nothing tells when it ends: as long as it has lasted.

    A call that is next has its result soon after that run. So its end is to be seen soon.
    """
    age_ms, soon_ms = seen.read_ms - began_ms, NEXT_LOOKS * bounds.call_look_ms
    if turn.next_ms is None and not turn.begun:
        return min(age_ms, soon_ms) if age_ms < SHORT_RUN_MS or turn.pace.varies else age_ms
    return bounds.call_look_ms if age_ms < SHORT_RUN_MS else max(soon_ms, age_ms // LATE_PARTS)
