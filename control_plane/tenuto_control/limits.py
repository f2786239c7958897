"""The control plane's own limits, in one place. Names end in their unit.

Owns the tuning of loops, drivers and ingress, each overridable under `[limits]` in `tenuto.toml`. Limits that
both sides must agree on are in `tenuto.protocol.limits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from tenuto.protocol.limits import HOLD_SLEEP_MS_MAX, TIMER_BUCKET_MS

MIB = 1024 * 1024

ANSWER_BYTES_MAX = 6 * MIB
"""Largest answer of a function that is read: a synchronous Lambda invocation answers no more (AWS Lambda quotas)."""

ANSWER_MEMBERS_MAX = 200_000
"""Commas in an answer of a function, which are about its values: each takes a hundred bytes once it is decoded, and all
of them the time of the event loop. A head has 12,000 at most, and its run's headers 20,000."""

REQUEST_COPIES = 3
"""How often a request is held while its function is called: encoded, in the body of its HTTP request, and sent."""

HTTP_AHEAD_BYTES_MAX = 4 * MIB
"""What all connections together may hold of requests behind those that are in progress, which nothing else counts."""

SWEEP_CURSOR_RECOVERED_MINUTES = 24 * 60
"""How far back timers are looked for after the sweep's cursor was found ahead of time, as a wrong clock moves it."""

SWEEP_CURSOR_LAG_MINUTES = 60
"""The sweep's cursor stays this far behind, so that a slow process may still put timers into recent buckets."""


LIMIT_MAX = 2**31 - 1
"""Largest duration and number that a limit may be: 24 days. Kafka's protocol has no larger ones."""

LIMIT_BYTES_MAX = 2**40
"""Largest size that a limit may be: more memory than a process has."""


LIMITS_MIN: Mapping[str, int] = {"batch_inflated_bytes_max": 16 * 1024, "http_keep_alive_ms": 1_000}
"""Limits of which less would do harm in silence: ordinary batches of a producer (`batch.size`) would be dead letters,
and uvicorn, which counts in seconds, would close each connection after its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one control plane process.

    All are positive and bounded; construction raises ValueError whose text begins with the name of the one that is not.
    """

    # Records between their delivery and their release. A partition above its bound is paused until half of it
    # is free; one poll may overshoot a bound by `poll_records_max`.
    partition_records_max: int = 2_000
    partition_bytes_max: int = 16 * MIB
    process_records_max: int = 50_000
    process_bytes_max: int = 48 * MIB
    """What these records weigh, each with the lane that waits for a place with it (`loops.consume`)."""

    lanes_at_work_max: int = 1_024
    lanes_at_work_bytes_max: int = 64 * MIB
    """Lanes that work at once, their heads included; others wait their turn. Four times `invoke_concurrency_max`, as
    lanes also read and commit."""
    lanes_max: int = 6_000
    """Lanes that work or wait, without those that wait for their first place with records. Beyond, hints are refused,
    and lanes that wait for a pause to end are left to the sweep."""

    poll_records_max: int = 500
    poll_bytes_max: int = 8 * MIB
    """A poll hands out no further record once it has so many bytes."""
    fetch_bytes_max: int = 8 * MIB
    """What one broker's answer to a fetch may hold. A batch that is larger comes alone."""
    batch_inflated_bytes_max: int = 16 * MIB
    """What a compressed batch may be inflated to; one that needs more is a dead letter as it was sent. A producer
    compresses batches of its `batch.size`, 16 KB unless it says otherwise."""
    poll_timeout_ms: int = 200
    commit_interval_ms: int = 200
    quarantine_concurrency: int = 16

    # A rebalance halts the whole group until its slowest member has drained, so draining is brief; what is
    # cut off is delivered again to the partition's next owner and meets the watermark there.
    drain_timeout_ms: int = 5_000
    session_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 1_000
    log_request_timeout_ms: int = 10_000
    """How long one request to the log may take, commits and produced records included."""

    topic_lives_timeout_ms: int = 5_000
    """How long a batch of a mapping may wait until brokers tell which life of its topic it is of; then it fails."""
    topic_lives_request_timeout_ms: int = 1_500
    """The same for one request: a connection that broke while its process was frozen says nothing by itself."""

    log_retry_initial_ms: int = 200
    log_retry_max_ms: int = 5_000
    unreadable_retry_initial_ms: int = 1_000
    unreadable_retry_max_ms: int = 60_000
    """A partition that cannot be read is tried again after these pauses, while the others continue."""
    unreadable_after_ms: int = 5_000
    """What passes by itself, as a broker's restart does, makes a partition unreadable only after this time."""
    unreadable_log_max_ms: int = 3_600_000
    """A partition that stays unreadable is logged again after `failure_log_interval_ms`, then after pauses that double
    up to this one."""
    table_retry_initial_ms: int = 50
    table_retry_max_ms: int = 5_000
    table_refused_retry_max_ms: int = 60_000
    """The pause of a lane whose write the table refuses grows up to this: that it takes it later is unlikely."""
    topic_patience_ms: int = 60_000
    """How long a record waits for a topic that does not exist, or may not be written to, before it is set aside."""
    handler_patience_ms: int = 60_000
    """How long a message, with its sender or in an inbox, or a call waits for a handler that no function serves, before
    it ends. Longer than it takes until a control plane hears of a new one (`REFRESH_INTERVAL_S`)."""
    failure_log_interval_ms: int = 5_000
    """A failure that continues is logged again after this time, not at every try."""

    invoke_concurrency_max: int = 256
    gather_ms: int = 5
    """How long a lane waits for others to share an invocation with, side by side, while two or more of its function's
    are in progress."""
    invoke_bytes_max: int = 16 * MIB
    """What the requests of invocations in progress take in memory, copies included; further ones wait. One request that
    is larger than its function's share goes beyond it."""
    answers_bytes_max: int = 12 * MIB
    """What answers of functions take in memory from when they are read until they are committed, decoded ones
    included; further ones are not read until then. It holds one of the largest."""
    invoke_connect_timeout_ms: int = 3_000
    invoke_read_timeout_ms: int = 905_000
    """Above the longest timeout a function can have (900 s).

    Giving up earlier would leave an attempt running unseen.
    """
    invoke_retry_initial_ms: int = 50
    invoke_retry_max_ms: int = 10_000

    aws_connect_timeout_ms: int = 2_000
    aws_read_timeout_ms: int = 10_000
    aws_connections_max: int = 128

    batch_events_max: int = 100
    batch_bytes_max: int = MIB
    """Waiting events of one key that one invocation takes, and what their inputs may weigh."""
    lane_cache_max: int = 100_000
    lane_cache_bytes_max: int = 32 * MIB
    """Heads of idle lanes kept in memory; one that was dropped costs a read."""
    lane_calls_max: int = 1_000
    """Calls that may wait for one key in this process; further ones are refused (503)."""
    spill_after_ms: int = 5_000
    spill_records_max: int = 200
    """Events of a key that waits are moved to its inbox after this time, or when so many have gathered."""
    lease_margin_ms: int = 500
    """How long after its end a foreign lease is respected, against clocks that differ."""
    call_look_ms: int = 150
    event_look_ms: int = 1_000
    """How long a head is believed that other processes may change, while a call or an event waits for it here."""
    owner_ms: int = 200
    """Whoever changed a head within this time is left to continue with the lane: by what was handed over to it."""
    keep_events_ms: int = 850
    """Events wait so long for a run of another process that should be over by then, and are not handed over."""
    guard_delay_ms: int = 5_000
    """When a guard falls due that protects only the few writes that follow it."""
    commit_guard_ms: int = 60_000
    """When the guard falls due that protects a commit of calls which send messages."""
    results_awaited_max: int = 1_000
    """Callers that wait for a result that is stored elsewhere, each of whom has the table asked at intervals. Others
    are told at once that it is not there yet."""
    result_poll_initial_ms: int = 25
    result_poll_max_ms: int = 250

    sweep_interval_ms: int = 5_000
    sweep_lanes_max: int = 1_000
    """So many lanes may be doing something before the sweep starts more: each reads its head first."""
    sweep_lookback_ms: int = 600_000
    sweep_wide_interval_ms: int = 30_000
    """Every so often a sweep looks back so far; those in between, not much further than timers rest."""
    sweep_deep_interval_ms: int = 60_000
    sweep_deep_buckets_max: int = 500
    """Every so often a sweep also looks at older buckets, from a stored cursor on, so many at a time."""
    timer_postpone_ms: int = 60_000
    """A due timer that is still needed moves on by this much, doubling up to an hour: old buckets empty."""
    timers_wide_per_s: int = 100
    """With so many activations in a second, guards and sleeps of the next minutes are spread over more partitions."""
    hold_sleep_ms: int = HOLD_SLEEP_MS_MAX
    """Sleeps up to this long are waited for inside the function; more than that is for a dispatcher that runs as a
    function itself, where nothing but the outside scheduler could end a short suspension."""
    nap_sleep_ms: int = 5_000
    """During sleeps up to this long, in functions that run for at most `NAP_TIMEOUT_MS_MAX`, the lane stays this
    process's: that saves three writes. Meanwhile the event's offset is held, as while a function runs, and should this
    process end, others wait for the lease."""
    naps_max: int = 500
    """Lanes that nap at a time. Beyond, sleeps suspend: events whose offsets are held take room in their partition, of
    which there is four times as much (`partition_records_max`)."""
    nap_slack_ms: int = 5_000
    """How late a nap may be ended: its lease lasts for so long and for the function's timeout. Later than that, the run
    is taken over as if it had suspended."""
    quick_in_a_row: int = 16
    """Activations of a handler that have to be quick, in a row, before its work shares invocations while all of its
    function's places are taken. They have to write nothing, either, unless the function works on several keys."""
    wheel_horizon_ms: int = 120_000
    wheel_bytes_max: int = 16 * MIB
    """Timers due within this time are held in memory, as long as they weigh no more; others are found by the sweep,
    which comes by within `sweep_interval_ms`."""
    scheduler_threshold_ms: int = 120_000
    """Sleeps at least this long are also handed to the outside scheduler, whose precision is a minute."""
    scheduler_lead_ms: int = 60_000
    """How long before the end of a sleep the outside scheduler is to fire: who is woken early waits for the rest."""
    linger_ms: int = 10_000
    """How long a dispatcher that runs as a function waits for what comes next rather than to be woken for it."""

    hand_over_ms_max: int = 1_000
    """How long a call may take to become durable once its caller stops waiting; then the answer is 503."""
    accept_ms_max: int = 10_000
    """The same for a message, which has nothing else to wait for."""

    metrics_interval_ms: int = 60_000

    http_wait_ms_max: int = 25_000
    """How long a call is held open before the answer is an id to attach to (API Gateway ends at 29 s)."""

    # What HTTP may hold of one process: 2,000 waiting calls take about 60 MB, and of each byte of a body there are up
    # to three while it waits, as base64 in its function's request and in the client's buffers.
    calls_max: int = 2_000
    """Requests that wait, and calls that wait or run, together; further ones are refused (503)."""
    calls_bytes_max: int = 32 * MIB
    """What these may hold: bodies from their first byte on, and results until they are sent."""
    http_connections_max: int = 4_000
    """Open connections, never more than the limit of open files allows. Beyond it silent ones are closed."""
    http_keep_alive_ms: int = 65_000
    """How long an unused connection stays open: longer than a load balancer keeps it (35 s in `infra/`), which would
    otherwise send a request into a connection that is being closed, and answer 502."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            most = (
                LIMIT_MAX
                if not field.name.endswith("bytes_max") or field.name == "fetch_bytes_max"
                else LIMIT_BYTES_MAX
            )
            if value <= 0:
                raise ValueError(f"{field.name} must be above zero, not {value}")
            if value < LIMITS_MIN.get(field.name, 1):
                raise ValueError(f"{field.name} must be at least {LIMITS_MIN[field.name]}, not {value}")
            if value > most:
                raise ValueError(f"{field.name} must be at most {most}, not {value}")
        if self.scheduler_lead_ms >= self.scheduler_threshold_ms:
            raise ValueError("scheduler_lead_ms must be below scheduler_threshold_ms: a wake-up would ask for another")
        if self.heartbeat_interval_ms >= self.session_timeout_ms:
            raise ValueError(
                "heartbeat_interval_ms must be below session_timeout_ms: the group would expel its members"
            )


NAP_EVENT_BYTES_MAX = 8 * 1024
"""Events with more input have no naps: those that `naps_max` lanes hold must not fill the window of their partition."""

NAP_TIMEOUT_MS_MAX = 30_000
"""Functions that may run for longer have no naps: should the control plane end meanwhile, the lane would be nobody's
for as long as one of them may run."""


def near_lookback_ms(limits: Limits) -> int:
    """How far back every sweep looks: past where a due timer rests before it moves on, and a bucket more."""
    return min(limits.sweep_lookback_ms, limits.timer_postpone_ms + TIMER_BUCKET_MS)


SERVERLESS: Mapping[str, int] = {
    "hold_sleep_ms": 20_000,
    "nap_sleep_ms": 1,
    "scheduler_threshold_ms": 10_000,
    "scheduler_lead_ms": 1,
    "spill_after_ms": 2_000,
    "keep_events_ms": 200,
    "topic_patience_ms": 10_000,
    "handler_patience_ms": 330_000,
    "http_wait_ms_max": 24_000,
}
"""Defaults of a dispatcher that runs as a function. Nothing there is awake between its invocations: short sleeps stay
in the handler's function and are no naps, longer ones go to the outside scheduler, and a batch is not delayed by one
slow key, nor for long by a topic that is not there: the records behind it wait for the whole batch. Many invocations
may wait for one key, each of which looks. A call's wait
counts from when the gateway took it, and the 202 has left by 25 s of the 29 s that the gateway has, making the call
durable included. A larger `scheduler_lead_ms` makes wake-ups punctual, at the price of a dispatcher that waits; keep
`linger_ms` above it.
"""
