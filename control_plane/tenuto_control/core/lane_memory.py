"""What one process remembers of one lane, and how each fact that it learns changes that.

Owns the memory and its transitions, as data. Does not own what to do next (`lane_policy`), the work that is queued, or
carrying anything out (`tenuto_control.dispatcher`).

Nothing of it is needed for correctness: a process that has forgotten a lane reads its head. What `seen` holds may be
out of date at any time, since others write to the lane too; a conditional write finds that out.

These are msgspec structs rather than dataclasses: several are built for each event, and a struct is built in a tenth of
the time.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, TypeAlias, assert_never

from msgspec import Struct
from msgspec.structs import replace

from tenuto.lane.lives import outlived
from tenuto.lane.tries import failures_of
from tenuto.protocol.limits import FINISHED_TTL_MS
from tenuto.protocol.messages import ClaimedRun, Head, Trim
from tenuto.protocol.records import Event
from tenuto_control.core.frugal_heads import frugal
from tenuto_control.core.lane_facts import (
    EMPTY,
    ActivationEnded,
    Buried,
    Delivered,
    Fact,
    HeadDropped,
    HeadSeen,
    Hurried,
    InboxSeen,
    LookBegun,
    LookWanted,
    NapOver,
    Nudged,
    Pressed,
    ProducedInVain,
    ReadBegun,
    SpillBegun,
    Succeeded,
    TableAway,
    TakeoverBegun,
    Troubled,
    Turn,
    Unserved,
)
from tenuto_control.core.sightings import Sighting

DRAIN_EVENTS_MAX: Final = 50
"""Inbox items that one look takes up; the rest waits for the next."""

DRAIN_MS_MAX: Final = 150
"""So long, at the most, calls run together, where one does not take longer: meanwhile nothing tells others that
the lane is in use, and none of their callers has a result."""

TRIMMED_MAX: Final = 50
"""Entries of each kind that one write removes on the side: they share its expression with what the write is about."""

VAIN_PAUSE_MS: Final = 100
"""Half of the first pause after a record could not be produced; each further one doubles it."""
VAIN_PAUSE_MS_MAX: Final = 5_000
VAIN_DOUBLINGS_MAX: Final = 6
TROUBLE_DOUBLINGS_MAX: Final = 10


# --- what is remembered ----------------------------------------------------------------------------------------------


class Unread(Struct, frozen=True):
    """The head is not known. What a request that is in progress answers will be."""


class Stale(Struct, frozen=True):
    """Another process has written to the lane since: whatever a request in progress answers may be older than that."""


class Known(Struct, frozen=True):
    """The head as it was read last, or as the last write left it."""

    head: Head


Seen: TypeAlias = Unread | Stale | Known

UNREAD: Final = Unread()
STALE: Final = Stale()


class HandlerPause(Struct, frozen=True):
    """No attempt begins before `until_ms`: the last one failed, or its function did not take it."""

    until_ms: int


class OutboxPause(Struct, frozen=True):
    """A record could not be produced: nothing leaves the outbox before `until_ms`, and no attempt begins."""

    until_ms: int


class TablePause(Struct, frozen=True):
    """The table was away, refused a write, or something unforeseen happened: the lane starts over at `until_ms`."""

    until_ms: int


Pause: TypeAlias = HandlerPause | OutboxPause | TablePause
"""Why the lane waits though it has something to do. One that is over counts as none; a new one replaces the old."""


class Failing(Struct, frozen=True):
    """Attempts at one event, by its id, that have failed in a row and count, wherever they were: at least one."""

    event: str
    times: int


class Trouble(Struct, frozen=True):
    """How often in a row the lane has met what it cannot get past, and in which kind of action."""

    times: int
    during: type[object]


class Holder(Enum):
    """Whose a run that is not suspended is."""

    ENDED = auto()
    """An invocation's of this process that has certainly ended."""
    OWN = auto()
    """An invocation's of this process that may still run."""
    FOREIGN = auto()
    """Another process's."""


# --- the memory ------------------------------------------------------------------------------------------------------


class LaneMemory(Struct, frozen=True):
    """What is remembered of one lane.

    `shipped` are outbox entries that have been delivered, `finished` ids of finished messages and calls that nothing
    needs any more: the next write of the head may remove them. `look` asks for an inbox query although no mark was
    seen. `ended` are holders whose invocation has certainly ended; `crashed`: one of them gave no answer, and that is
    not counted in its run yet. `vain_ships` counts in a row how often records could not be produced. `blocked_since_ms`
    is since when the lane has been taken, failing or unable to ship while events waited. `pressed` is as in `Pressed`,
    `outrun` as in `ActivationEnded`. `drain_max` is how many inbox items the next look takes up.
    `hurried`: a run that pauses after a failed attempt is resumed before its time. `nap` is the holder for whom this
    process is to begin the next attempt at a run that naps: once, which only who remembers it can be sure of. At
    `overtaken_ms` another process has written what this one was about to.
    """

    seen: Seen = UNREAD
    shipped: frozenset[str] = EMPTY
    finished: frozenset[str] = EMPTY
    look: bool = False
    pause: Pause | None = None
    failing: Failing | None = None
    ended: frozenset[str] = EMPTY
    crashed: bool = False
    vain_ships: int = 0
    trouble: Trouble | None = None
    blocked_since_ms: int | None = None
    pressed: bool = False
    sighting: Sighting = Sighting()
    outrun: int = 0
    hurried: bool = False
    drain_max: int = DRAIN_EVENTS_MAX
    nap: str | None = None
    overtaken_ms: int | None = None

    # --- questions ----------------------------------------------------------------------------------------------------

    @property
    def head(self) -> Head | None:
        """The head, unless it has to be read."""
        return self.seen.head if isinstance(self.seen, Known) else None

    @property
    def paused_until_ms(self) -> int:
        """The end of the last pause, which may be over."""
        return 0 if self.pause is None else self.pause.until_ms

    @property
    def ship_again_ms(self) -> int:
        """When the outbox is shipped again, at the earliest."""
        return self.pause.until_ms if isinstance(self.pause, OutboxPause) else 0

    @property
    def troubles(self) -> int:
        """How often in a row the lane has met what it cannot get past."""
        return 0 if self.trouble is None else self.trouble.times

    def blocked_ms(self, now_ms: int) -> int:
        """How long the lane has been delayed while events waited."""
        return 0 if self.blocked_since_ms is None else now_ms - self.blocked_since_ms

    def tries(self, head: Head, event: Event) -> int:
        """Which attempt at this event the next one is, from 1, as far as this process knows and the head tells."""
        return max(self._times(event.id), failures_of(head, event)) + 1

    def holder(self, run: ClaimedRun, process: str) -> Holder:
        """Whose the run is. `process` is this process's name, which the names of its holders begin with."""
        if run.holder in self.ended:
            return Holder.ENDED
        return Holder.OWN if named_by(process, run.holder) else Holder.FOREIGN

    def read_since(self, time_ms: int) -> bool:
        """Whether the head is known as it was at a time, or later."""
        return self.sighting.read_ms >= time_ms

    def changed_since(self, time_ms: int) -> bool:
        """Whether the head has changed after a time, as far as this process has seen."""
        return self.sighting.changed_ms > time_ms

    def crashes(self, run: ClaimedRun) -> int | None:
        """The run's new count of failures if its function is known to have failed, else None."""
        return run.failures + 1 if self.crashed else None

    def trim(self, head: Head) -> Trim:
        """What the next write of this head may remove.

        Where calls were handed over lately, the ids of what has finished stay for as long as a process whose callers
        wait may take to read the head: it then asks for the results that are there, and for no others.
        """
        told = self.sighting.told(head) if self.finished else EMPTY
        return Trim(
            out=tuple(seq for seq in head.out if seq in self.shipped)[:TRIMMED_MAX],
            fin=tuple(nonce for nonce in head.fin if nonce in self.finished and nonce not in told)[:TRIMMED_MAX],
            stray=(*head.stray, *outlived(head, self.sighting.read_ms))[:TRIMMED_MAX],
        )

    def at_rest(self) -> LaneMemory:
        """What to keep while the lane is idle: head and what its next write may remove, or that it is left alone."""
        if self.head is None:
            return LaneMemory(pause=self.pause, trouble=self.trouble)
        # Whose lane is another process's as well rests between two events, and gathers them all the same.
        late_ms = self.overtaken_ms
        return LaneMemory(self.seen, self.shipped, self.finished, sighting=self.sighting, overtaken_ms=late_ms)

    def frugal(self) -> LaneMemory:
        """The same in less room, for a lane that rests."""
        return self if self.head is None else replace(self, seen=Known(frugal(self.head)))

    def _times(self, event: str) -> int:
        return self.failing.times if self.failing is not None and self.failing.event == event else 0

    # --- transitions --------------------------------------------------------------------------------------------------

    def on(self, fact: Fact) -> LaneMemory:  # noqa: C901 - one case for each kind of fact
        """The memory after something happened. Facts that change nothing give this very memory."""
        match fact:
            case Turn():
                return self._turned(fact)
            case ActivationEnded():
                return self._activated(fact)
            case HeadSeen():
                return self._learned(fact)
            case NapOver(holder, missed):
                # What may have failed was an answer: the attempt had ended with the nap.
                ended = self.ended | {holder} if missed else self.ended
                return replace(self, nap=None, crashed=False, ended=ended)
            case Delivered(entries, whole):
                return replace(self, shipped=_with(self.shipped, entries), vain_ships=0 if whole else self.vain_ships)
            case Nudged(look):
                asked = self.look and isinstance(self.seen, Stale)
                return replace(self, look=True, seen=STALE) if look and not asked else self
            case ReadBegun() | HeadDropped():
                return self if isinstance(self.seen, Unread) else replace(self, seen=UNREAD)
            case LookBegun() | LookWanted() | InboxSeen() | Buried():
                return self._looked(fact)
            case Pressed() | SpillBegun():
                pressed = isinstance(fact, Pressed)
                return self if self.pressed == pressed else replace(self, pressed=pressed)
            case TakeoverBegun():
                return replace(self, crashed=False) if self.crashed else self
            case Hurried():
                return replace(self, pause=_without_attempts(self.pause), hurried=True)
            case Unserved() | ProducedInVain() | TableAway() | Troubled():
                return self._set_back(fact)
            case Succeeded(kind):
                over = self.trouble is not None and self.trouble.during is kind
                return replace(self, trouble=None) if over else self
            case _:
                assert_never(fact)

    def _turned(self, turn: Turn) -> LaneMemory:
        head = self.head
        stuck = self.failing is not None or self.trouble is not None
        held_up = stuck or self.vain_ships > 0 or (head is not None and head.run is not None)
        waits = turn.first is not None or (turn.holds and self.trouble is not None)
        since = self.blocked_since_ms
        # A head that was dropped tells nothing: each sweep drops it, and would begin the wait again.
        if not waits or (head is not None and not held_up):
            since = None
        elif held_up and since is None:
            since = turn.now_ms
        return self if since == self.blocked_since_ms else replace(self, blocked_since_ms=since)

    def _activated(self, fact: ActivationEnded) -> LaneMemory:
        pause, failing, crashed = None, None, self.crashed
        if fact.failed is not None:
            # Failures are one event's: another that fails behind it has all its attempts before it.
            counts = not fact.failed.harmless
            times = max(self._times(fact.failed.event), fact.failed.attempt - 1) + counts
            pause = HandlerPause(fact.failed.until_ms)
            failing = Failing(fact.failed.event, times) if times else None
            crashed = crashed or (counts and bool(fact.ended))
        seen: Seen = UNREAD
        sighting = self.sighting
        shipped = self.shipped
        finished, ended = _with(self.finished, fact.finished), _with(self.ended, fact.ended)
        if fact.head is not None:
            seen, sighting = self._seen(fact.head), sighting.again(fact.head, fact.now_ms)
            shipped, finished, ended = self._kept(fact.head, fact.now_ms, finished, ended)
            finished = _with(finished, fact.answered)
        since = self.blocked_since_ms
        if fact.head is not None and _run_id(fact.head) != (None if self.head is None else _run_id(self.head)):
            # It has gone on to another run, which is as good as having been free.
            since = None
        return replace(
            self,
            seen=seen,
            shipped=shipped,
            finished=finished,
            pause=pause,
            failing=failing,
            ended=ended,
            crashed=crashed,
            sighting=sighting,
            blocked_since_ms=since,
            outrun=fact.outrun,
            hurried=False,
            nap=fact.nap,
            overtaken_ms=fact.now_ms if fact.overtaken else self.overtaken_ms,
        )

    def _learned(self, fact: HeadSeen) -> LaneMemory:
        shipped, finished, ended = self._kept(fact.head, fact.now_ms, self.finished, self.ended)
        seen, finished = self._seen(fact.head), _with(finished, fact.answered)
        sighting = self.sighting.again(fact.head, fact.now_ms)
        run = fact.head.run
        nap = self.nap if run is not None and run.holder == self.nap else None
        memory = replace(self, seen=seen, shipped=shipped, finished=finished, ended=ended, sighting=sighting, nap=nap)
        # What ended without an answer had owned nothing, or its run had ended: no later run is to blame.
        return replace(memory, crashed=False) if self.crashed and run is None else memory

    def _seen(self, head: Head) -> Seen:
        """A head that was asked for before a nudge came is not believed."""
        return STALE if isinstance(self.seen, Stale) else Known(head)

    def _kept(
        self, head: Head, now_ms: int, finished: frozenset[str], ended: frozenset[str]
    ) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """The shipped entries, finished ids and ended holders that are still of use beside this head."""
        shipped = (self.shipped & head.out.keys() if self.shipped else EMPTY) or EMPTY
        finished = (finished & head.fin.keys() if finished else EMPTY) or EMPTY
        if head.pend is None and head.fin:
            # Nothing waits that could bear an old id, and whoever once lost the answer to a call has long given up.
            old = now_ms - FINISHED_TTL_MS
            finished = _with(finished, frozenset(nonce for nonce, at in head.fin.items() if at < old))
        if ended and (head.run is None or head.run.suspended):
            ended = EMPTY
        return shipped, finished, ended

    def _looked(self, fact: LookBegun | LookWanted | InboxSeen | Buried) -> LaneMemory:
        if isinstance(fact, LookBegun | LookWanted):
            look = isinstance(fact, LookWanted)
            return self if self.look == look else replace(self, look=look)
        if isinstance(fact, InboxSeen):
            nonces = _settled(fact)
            return replace(self, finished=self.finished | nonces) if nonces else self
        # What then does not run is looked up in vain, and a handler that claims takes few events at a time.
        drain_max = min(DRAIN_EVENTS_MAX, 2 * self.drain_max) if fact.ran == fact.asked else max(1, fact.ran)
        if fact.calls_ms * 2 > DRAIN_MS_MAX:
            drain_max = max(1, min(drain_max, fact.ran * DRAIN_MS_MAX // fact.calls_ms))
        return replace(self, finished=_with(self.finished, fact.nonces), drain_max=drain_max)

    def _set_back(self, fact: Unserved | ProducedInVain | TableAway | Troubled) -> LaneMemory:
        """A pause that no attempt has asked for."""
        match fact:
            case Unserved(until_ms):
                return replace(self, seen=UNREAD, pause=HandlerPause(until_ms))
            case ProducedInVain(now_ms):
                times = self.vain_ships + 1
                pause_ms = min(VAIN_PAUSE_MS_MAX, VAIN_PAUSE_MS * 2 ** min(times, VAIN_DOUBLINGS_MAX))
                return replace(self, vain_ships=times, pause=OutboxPause(now_ms + pause_ms))
            case TableAway(until_ms):
                return replace(self, seen=UNREAD, pause=TablePause(until_ms))
            case Troubled(during, now_ms, initial_ms, pause_ms_max):
                times = self.troubles + 1
                pause_ms = min(initial_ms * 2 ** min(times - 1, TROUBLE_DOUBLINGS_MAX), pause_ms_max)
                trouble = Trouble(times, during)
                return replace(self, seen=UNREAD, pause=TablePause(now_ms + pause_ms), trouble=trouble)


def _with(names: frozenset[str], more: frozenset[str]) -> frozenset[str]:
    """Both. What the operator leaves empty would be a set of its own, of 216 bytes."""
    return names | more if more else names


def _without_attempts(pause: Pause | None) -> Pause | None:
    """A pause without the reasons that are an attempt's."""
    return None if isinstance(pause, HandlerPause) else pause


def named_by(process: str, name: str | None) -> bool:
    """Whether a holder, or the `tok` of a write, was named by this process, or by a function that it called.

    Such a name is the process's own, a number, and what others have added. Names of processes may have dots themselves.
    """
    before, found, after = (name or "").partition(f"{process}.")
    return bool(found) and not before and after.partition(".")[0].isdecimal()


SPECULATION: Final = ".spec"
"""What the `tok` of a commit ends with that no claim came before."""


def is_speculation(tok: str | None) -> bool:
    """Whether a head was written last by a commit without a claim."""
    return tok is not None and tok.endswith(SPECULATION)


def _settled(inbox: InboxSeen) -> frozenset[str]:
    """Finished ids that nothing needs any more: no live item bears them, so their items are tombstones already.

    A call's may still be looked for by a process that lost the response to its commit, so it stays for a while.
    """
    old, fin = inbox.now_ms - FINISHED_TTL_MS, inbox.head.fin
    return frozenset(n for n, at in fin.items() if n not in inbox.live and (not n.startswith("c") or at < old))


def _run_id(head: Head) -> str | None:
    return None if head.run is None else head.run.event.id
