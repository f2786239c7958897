"""Messages and calls for handlers that there are not: how long they wait for one to be deployed.

Owns that bound for each handler, and the lines about it. Does not own what happens when it is over: to a message that
is still with its sender (`delivery`), nor to what waits in a key's inbox or queue already (`activations`).

What a function answers is checked before it is committed (`activations`), so such a message was put by another process,
or its handler has been removed since. Delivered, it would keep its receiver's key from everything behind it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from tenuto_control.core.log_fields import shown
from tenuto_control.ports import Clock, Targets

log = logging.getLogger("tenuto.delivery")

HANDLERS_MAX: Final = 1_000
"""Handlers that are remembered to be missing. A message may name any."""


@dataclass(frozen=True, slots=True)
class Receivers:
    """Tells which handlers are missing. `patience_ms` is how long messages wait for one."""

    targets: Targets
    clock: Clock
    patience_ms: int
    _since_ms: dict[tuple[str, str], int] = field(default_factory=dict)

    def problem(self, service: str, handler: str) -> str | None:
        """Why nobody handles this; None when somebody does, or may: nothing may be known of the service."""
        found = self.targets.find(service)
        if found is None:
            return None
        if any(one.name == handler for one in found.manifest.handlers):
            self._since_ms.pop((service, handler), None)
            return None
        return f"no function serves {service}/{handler}"

    def waits(self, service: str, handler: str, problem: str) -> bool:
        """Whether what is for this handler, which is missing, still waits for it."""
        name, now_ms = (service, handler), self.clock.now_ms()
        since_ms = self._since_ms.get(name)
        if since_ms is None:
            while len(self._since_ms) >= HANDLERS_MAX:
                del self._since_ms[next(iter(self._since_ms))]
            since_ms = self._since_ms[name] = now_ms
            text = "%s; messages for it wait for up to %d s, then they are kept as dead letters in the table; calls end"
            log.warning(text, shown(problem), self.patience_ms // 1_000)
        return now_ms - since_ms < self.patience_ms
