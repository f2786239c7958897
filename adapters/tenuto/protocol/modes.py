"""The modes of an activation: what a function is asked for, each with the fields that it alone has.

Owns the modes as either side handles them in its own process, and how they are laid out in the flat fields of the
message, which stay as they are: functions of another version read them. Does not own the message (`messages`), nor what
either side does in a mode.
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

from msgspec import Struct
from msgspec.structs import replace

from tenuto.errors import ProtocolError
from tenuto.protocol.messages import Activation, ClaimedRun, Head, ModeTag, NapLeave, Trim
from tenuto.protocol.records import Event

NO_TRIM = Trim()


class Speculate(Struct, frozen=True):
    """Run queued events from the head as it is; nothing is owned.

    `attempt` counts from 1 for the first event. `claim_first` takes the lease before its handler starts.
    """

    events: tuple[Event, ...]
    attempt: int = 1
    claim_first: bool = False


class Drain(Struct, frozen=True):
    """Run inbox items, otherwise as `Speculate`.

    `clears`: they are all there is, so that the commit of all of them may clear the mark. It is not sent: a commit by
    the function clears no mark.
    """

    events: tuple[Event, ...]
    attempt: int = 1
    claim_first: bool = False
    clears: bool = False


class Resume(Struct, frozen=True):
    """Run the head's own run, which is taken over already, or has napped, and then the events `behind` it.

    `late`: it was handed back once, its lease being over.
    """

    run: ClaimedRun
    late: bool = False
    behind: tuple[Event, ...] = ()


class Shared(Struct, frozen=True):
    """Run one read-only handler."""

    event: Event


Mode: TypeAlias = Speculate | Drain | Resume | Shared


def activation_of(
    mode: Mode,
    service: str,
    key: str,
    head: Head,
    holder: str,
    *,
    trim: Trim = NO_TRIM,
    table: str,
    encrypted: bool,
    hold_ms: int,
    nap: NapLeave | None = None,
) -> Activation:
    """The message that asks for a mode, from this head; `trace` is added where it is known."""
    own: tuple[ModeTag, tuple[Event, ...], int, bool, ClaimedRun | None, bool]
    match mode:
        case Speculate(events, attempt, claim_first):
            own = "speculate", events, attempt, claim_first, None, False
        case Drain(events, attempt, claim_first):
            own = "drain", events, attempt, claim_first, None, False
        case Resume(run, late, behind):
            own = "resume", behind, 1, False, run, late
        case Shared(event):
            own = "shared", (event,), 1, False, None, False
        case _:
            assert_never(mode)
    tag, given, number, claims, resumed, again = own
    return Activation(
        service=service,
        key=key,
        mode=tag,
        # The function needs neither outbox nor finished ids; which of them it may remove, the trim names.
        head=replace(head, out={}, fin={}, watermarks={}, former={}, tried=None, run=resumed),
        holder=holder,
        events=given,
        attempt=number,
        claim_first=claims,
        trim=trim,
        table=table,
        encrypted=encrypted,
        hold_ms=hold_ms,
        late=again,
        nap=nap,
    )


def mode_of(request: Activation) -> Mode:
    """The mode that a message asks for. Raises ProtocolError when it lacks what the mode is about."""
    match request.mode:
        case "speculate":
            return Speculate(request.events, request.attempt, request.claim_first)
        case "drain":
            return Drain(request.events, request.attempt, request.claim_first)
        case "resume":
            if request.head.run is None:
                raise ProtocolError("an activation is to resume a run, and its head has none")
            return Resume(request.head.run, request.late, request.events)
        case "shared":
            if len(request.events) != 1:
                raise ProtocolError(f"a shared handler is for one event, not {len(request.events)}")
            return Shared(request.events[0])
        case _:
            assert_never(request.mode)
