"""Wire messages: an activation goes to a function, an outcome comes back; discovery asks what a function serves.

Owns the messages' shape and JSON codec (a Lambda payload is JSON; bytes travel as base64). Does not own what either
side does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from tenuto.protocol.decoding import bounded
from tenuto.protocol.limits import HOLD_SLEEP_MS_MAX
from tenuto.protocol.records import Event, Failure, Out, Result

PROTOCOL_VERSION = 1


class RetryPolicy(Struct, frozen=True):
    """Pauses between attempts: exponential from `initial_ms` to `max_ms`; `max_attempts` None means indefinitely."""

    initial_ms: int = 50
    factor: float = 2.0
    max_ms: int = 60_000
    max_attempts: int | None = None


class ClaimedRun(Struct, frozen=True):
    """The one active invocation of a lane. Fixed at its claim; only attempt, holder, lease and suspension change.

    A large input is not in `event` but in the item that `input_item` names; so are headers and raw key, when they are
    large. `secret` is the key of the tokens of its awakeables.
    """

    event: Event
    ver: int
    start_ms: int
    first_out: int
    attempt: int
    holder: str
    lease_ms: int
    failures: int = 0
    awaits: tuple[str, ...] | None = None
    wake_ms: int | None = None
    error: str | None = None
    input_item: str | None = None
    secret: bytes = b""

    @property
    def suspended(self) -> bool:
        """True when no attempt is running and the invocation waits for slots or for a time."""
        return self.awaits is not None

    @property
    def napping(self) -> bool:
        """True when no attempt is running, and whoever holds the lease begins the next one at `wake_ms`, or has."""
        return self.awaits is None and self.wake_ms is not None


class Head(Struct, frozen=True):
    """A lane's head as it was read or as the last write left it.

    `base` holds what the first attempt of the active invocation saw of every name it has since published (None:
    absent). `segments` names the items that hold the rolled part of its journal.
    `stray` lists attributes of journals that are over; the next write removes them. `ans` is a unique mark of the last
    result of an awakeable that was put, `took` lists the commands whose results have left the head for a segment.
    `tried` names an event that has not claimed, and how often it has failed. `former` marks watermarks of former lives
    of topics.
    """

    ver: int = 0
    tok: str | None = None
    pend: str | None = None
    state: dict[str, bytes] = {}
    base: dict[str, bytes | None] = {}
    watermarks: dict[str, int] = {}
    out: dict[str, Out] = {}
    fin: dict[str, int] = {}
    run: ClaimedRun | None = None
    slots: dict[str, bytes] = {}
    segments: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    ans: str | None = None
    took: tuple[int, ...] = ()
    tried: tuple[str, int] | None = None
    former: dict[str, tuple[int, int]] = {}


class Trim(Struct, frozen=True):
    """What the next write of the head may remove: shipped outbox entries, finished ids, stray attributes."""

    out: tuple[str, ...] = ()
    fin: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()


ModeTag: TypeAlias = Literal["speculate", "drain", "resume", "shared"]
"""The name of a mode on the wire. Which of the message's fields belong to which mode, `modes` says."""


class NapLeave(Struct, frozen=True):
    """Leave to nap: a sleep that ends within `most_ms` leaves the lease to the control plane, as `holder`.

    That lease lasts `lease_ms` from the end of the sleep on.
    """

    most_ms: int
    lease_ms: int
    holder: str


class Activation(Struct, frozen=True, tag="activation"):
    """Run these events of one lane, starting from this head.

    `mode` says in which way, with `events`, `attempt`, `claim_first`, `late` and the head's run as its fields: both
    sides handle them as one of `modes.Mode`. Sleeps up to `hold_ms` are waited for inside the function. With
    `encrypted`, what the function writes to the table is encrypted under the table's data key. `trace` is the W3C
    `traceparent` of the control plane's span, when it traces. Timers of the minutes in `spread` (the first, and the one
    after the last) may be spread over more partitions. Without a `nap`, each sleep that is not held suspends.
    """

    service: str
    key: str
    mode: ModeTag
    head: Head
    holder: str
    events: tuple[Event, ...] = ()
    attempt: int = 1
    claim_first: bool = False
    trim: Trim = Trim()
    table: str = "tenuto"
    encrypted: bool = False
    trace: str | None = None
    hold_ms: int = HOLD_SLEEP_MS_MAX
    late: bool = False
    spread: tuple[int, int] = (0, 0)
    nap: NapLeave | None = None
    version: int = PROTOCOL_VERSION


class Pooled(Struct, frozen=True, tag="pooled"):
    """Run activations of several lanes: one after the other, as long as none of them needs to write.

    `beside`: side by side, and each may write. A function that does not know this runs those that write nothing.
    """

    activations: tuple[Activation, ...]
    beside: bool = False
    version: int = PROTOCOL_VERSION


class Discover(Struct, frozen=True, tag="discover"):
    """Asks a function for its manifest."""

    version: int = PROTOCOL_VERSION


Request: TypeAlias = Activation | Pooled | Discover


class EventResult(Struct, frozen=True):
    """How one event of an activation ended."""

    event_id: str
    result: Result


class Stopped(Struct, frozen=True):
    """A retryable failure of the event after the finished ones; nothing of it is durable."""

    event_id: str
    failure: Failure
    retry_after_ms: int | None = None


class Speculated(Struct, frozen=True, tag="speculated"):
    """Nothing durable happened: the control plane commits these effects with one conditional write, or drops them."""

    results: tuple[EventResult, ...]
    state: dict[str, bytes | None] = {}
    out: tuple[Out, ...] = ()
    stopped: Stopped | None = None


class Committed(Struct, frozen=True, tag="committed"):
    """The function claimed and committed; `head` is what its last write left. `writes` counts its requests to write.

    `stopped`: the event behind those failed, before anything was owned for it.
    """

    results: tuple[EventResult, ...]
    head: Head
    writes: int = 0
    stopped: Stopped | None = None


class Suspended(Struct, frozen=True, tag="suspended"):
    """The function claimed and suspended, or naps; events before the suspended one are finished."""

    results: tuple[EventResult, ...]
    head: Head
    writes: int = 0


class Fenced(Struct, frozen=True, tag="fenced"):
    """The function lost the lane, or could not claim it: read the head again."""

    reason: str


class Late(Struct, frozen=True, tag="late"):
    """A resumed run was not begun, because its lease is over by this function's clock: take it over again."""

    now_ms: int


InputForm: TypeAlias = Literal["object", "array", "text", "number", "boolean", "bytes"]
"""What a handler's input looks like as JSON, or bytes as they are: for examples that people are shown."""


class HandlerManifest(Struct, frozen=True):
    """One handler as discovery reports it.

    `takes_input` tells whether it declares an input at all, `nullable` whether that may be missing. The defaults refuse
    nothing: they are those of functions that do not tell.
    """

    name: str
    kind: Literal["exclusive", "shared", "stateless"]
    retry: RetryPolicy = RetryPolicy()
    takes_input: bool = True
    nullable: bool = True
    input_form: InputForm = "object"


class ServiceManifest(Struct, frozen=True):
    """One service as discovery reports it; `keyed` services are virtual objects."""

    name: str
    keyed: bool
    handlers: tuple[HandlerManifest, ...]


class Manifest(Struct, frozen=True, tag="manifest"):
    """Everything a function serves; `timeout_ms` is the time an invocation of it has, as Lambda told it.

    `pools` is how many activations one invocation may carry as `Pooled`; 0: none, as with functions that do not tell.
    `beside` is how many of them it may run side by side.
    """

    services: tuple[ServiceManifest, ...]
    timeout_ms: int = 10_000
    version: int = PROTOCOL_VERSION
    pools: int = 0
    beside: int = 0


class Rejected(Struct, frozen=True, tag="rejected"):
    """The function cannot serve the request at all: unknown service or handler, or another protocol version."""

    failure: Failure


Outcome: TypeAlias = Speculated | Committed | Suspended | Fenced | Late | Manifest | Rejected


class Broken(Struct, frozen=True, tag="broken"):
    """In place of an outcome: what an activation would have failed an invocation of its own with."""

    reason: str


class Outcomes(Struct, frozen=True, tag="outcomes"):
    """The answer to `Pooled`: an outcome for each activation, or None where it is to be asked for alone."""

    outcomes: tuple[Outcome | Broken | None, ...]


Answer: TypeAlias = Outcome | Outcomes
"""What a function answers."""

_json = msgspec.json.Encoder()
_decode_request: Callable[[bytes], Request] = bounded(msgspec.json.Decoder(Request))
_decode_outcome: Callable[[bytes], Outcome] = bounded(msgspec.json.Decoder(Outcome))
_decode_outcomes: Callable[[bytes], Outcomes] = bounded(msgspec.json.Decoder(Outcomes))


def encode(message: Request | Answer) -> bytes:
    """JSON bytes of a message."""
    return _json.encode(message)


def decode_request(data: bytes) -> Request:
    """Raises msgspec.DecodeError (ValidationError) when `data` is no request."""
    return _decode_request(data)


def decode_outcome(data: bytes) -> Outcome:
    """Raises msgspec.DecodeError (ValidationError) when `data` is no outcome."""
    return _decode_outcome(data)


def decode_outcomes(data: bytes) -> Outcomes:
    """Raises msgspec.DecodeError (ValidationError) when `data` is not an answer to `Pooled`."""
    return _decode_outcomes(data)


def request_from_builtins(payload: Any) -> Request:
    """A request out of already parsed JSON, as Lambda hands it to a handler. Raises msgspec.ValidationError."""
    request: Request = msgspec.convert(payload, Request)
    return request


def to_builtins(outcome: Answer) -> Any:
    """An answer as plain JSON types, as Lambda expects a handler to return it."""
    return msgspec.to_builtins(outcome)
