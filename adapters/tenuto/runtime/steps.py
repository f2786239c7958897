"""Steps: running user code whose result is journaled, trying it again, and what its failures mean.

Owns the tries of one step within one attempt, and what user code may raise. Does not own the journal, nor when a step
starts (`step_tasks`).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from tenuto import logs, tracing
from tenuto.errors import FencedError, RetryableError, StateTooLargeError, TerminalError, UnserialisableError
from tenuto.protocol.backoff import asked_pause_ms, pause_ms
from tenuto.protocol.durations import milliseconds
from tenuto.protocol.failures import describe, failure_of, printable
from tenuto.protocol.ids import digest
from tenuto.protocol.limits import VALUE_BYTES_MAX
from tenuto.protocol.messages import RetryPolicy
from tenuto.protocol.records import Failed, Failure, Result, Success, TriedSlot
from tenuto.protocol.texts import text_of
from tenuto.runtime.environment import Environment, ProcessEnded
from tenuto.runtime.handler_loop import in_place_of
from tenuto.runtime.signals import is_interrupt
from tenuto.serde import Serde
from tenuto.store.port import TableRefusedError, TableUnavailableError

T = TypeVar("T")
log = logging.getLogger("tenuto.handler")

GROUPED_ERRORS_MAX: Final = 100_000
"""Errors of a group, nested ones included, that are looked through for a terminal one."""

TIMED_OUT_STATUS: Final = 408

current_step: contextvars.ContextVar[tuple[str, int]] = contextvars.ContextVar("tenuto_step")
"""The invocation and the command of the step that is running in this context."""


class RunLimits(Struct, frozen=True):
    """How often a failing step is tried before it gives up; None leaves it to the invocation's policy."""

    policy: RetryPolicy | None = None
    max_duration_ms: int | None = None


class StepWaitsError(RetryableError):
    """A step with limits of its own has to wait longer than the function can: the invocation's policy has no say.

    `tries` is what its journal keeps of it.
    """

    tries: TriedSlot


class UserCodeError(Exception):
    """What user code raised that is no Exception, such as SystemExit: a failure like any other, by its name."""


class Step(Struct, Generic[T], frozen=True):
    """What `ctx.run` was asked for: a call, how its result is written, and the context it runs in."""

    index: int
    name: str
    call: Callable[[], Any]
    serde: Serde[T]
    limits: RunLimits
    context: contextvars.Context


def step_key() -> str:
    """The idempotency key of the step that is running in this context. Raises LookupError outside of a step."""
    invocation, index = current_step.get()
    return digest(invocation, str(index))


async def tried(
    step: Step[Any],
    before: TriedSlot | None,
    invocation: str,
    env: Environment,
    log_fields: Callable[[], dict[str, str | int]],
    *,
    here: bool,
) -> Result:
    """The result of a step, after as many tries as its limits allow here; `before` are those of earlier attempts.

    With `here`, a sync call holds this thread. Raises what fails the attempt: StepWaitsError when the next try has to
    wait outside the function, and whatever a step without limits of its own raises.
    """
    current_step.set((invocation, step.index))
    logs.in_step.set(True)
    if env.trace is None:
        return await _tried(step, before, env, log_fields, here=here)
    with tracing.step(env.trace, step.name) as traced:
        result = await _tried(step, before, env, log_fields, here=here)
        if isinstance(result, Failed):
            traced.failed = TerminalError.__name__
    return result


async def _tried(
    step: Step[Any],
    before: TriedSlot | None,
    env: Environment,
    log_fields: Callable[[], dict[str, str | int]],
    *,
    here: bool,
) -> Result:
    tries = before.tries if before else 0
    since_ms = before.since_ms if before else env.now_ms()
    limits = step.limits
    while True:
        value, error = await _called(step, env, here=here)
        if error is None:
            # The step did its work: no further try would bring a result that can be kept.
            return Success(_fitting(step.serde.serialize(value), step.name))
        terminal = terminal_in(error)
        if terminal is not None:
            log.warning("step %r failed for good", step.name, exc_info=printable(error), extra=log_fields())
            return Failed(failure_of(terminal))
        tries += 1
        if limits.policy is None:
            raise error
        wait_ms = _next_try(env, limits, limits.policy, tries, since_ms, error)
        if wait_ms is None:
            log.warning(
                "step %r failed %d times, and for good", step.name, tries, exc_info=printable(error), extra=log_fields()
            )
            return Failed(Failure(f"run {step.name!r} failed {tries} times: {describe(error)}", 500))
        if not env.can_hold(wait_ms):
            waits = StepWaitsError(describe(error), timedelta(milliseconds=wait_ms))
            waits.tries = TriedSlot(step.name, tries, since_ms)
            raise waits from error
        await asyncio.sleep(wait_ms / 1000)


async def _called(step: Step[Any], env: Environment, *, here: bool) -> tuple[Any, Exception | None]:
    """What user code returned or raised, whatever its class; only what ends the process passes through."""
    call = step.call
    try:
        if inspect.iscoroutinefunction(call):
            value, raised = await call(), None
        else:
            began_ms = env.now_ms()
            if here:
                loop = asyncio.get_running_loop()
                value, raised = in_place_of(loop, None, functools.partial(outcome_of, call))
            else:
                value, raised = await env.thread(functools.partial(outcome_of, call))
            if env.beside is not None:
                env.beside.quick.told(step.name, env.now_ms() - began_ms)
        if raised is not None:
            return None, checked(raised)
        if inspect.isawaitable(value):
            # A task of its own, as every async step has: this one drives the handler.
            value = await (asyncio.ensure_future(_awaited(value)) if here else value)
    except BaseException as e:  # noqa: BLE001 - whatever a step raises is a failed try
        return None, checked(e)
    return value, None


async def _awaited(value: Awaitable[T]) -> T:
    return await value


def outcome_of(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What a call returned or raised, as a value: no future can hold StopIteration, for one."""
    try:
        return call(), None
    except BaseException as e:  # noqa: BLE001 - judged by whoever waits for it
        return None, e


def checked(error: BaseException) -> Exception:
    """What user code raised, as a failure that can be handled like any other.

    Raises what is none: the end of the process, and the cancellation that the runtime asked for.
    """
    if isinstance(error, Exception):
        return error
    if (
        isinstance(error, ProcessEnded)
        or is_interrupt(error)
        or (isinstance(error, asyncio.CancelledError) and _meant())
    ):
        raise error
    failed = UserCodeError(describe(error))
    failed.__cause__ = error
    return failed


def _meant() -> bool:
    """Whether the runtime cancelled the current task, rather than user code some task of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def terminal_in(error: BaseException, *, timed_out: bool = False) -> TerminalError | None:
    """The terminal error that an error is, or that a group of errors holds, as a task group raises it.

    With `timed_out`, a timer of the handler's loop has fired, and a TimeoutError is terminal (408): it follows from the
    journal, so every further attempt would end by it, too.
    """
    waiting = [error]
    for _ in range(GROUPED_ERRORS_MAX):
        if not waiting:
            return None
        found = waiting.pop()
        if isinstance(found, TerminalError):
            return found
        if timed_out and isinstance(found, TimeoutError):
            terminal = TerminalError(text_of(found) or "the handler timed out", TIMED_OUT_STATUS)
            terminal.__cause__ = error
            return terminal
        if isinstance(found, BaseExceptionGroup):
            waiting.extend(reversed(found.exceptions))
    return None


def ends_attempt(error: BaseException) -> bool:
    """Whether an error is the runtime's own, of which no step could give an account."""
    return isinstance(
        error,
        FencedError
        | TableUnavailableError
        | TableRefusedError
        | StepWaitsError
        | UnserialisableError
        | StateTooLargeError,
    )


def _next_try(
    env: Environment, limits: RunLimits, policy: RetryPolicy, tries: int, since_ms: int, error: Exception
) -> int | None:
    if policy.max_attempts is not None and tries >= policy.max_attempts:
        return None
    if limits.max_duration_ms is not None and env.now_ms() - since_ms >= limits.max_duration_ms:
        return None
    asked_ms = asked_of(error)
    return pause_ms(policy, tries, env.jitter()) if asked_ms is None else asked_ms


def asked_of(error: BaseException) -> int | None:
    """The pause that an error asks for, in milliseconds; None leaves it to the policy."""
    if not isinstance(error, RetryableError) or error.retry_after is None:
        return None
    try:
        return asked_pause_ms(milliseconds(error.retry_after, "retry_after"))
    except (TypeError, ValueError):
        # A subclass of the user's holds something else there.
        return None


def _fitting(data: bytes, name: str) -> bytes:
    if len(data) > VALUE_BYTES_MAX:
        raise StateTooLargeError(f"the result of run {name!r}", len(data), VALUE_BYTES_MAX)
    return data


class DurableRandom(random.Random):
    """Random numbers that come out the same on every attempt, and are refused where they would not."""

    _require_handler: Callable[[str], None]

    def __init__(self, seed: str, require_handler: Callable[[str], None]) -> None:
        self._require_handler = lambda _what: None
        super().__init__(seed)
        self._require_handler = require_handler

    def random(self) -> float:
        """See `random.Random.random`."""
        self._require_handler("random numbers")
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        """See `random.Random.getrandbits`."""
        self._require_handler("random numbers")
        return super().getrandbits(k)
