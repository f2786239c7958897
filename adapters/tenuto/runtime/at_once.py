"""Running a coroutine on an event loop that may not be needed.

Owns the first stretch, up to where the coroutine waits for the first time. Does not own what it does. A loop that is
started for work which never waits costs two system calls, a task and its bookkeeping; most activations never wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
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
