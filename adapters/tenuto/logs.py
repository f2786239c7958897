"""Logs of handlers: which invocation a line belongs to, and that a replay says nothing twice.

Owns a filter for the standard library's logging, which any logger or handler takes, Powertools' `Logger` included. Does
not own formats, levels or where lines go.
"""

from __future__ import annotations

import contextvars
import logging
from typing import Protocol


class Logged(Protocol):
    """What a line is told of the attempt it comes from."""

    @property
    def replaying(self) -> bool:
        """Whether the handler is still repeating what its journal holds."""
        ...

    def log_fields(self) -> dict[str, str | int]:
        """What names the invocation and the attempt."""
        ...


current: contextvars.ContextVar[Logged | None] = contextvars.ContextVar("tenuto_attempt", default=None)
"""The attempt whose handler or step runs in this context."""

in_step: contextvars.ContextVar[bool] = contextvars.ContextVar("tenuto_in_step", default=False)
"""Whether this context is a step's, which only runs when it is not replayed."""


class InvocationLogFilter(logging.Filter):
    """Drops lines of a handler that is being replayed, and adds to all others what invocation they belong to.

    Adds `invocation_id`, `service`, `key`, `handler` and `attempt` to the record, for a format or a JSON formatter to
    show. Lines from outside of handlers pass unchanged. A line after the last finished step is not a replay: it appears
    in each attempt that gets there.

        logger = logging.getLogger("orders")
        logger.addFilter(InvocationLogFilter())
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        attempt = current.get()
        if attempt is None:
            return True
        if not in_step.get() and attempt.replaying:
            return False
        for name, value in attempt.log_fields().items():
            setattr(record, name, value)
        return True
