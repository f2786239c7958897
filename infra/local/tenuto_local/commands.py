"""What `demo` and `dev` have in common: signals, exit statuses, and where the examples are.

Owns that a Ctrl-C at any moment lets the clean-up run to its end, exactly once. Does not own the clean-up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tenuto_local.errors import ConfigurationError, LocalStackError
from tenuto_local.interrupts import EXIT_INTERRUPTED

EXIT_USAGE = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_to_end(command: str, work: Coroutine[Any, Any, int]) -> int:
    """Run a command; its exit status. A `LocalStackError` becomes one line, with status 2 for a mistake."""
    try:
        return asyncio.run(_interruptible(work))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("stopped; nothing is left running", flush=True)
        return EXIT_INTERRUPTED
    except LocalStackError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigurationError) else 1


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(work)

    def interrupt() -> None:
        # Once only: a second one would interrupt the clean-up, which is what an impatient person must not do.
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        print("\nstopping…", flush=True)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt)
    return await task


def repository() -> Path:
    """The folder that holds `examples/`. Raises `ConfigurationError` outside of a clone."""
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "examples" / "ledger.py").is_file():
            return folder
    raise ConfigurationError(
        "the examples are part of the repository, not of the installed package; run this in a clone"
    )


def forget_own_services(reason: str, *variables: str) -> None:
    """Take addresses out of this process's environment, and say so."""
    for variable in variables:
        if os.environ.pop(variable, None):
            print(f"{variable} is set, but not used: {reason}")
