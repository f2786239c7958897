"""What `breakpoint()` does in a function under `tenuto dev`: the debugger of the terminal, or a line that says how.

Owns the standard library's debugger at a terminal that is not the process's own. A function's standard input is closed
and its output is the log, so the debugger reads from and writes to the terminal that the command was started in. Does
not own debugpy, which brings its own debugger (`function_host`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

Hook = Callable[..., Any]


def passed_over(say: Callable[[str], None], function: str) -> Hook:
    """A hook that stops nowhere: it says once for each place how to stop there."""
    seen: set[tuple[str, int]] = set()

    def hook(*_: Any, **__: Any) -> None:
        frame = sys._getframe(1)  # noqa: SLF001 - the place of the breakpoint is the caller's
        place = (frame.f_code.co_filename, frame.f_lineno)
        if place not in seen:
            seen.add(place)
            say(f"the breakpoint at {place[0]}:{place[1]} is passed over: `tenuto dev --debug {function}` stops there")

    return hook


def at_terminal(path: str) -> Hook:
    """A hook that opens pdb at a terminal, such as /dev/pts/3. Raises OSError when there is none."""
    import pdb  # noqa: T100 - it is what was asked for

    # Without O_NOCTTY it would become this process's own, and Ctrl-C would end the function and not the session.
    terminal = os.open(path, os.O_RDWR | os.O_NOCTTY)
    reading, writing = os.fdopen(terminal, "r"), os.fdopen(os.dup(terminal), "w", buffering=1)

    def stop(frame: FrameType) -> None:
        debugger = pdb.Pdb(stdin=reading, stdout=writing, nosigint=True)
        debugger.prompt = "(Pdb) "
        debugger.set_trace(frame)

    def hook(*_: Any, **__: Any) -> None:
        stop(sys._getframe(1))  # noqa: SLF001 - it stops where the breakpoint is

    # `import pdb; pdb.set_trace()` would read the closed input.
    pdb.set_trace = hook
    return hook
