"""What runs in each function's process under `tenuto dev`: the user's handler, and its output in lines (`lines`).

Owns the streams and the log of the process, and the debugger if one is asked for. AWS's runtime client imports
`handler` from here; the import of the user's module is the last thing that happens, so that its failure is the user's
own. Does not own the handler.

Variables: TENUTO_DEV_HANDLER (`module:name`), TENUTO_DEV_ROOTS (the user's folders, with `:` between),
TENUTO_DEV_DEBUG_PORT, where a debugger listens, and TENUTO_DEV_TERMINAL, at which `breakpoint()` opens one.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import time
from typing import Any

from tenuto import logs
from tenuto_local.dev import breakpoints
from tenuto_local.dev.lines import TEXT_CHARACTERS_MAX, Line, encoded, trouble_of
from tenuto_local.dev.saves import import_what_was_saved

HANDLER_VARIABLE = "TENUTO_DEV_HANDLER"
ROOTS_VARIABLE = "TENUTO_DEV_ROOTS"
DEBUG_VARIABLE = "TENUTO_DEV_DEBUG_PORT"
TERMINAL_VARIABLE = "TENUTO_DEV_TERMINAL"
DEBUG_LISTEN_SECONDS_MAX = 10.0
"""How long the port may still belong to the process that this one takes the place of."""

DEBUG_LISTEN_PAUSE_S = 0.1
QUIET = ("boto3", "botocore", "urllib3", "asyncio")
"""Libraries whose ordinary lines are not about the user's code."""

FIELDS = ("invocation_id", "service", "key", "handler", "attempt")


class Lines(io.TextIOBase):
    """Standard output or error: each line with the invocation that printed it, and nothing twice in a replay."""

    def __init__(self, file: Any, level: str) -> None:
        self._file = file
        self._level = level
        self._rest = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Write whole lines; the rest waits for its end. Returns the number of characters."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._put(line)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept but an unfinished line, which `flush` does not end."""
        self._file.flush()

    def _put(self, text: str) -> None:
        attempt = logs.current.get()
        if attempt is not None and attempt.replaying and not logs.in_step.get():
            return
        fields: dict[str, Any] = {} if attempt is None else attempt.log_fields()
        self._file.write(encoded(Line(text[:TEXT_CHARACTERS_MAX], self._level, **fields)))
        self._file.flush()


class Records(logging.Handler):
    """The log of the process."""

    def __init__(self, file: Any, roots: list[str]) -> None:
        super().__init__()
        self._file = file
        self._roots = roots
        self.addFilter(logs.InvocationLogFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        try:
            error = record.exc_info[1] if record.exc_info else None
            fields = {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
            text = record.getMessage()[:TEXT_CHARACTERS_MAX]
            trouble = None if error is None else trouble_of(error, self._roots)
            self._file.write(encoded(Line(text, record.levelname, record.name, **fields, trouble=trouble)))
            self._file.flush()
        except Exception:  # noqa: BLE001 - as every handler: what cannot be logged must not end what logs it
            self.handleError(record)


def set_up(roots: list[str]) -> None:
    """Take over the streams and the log."""
    out = sys.__stdout__
    sys.stdout, sys.stderr = Lines(out, "INFO"), Lines(out, "WARNING")
    root = logging.getLogger()
    root.handlers[:] = [Records(out, roots)]
    root.setLevel(logging.INFO)
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


def listen(port: int) -> None:
    """Let a debugger attach. It runs within this process, so that it ends with it."""
    import debugpy  # noqa: T100 - it is what was asked for

    deadline = time.monotonic() + DEBUG_LISTEN_SECONDS_MAX
    while True:
        try:
            debugpy.listen(("127.0.0.1", port), in_process_debug_adapter=True)  # noqa: T100 - it is what was asked for
        except (RuntimeError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(DEBUG_LISTEN_PAUSE_S)
        else:
            return


def load() -> Any:
    """The user's handler. Raises whatever its module raises."""
    import_what_was_saved()
    module, _, name = os.environ[HANDLER_VARIABLE].partition(":")
    return getattr(importlib.import_module(module), name)


if HANDLER_VARIABLE in os.environ:
    set_up(os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep))
    if os.environ.get(DEBUG_VARIABLE):
        listen(int(os.environ[DEBUG_VARIABLE]))
    elif os.environ.get(TERMINAL_VARIABLE):
        sys.breakpointhook = breakpoints.at_terminal(os.environ[TERMINAL_VARIABLE])
    elif "PYTHONBREAKPOINT" not in os.environ:
        function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "FUNCTION")
        sys.breakpointhook = breakpoints.passed_over(logging.getLogger("tenuto").warning, function)
    handler = load()
