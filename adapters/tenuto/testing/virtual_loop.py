"""An event loop on virtual time, and the thread it runs in.

Owns time: where the loop would wait for its next timer, the clock jumps there; where nothing is asked of it, time
stands still. Does not own what runs on it.

The loop never touches the loop of a test: it has its own thread, so that a test may use any loop, or none. While
a step of the user's waits for a socket, time passes as it does on the wall.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")

TURNS_MAX: Final = 200_000
"""Turns of a loop at one moment; what takes more does not end."""

RESOLUTION_S: Final = 1e-6
"""Timers that are less apart are due together."""

END_S_MAX: Final = 2.0
"""How long the end of a thread is waited for. One that user code holds is left to the end of the process."""

OWN_FILES: Final = 1
"""Files that the loop watches for itself: the one by which other threads wake it."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in the usual order, and sleeps take no real time."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        self.turns = 0
        super().__init__(_JumpingSelector(self))
        # Coarser than the monotonic clock's, which floating point cannot tell apart after a month of virtual time.
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        """Virtual seconds since the loop began."""
        return self._elapsed_s

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed_s += seconds

    @property
    def frozen(self) -> bool:
        """Whether time stands still, until another thread asks for something."""
        return False

    @property
    def outside(self) -> bool:
        """Whether something outside of the loop may be about to happen, which virtual time must not overtake."""
        return False


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait for its next timer, time passes instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._virtual = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self._virtual
        loop.turns += 1
        self._turns += 1
        if loop.frozen and (timeout is None or timeout > 0):
            self._turns = 0
            return super().select(None)
        assert timeout is not None, "every task waits for another: a deadlock"
        if timeout > 0:
            self._turns = 0
            if loop.outside and len(self.get_map()) > OWN_FILES:
                return self._wait(timeout)
            loop.jump(timeout)
        assert self._turns < TURNS_MAX, f"{TURNS_MAX} turns without time passing: something is spinning"
        return super().select(0)

    def _wait(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Let real time pass, until something happens outside or the next timer is due."""
        began_s = time.monotonic()
        found = super().select(timeout)
        self._virtual.jump(min(timeout, time.monotonic() - began_s) if found else timeout)
        return found


class _ThreadLoop(VirtualTimeLoop):
    """The loop of a `LoopThread`: time passes while work is in progress, and stands still otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = 0
        self.steps = 0

    @property
    def frozen(self) -> bool:
        """See `VirtualTimeLoop.frozen`."""
        return not self.at_work

    @property
    def outside(self) -> bool:
        """See `VirtualTimeLoop.outside`."""
        return self.steps > 0


class RealTimeLoop(asyncio.SelectorEventLoop):
    """An ordinary loop, for its own thread."""

    turns = at_work = steps = 0

    def jump(self, _seconds: float) -> None:
        """Real time cannot be moved. Raises TypeError."""
        raise TypeError("an environment in real time waits for what is due")


class LoopThread:
    """A thread with a loop, a virtual one unless another is given. `submit` hands it work; time passes during that."""

    def __init__(self, name: str, loop: _ThreadLoop | RealTimeLoop | None = None) -> None:
        self.loop = loop or _ThreadLoop()
        self._pending: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def inside(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    @property
    def ident(self) -> int:
        """The thread's number, for looking at what it does."""
        assert self._thread.ident is not None
        return self._thread.ident

    def submit(self, make: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run a coroutine on the loop. May be called from any thread. Raises RuntimeError when the loop has ended."""
        future: Future[T] = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

        def begin() -> None:
            self.loop.at_work += 1
            task = self.loop.create_task(make())
            task.add_done_callback(lambda ended: self._ended(ended, future))

        self.loop.call_soon_threadsafe(begin)
        return future

    def close(self) -> None:
        """End the tasks that are left, the loop and its thread."""
        if self.loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.inside:
            self._thread.join(END_S_MAX)

    def _ended(self, task: asyncio.Task[T], future: Future[T]) -> None:
        self.loop.at_work -= 1
        if future.done():
            return
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def _fail(self, error: BaseException) -> None:
        for future in list(self._pending):
            if not future.done():
                future.set_exception(error)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        except BaseException as e:  # noqa: BLE001 - whoever waits for the thread is told why it ended
            self._fail(e)
        finally:
            self.loop.at_work = 1
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            self.loop.close()
