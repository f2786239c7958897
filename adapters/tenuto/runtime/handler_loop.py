"""The event loop that a handler's tasks run on: deterministic, without I/O, with timers that are durable.

Owns the order in which the tasks of one attempt run, and what of asyncio a handler may use: tasks, task groups,
`gather`, `wait`, `shield`, `timeout`, queues, locks and events work as anywhere, `asyncio.sleep` and every other timer
is a durable sleep. What needs a socket, a thread or a process is refused, with the durable way in the message. Does not
own when a command completes (`attempt`), which is the only thing that comes from outside.

The loop never waits. `run` runs callbacks in the order in which they were scheduled until none is left; then the
attempt tells it of one completion, and it runs again. Since nothing else comes in, equal completions in equal order
give equal runs, on every attempt. Steps run outside of it: on the function's own loop, in threads, or without a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Final, Never, Protocol, TypeVar, TypeVarTuple, Unpack

from tenuto.errors import TenutoError
from tenuto.protocol.failures import printable
from tenuto.protocol.texts import shown
from tenuto.runtime.signals import is_interrupt

T = TypeVar("T")
A = TypeVarTuple("A")
log = logging.getLogger("tenuto.handler")

CALLBACKS_MAX: Final = 1_000_000
"""Callbacks that a handler may run between two completions: one that never comes to rest waits in a loop."""

TASKS_KEPT: Final = 64
"""So many tasks that have ended are kept before they are looked through: a callback for each would cost more."""

UNWIND_ROUNDS_MAX: Final = 20
"""How often the tasks of an attempt that is over are told so: once for each `finally` that waits."""


class NeverRestsError(TenutoError):
    """A handler runs and runs without waiting for anything durable: it waits in a loop."""


def in_place_of(
    outer: asyncio.AbstractEventLoop,
    loop: asyncio.AbstractEventLoop | None,
    call: Callable[[], T],
    finalizer: Callable[[AsyncGenerator[Any, Any]], None] | None = None,
) -> T:
    """What `call` returns, with `loop` as the running loop of this thread in place of `outer`; None: as if none ran.

    No task is the current one at first. Asynchronous generators that are not used any more go to `finalizer`.
    """
    # The running loop is None when what drives the attempt is closed after its loop has ended.
    before, driver = asyncio._get_running_loop(), asyncio.current_task(outer)  # noqa: SLF001 - documented for loops
    hooks = sys.get_asyncgen_hooks()
    if driver is not None:
        asyncio.tasks._leave_task(outer, driver)  # noqa: SLF001 - documented for event loops
    asyncio._set_running_loop(loop)  # noqa: SLF001 - documented for event loops
    sys.set_asyncgen_hooks(firstiter=None, finalizer=finalizer)
    try:
        return call()
    finally:
        sys.set_asyncgen_hooks(*hooks)
        asyncio._set_running_loop(before)  # noqa: SLF001 - documented for event loops
        if driver is not None:
            asyncio.tasks._enter_task(outer, driver)  # noqa: SLF001 - documented for event loops


class Timers(Protocol):
    """What makes a timer durable."""

    def timer(self, handle: asyncio.TimerHandle, delay_ms: int, /) -> None:
        """Run a handle when a durable sleep ends."""
        ...

    def timer_cancelled(self, handle: asyncio.TimerHandle, /) -> None:
        """Nobody waits for the end of that sleep any more."""
        ...

    def told_ms(self) -> int:
        """The time of the last completion that the handler was told of, ms since the epoch: the same on each replay."""
        ...


class _Ended:
    """The timers of an attempt that is over: none begins, and the time stands still."""

    def __init__(self, told_ms: int) -> None:
        self._told_ms = told_ms

    def timer(self, _handle: asyncio.TimerHandle, _delay_ms: int) -> None:
        """Refuse it. Raises TenutoError."""
        raise TenutoError("a timer of asyncio: the handler has ended. Await its tasks before you return")

    def timer_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """Nothing waits for it."""

    def told_ms(self) -> int:
        """See `Timers.told_ms`."""
        return self._told_ms


class HandlerLoop(asyncio.AbstractEventLoop):
    """Runs the tasks of one attempt, on the thread and inside the task that drives the attempt."""

    def __init__(self, timers: Timers, now_ms: int) -> None:
        self._timers: Timers = timers
        self._outer = asyncio.get_running_loop()
        # On the scale of the loop that drives this one.
        self._zero_s = self._outer.time() - now_ms / 1_000
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_kept_max = TASKS_KEPT
        self._over = False
        self._never_rests = False

    # --- driving ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run callbacks until none is left. Raises NeverRestsError when there is no end to them."""
        if self._ready:
            in_place_of(self._outer, self, self._run_ready, self._finalize)

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(CALLBACKS_MAX):
            if not ready:
                return
            handle = ready.popleft()
            if handle.cancelled():
                continue
            try:
                handle._run()  # noqa: SLF001 - how every event loop runs a handle
            except BaseException as e:
                # A task has taken note of what its coroutine raised; asyncio also lets SystemExit and
                # KeyboardInterrupt out of its loop. Only a signal that somebody sent ends the process.
                if is_interrupt(e):
                    raise
        self._never_rests = True
        raise NeverRestsError(
            f"the handler ran {CALLBACKS_MAX:,} callbacks without waiting for a durable command: it waits in a loop. "
            "Await what it waits for, or ctx.sleep between two looks"
        )

    def has_others(self, task: asyncio.Task[Any]) -> bool:
        """Whether there may be anything left to run beside a task."""
        return bool(self._ready) or len(self._tasks) != 1 or self._tasks[0] is not task

    def unwind(self, make_reason: Callable[[], BaseException]) -> None:
        """End every task that is left, by raising a reason where it waits."""
        self._over = True
        for _ in range(UNWIND_ROUNDS_MAX):
            waiting = self._pending()
            # What waits in a loop cannot be told anything, and each round would run as many callbacks again.
            if not waiting or self._never_rests:
                break
            for task in waiting:
                _interrupt(task, make_reason())
            with contextlib.suppress(TenutoError):
                self.run()
        for task in self._pending():
            _drop(task)
        self._tasks.clear()
        self._ready.clear()

    def end(self) -> None:
        """The attempt is over: release what belongs to it. In a cycle it would stay until a collector finds it."""
        self._over = True
        self._tasks.clear()
        self._timers = _Ended(self._timers.told_ms())

    def cancel_rest(self) -> list[str]:
        """Cancel the tasks that outlive their handler, as `asyncio.run` does. Returns their names."""
        left = self._pending()
        for task in left:
            task.cancel()
        return [task.get_name() for task in left]

    def _pending(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._tasks if not task.done()]

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An asynchronous generator that is not used any more gets to its `finally`."""
        if not self._over:
            self.create_task(generator.aclose())

    # --- what asyncio asks of a loop --------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[[Unpack[A]], object], *args: *A, context: Context | None = None
    ) -> asyncio.Handle:
        """See `AbstractEventLoop.call_soon`."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[A]], object], *args: *A, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `AbstractEventLoop.call_later`: a durable sleep."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[A]], object], *args: *A, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `AbstractEventLoop.call_at`: a durable sleep until a time of this loop's clock."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers.timer(handle, max(0, round((when - self.time()) * 1_000)))
        return handle

    def time(self) -> float:
        """Seconds since some moment, by the last completion that the handler was told of.

        It stands still while the handler works, and differences of it are the same on every attempt.
        """
        return self._zero_s + self._timers.told_ms() / 1_000

    def create_future(self) -> asyncio.Future[Any]:
        """See `AbstractEventLoop.create_future`."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **_options: Any,
    ) -> asyncio.Task[T]:
        """See `AbstractEventLoop.create_task`. Raises TypeError for an awaitable that is no coroutine."""
        if not asyncio.iscoroutine(coro) and hasattr(coro, "__await__"):
            raise TypeError(
                "a task runs a coroutine, and a durable future is not one: its command needs no task. Await it, use "
                "ctx.gather or ctx.select, or make a task of it with asyncio.ensure_future(future)"
            )
        task = asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_kept_max:
            self._tasks = self._pending()
            self._tasks_kept_max = 2 * len(self._tasks) + TASKS_KEPT
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See `AbstractEventLoop.call_exception_handler`. What an attempt leaves behind when it is over is no news."""
        if self._over:
            return
        error = context.get("exception")
        text = shown(str(context.get("message", "a task of a handler failed")))
        log.error("%s", text, exc_info=printable(error) if isinstance(error, BaseException) else None)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """See `AbstractEventLoop.default_exception_handler`."""
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        """See `AbstractEventLoop.get_debug`."""
        return False

    def is_running(self) -> bool:
        """See `AbstractEventLoop.is_running`."""
        return not self._over

    def is_closed(self) -> bool:
        """See `AbstractEventLoop.is_closed`."""
        return False

    def get_task_factory(self) -> None:
        """See `AbstractEventLoop.get_task_factory`."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """What a TimerHandle calls when it is cancelled."""
        self._timers.timer_cancelled(handle)

    # --- what is refused --------------------------------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]  # refuses all
        self, _executor: Any, func: Callable[..., Any], *_args: Any
    ) -> Never:
        """Refuse threads: their results would not be journaled."""
        if isinstance(func, functools.partial) and func.args:
            func = func.args[0]  # What `asyncio.to_thread` was given.
        name = getattr(func, "__name__", type(func).__name__)
        raise TenutoError(
            f"a handler may not run {name} in a thread (asyncio.to_thread, loop.run_in_executor): its result would not "
            "be journaled. Use await ctx.run(name, function, ...), whose function may block"
        )

    def call_soon_threadsafe(self, *_args: Any, **_options: Any) -> Never:  # type: ignore[override]  # refuses all
        """Refuse what comes from other threads: a replay could not repeat when it came."""
        raise TenutoError(
            "nothing outside of a handler may call into its event loop: hand a value to the handler as the result of "
            "ctx.run, or through an awakeable"
        )

    def run_forever(self) -> Never:
        """Refuse to be run."""
        raise TenutoError("a handler's event loop is already running: await what you want to wait for")

    def run_until_complete(self, _future: Any) -> Never:
        """Refuse to be run."""
        raise TenutoError("a handler's event loop is already running: await what you want to wait for")

    def stop(self) -> Never:
        """Refuse to be stopped."""
        raise TenutoError("a handler cannot stop its event loop: return, or raise TerminalError")

    close = stop


_IO: Final = [
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "getaddrinfo",
    "getnameinfo",
    "remove_reader",
    "remove_signal_handler",
    "remove_writer",
    "sendfile",
    "set_default_executor",
    "set_exception_handler",
    "set_task_factory",
    "set_debug",
    "shutdown_asyncgens",
    "shutdown_default_executor",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendfile",
    "sock_sendto",
    "start_tls",
    "subprocess_exec",
    "subprocess_shell",
]


def _refusing(name: str) -> Callable[..., Never]:
    def refuse(_loop: HandlerLoop, *_args: Any, **_options: Any) -> Never:
        raise TenutoError(
            f"a handler does no I/O of its own (loop.{name}): its outcome would not be journaled. Put it into a step: "
            "await ctx.run(name, function, ...), where an async function may use asyncio as it likes"
        )

    return refuse


for _name in _IO:
    setattr(HandlerLoop, _name, _refusing(_name))


def _interrupt(task: asyncio.Task[Any], reason: BaseException) -> None:
    """Raise something in a task, where it waits; in the task that it waits for, if it is one."""
    while True:
        # asyncio has no public way to raise anything but CancelledError in a task, which would not tell a handler
        # that its attempt is over from one whose task was cancelled.
        waits_for = getattr(task, "_fut_waiter", None)
        if not isinstance(waits_for, asyncio.Task):
            break
        task = waits_for
    if waits_for is None or waits_for.done():
        # It is about to run. What it does then meets an attempt that is over, too.
        return
    waits_for.set_exception(reason)


def _drop(task: asyncio.Task[Any]) -> None:
    """Leave a task behind that does not end."""
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - the attribute is not in the type stubs
    coroutine = task.get_coro()
    with contextlib.suppress(BaseException):
        coroutine.close()
