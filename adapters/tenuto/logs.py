"""Logs of handlers: the invocation that a line belongs to, and no line repeated by a replay.

Owns a filter for the standard library's logging, which any logger or handler accepts, including Powertools' `Logger`.
Does not own formats, levels or destinations.
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
    """Logging filter that adds the invocation to each log record and suppresses lines repeated by a replay.

        logger = logging.getLogger("orders")
        logger.addFilter(InvocationLogFilter())

    It adds the attributes `invocation_id`, `service`, `key`, `handler` and `attempt` (a number) to records that
    are logged in a handler or step; other records pass unchanged. A line that follows the last completed step is
    logged by each attempt that reaches it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged. See `logging.Filter.filter`."""
        attempt = current.get()
        if attempt is None:
            return True
        if not in_step.get() and attempt.replaying:
            return False
        for name, value in attempt.log_fields().items():
            setattr(record, name, value)
        return True
