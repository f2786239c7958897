"""An activation in progress, and what earlier ones of its lane have shown: values that judgements go by.

Owns what an activation is about, and which attempt at which event it is. Does not own what its answer means
(`verdicts`), nor the call of the function (`dispatcher.activations`).

They are structs, as messages are: some are made for every event, and a frozen dataclass takes far longer to make.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, assert_never

from msgspec import Struct

from tenuto.lane.tries import with_tries
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Head, NapLeave, RetryPolicy, ServiceManifest, Trim
from tenuto.protocol.modes import Drain, Mode, Resume, Shared, Speculate
from tenuto.protocol.records import Event


class Tried(Struct, frozen=True):
    """The event that the last batch began with: when this process first tried it, and the number of the attempt."""

    event_id: str = ""
    first_ms: int = 0
    attempt: int = 1

    def attempt_at(self, event: Event) -> int:
        """The number of this attempt at an event. Behind others of its batch, an event is at its first."""
        return self.attempt if event.id == self.event_id else 1

    def first_ms_of(self, event: Event) -> int:
        """When this process first tried an event; 0 when it does not know."""
        return self.first_ms if event.id == self.event_id else 0


class Repeated(Struct, frozen=True):
    """How often in a row the same thing has happened: a text was logged, or an event refused.

    Only the hash of `what` is kept: thousands of lanes that fail would keep their texts, of 500 characters each.
    """

    what: int = 0
    times: int = 0

    def again(self, what: str) -> Repeated:
        """It has happened once more, or something else has."""
        hashed = hash(what)
        return Repeated(hashed, self.times + 1 if hashed == self.what else 1)


class Standing(Struct, frozen=True):
    """How far an event had got, by what the table holds of it: in a run or not, and how much its journal has."""

    event_id: str
    claimed: bool
    segments: int
    slots: int


class Lessons(Struct, frozen=True):
    """What earlier activations of a lane have shown, as far as the next one goes by it.

    `claim_first`: speculation was overtaken, so the lease is to be taken before the handler starts. `one_by_one`: one
    event of a batch may be what fails all of it. `late`: a resumed run was handed back, its lease being over. `fenced`
    counts answers in a row that say the lane was lost, and `fenced_at` is the `ver` and the mark of the head that the
    last of them was about. `restless` counts suspensions in a row that had nothing to wait for, and `stood` is where
    the flight of the last of them began. `refused` counts commits of an event that the table did not take.
    """

    claim_first: bool = False
    one_by_one: bool = False
    late: bool = False
    fenced: int = 0
    fenced_at: tuple[int, str | None] | None = None
    restless: int = 0
    stood: Standing | None = None
    refused: Repeated = Repeated()
    warned: Repeated = Repeated()
    tried: Tried = Tried()


NO_LESSONS: Final = Lessons()


class Flight(Struct, frozen=True):
    """One activation of a lane: from which head, in which mode, under which name, and what its commit may trim.

    `events` are those that it is about, at least one, and `attempt` the number of its attempt at the first of them.
    `holder` is the name that its lease would bear. It began at `began_ms`, with leave to `nap`, or without.
    """

    lane: Lane
    head: Head
    mode: Mode
    events: tuple[Event, ...]
    attempt: int
    holder: str
    trim: Trim
    tried: Tried
    manifest: ServiceManifest
    began_ms: int = 0
    nap: NapLeave | None = None

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy of its first event's handler, as discovery told it."""
        name = self.events[0].handler
        found = next((handler for handler in self.manifest.handlers if handler.name == name), None)
        return found.retry if found else RetryPolicy()


def standing(flight: Flight) -> Standing:
    """How far the first event of a flight had got when it began."""
    head = flight.head
    return Standing(flight.events[0].id, head.run is not None, len(head.segments), len(head.slots))


class Trace(Enum):
    """What the table shows of a flight that is in progress, or of one that nobody has heard of yet."""

    LEFT = auto()
    """Another write than its own beginning has come: what came of it is there, though it may go on behind that."""
    BEGUN = auto()
    """It has claimed."""
    NONE = auto()
    """It has claimed nothing: it is at work, or has ended and left nothing."""
    UNTOLD = auto()
    """It resumes a run, and whether it has begun the table does not show."""


def trace_of(flight: Flight, head: Head) -> Trace:
    """What a head that was read later shows of a flight."""
    run, changed, resumes = head.run, head.ver > flight.head.ver, isinstance(flight.mode, Resume)
    if run is not None and run.holder == flight.holder and not run.suspended:
        return Trace.BEGUN if changed else Trace.UNTOLD
    return Trace.LEFT if changed or resumes else Trace.NONE


def departing(
    lane: Lane,
    head: Head,
    mode: Mode,
    holder: str,
    trim: Trim,
    lessons: Lessons,
    manifest: ServiceManifest,
    now_ms: int,
) -> Flight:
    """An activation that begins at `now_ms`, in the light of those before it."""
    tried = lessons.tried
    match mode:
        case Speculate(events, attempt) | Drain(events, attempt):
            # What ends or claims the first event also ends the count of its attempts in the head.
            trim = with_tries(head, events[0], trim)
            first = events[0].id
            tried = Tried(first, tried.first_ms if first == tried.event_id else now_ms, attempt)
        case Resume(run, behind=behind):
            # What is known of a batch stays known while the run that one of its events began continues.
            events, attempt = (run.event, *behind), run.attempt
        case Shared(event):
            events, attempt = (event,), 1
        case _:
            assert_never(mode)
    return Flight(lane, head, mode, events, attempt, holder, trim, tried, manifest, now_ms)
