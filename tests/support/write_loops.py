"""The end of a function's write loop, which lives as long as its process elsewhere.

Owns stopping one loop and its thread. Those of other tests in the same process have nobody who stops them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tenuto.runtime.write_loop import BlockingWriteLoop

BESIDE: Final = "tenuto-writes"
"""The name of the thread."""

END_S_MAX: Final = 10.0


@contextmanager
def ended_afterwards(writes: BlockingWriteLoop) -> Iterator[None]:
    """Stop the thread, its loop and its alarm at the end, if it was needed."""
    before = set(threading.enumerate())
    yield
    loop = writes._loop
    if loop is not None:
        loop.call_soon_threadsafe(loop.stop)
        for thread in set(threading.enumerate()) - before:
            if thread.name == BESIDE:
                thread.join(END_S_MAX)
                assert not thread.is_alive()
        loop.close()
    if writes._alarm is not None:
        writes._alarm.close()
