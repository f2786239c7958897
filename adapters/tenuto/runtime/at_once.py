"""Running a coroutine on an event loop that may not be needed.

Owns the first stretch, up to where the coroutine waits for the first time. Does not own what it does. A loop that is
started for work which never waits costs two system calls, a task and its bookkeeping; most activations never wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def run_at_once(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine: without the loop as far as it waits for nothing, in a task of the loop from there on.

    Code that asks for the current task needs one, and must not be called before `work` has waited.
    """
    context = contextvars.copy_context()
    # There is one where a test calls a function from a coroutine, and it must find its loop again.
    before = asyncio._get_running_loop()  # noqa: SLF001 - documented for event loops
    asyncio._set_running_loop(loop)  # noqa: SLF001 - documented for event loops
    try:
        waits_for = context.run(work.send, None)
    except StopIteration as returned:
        result: T = returned.value
        return result
    finally:
        asyncio._set_running_loop(before)  # noqa: SLF001 - documented for event loops
    return loop.run_until_complete(loop.create_task(_rest(waits_for, work), context=context))


def task_at_once(work: Coroutine[Any, Any, T], context: contextvars.Context) -> asyncio.Task[T]:
    """A task of the running loop, whose code has run to where it first waits, or to its end.

    Unlike what `run_at_once` runs, it finds itself as the current task from its beginning on.
    """
    loop: Any = asyncio.get_running_loop()
    task: asyncio.Task[T] = loop.create_task(work, context=context)
    if not hasattr(loop, "_asyncgen_firstiter_hook") or not isinstance(getattr(loop, "_ready", None), deque):
        # Another kind of loop begins it at its next turn.
        return task
    # asyncio has this from Python 3.12 on (eager_start), but not for a loop that is not running.
    begin: asyncio.Handle = loop._ready.pop()  # noqa: SLF001 - what create_task has put there
    driver, hooks = asyncio.current_task(loop), sys.get_asyncgen_hooks()
    if driver is not None:
        asyncio.tasks._leave_task(loop, driver)  # noqa: SLF001 - documented for event loops
    # As the loop does while it runs: an asynchronous generator that is dropped gets to its `finally`.
    first, last = loop._asyncgen_firstiter_hook, loop._asyncgen_finalizer_hook  # noqa: SLF001 - as run_forever does
    sys.set_asyncgen_hooks(first, last)
    try:
        begin._run()  # noqa: SLF001 - how every event loop runs a handle
    finally:
        sys.set_asyncgen_hooks(*hooks)
        if driver is not None:
            asyncio.tasks._enter_task(loop, driver)  # noqa: SLF001 - documented for event loops
    return task


async def _rest(waits_for: Any, work: Coroutine[Any, Any, T]) -> T:
    return await resumed(waits_for, work)


@types.coroutine
def resumed(
    waits_for: Any, work: Coroutine[Any, Any, T], context: contextvars.Context | None = None
) -> Generator[Any, Any, T]:
    """The result of a coroutine that has begun elsewhere and waits for something; its code runs in a context."""
    while True:
        resume, value = work.send, None
        try:
            value = yield waits_for
        except GeneratorExit:
            # Whoever closes a coroutine does so in a context of their own.
            if context is None:
                work.close()
            else:
                context.run(work.close)
            raise
        except BaseException as e:  # noqa: BLE001 - whatever is raised where it waits is raised in it
            resume, value = work.throw, e
        try:
            waits_for = resume(value) if context is None else context.run(resume, value)
        except StopIteration as returned:
            result: T = returned.value
            return result


async def within(context: contextvars.Context, work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine whose code runs in a context, while its task has another one."""
    try:
        waits_for = context.run(work.send, None)
    except StopIteration as returned:
        result: T = returned.value
        return result
    return await resumed(waits_for, work, context)
