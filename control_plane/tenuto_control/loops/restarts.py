"""The loops that a process runs until it ends: one that fails is begun again, after a pause that grows.

Owns the pauses, the lines, the metric, and the list that `/ready` shows. Does not own what a loop does, nor what it
makes of bad data: only a mistake in a loop itself is to come here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tenuto_control import cancellation
from tenuto_control.config import ConfigError
from tenuto_control.core.log_fields import said_again
from tenuto_control.core.metrics import Metrics
from tenuto_control.ports import Clock, StoppedLoop

RESTART_PAUSE_MS_MIN = 1_000
RESTART_PAUSE_MS_MAX = 60_000
"""The pause before a loop is begun again: the shortest, and what it doubles up to."""

STEADY_MS = 30_000
"""A loop that has run for so long since it was begun again counts as running."""

log = logging.getLogger("tenuto")


@dataclass(slots=True)
class _Trouble:
    """A loop that fails: since when, how often in a row, and what it failed with."""

    since_ms: int
    times: int
    reason: str


class Loops:
    """The loops of one process. Each has its own name."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._troubles: dict[str, _Trouble] = {}

    @property
    def stopped(self) -> Sequence[StoppedLoop]:
        """The loops that failed, and have not run steadily since."""
        return [StoppedLoop(name, one.since_ms, one.reason) for name, one in sorted(self._troubles.items())]

    async def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a loop until it returns, or the task is cancelled; begin it again whenever it raises.

        Raises ConfigError when the loop does so before it has ever run steadily: that is for an operator to correct.
        """
        loop = asyncio.get_running_loop()
        ran = False
        while True:
            begun_ms = self._clock.now_ms()
            steady = loop.call_later(STEADY_MS / 1_000, self._steady, name)
            try:
                return await run()
            except ConfigError as e:
                if not ran and self._clock.now_ms() - begun_ms < STEADY_MS:
                    raise
                error: BaseException = e
            except Exception as e:  # noqa: BLE001 - whatever it is, the process has other loops, and so has this one
                error = e
            except asyncio.CancelledError as e:
                # A library may cancel its own task, and whoever waits for it hears of that.
                if cancellation.is_meant():
                    raise
                error = e
            finally:
                steady.cancel()
            ran = ran or self._clock.now_ms() - begun_ms >= STEADY_MS
            await asyncio.sleep(self._failed(name, error) / 1_000)

    def _failed(self, name: str, error: BaseException) -> int:
        """Take note of an end. How long to wait before the loop is begun again."""
        self._metrics.count("LoopRestarts")
        trouble = self._troubles.setdefault(name, _Trouble(self._clock.now_ms(), 0, ""))
        trouble.times += 1
        trouble.reason = _reason(error)
        pause_ms = min(RESTART_PAUSE_MS_MIN << min(trouble.times - 1, 10), RESTART_PAUSE_MS_MAX)
        if said_again(trouble.times):
            again = f", {trouble.times} times in a row" if trouble.times > 1 else ""
            text = "%s ended with an error%s and restarts in %.0f s; everything else continues"
            log.critical(text, name, again, pause_ms / 1_000, exc_info=error)
        return pause_ms

    def _steady(self, name: str) -> None:
        trouble = self._troubles.pop(name, None)
        if trouble is not None:
            log.info("%s runs again, after %.0f s", name, (self._clock.now_ms() - trouble.since_ms) / 1_000)


def _reason(error: BaseException) -> str:
    """The kind of an error. Its text may quote anything, and `/ready` may be read by anybody."""
    inner = error
    while isinstance(inner, BaseExceptionGroup) and inner.exceptions:
        inner = inner.exceptions[0]
    return type(inner).__name__
