"""What all lanes of a process share.

Owns the bundle of ports and helpers handed to lane workers. Does not own their lifecycle.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tenuto.lane.transitions import Timer
from tenuto.protocol.messages import RetryPolicy
from tenuto_control.core.metrics import Metrics
from tenuto_control.core.traces import Tracer
from tenuto_control.dispatcher.capacity import Capacity
from tenuto_control.dispatcher.delivery import Delivery
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tenuto_control.ports import Clock, FunctionInvoker, Targets, WakeScheduler


@dataclass(frozen=True, slots=True)
class Services:
    """Shared by the lanes of one control plane process.

    `token` gives a name nobody else uses; `forget` is told of sleeps that ended before their time. `encrypted` says
    whether functions encrypt what they write. `process` is this process's name, with which its tokens begin.
    """

    writer: Writer
    delivery: Delivery
    invoker: FunctionInvoker
    capacity: Capacity
    targets: Targets
    scheduler: WakeScheduler
    clock: Clock
    rng: random.Random
    limits: Limits
    token: Callable[[], str]
    forget: Callable[[Timer], None]
    table_name: str
    encrypted: bool
    metrics: Metrics
    tracer: Tracer
    process: str

    def policy(self, service: str, handler: str) -> RetryPolicy:
        """The retry policy of a handler, as discovery told it."""
        target = self.targets.find(service)
        found = next((h for h in target.manifest.handlers if h.name == handler), None) if target else None
        return found.retry if found else RetryPolicy()

    def keyed(self, service: str) -> bool:
        """Whether a service is a virtual object."""
        target = self.targets.find(service)
        return target is None or target.manifest.keyed
