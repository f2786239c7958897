"""One activation: the events of a lane, one after the other, and the outcome that answers it.

Owns how events of a batch build on each other, what a handler's end means (retry, suspension, dead letter, commit) and
the outcome. Does not own commands (`attempt`) or writes (`lease`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, assert_never

from msgspec import structs

from tenuto import logs, tracing
from tenuto.errors import (
    BadInputError,
    FencedError,
    InvalidArgumentError,
    JournalMismatchError,
    StateTooLargeError,
    TerminalError,
    UnserialisableError,
)
from tenuto.lane.dead_letters import dead_letter, ends_unseen, is_dead_letter
from tenuto.lane.joins import may_continue
from tenuto.lane.transitions import effects_of
from tenuto.machine.journal import Journal
from tenuto.protocol.backoff import pause_ms
from tenuto.protocol.failures import describe, failure_of, printable
from tenuto.protocol.limits import (
    DEADLINE_MARGIN_MS,
    OUT_BYTES_MAX,
    OUT_PER_WRITE_MAX,
    OWN_POSITIONS,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.messages import (
    Activation,
    ClaimedRun,
    Committed,
    EventResult,
    Fenced,
    Late,
    Outcome,
    Rejected,
    Speculated,
    Stopped,
    Suspended,
)
from tenuto.protocol.modes import Drain, Resume, Shared, Speculate, mode_of
from tenuto.protocol.records import (
    BuriedOut,
    CallSource,
    Event,
    Failed,
    Failure,
    KafkaSource,
    Out,
    Result,
    ResultOut,
    Success,
    pack,
)
from tenuto.protocol.texts import shown
from tenuto.runtime import results, steps
from tenuto.runtime.attempt import Attempt
from tenuto.runtime.ending import OutOfTimeError, Unwind
from tenuto.runtime.environment import Environment
from tenuto.runtime.event_ends import Batch, Done, End, Failing, Lost, RunSuspended, as_answered
from tenuto.runtime.handlers import HandlerSpec, Registry, read_nothing
from tenuto.runtime.lane_news import Left
from tenuto.runtime.lease import Lease
from tenuto.runtime.state import StateView

log = logging.getLogger("tenuto.handler")

CALL_OUTPUT_BYTES_MAX = 4_000_000
"""A result that is only answered, never stored, has to fit Lambda's response beside its encoding."""

RESUMED_MS_MIN = 3 * DEADLINE_MARGIN_MS
"""What a resumed run may use of its function even if its lease seems to be over."""

MISMATCH_PAUSE_MS = 60_000
"""A diverged invocation is tried again this often: a corrected deployment lets it continue by itself."""

REFUSED_INPUTS = (BadInputError, InvalidArgumentError, StateTooLargeError, UnserialisableError)
"""Failures that the handler did not raise itself: the event goes to the dead-letter topic, its changes are dropped."""


async def activate(request: Activation, registry: Registry, env: Environment) -> Outcome:
    """Run the events of an activation. Raises what fails it as a whole, such as storage that does not answer.

    Raises ProtocolError for a request that lacks what its mode is about.
    """
    # Those behind a run are looked at when it is resumed, and keep it from nothing.
    for event in request.events if request.mode != "resume" else ():
        if registry.find(request.service, event.handler) is None:
            return Rejected(Failure(f"no handler {request.service}/{event.handler} in this function", 404))
    asked = request.hold_ms, request.spread, request.nap
    if asked != (env.hold_ms, env.spread, env.nap):
        env = replace(env, hold_ms=request.hold_ms, spread=request.spread, nap=request.nap)
    mode = mode_of(request)
    if isinstance(mode, Resume):
        lease_ms = mode.run.lease_ms
        if lease_ms - env.now_ms() < RESUMED_MS_MIN and not mode.late:
            return Late(env.now_ms())
        env = _within_lease(env, lease_ms)
        await _woken(mode.run, env)
    lease = Lease(request, env)
    try:
        match mode:
            case Speculate() | Drain():
                return await _speculate(mode, request, registry, lease, env)
            case Resume():
                return await _resume(mode, request, registry, lease, env)
            case Shared(event):
                return await _shared(event, request, registry, lease, env)
            case _:
                assert_never(mode)
    finally:
        await lease.close()


async def _woken(run: ClaimedRun, env: Environment) -> None:
    """Wait until a nap is over by this function's clock: whoever has ended it goes by another."""
    if run.napping:
        early_ms = min((run.wake_ms or 0) - env.now_ms(), env.remaining_ms() - RESUMED_MS_MIN)
        if early_ms > 0:
            # Not for nothing: whatever waits begins an event loop (`at_once`).
            await asyncio.sleep(early_ms / 1000)


def _within_lease(env: Environment, lease_ms: int) -> Environment:
    """An environment that ends with the lease.

    Whoever took the run over wrote the lease before this function started, and a cold start may have used up much of
    it: past it another attempt may begin, and would repeat the step that runs here then. Some time is always left, so
    that clocks that differ cannot keep an invocation from getting on.
    """
    return replace(env, deadline_ms=min(env.deadline_ms, max(lease_ms, env.now_ms() + RESUMED_MS_MIN)))


async def _speculate(
    mode: Speculate | Drain, request: Activation, registry: Registry, lease: Lease, env: Environment
) -> Outcome:
    course = _Course(request, registry, lease, env, Batch(dict(request.head.state)))
    return await course.run(mode.events, mode.attempt - 1, claim_first=mode.claim_first)


@dataclass(slots=True)
class _Course:
    """Events of a lane, one after the other. `committed` are the results of those whose commit has been made."""

    request: Activation
    registry: Registry
    lease: Lease
    env: Environment
    batch: Batch
    committed: list[EventResult] = field(default_factory=list)

    async def run(self, events: tuple[Event, ...], failures: int = 0, *, claim_first: bool = False) -> Outcome:
        """Run as many of them as fit; the outcome of the activation. `failures` are those of the first one so far."""
        lease, env = self.lease, self.env
        keyed, drains = self.registry.keyed(self.request.service), self.request.mode == "drain"
        stopped: Stopped | None = None
        for number, event in enumerate(events):
            if (number or self.committed) and not lease.ahead and not self._has_room():
                break
            # Not the number of entries: an event that went to the dead letters left gaps where its messages would have
            # been.
            first_out = max(self.batch.out, default=-1) + 1
            # The effects are handed on as a call: only a claim needs them, and few events claim.
            before = functools.partial(self.batch.effects, env, expires=not keyed)
            lease.begin(event, Journal(first_out=first_out, next_out=first_out), before)
            following = events[number + 1] if number + 1 < len(events) else None
            invocation = _Invocation(
                event, lease, self.batch.state, self.registry, env, expires=not keyed, following=following
            )
            match await invocation.until_end(0 if number else failures, claim_first=claim_first and not number):
                case Done() as done:
                    self.batch.add(event, done)
                    if done.left is not None:
                        self.committed += self.batch.results
                        self.batch = Batch(dict(done.left.head.state))
                        if not may_continue(done.left.head, drains=drains):
                            break
                case Failing(failure, retry_after_ms):
                    stopped = Stopped(event.id, failure, retry_after_ms)
                    break
                case RunSuspended():
                    left = await lease.close()
                    return Suspended((*self.committed, *self.batch.results), left.head, left.writes)
                case Lost(reason):
                    # What was committed before stands; the control plane finds out about the rest by its next write.
                    left = await lease.close()
                    committed = tuple(self.committed)
                    return Committed(committed, left.head, left.writes) if committed else Fenced(reason)
                case _ as end:
                    assert_never(end)
        return await self._over(stopped, keyed=keyed)

    def _has_room(self) -> bool:
        """Whether another event may begin, which the lane is not claimed for."""
        return not self.batch.full() and self.env.may_begin(2 * DEADLINE_MARGIN_MS)

    async def _over(self, stopped: Stopped | None, *, keyed: bool) -> Outcome:
        """The outcome when no event is begun any more: what is committed here, or is to be by the control plane."""
        batch = self.batch
        if self.committed:
            rest = await _commit_rest(batch, self.lease, self.env, keyed=keyed)
            left = await self.lease.close()
            # Behind events whose commit was refused, what failed was not the next one.
            stopped = stopped if len(rest) == len(batch.events) else None
            return Committed((*self.committed, *rest), left.head, left.writes, stopped)
        out = tuple(batch.out[i] for i in sorted(batch.out))
        return Speculated(tuple(batch.results), batch.changed, out, stopped)


async def _commit_rest(batch: Batch, lease: Lease, env: Environment, *, keyed: bool) -> list[EventResult]:
    """Write 1 for events that were speculated behind a committed one, and their results; none when it is refused.

    Calls are left to the control plane, which knows what their callers wait for.
    """
    if not batch.events or not all(isinstance(event.source, KafkaSource) for event in batch.events):
        return []
    try:
        await lease.commit_speculation(batch.effects(env, expires=not keyed))
    except FencedError:
        return []
    return batch.results


async def _resume(mode: Resume, request: Activation, registry: Registry, lease: Lease, env: Environment) -> Outcome:
    run = lease.run
    if registry.find(request.service, run.event.handler) is None:
        return Rejected(Failure(f"no handler {request.service}/{run.event.handler} in this function", 404))
    try:
        event = await lease.load()
    except FencedError as e:
        return Fenced(str(e))
    initial = dict(request.head.state)
    for name, value in request.head.base.items():
        if value is None:
            initial.pop(name, None)
        else:
            initial[name] = value
    keyed = registry.keyed(request.service)
    # What another version of this function is to serve keeps nothing from its end that has begun.
    known = tuple(takewhile(lambda e: registry.find(request.service, e.handler) is not None, mode.behind))
    following = known[0] if known else None
    invocation = _Invocation(event, lease, initial, registry, env, expires=not keyed, following=following, resumed=True)
    match await invocation.until_end(run.failures, claim_first=False):
        case Done(result, left=Left(head)):
            course = _Course(request, registry, lease, env, Batch(dict(head.state)))
            course.committed.append(EventResult(event.id, as_answered(event, result)))
            return await course.run(known if may_continue(head, drains=False) else ())
        case RunSuspended():
            left = await lease.close()
            return Suspended((), left.head, left.writes)
        case Lost(reason):
            return Fenced(reason)
        case Done() | Failing():
            raise AssertionError("an owned attempt ends with a write")
        case _ as end:
            assert_never(end)


async def _shared(event: Event, request: Activation, registry: Registry, lease: Lease, env: Environment) -> Outcome:
    invocation = _Invocation(event, lease, request.head.state, registry, env, expires=False)
    end = await invocation.until_end(0, claim_first=False)
    match end:
        case Done(result):
            return Speculated((EventResult(event.id, result),))
        case Failing(failure):
            return Speculated((), stopped=Stopped(event.id, failure))
        case RunSuspended() | Lost():
            raise AssertionError("a shared handler takes no lease")
        case _:
            assert_never(end)


class _Invocation:
    """One event of an activation, over as many attempts as fit into it."""

    def __init__(
        self,
        event: Event,
        lease: Lease,
        initial: Mapping[str, bytes],
        registry: Registry,
        env: Environment,
        *,
        expires: bool,
        following: Event | None = None,
        resumed: bool = False,
    ) -> None:
        spec = registry.find(lease.lane.service, event.handler)
        if spec is None:
            raise LookupError(event.handler)
        self._spec: HandlerSpec = spec
        self._input = _input_of(spec)
        self._event = event
        self._lease = lease
        self._initial = initial
        self._registry = registry
        self._env = env
        self._expires = expires
        self._following = following
        self._resumed = resumed

    async def until_end(self, failures: int, *, claim_first: bool) -> End:
        """Attempts until the invocation is done, suspended, lost, or has to be tried again from outside."""
        if claim_first:
            try:
                await self._lease.claim(self._env.now_ms())
            except FencedError as e:
                return Lost(str(e))
        while True:
            state = StateView(self._initial)
            attempt = Attempt(self._event, self._lease, state, self._env)
            done, error = await self._attempt(attempt, state)
            if attempt.ending.suspended:
                return RunSuspended()
            if done is None and error is not None:
                end = await self._failed(attempt, error, failures)
                if end is None:
                    failures += 1
                    self._lease.journal.restart()
                    continue
                if not isinstance(end, Done):
                    return end
                done = end
            if done is None:
                raise AssertionError("an attempt ends with a result, an error or a suspension")
            return await self._finish(done)

    async def _attempt(self, attempt: Attempt, state: StateView) -> tuple[Done | None, BaseException | None]:
        """Run the handler once: its end, or why there is none."""
        if self._env.trace is None:
            return await self._handled(attempt, state)
        with tracing.attempt(self._env.trace, self._spec.target, attempt.log_fields()) as traced:
            done, error = await self._handled(attempt, state)
            if error is not None:
                traced.failed = type(error).__name__
            elif done is not None and isinstance(done.result, Failed):
                traced.failed = TerminalError.__name__
        return done, error

    async def _handled(self, attempt: Attempt, state: StateView) -> tuple[Done | None, BaseException | None]:
        result, error = await self._ended(attempt)
        error = attempt.ending.error or error
        if error is None and not attempt.ending.suspended:
            try:
                attempt.journal.end()
            except JournalMismatchError as e:
                error = e
        if error is not None or result is None or attempt.ending.suspended:
            return None, error
        out: dict[int, Out] = {position: entry for position, (_, _, entry) in attempt.journal.out.items()}
        return Done(result, state.changed, out), None

    async def _ended(self, attempt: Attempt) -> tuple[Result | None, BaseException | None]:
        """How the handler ended: with a result, or why without one."""
        told = logs.current.set(attempt)
        try:
            return Success(await self._call(attempt)), None
        except Unwind:
            return None, attempt.ending.error
        except BaseException as e:
            if logs.current.get() is not attempt:
                # Closed from outside, in the closer's context: the attempt ends here, and has not failed.
                raise
            # Whatever a handler raises is a failed attempt.
            error = steps.checked(e)
        finally:
            if logs.current.get() is attempt:
                logs.current.reset(told)
        terminal = steps.terminal_in(error, timed_out=attempt.commands.timed_out)
        if terminal is None or isinstance(terminal, REFUSED_INPUTS):
            return None, terminal or error
        self._log_end(attempt, "failed for good", terminal, error)
        return Failed(failure_of(terminal)), None

    def _log_end(self, attempt: Attempt, what: str, terminal: TerminalError, error: BaseException) -> None:
        """One line where a failure is final, with its causes and the place in the handler's own code.

        Where its text came from outside, with the rejection of an awakeable, it is not shown.
        """
        text, fields = f"{self._spec.target} {what}: %s", attempt.log_fields()
        if isinstance(terminal, BadInputError) and terminal.what == self._input and terminal.__cause__ is None:
            # No line of the handler has run: a traceback would show the runtime alone.
            log.warning(text, shown(describe(terminal)), extra=fields)
        elif terminal.foreign:
            log.warning(text, f"{type(terminal).__name__}, by the rejection of an awakeable", extra=fields)
        else:
            log.warning(text, shown(describe(terminal)), exc_info=printable(error), extra=fields)

    async def _call(self, attempt: Attempt) -> bytes | None:
        spec = self._spec
        context = self._registry.context(spec, attempt.commands)
        arguments = (_argument(spec, self._event),) if spec.takes_input else ()
        handler = functools.partial(spec.call, context, *arguments)
        # A shared handler only reads and is never replayed, so it runs on the function's own loop, free to do I/O.
        value = await (handler() if spec.kind == "shared" else attempt.drive(handler))
        return results.encoded(spec, value)

    async def _failed(self, attempt: Attempt, error: BaseException, failures: int) -> End | None:
        """What a failed attempt leads to; None: the next attempt, in this function."""
        lease, env, policy = self._lease, self._env, self._spec.retry
        if isinstance(error, FencedError):
            return Lost(str(error))
        if isinstance(error, TerminalError):
            self._log_end(attempt, "is refused", error, error)
            return self._dead(failure_of(error), failures + 1)
        if not isinstance(error, Exception):
            raise error
        failure = Failure(describe(error))
        if failures & (failures + 1) == 0:
            # The first, second, fourth, eighth ... failure in a row, with the place in the handler's own code.
            # The handler's context is over, and with it what the filter of `tenuto.logs` adds.
            fields, again = attempt.log_fields(), f" ({failures + 1} times)" if failures else ""
            text = "%s: attempt failed: %s%s"
            error_shown = printable(error)
            log.warning(text, self._spec.target, shown(failure.message), again, exc_info=error_shown, extra=fields)
        mismatch = isinstance(error, JournalMismatchError)
        spent = policy.max_attempts is not None and failures + 1 >= policy.max_attempts
        counts = not isinstance(error, OutOfTimeError | steps.StepWaitsError)
        if spent and counts and not mismatch:
            return self._dead(failure, failures + 1)
        asked_ms = steps.asked_of(error)
        wait_ms = MISMATCH_PAUSE_MS if mismatch else pause_ms(policy, failures + 1, env.jitter())
        wait_ms = wait_ms if asked_ms is None else asked_ms
        if not lease.owning:
            return Failing(failure, wait_ms)
        if isinstance(error, OutOfTimeError):
            return await self._pause(attempt, failures, failure.message, env.now_ms())
        if env.can_hold(wait_ms):
            await asyncio.sleep(wait_ms / 1000)
            return None
        return await self._pause(attempt, failures + counts, failure.message, env.now_ms() + wait_ms)

    async def _pause(self, attempt: Attempt, failures: int, message: str, wake_ms: int) -> End:
        try:
            await attempt.pause(failures, message, wake_ms)
        except FencedError as e:
            return Lost(str(e))
        return RunSuspended()

    def _dead(self, failure: Failure, attempts: int) -> Done:
        """The invocation ends here; what nobody waits for goes to the dead letters, with the reason."""
        letter = dead_letter(
            self._event,
            failure.message,
            self._input_item,
            status_code=failure.status_code,
            **self._history(attempts),
        )
        if isinstance(letter, BuriedOut):
            letter = structs.replace(letter, foreign=failure.foreign)
        out: dict[int, Out] = {} if letter is None else {self._own_position({}): letter}
        return Done(Failed(failure), {}, out)

    async def _finish(self, done: Done) -> End:
        """Write the end of an owned invocation; leave a speculative one to the batch."""
        event, lease = self._event, self._lease
        out = dict(done.out)
        if isinstance(done.result, Failed) and not any(is_dead_letter(entry) for entry in out.values()):
            letter = ends_unseen(event, done.result, self._input_item, **self._history())
            if letter is not None:
                out[self._own_position(out)] = letter
        keep = isinstance(event.source, CallSource) and (event.source.keep_result or lease.owning)
        if _too_large(event, done.result, keep=keep):
            return await self._finish(self._dead(Failure("the result exceeds the size limit", 413), 1))
        if keep:
            out[self._own_position(out)] = ResultOut(event.id, done.result)
        done = Done(done.result, done.state, out)
        try:
            if out and not lease.owning and _heavy(out):
                # More than the control plane could commit in one write: this side puts it where it fits.
                await lease.claim(self._env.now_ms())
            if lease.owning:
                effects = effects_of([event], done.state, out, self._env.now_ms(), expires=self._expires)
                return structs.replace(done, left=await lease.commit(effects, self._claimed_next()))
        except FencedError as e:
            return Lost(str(e))
        return done

    def _claimed_next(self) -> Event | None:
        """The next event of the batch, if it is likely to take a durable step as well, and there is time for it."""
        event = self._following
        durable = self._resumed or self._lease.journal.finished > 0
        alike = event is not None and event.handler == self._event.handler and durable
        return event if alike and self._env.may_begin(RESUMED_MS_MIN) else None

    @property
    def _input_item(self) -> str | None:
        """The item that holds the input, once it was put there."""
        return self._lease.run.input_item if self._lease.owning else None

    def _history(self, attempts: int = 1) -> dict[str, int]:
        """When it ended, when it began and after how many attempts, as far as is known here."""
        first_ms = self._lease.run.start_ms if self._lease.owning else 0
        return {
            "at_ms": self._env.now_ms(),
            "first_ms": first_ms,
            "attempts": max(attempts, self._lease.attempt if self._lease.owning else 1),
        }

    def _own_position(self, out: Mapping[int, Out]) -> int:
        """Outbox position of an entry that no command made.

        Positions of an owned run's commands may be published already, also ones this attempt has not come to: stay
        clear of all of them.
        """
        if self._lease.owning:
            return OWN_POSITIONS + len(out)
        return max(self._lease.journal.next_out, *(p + 1 for p in out), 0)


def _input_of(spec: HandlerSpec) -> str:
    return f"the input of {spec.target}"


def _argument(spec: HandlerSpec, event: Event) -> Any:
    """The handler's argument; a missing input (tombstone, empty body) is None, if the handler's type admits that.

    Raises BadInputError, whatever a check of the user's own type raises: the input is at fault, and no further attempt
    would read it.
    """
    try:
        if event.input is not None:
            return spec.input.deserialize(event.input)
        return read_nothing(spec.input)
    except BadInputError as e:
        raise e.naming(_input_of(spec)) from e.__cause__
    except BaseException as e:  # noqa: BLE001 - raised by the user's own type, over this input
        error, what = steps.checked(e), _input_of(spec)
        raise BadInputError("value of its type", f"decoding it raised {type(error).__name__}", what=what) from error


def _too_large(event: Event, result: Result, *, keep: bool) -> bool:
    """Whether a result can neither be stored nor answered."""
    answered = len(result.value) if isinstance(result, Success) and result.value is not None else 0
    return isinstance(event.source, CallSource) and answered > (VALUE_BYTES_MAX if keep else CALL_OUTPUT_BYTES_MAX)


def _heavy(out: Mapping[int, Out]) -> bool:
    """Whether outgoing entries are more than a head takes. A dead letter goes past the outbox."""
    kept = [entry for entry in out.values() if not is_dead_letter(entry)]
    return len(kept) > OUT_PER_WRITE_MAX or sum(len(pack(entry)) for entry in kept) > OUT_BYTES_MAX
