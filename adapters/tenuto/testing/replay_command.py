"""`tenuto replay`: a journal against the current code, in one process and without time limits, for a debugger.

Owns the command's arguments and its words. Does not own the replay (`replays`).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import pdb  # noqa: T100 - the debugger is what `--pdb` is for
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tenuto.errors import JournalMismatchError
from tenuto.service import Service, Services, VirtualObject
from tenuto.testing.errors import HarnessError
from tenuto.testing.replays import Replayed, replayed
from tenuto.testing.virtual_loop import VirtualTimeLoop
from tenuto_control.arguments import EXIT_USAGE, Parser
from tenuto_control.config import DEFAULT_FILE, ConfigError, load

EXIT_DIVERGED: Final = 1

TEXT: Final = (
    "Replay a journal that `tenuto journal` printed against the current code. No step runs, and nothing is "
    "written. Exit status 1 if the handler takes another path, or fails."
)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = Parser(prog="tenuto replay", description=TEXT)
    made.add_argument("file", metavar="FILE", help="a journal")
    made.add_argument(
        "functions", nargs="*", metavar="MODULE:NAME", help="where the code is (default: the functions of --config)"
    )
    made.add_argument(
        "--config",
        default=os.environ.get("TENUTO_CONFIG_FILE") or DEFAULT_FILE,
        metavar="FILE.toml",
        help=f"default: TENUTO_CONFIG_FILE, else {DEFAULT_FILE}",
    )
    made.add_argument("--pdb", action="store_true", help="open the debugger where the replay fails")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command with the arguments of `tenuto replay`. Returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        services = _services(options.functions or _configured(options.config))
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            found = runner.run(replayed(options.file, services))
    except (HarnessError, ConfigError) as e:
        print(f"tenuto: {e}", file=sys.stderr)  # noqa: T201 - a command line speaks
        return EXIT_DIVERGED if isinstance(e.__cause__, JournalMismatchError) else EXIT_USAGE
    except Exception as e:  # noqa: BLE001 - whatever the handler fails with is what the user wants to see
        traceback.print_exception(e)
        if options.pdb:
            pdb.post_mortem(e.__traceback__)
        return EXIT_DIVERGED
    print(_told(found))  # noqa: T201 - a command line speaks
    return 0


def _told(found: Replayed) -> str:
    counted = f"{found.commands} command{'' if found.commands == 1 else 's'}"
    return f"{found.handler} takes the same way through {counted} of its journal, then {found.then}"


def _configured(file: str) -> list[str]:
    """Where the code of each function is, by a tenuto.toml. Raises ConfigError."""
    functions = load(file).functions
    places = [function.handler for function in functions.values() if function.handler is not None]
    if not places:
        raise ConfigError(
            f"{file} does not say where the code is: name it as MODULE:NAME, such as shop.handlers:handler"
        )
    folder = Path(file).resolve().parent
    sys.path[:0] = [str(folder), str(folder / "src")]
    return places


def _services(places: Iterable[str]) -> Services:
    """The services of functions, or of modules that hold them. Raises HarnessError."""
    found: dict[str, Service | VirtualObject] = {}
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    for place in places:
        name, _, attribute = place.partition(":")
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is None or not name.startswith(e.name):
                raise
            raise HarnessError(f"there is no module {name!r} (of {place!r}); run this where it can be imported") from e
        named = getattr(module, attribute, None) if attribute else module
        if named is None:
            raise HarnessError(f"{name} has no {attribute!r}")
        # A function's handler knows what it serves.
        served = getattr(named, "services", None)
        held = served.declared if isinstance(served, Services) else vars(module).values()
        found |= {one.name: one for one in held if isinstance(one, Service | VirtualObject)}
    return Services(found.values())
