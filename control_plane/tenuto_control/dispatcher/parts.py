"""The parts of one dispatcher: what it is given from outside, and what all its lanes share.

Owns both bundles and the order in which parts are made. Does not own what a part does, nor its lifecycle.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tenuto.lane.timers import Timer
from tenuto.protocol.messages import RetryPolicy
from tenuto_control.core.clocks import TableClock, UncheckedClock, differs
from tenuto_control.core.metrics import Metrics, Uncounted
from tenuto_control.core.paces import Paces
from tenuto_control.core.traces import Tracer, Untraced
from tenuto_control.dispatcher.acceptance import Acceptance
from tenuto_control.dispatcher.background import Background
from tenuto_control.dispatcher.capacity import Capacity
from tenuto_control.dispatcher.delivery import Delivery
from tenuto_control.dispatcher.hints import Hints
from tenuto_control.dispatcher.naps import Naps
from tenuto_control.dispatcher.outages import WatchedTable
from tenuto_control.dispatcher.pools import Quick
from tenuto_control.dispatcher.receivers import Receivers
from tenuto_control.dispatcher.recoveries import Recoveries
from tenuto_control.dispatcher.room import UNOWNED
from tenuto_control.dispatcher.unreadable_items import UnreadableItems
from tenuto_control.dispatcher.wheel import Wheel
from tenuto_control.dispatcher.wide_timers import WideTimers
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import NAP_EVENT_BYTES_MAX, Limits
from tenuto_control.ports import Clock, FunctionInvoker, RecordSink, Targets, WakeScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What a control plane process is wired to.

    `process` is a name that no other process has, and that this one never had before. `encrypted` says whether
    functions encrypt what they write into the table of this name. `functions` is how many there are, among which is
    shared what they share.
    """

    table: WatchedTable
    invoker: FunctionInvoker
    sink: RecordSink
    targets: Targets
    scheduler: WakeScheduler
    clock: Clock
    rng: random.Random
    limits: Limits
    process: str
    table_name: str
    encrypted: bool = False
    functions: int = 1
    metrics: Metrics = field(default_factory=Uncounted)
    tracer: Tracer = field(default_factory=Untraced)
    table_clock: TableClock = field(default_factory=UncheckedClock)


class Names:
    """What one process calls itself, and what it calls that no other process may call so.

    Where all that it ran has been stopped, and it goes on, it takes another name: a function that it called before may
    still run, and this process waits for that no more than any other does.
    """

    def __init__(self, process: str) -> None:
        self._first = self._process = process
        self._lives = itertools.count(2)
        self._numbers = itertools.count(1)

    @property
    def process(self) -> str:
        """The name of this process, since it last stopped."""
        return self._process

    def token(self) -> str:
        """A name that no other process uses. It begins with `process`."""
        return f"{self._process}.{next(self._numbers)}"

    def begin_anew(self) -> None:
        """All that this process ran has been stopped."""
        self._process = f"{self._first}-{next(self._lives)}"


@dataclass(frozen=True, slots=True)
class Parts:
    """Shared by the lanes of one process."""

    writer: Writer
    delivery: Delivery
    acceptance: Acceptance
    wheel: Wheel
    background: Background
    recoveries: Recoveries
    invoker: FunctionInvoker
    capacity: Capacity
    targets: Targets
    clock: Clock
    rng: random.Random
    limits: Limits
    names: Names
    table_name: str
    encrypted: bool
    functions: int
    metrics: Metrics
    tracer: Tracer
    table_clock: TableClock
    unreadable: UnreadableItems
    wide_timers: WideTimers
    receivers: Receivers
    naps: Naps
    quick: Quick
    paces: Paces

    @property
    def process(self) -> str:
        """See `Names.process`."""
        return self.names.process

    def token(self) -> str:
        """See `Names.token`."""
        return self.names.token()

    def policy(self, service: str, handler: str) -> RetryPolicy:
        """The retry policy of a handler, as discovery told it."""
        target = self.targets.find(service)
        found = next((h for h in target.manifest.handlers if h.name == handler), None) if target else None
        return found.retry if found else RetryPolicy()

    def function(self, service: str) -> str:
        """The function that serves a service; `room.UNOWNED` when none does."""
        target = self.targets.find(service)
        return UNOWNED if target is None else target.function

    def keyed(self, service: str) -> bool:
        """Whether a service is a virtual object."""
        target = self.targets.find(service)
        return target is None or target.manifest.keyed


def parts_of(wiring: Wiring, hints: Hints, due: Callable[[Timer], None]) -> Parts:
    """The parts of one process. `hints` hears of what its deliveries have put, `due` of timers whose time has come."""
    clock, limits = wiring.clock, wiring.limits
    names = Names(wiring.process)
    writer = Writer(wiring.table, limits, wiring.metrics)
    background = Background()
    receivers = Receivers(wiring.targets, clock, limits.handler_patience_ms)
    told = wiring.table_clock
    delivery = Delivery(writer, wiring.sink, clock, limits, names.token, wiring.metrics, hints, receivers, told)
    return Parts(
        writer,
        delivery,
        Acceptance(writer, delivery, clock),
        Wheel(wiring.scheduler, clock, limits, background, due),
        background,
        Recoveries(background, hints.retry),
        wiring.invoker,
        Capacity(
            limits.invoke_concurrency_max,
            limits.invoke_bytes_max,
            wiring.functions,
            limits.answers_bytes_max,
            limits.gather_ms,
        ),
        wiring.targets,
        clock,
        wiring.rng,
        limits,
        names,
        wiring.table_name,
        wiring.encrypted,
        wiring.functions,
        wiring.metrics,
        wiring.tracer,
        wiring.table_clock,
        UnreadableItems(wiring.metrics),
        WideTimers(writer, background, clock, limits),
        receivers,
        Naps(
            limits.naps_max,
            NAP_EVENT_BYTES_MAX,
            lambda: differs(told.check, limits.lease_margin_ms),
            lambda: asyncio.get_running_loop().time(),
        ),
        Quick(limits.quick_in_a_row),
        Paces(),
    )
