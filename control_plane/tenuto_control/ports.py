"""Ports: what the control plane needs from the world, and what its loops and ingress need from the dispatcher.

Owns the protocol classes and their errors. Each has a driver (`drivers/`) and an in-memory twin, under one contract
suite.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias

from msgspec import Struct

from tenuto.lane.timers import SendTimer, Timer
from tenuto.lane.writes import Key
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import ServiceManifest
from tenuto.protocol.records import Event, PublishOut, Result
from tenuto_control.core.metrics import Metrics


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class LogRecord(Struct, frozen=True):
    r"""A record as the log delivers it. A `value` of None is a tombstone.

    `topic_id` is the log's own name for this life of the topic: another one after it was deleted and created again, ""
    from a log that tells none. Bytes of a header's name that are not UTF-8 are escaped (`\xff`).

    `unreadable` is the reason why a record's content cannot be told, "" for any other. Its `value` then is what the log
    holds in its place, and it has neither key nor headers.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic_id: str = ""
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A partition that cannot be read at present: from which offset on (-1: not known), and why, fit for a log line."""

    partition: TopicPartition
    offset: int
    reason: str


class LogUnavailableError(Exception):
    """The log did not answer; nothing is known to have happened. The message is fit for a log line."""


class RecordTooLargeError(LogUnavailableError):
    """The topic takes no record of this size; only a smaller one, or a larger limit, helps.

    A kind of LogUnavailableError for whoever knows no better than to try on.
    """


class RecordRefusedError(LogUnavailableError):
    """No topic will ever take this record: its name is impossible, or it cannot be encoded. Waiting does not help."""


class TopicUnusableError(LogUnavailableError):
    """The topic does not exist, may not be written to, or refuses what it is given. Somebody may change that."""


class HandlerMissingError(Exception):
    """A message is for a handler that its service does not have. Somebody may deploy one."""


@dataclass(frozen=True, slots=True)
class Life:
    """What brokers tell of a partition now: its topic's id ("" when they tell none), and the offset that comes next."""

    topic_id: str
    end: int


class TopicLives(Protocol):
    """Tells the lives of topics to whoever gets records from somewhere that does not."""

    async def of(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Life]:
        """The present life of each partition's topic, asked again at each call, never remembered.

        Raises LogUnavailableError when the log does not answer in time, or has no such partition.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoppedLoop:
    """A loop of the process that failed at `since_ms` (ms since the epoch), and has not run steadily since."""

    name: str
    since_ms: int
    reason: str


class AssignmentListener(Protocol):
    """Is told of a rebalance before (`revoked`) and after (`assigned`) it takes place.

    A topic that was deleted and created again is revoked and assigned too: what its old life left in flight ends there.
    """

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions are about to move: finish or drop their work, commit, return."""
        ...

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions are now ours."""
        ...


class EventLog(Protocol):
    """A consumer group member. Methods raise LogUnavailableError when the log does not answer.

    What one partition or record cannot give costs no other partition a record: after any error, each partition goes on
    behind the last record that was delivered.
    """

    async def start(self, topics: Sequence[str], listener: AssignmentListener) -> None:
        """Join the group; partitions arrive through the listener."""
        ...

    async def poll(self, max_records: int, timeout_ms: int) -> list[LogRecord]:
        """Next records of the unpaused assigned partitions, in offset order per partition; empty after the timeout."""
        ...

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Stop delivering these partitions until resumed."""
        ...

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Deliver these partitions again."""
        ...

    def lag(self) -> int:
        """Offsets of the assigned partitions that have not been read yet, of those that can be.

        Not counted: what retention has removed, and what belongs to transactions that are open.
        """
        ...

    def unreadable(self) -> Sequence[Unreadable]:
        """The assigned partitions that cannot be read at present; each is tried again after growing pauses."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the next offset to read of each partition. Raises LogUnavailableError for one that was lost."""
        ...

    async def stop(self) -> None:
        """Leave the group."""
        ...


class RecordSink(Protocol):
    """Produces records durably (acks=all)."""

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Return when the record is acknowledged. Raises LogUnavailableError when it is not known to be.

        Of its kinds, RecordTooLargeError says that the topic takes no record of this size, RecordRefusedError that no
        topic takes this one, TopicUnusableError that this topic takes none as things are. Other records are not delayed
        by any of these.
        """
        ...


class OverloadedError(Exception):
    """Too much waits already; nothing was accepted. The message is fit for a caller."""


class TooLargeError(Exception):
    """An input that cannot be made durable; nothing was accepted. The message is fit for a caller."""


class UndecidedError(Exception):
    """What was asked for was not durable in time, and may take effect all the same. The message is fit for a caller."""


class InvokeError(Exception):
    """An invocation did not return an outcome. The message is fit for a log line."""


class FunctionThrottledError(InvokeError):
    """Refused for concurrency (429): the function did not run."""


class FunctionFailedError(InvokeError):
    """The function ran and its process or handler failed, timed out or answered too much: it runs no more."""


class FunctionUnreachableError(InvokeError):
    """No answer: the function may or may not have run, and may be running still."""


class FunctionMissingError(InvokeError):
    """There is no such function, or it may not be invoked."""


class FunctionBrokenError(FunctionMissingError):
    """The function's code cannot be imported, so nothing of it ran. The invoker has logged that, once."""


class PayloadTooLargeError(InvokeError):
    """The request is beyond Lambda's payload limit: the function did not run."""


class AnswerHolder(Protocol):
    """Room in memory for the answer to one invocation."""

    async def hold(self, size: int) -> None:
        """Wait until an answer of so many bytes may be in memory, once for each answer: before it is read."""
        ...


class FunctionInvoker(Protocol):
    """Invokes functions synchronously, without retries of its own (a client retry would invoke twice)."""

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """The function's answer, for which there is `room` before it is read. Raises a subclass of InvokeError."""
        ...


class WakeScheduler(Protocol):
    """Asks someone outside to wake a lane later. A hint: it may be late, lost or doubled."""

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """Idempotent by `name`. Raises SchedulerUnavailableError."""
        ...

    async def cancel(self, name: str) -> None:
        """Forget a schedule; unknown names are no error. Raises SchedulerUnavailableError."""
        ...


class SchedulerUnavailableError(Exception):
    """The scheduler did not answer."""


class Clock(Protocol):
    """Wall-clock time of this process. Passing time is asyncio's."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Which function serves a service, and what discovery said of it.

    `pools` is how many activations an invocation of it may carry; 0 and 1: one. `beside` is how many of them it may run
    side by side.
    """

    function: str
    manifest: ServiceManifest
    timeout_ms: int = 10_000
    concurrency: int = 256
    pools: int = 0
    beside: int = 0


class Targets(Protocol):
    """Finds the function behind a service."""

    def find(self, service: str) -> Target | None:
        """None when no deployment serves it."""
        ...

    def listed(self) -> Sequence[ServiceManifest]:
        """Every service that is served."""
        ...


@dataclass(frozen=True, slots=True)
class Pending:
    """The invocation is accepted and not finished yet."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No trace of the invocation: never accepted, or its result has expired."""


Answer: TypeAlias = Result | Pending | Unknown


class Resolution(Enum):
    """What became of a result for an awakeable."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    """It had this result already."""
    CONFLICT = "conflict"
    """It had another result already, which stays."""
    UNKNOWN = "unknown"
    """No invocation waits under that id any longer."""


class Errand(NamedTuple):
    """Why to be woken: for a lane, or for the delayed message whose timer is named."""

    lane: Lane
    timer: Key | None = None


class Waking(Protocol):
    """What the sweep asks of the dispatcher."""

    @property
    def active(self) -> int:
        """How many lanes are doing something, those not counted that only wait."""
        ...

    def look(self, lane: Lane) -> None:
        """Look at a lane: its head as it is now, and its inbox."""
        ...

    def arm(self, timer: Timer) -> None:
        """Fire a timer when it is due, if that is soon; the sweep finds it in any case."""
        ...

    async def deliver_delayed(self, timer: SendTimer) -> None:
        """Move a delayed message to its receiver's inbox, then forget its timer."""
        ...


class Execution(Protocol):
    """What loops and ingress ask of the dispatcher."""

    def deliver(self, event: Event, released: Callable[[], None]) -> None:
        """Queue a Kafka event. `released` is called once, when its offset no longer has to be held."""
        ...

    async def withdraw(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> None:
        """Forget what these partitions queued and wait for what runs; afterwards `released` is not called."""
        ...

    def relieve(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions have as much in flight as they may: what has waited for long should make room for others."""
        ...

    async def set_aside(self, record: PublishOut, identity: Sequence[str], reason: str) -> None:
        """Keep a record that its topic does not take as a dead letter in the table; `identity` tells it from others.

        Tries on while the table does not answer.
        """
        ...

    async def call(self, event: Event, wait_ms: int) -> Answer:
        """Run an exclusive or stateless handler; Pending, when it takes longer than `wait_ms`, is a promise.

        An invocation that is accepted already, now or for later, is waited for instead. Raises OverloadedError,
        TooLargeError, and UndecidedError soon after `wait_ms`.
        """
        ...

    async def call_shared(self, event: Event) -> Result:
        """Run a read-only handler on the lane's current state, without a write."""
        ...

    async def send(self, event: Event, delay_ms: int) -> None:
        """Accept a one-way message durably; it runs after the delay, unless its invocation is accepted already.

        Raises TooLargeError, and UndecidedError.
        """
        ...

    async def result(self, invocation: str, wait_ms: int) -> Answer:
        """The result of an invocation by id, waiting up to `wait_ms` for it."""
        ...

    async def resolve(self, awakeable: str, result: Result) -> Resolution:
        """Resolve or reject an awakeable; the first answer counts.

        Raises OverloadedError when it cannot be taken now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Resting:
    """A lane waits until a time. `held`: a run of another process is active in it, whose end may come sooner."""

    until_ms: int
    held: bool


class Interruptible(Execution, Protocol):
    """An `Execution` in a process that is frozen between two invocations, each of which ends with nothing under way."""

    @property
    def metrics(self) -> Metrics:
        """Where it counts."""
        ...

    def token(self) -> str:
        """A name that no other process uses."""
        ...

    async def woken(self, errand: Errand) -> None:
        """A wake-up from outside."""
        ...

    def look(self, lane: Lane) -> None:
        """See `Waking.look`."""
        ...

    @property
    def at_work(self) -> Collection[Lane]:
        """The lanes that are not idle."""
        ...

    def resting(self) -> Mapping[Lane, Resting]:
        """The lanes that only wait."""
        ...

    def fires_before(self, time_ms: int) -> bool:
        """Whether an armed timer is due before a time."""
        ...

    async def drop(self, lane: Lane) -> None:
        """Stop a lane where it is, as a crash would: another process looks after it."""
        ...

    async def entrust(self) -> None:
        """Release every event that is finished but for what it sent; timers lead back to that."""
        ...

    async def schedule(self, errand: Errand, at_ms: int, name: str, owner: str | None = None) -> None:
        """Have somebody woken from outside at a time, and told under which name. It may fail.

        Idempotent by `name`.
        """
        ...

    async def settle(self, deadline_ms: int, linger_ms: int = 0) -> None:
        """Wait until nothing is in progress, or for a deadline.

        A lane that rests (a pause, another's lease) and an armed timer are waited for if that is over in `linger_ms`.
        """
        ...

    async def halt(self, until_ms: int) -> list[Errand]:
        """Stop everything where it is, as a crash would. Returns what would have been done before a time."""
        ...
