"""What a month of events costs: the requests an event makes, and the bill they add up to.

Owns the counts per kind of event, which `tests/costs` holds against counted requests, the list of prices, the estimate
made of both and how it reads. Does not own the command line (`tenuto_control.__main__`), nor what is billed besides:
Kafka, data transfer, logs and storage.

Counts are those of a handler that first sends, then runs its steps, then sleeps. In another order it costs the same
or less, as a step right before a sleep is written together with the suspension. Where a count is "or fewer", as for
messages and for sleeps that are held in the function, the estimate takes the most.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Final, NamedTuple, TypeVar

from tenuto.protocol.limits import (
    BESIDE_MAX,
    COMMANDS_MAX,
    HOLD_SLEEP_MS_MAX,
    OUT_PER_WRITE_MAX,
    SLEEP_MS_MAX,
    TIMER_BUCKET_MS,
    TIMER_SHARDS,
)
from tenuto_control.limits import SWEEP_CURSOR_LAG_MINUTES, Limits, near_lookback_ms

T = TypeVar("T")

ALWAYS_ON: Final = "always-on"
SCALE_TO_ZERO: Final = "scale-to-zero"
SHAPES: Final = (ALWAYS_ON, SCALE_TO_ZERO)
ARCHITECTURES: Final = ("arm64", "x86_64")

THOUSAND: Final = 1_000
MILLION: Final = 1_000_000
EVENTS_MAX: Final = 10**15
"""Far above what any topic has in a month; every amount stays a number that can be written out."""
PRICE_MAX: Final = 10**9
MB_PER_GB: Final = 1_024
HOURS_PER_MONTH: Final = 730
MINUTES_PER_MONTH: Final = HOURS_PER_MONTH * 60

WRITE_UNIT_BYTES: Final = 1_024
READ_UNIT_BYTES: Final = 4_096
ITEM_BYTES_MAX: Final = 409_600
"""DynamoDB bills a write by each started KB of the item and a strongly consistent read by each started 4 KB."""

SEND_RECEIVER_HEAD_WRITES: Final = 2
"""The mark at the receiver's head, and the commit of the receiver's handler, which is taken to touch state alone."""
SEND_ITEM_WRITES: Final = 3
"""The inbox item, its guard, and the tombstone that the item becomes."""
GUARD_READ_UNITS: Final = 4
SLEEP_TIMER_READ_UNITS: Final = 2
"""What the sweep reads before a timer goes: the head once or twice, for a guard the inbox, and at most one unit for
coming across the timer in its bucket while it was not due yet."""

SWEEP_CURSOR_READS: Final = 1
"""The deep sweep's look at where it has got to."""

TICK_MINUTES: Final = 1
TICK_MS: Final = 1_000
"""At scale to zero, how often a rule has the timers looked at, and how long that takes: some 250 queries in turn."""

SCHEDULED_SECONDS_MIN: Final = {ALWAYS_ON: Limits().scheduler_threshold_ms / 1000, SCALE_TO_ZERO: 10.0}
"""Suspensions at least this long are also handed to the Scheduler; at scale to zero a dispatcher sits out others."""

HOLD_SECONDS: Final = {ALWAYS_ON: HOLD_SLEEP_MS_MAX / 1000, SCALE_TO_ZERO: 20.0}
"""Sleeps up to this long are waited for in the function, by default. With nothing always on, what could end a shorter
suspension is precise to a minute."""


NAP_SECONDS: Final = {ALWAYS_ON: Limits().nap_sleep_ms / 1000, SCALE_TO_ZERO: 0.0}
"""During sleeps up to this long the control plane keeps the lane, by default: they need no timer and no takeover."""


def _option(default: T, text: str, low: float = 0, high: float = 1) -> T:
    """A field with what the command line says about it and the bounds it is held to."""
    made: T = field(default=default, metadata={"help": text, "low": low, "high": high})
    return made


def _choice(text: str, choices: tuple[str, ...]) -> str:
    made: str = field(default=choices[0], metadata={"help": text, "choices": choices})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Events of one kind over a month. Construction raises ValueError that names the option and its bounds.

    `duration_ms` is one turn of a handler: from an event's start or resumption to its end or suspension. The events of
    a batch take one turn each, though they share an invocation. `head_bytes` is the largest a key's item gets: state,
    input, and up to 2 KB of journal; state that is overwritten before a suspension counts twice.
    """

    events: float = _option(1_000_000.0, "events a month", high=EVENTS_MAX)
    steps: int = _option(0, "steps (ctx.run) of each event, one after the other", high=COMMANDS_MAX)
    slow_code: bool = _option(default=False, text="the code after a step takes longer than 20 ms")
    sleeps: int = _option(
        0, "sleeps of each event; a failed attempt that waits over a second costs what one above 5 s does", high=1_000
    )
    sleep_seconds: float = _option(5.0, "how long each sleep is", high=SLEEP_MS_MAX // 1000)
    sends: int = _option(0, "messages of each event, to keys whose handlers only touch state", high=OUT_PER_WRITE_MAX)
    calls: bool = _option(default=False, text="the events are HTTP calls, not records from Kafka")
    batch: float = _option(1.0, "waiting events of one key that an invocation takes", 1, Limits().batch_events_max)
    keys_per_invocation: float = _option(
        1.0, "keys that share an invocation on average, while all places of the function are taken", 1, BESIDE_MAX
    )
    head_bytes: int = _option(1_000, "size of a key's item: state, input, journal", 1, ITEM_BYTES_MAX)
    memory_mb: int = _option(512, "memory of the handler function", 128, 10_240)
    duration_ms: float = _option(100.0, "one turn of a handler, in ms", 1, 900_000)
    architecture: str = _choice("of the functions", ARCHITECTURES)
    shape: str = _choice("what runs the control plane", SHAPES)
    tasks: int = _option(1, "always-on: containers", 1, 10_000)
    vcpu: float = _option(0.25, "always-on: vCPU of a container", 0.25, 16)
    task_gb: float = _option(0.5, "always-on: GB of memory of a container", 0.5, 120)
    hold_seconds: float | None = _option(
        None,
        "sleeps up to this long stay in the function (default: always-on 0.3, scale-to-zero 20)",
        high=900,
    )
    records_per_poll: float = _option(10.0, "scale-to-zero: records that one dispatcher invocation takes", 1, 10_000)
    dispatcher_mb: int = _option(1_024, "scale-to-zero: memory of the dispatcher function", 128, 10_240)
    dispatch_ms: float = _option(
        20.0, "scale-to-zero: what a dispatcher invocation takes besides its handlers, in ms", 0, 900_000
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value, known = getattr(self, one.name), one.metadata
            name = "--" + one.name.replace("_", "-")
            if "choices" in known:
                if value not in known["choices"]:
                    raise ValueError(f"{name}: expected {' or '.join(known['choices'])}, not {value!r}")
            elif value is not None and not (math.isfinite(value) and known["low"] <= value <= known["high"]):
                low, high = (
                    f"{bound:,g}" if bound < MILLION else f"{bound:,}" for bound in (known["low"], known["high"])
                )
                raise ValueError(f"{name}: expected a number between {low} and {high}, not {value:g}")
        if self.batch > self.records_per_poll and self.shape == SCALE_TO_ZERO and not self.calls:
            raise ValueError("--batch: a batch cannot hold more records than --records-per-poll")

    @property
    def held(self) -> int:
        """Sleeps that a function sits out, and that are long enough to be made durable first."""
        return self.sleeps if HOLD_SLEEP_MS_MAX / 1000 < self.sleep_seconds <= self._hold_seconds else 0

    @property
    def suspended(self) -> int:
        """Sleeps that no function waits for, and in which nobody keeps the lane."""
        return self.sleeps if self.sleep_seconds > max(self._hold_seconds, NAP_SECONDS[self.shape]) else 0

    @property
    def napped(self) -> int:
        """Sleeps in which the control plane keeps the lane."""
        return self.sleeps - self.suspended if self.sleep_seconds > self._hold_seconds else 0

    @property
    def durable(self) -> bool:
        """Whether an event takes the lease of its key."""
        return bool(self.steps or self.held or self.napped or self.suspended)

    @property
    def _hold_seconds(self) -> float:
        if self.hold_seconds is None:
            return HOLD_SECONDS[self.shape]
        return max(self.hold_seconds, HOLD_SECONDS[ALWAYS_ON])


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """Prices in dollars. The defaults are AWS's list prices in us-east-1, without free tiers and without discounts.

    DynamoDB (on-demand, standard table, since November 2024): aws.amazon.com/dynamodb/pricing/on-demand.
    Lambda (first tier): aws.amazon.com/lambda/pricing. EventBridge Scheduler: aws.amazon.com/eventbridge/pricing.
    Fargate (Linux on ARM): aws.amazon.com/fargate/pricing. API Gateway (HTTP API): aws.amazon.com/api-gateway/pricing.
    """

    dynamodb_write_per_million: float = 0.625
    dynamodb_read_per_million: float = 0.125
    lambda_requests_per_million: float = 0.20
    lambda_gb_second_arm64: float = 0.0000133334
    lambda_gb_second_x86_64: float = 0.0000166667
    scheduler_per_million: float = 1.00
    fargate_vcpu_hour: float = 0.03238
    fargate_gb_hour: float = 0.00356
    api_gateway_per_million: float = 1.00


US_EAST_1: Final = PriceList()


class PricesError(ValueError):
    """A list of prices cannot be used. The message names the key and the way out."""


def parse_prices(text: str, base: PriceList = US_EAST_1) -> PriceList:
    """A list of prices from TOML: what it names replaces the `base`. Raises PricesError."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        # Not only TOMLDecodeError: a number may have too many digits, and arrays may nest too deeply.
        raise PricesError(f"not TOML: {e}") from e
    known = [one.name for one in fields(PriceList)]
    for name, value in raw.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(known)
            raise PricesError(f"{name}: unknown key; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= PRICE_MAX:
            raise PricesError(f"{name}: expected a price in dollars, such as {getattr(base, name)}")
    return replace(base, **raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCounts:
    """What one event requests, on average.

    `timers` of the other writes put a timer or guard, which the sweep deletes: up to 25 in one request, but billed by
    the item. `turns` are runs of a handler's code, of which a batch has several in one of the `invocations`.
    """

    head_writes: float
    other_writes: float
    timers: float
    head_reads: float
    other_read_units: float
    invocations: float
    turns: float

    @property
    def writes(self) -> float:
        """Write requests (W of the cost table)."""
        return self.head_writes + self.other_writes


def count(workload: Workload) -> EventCounts:
    """The requests of one event."""
    sends, suspended, durable = workload.sends, workload.suspended, workload.durable
    shared = 1 / workload.batch
    own = shared
    joins = not (sends or workload.held or workload.calls)
    if durable:
        # A claim, which the next event of a batch has together with the commit of the one before it. A checkpoint for
        # each step but the last, which rides on the suspension or the commit. After slow code it has been written
        # before. When a held sleep is to end is written before it begins, and that it has ended before a step that
        # follows.
        late = 1 if workload.slow_code and workload.steps else 0
        own = (
            (shared if joins else 1) + max(workload.steps, 1) + late + workload.napped + 2 * (suspended + workload.held)
        )
    result = 1 if workload.calls and durable else 0
    guards = sends + (1 if workload.calls and (durable or sends) else 0)
    # What has been shipped is cleared once the key comes to rest, that is, at each suspension and at the end.
    clears = min(sends, 1 + suspended) + result if suspended else result or (shared if sends else 0)
    first = shared
    if workload.held or (sends and (workload.steps or suspended or workload.napped)):
        # A commit with something to ship ends an invocation. Otherwise the events behind follow, also behind one that
        # was resumed. Sleeps that are held use up the function's time, so that a second event in it cannot be counted
        # on.
        first = 1
    return EventCounts(
        head_writes=own + clears + sends * SEND_RECEIVER_HEAD_WRITES,
        other_writes=sends * SEND_ITEM_WRITES + (guards - sends) + result + suspended,
        timers=guards + suspended,
        # A control plane that is always on remembers the head of a key that it suspended.
        head_reads=shared + sends + (suspended if workload.shape == SCALE_TO_ZERO else 0),
        other_read_units=sends + guards * GUARD_READ_UNITS + suspended * SLEEP_TIMER_READ_UNITS,
        invocations=(first + workload.napped) / workload.keys_per_invocation + suspended + sends,
        turns=1 + workload.napped + suspended + sends,
    )


def write_units(item_bytes: float) -> int:
    """What a write of an item is billed as: by the larger of its sizes before and after, in started KB."""
    return max(1, math.ceil(item_bytes / WRITE_UNIT_BYTES))


def write_units_of_event(counts: EventCounts, head_bytes: int) -> float:
    """Write units of one event. Receivers' heads are taken to be as big as its own, and other items below 1 KB."""
    return counts.head_writes * write_units(head_bytes) + counts.other_writes + counts.timers


def read_units_of_event(counts: EventCounts, head_bytes: int) -> float:
    """Read units of one event. A key's head is taken to be unknown to the control plane, which may remember it."""
    return counts.head_reads * max(1, math.ceil(head_bytes / READ_UNIT_BYTES)) + counts.other_read_units


@dataclass(frozen=True, slots=True)
class Line:
    """One item of the bill: `count` units at `price` dollars for `per` of them. A `fixed` one is due without events."""

    item: str
    count: float
    unit: str
    price: float
    per: float
    fixed: bool = False

    @property
    def amount(self) -> float:
        """Dollars a month."""
        return self.count / self.per * self.price


@dataclass(frozen=True, slots=True)
class Estimate:
    """A month of a workload."""

    workload: Workload
    counts: EventCounts
    lines: tuple[Line, ...]

    @property
    def total(self) -> float:
        """Dollars a month."""
        return sum(line.amount for line in self.lines)

    @property
    def fixed(self) -> float:
        """Dollars a month if nothing happens."""
        return sum(line.amount for line in self.lines if line.fixed)

    @property
    def per_million(self) -> float:
        """Dollars that a million events add."""
        events = self.workload.events
        return (self.total - self.fixed) / events * MILLION if events else 0.0


def estimate(workload: Workload, prices: PriceList = US_EAST_1) -> Estimate:
    """The bill of a month."""
    counts = count(workload)
    lines = [*_by_event(workload, counts, prices), *_fixed(workload, prices)]
    return Estimate(workload, counts, tuple(line for line in lines if line.count))


def break_even(workload: Workload, prices: PriceList = US_EAST_1) -> float | None:
    """From how many events a month on an always-on control plane is the cheaper one; None if it never is."""
    sample, records = max(workload.events, 1.0), max(workload.records_per_poll, workload.batch)
    on, zero = (
        estimate(replace(workload, events=sample, shape=shape, records_per_poll=records), prices) for shape in SHAPES
    )
    gained = (zero.per_million - on.per_million) / MILLION
    return max(0.0, (on.fixed - zero.fixed) / gained) if gained > 0 else None


def _by_event(workload: Workload, counts: EventCounts, prices: PriceList) -> Iterable[Line]:
    events, suspended = workload.events, workload.suspended
    second = _gb_second(workload, prices)
    units = events * write_units_of_event(counts, workload.head_bytes)
    yield Line("DynamoDB writes", units, "write units", prices.dynamodb_write_per_million, MILLION)
    yield _read_units("DynamoDB reads", events * read_units_of_event(counts, workload.head_bytes), prices)
    yield _requests("Lambda handler", events * counts.invocations, prices)
    # Keys whose handlers take steps wait for their writes at the same time; others take their turns one by one.
    shared_turns = (1 + workload.napped) * (1 - 1 / workload.keys_per_invocation) if workload.durable else 0
    busy_s = (counts.turns - shared_turns) * workload.duration_ms / 1000 + workload.held * workload.sleep_seconds
    yield Line("Lambda handler", events * busy_s * workload.memory_mb / MB_PER_GB, "GB-s", second, 1)
    if workload.sleep_seconds >= SCHEDULED_SECONDS_MIN[workload.shape]:
        yield Line("EventBridge Scheduler", events * suspended, "schedules", prices.scheduler_per_million, MILLION)
    if workload.shape == SCALE_TO_ZERO:
        polls = 1.0 if workload.calls else 1 / workload.records_per_poll
        yield _requests("Lambda dispatcher", events * (polls + suspended), prices)
        dispatched_s = _dispatched_seconds(workload, polls)
        yield Line("Lambda dispatcher", events * dispatched_s * workload.dispatcher_mb / MB_PER_GB, "GB-s", second, 1)
        if workload.calls:
            # An always-on control plane serves HTTP itself.
            yield Line("API Gateway", events, "requests", prices.api_gateway_per_million, MILLION)


def _dispatched_seconds(workload: Workload, polls: float) -> float:
    """How long the dispatcher function runs for an event: as long as the slowest key of what it took.

    Keys run beside each other, so that the records of a poll share the time of one batch.
    """
    turn_ms = workload.duration_ms
    batch = 1.0 if workload.calls else workload.batch
    poll_ms = workload.dispatch_ms + batch * (turn_ms + workload.held * workload.sleep_seconds * 1000)
    if workload.sends:
        poll_ms += turn_ms
    short = workload.sleep_seconds < SCHEDULED_SECONDS_MIN[SCALE_TO_ZERO]
    waited_ms = workload.sleep_seconds * 1000 if short else 0
    return (polls * poll_ms + workload.suspended * (workload.dispatch_ms + turn_ms + waited_ms)) / 1000


def _fixed(workload: Workload, prices: PriceList) -> Iterable[Line]:
    queries = sweep_queries()
    if workload.shape == ALWAYS_ON:
        limits, month_ms = Limits(), MINUTES_PER_MONTH * 60_000
        wide = month_ms / limits.sweep_wide_interval_ms
        near = month_ms / limits.sweep_interval_ms - wide
        deep = month_ms / limits.sweep_deep_interval_ms
        units = near * queries.near + wide * queries.wide + deep * queries.deep
        yield _read_units("DynamoDB reads, sweep", workload.tasks * units, prices, fixed=True)
        hours = workload.tasks * HOURS_PER_MONTH
        yield Line("Fargate vCPU", hours * workload.vcpu, "vCPU-h", prices.fargate_vcpu_hour, 1, fixed=True)
        yield Line("Fargate memory", hours * workload.task_gb, "GB-h", prices.fargate_gb_hour, 1, fixed=True)
        return
    ticks = MINUTES_PER_MONTH / TICK_MINUTES
    yield _read_units("DynamoDB reads, sweep", ticks * (queries.wide + queries.deep), prices, fixed=True)
    yield _requests("Lambda dispatcher, sweep", ticks, prices, fixed=True)
    seconds = ticks * TICK_MS / 1000 * workload.dispatcher_mb / MB_PER_GB
    yield Line("Lambda dispatcher, sweep", seconds, "GB-s", _gb_second(workload, prices), 1, fixed=True)


class SweepQueries(NamedTuple):
    """Reads of each kind of sweep."""

    near: int
    wide: int
    deep: int


def sweep_queries() -> SweepQueries:
    """Reads of one sweep of each kind when nothing is found. Each is one read unit."""
    limits = Limits()
    near, recent = near_lookback_ms(limits) // TIMER_BUCKET_MS, limits.sweep_lookback_ms // TIMER_BUCKET_MS
    # Next to the past ones, the bucket of this minute and one more: shortly before its end that of the next, and for a
    # near one, shortly after its beginning, one that the last sweep was still in.
    return SweepQueries(
        (near + 2) * TIMER_SHARDS,
        (recent + 2) * TIMER_SHARDS,
        (SWEEP_CURSOR_LAG_MINUTES - recent) * TIMER_SHARDS + SWEEP_CURSOR_READS,
    )


def _gb_second(workload: Workload, prices: PriceList) -> float:
    return prices.lambda_gb_second_arm64 if workload.architecture == "arm64" else prices.lambda_gb_second_x86_64


def _read_units(item: str, amount: float, prices: PriceList, *, fixed: bool = False) -> Line:
    return Line(item, amount, "read units", prices.dynamodb_read_per_million, MILLION, fixed)


def _requests(item: str, amount: float, prices: PriceList, *, fixed: bool = False) -> Line:
    return Line(item, amount, "requests", prices.lambda_requests_per_million, MILLION, fixed)


def as_text(made: Estimate, even: float | None) -> str:
    """An estimate as a table to read. `even` is the break-even of its workload."""
    counts, workload = made.counts, made.workload
    units = write_units_of_event(counts, workload.head_bytes)
    rows = [("item", "count", "unit", "price", "amount")]
    rows += [(line.item, _amount(line.count), line.unit, _price(line), f"${line.amount:,.2f}") for line in made.lines]
    rows.append(("total a month", "", "", "", f"${made.total:,.2f}"))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    item, count_, unit, price, amount = widths
    table = [f"{r[0]:<{item}}  {r[1]:>{count_}} {r[2]:<{unit}}  {r[3]:<{price}}  {r[4]:>{amount}}" for r in rows]
    head = (
        f"one event: writes {_number(counts.writes)}, write units {_number(units)} (deletions by the sweep included), "
        f"invocations {_number(counts.invocations)}, timers {_number(counts.timers)}"
    )
    foot = f"A million events add ${made.per_million:,.2f}; ${made.fixed:,.2f} a month is due if nothing happens."
    other = "Always-on is never the cheaper shape for this workload."
    if even is not None:
        other = f"From about {_rounded(even)} events a month on, always-on is cheaper than scale-to-zero."
    return "\n".join((head, "", *table, "", foot, other))


def as_record(made: Estimate, even: float | None) -> dict[str, object]:
    """An estimate as plain values, for JSON."""
    counts, head_bytes = made.counts, made.workload.head_bytes
    return {
        "workload": asdict(made.workload),
        "event": asdict(counts)
        | {
            "writes": counts.writes,
            "write_units": write_units_of_event(counts, head_bytes),
            "read_units": read_units_of_event(counts, head_bytes),
        },
        "lines": [asdict(line) | {"amount": line.amount} for line in made.lines],
        "total": made.total,
        "fixed": made.fixed,
        "per_million": made.per_million,
        "break_even_events": even,
    }


def _number(value: float) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def _amount(value: float) -> str:
    return _number(round(value, 1 if value < THOUSAND else None))


def _rounded(value: float) -> str:
    """To two digits: a break-even rests on averages."""
    if value < 1:
        return "0"
    grid = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / grid) * grid:,}"


def _price(line: Line) -> str:
    """As AWS lists it."""
    amount = f"{line.price:.10f}".rstrip("0")
    whole, _, cents = amount.partition(".")
    return f"${whole}.{cents:<02}" + (" per million" if line.per == MILLION else "")
