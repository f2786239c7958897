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
"""So long events wait here, while another process's run is at work: behind what was handed over before, or for the end
of that run. Then they are handed over: whoever has the lane runs out of work unseen, and nobody would use it until the
next look."""

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
    return seen.read_ms + bounds.event_look_ms


def ends_ms(seen: Sighting, turn: Turn) -> int | None:
    """When the run at work should end; None when nothing tells."""
    if seen.began_ms is None:
        return None
    if (usual_ms := turn.pace.usual_ms) is not None:
        return seen.began_ms + usual_ms
    return None if seen.lasted_ms is None else seen.began_ms + seen.lasts_ms


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
    return max(seen.read_ms + max(pause_ms, bounds.call_look_ms), over_ms + RUNS_DIFFER_MS)


def _pause_behind_ms(seen: Sighting, began_ms: int, turn: Turn, bounds: Bounds) -> int:
    """How long to leave a run alone that is another's, where nothing tells when it ends: as long as it has lasted.

    A call that is next has its result soon after that run. So its end is to be seen soon.
    """
    age_ms, soon_ms = seen.read_ms - began_ms, NEXT_LOOKS * bounds.call_look_ms
    if turn.next_ms is None and not turn.begun:
        return min(age_ms, soon_ms) if age_ms < SHORT_RUN_MS or turn.pace.varies else age_ms
    return bounds.call_look_ms if age_ms < SHORT_RUN_MS else max(soon_ms, age_ms // LATE_PARTS)
