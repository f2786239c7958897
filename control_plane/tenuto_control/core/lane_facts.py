"""What happens to a lane, as one process learns of it: the facts that its memory changes by.

Owns their vocabulary. Does not own what each changes (`lane_memory`). Structs for the reason that `lane_memory` gives.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct

from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event
from tenuto_control.core.paces import UNKNOWN, Pace

EMPTY: Final[frozenset[str]] = frozenset()


class Turn(Struct, frozen=True):
    """A decision is due at `now_ms`, with `queued` works in the queue, the first of which is about `first`.

    That one came at `first_ms`. `calls` and `records` say which kinds of work are in the queue. `handed` counts calls
    that were handed over and whose callers wait here; `behind` counts works that were, and have not begun. `begun`: the
    lane's run is one of those, or the first in the queue. `next_ms` is when the call came that waits here and is
    next, as far as this process knows; None: there is none.
    `clock_differs`: `now_ms` is known to be wrong by more than the margin of leases. `holds`: offsets of finished
    events are held. `pace` is that of the handler whose run is at work.
    """

    now_ms: int
    first: Event | None = None
    queued: int = 0
    first_ms: int = 0
    calls: bool = False
    records: bool = False
    handed: int = 0
    clock_differs: bool = False
    holds: bool = False
    behind: int = 0
    begun: bool = False
    next_ms: int | None = None
    pace: Pace = UNKNOWN


class Nudged(Struct, frozen=True):
    """Something may have changed; with `look`, the head certainly, or the inbox."""

    look: bool = False


class Pressed(Struct, frozen=True):
    """Events have waited here for long, while their partition can take no more."""


class Hurried(Struct, frozen=True):
    """What the last attempt failed for seems to be over: the next one need not wait out its pause."""


class ReadBegun(Struct, frozen=True):
    """The head is asked for: the answer knows of everything until now."""


class HeadSeen(Struct, frozen=True):
    """The head was read, or a write answered with it. `answered` are nonces of calls whose results it held."""

    head: Head
    now_ms: int
    answered: frozenset[str] = EMPTY


class HeadDropped(Struct, frozen=True):
    """What this process did changes the head in a way that it has not seen."""


class FailedAttempt(Struct, frozen=True):
    """The attempt at an event, by its id, that failed; the next is due at `until_ms`. `harmless`: it does not count.

    `attempt` is its number, those of other processes included.
    """

    event: str
    until_ms: int
    harmless: bool = False
    attempt: int = 1


class ActivationEnded(Struct, frozen=True):
    """An activation's end: the head it left (None: not known), and which nonces it finished.

    `ended` are holders that certainly run no more. `answered` is as in `HeadSeen`. `outrun` counts how often in a row
    another process was quicker. `nap` is the holder of a nap that it has begun. `overtaken`: what it would have written
    was refused, as another process wrote before.
    """

    head: Head | None
    now_ms: int
    finished: frozenset[str] = EMPTY
    ended: frozenset[str] = EMPTY
    failed: FailedAttempt | None = None
    answered: frozenset[str] = EMPTY
    outrun: int = 0
    nap: str | None = None
    overtaken: bool = False


class NapOver(Struct, frozen=True):
    """The nap of this holder is over: its attempt begins, or (`missed`) is too late for its lease."""

    holder: str
    missed: bool = False


class Unserved(Struct, frozen=True):
    """No function serves the lane; that is looked at again at `until_ms`."""

    until_ms: int


class TakeoverBegun(Struct, frozen=True):
    """The run is about to be taken over, its failures counted."""


class Delivered(Struct, frozen=True):
    """These outbox entries have left for good; `whole`: and everything else that was to leave."""

    entries: frozenset[str]
    whole: bool


class ProducedInVain(Struct, frozen=True):
    """A record could not be produced."""

    now_ms: int


class SpillBegun(Struct, frozen=True):
    """Queued events move to the inbox, so their partition has room."""


class LookBegun(Struct, frozen=True):
    """The inbox is queried: what comes from now on asks for another look."""


class LookWanted(Struct, frozen=True):
    """The inbox holds something, whether or not the head is marked."""


class InboxSeen(Struct, frozen=True):
    """All of the inbox was seen, after `head` was read: it holds live items for these nonces and no others."""

    head: Head
    live: frozenset[str]
    now_ms: int


class Buried(Struct, frozen=True):
    """Of `asked` events from the inbox that were to run, `ran` have. Those of `nonces` have tombstones now.

    If they were calls, it took `calls_ms`. A call that ran from the queue counts as well: others are like it.
    """

    nonces: frozenset[str]
    ran: int
    asked: int
    calls_ms: int = 0


class Troubled(Struct, frozen=True):
    """An action of a kind met what it will only meet again. The pause after it doubles each time, up to its maximum."""

    during: type[object]
    now_ms: int
    pause_ms: int
    pause_ms_max: int


class TableAway(Struct, frozen=True):
    """The table did not answer in time. It is tried again at `until_ms`."""

    until_ms: int


class Succeeded(Struct, frozen=True):
    """An action of this kind was carried out."""

    kind: type[object]


Fact: TypeAlias = (
    Turn
    | Nudged
    | Pressed
    | Hurried
    | ReadBegun
    | HeadSeen
    | HeadDropped
    | ActivationEnded
    | NapOver
    | Unserved
    | TakeoverBegun
    | Delivered
    | ProducedInVain
    | SpillBegun
    | LookBegun
    | LookWanted
    | InboxSeen
    | Buried
    | Troubled
    | TableAway
    | Succeeded
)
