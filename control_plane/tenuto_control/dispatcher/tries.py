"""Failed attempts are counted where the next one is made, in whichever process: in the head, if that matters.

Owns when a failure is written down: at once where a policy limits the attempts, else only before a long pause, which
would begin with short ones again in another process. So what goes well costs nothing. Owns the pause that follows, too.
Does not own the write (`tenuto.lane.tries`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from tenuto.lane.head import parse_head
from tenuto.lane.tries import attempt_counted
from tenuto.protocol.backoff import pause_ms
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import ClaimedRun
from tenuto.protocol.records import Event
from tenuto_control.core.lane_facts import FailedAttempt
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.work import Attempted

PAUSE_COUNTED_MS = 5_000
"""Before a pause of at least this, a failure is written down although no policy limits the attempts."""

PAUSE_MS_MIN = 10
"""The shortest pause between attempts that a function may ask for."""


async def counted(
    services: Parts,
    lane: Lane,
    attempted: Attempted,
    tries: Callable[[Event], int],
    shipped: Sequence[str],
    run: ClaimedRun | None,
) -> Attempted:
    """What came of an activation, once a failure of it is written down.

    `tries` numbers the attempt that it was; `shipped` are outbox entries that the write may remove. The failures of a
    `run` are counted in the run.
    """
    event = attempted.failed
    if event is None or attempted.harmless or (run is not None and event.id == run.event.id):
        return attempted
    policy = services.policy(lane.service, event.handler)
    if policy.max_attempts is None and pause_ms(policy, tries(event), 0.0) < PAUSE_COUNTED_MS:
        return attempted
    expires_at_ms = None if services.keyed(lane.service) else services.clock.now_ms()
    written = await services.writer.write(attempt_counted(lane, event.nonce, tries(event), shipped, expires_at_ms))
    return attempted if attempted.head is None else replace(attempted, head=parse_head(written.answer.item))


def failure_of(
    services: Parts, lane: Lane, attempted: Attempted, tries: Callable[[Event], int]
) -> FailedAttempt | None:
    """The failure that an activation came to, with the pause that follows. `tries` numbers the attempt that it was."""
    event = attempted.failed
    if event is None:
        return None
    attempt = tries(event)
    pause = pause_ms(services.policy(lane.service, event.handler), attempt, services.rng.random())
    if attempted.pause_ms is not None and attempted.pause_ms > 0:
        # Whatever a function asks for: without a pause, one key would be invoked as fast as it answers.
        pause = max(attempted.pause_ms, PAUSE_MS_MIN)
    services.metrics.count("Retries", 0 if attempted.harmless else 1)
    return FailedAttempt(event.id, services.clock.now_ms() + pause, attempted.harmless, attempt)
