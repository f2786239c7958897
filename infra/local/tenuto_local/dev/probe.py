"""Imports a function once, apart from everything that runs: `python -m tenuto_local.dev.probe HANDLER FOLDER...`.

Owns the answer: the files that the function's code is in, the services it serves, or the user's own line on which its
import failed. It is run before a function is replaced, so that a mistake on save replaces nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from tenuto_local.dev.lines import Frame, Trouble, is_own, trouble_of
from tenuto_local.dev.saves import import_what_was_saved

DISCOVER = {"type": "discover", "version": 1}
MANIFEST = "manifest"
TIMEOUT_MS = 3_000


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a function is made of. `files` are the user's own; `trouble` is why it cannot be used."""

    files: tuple[str, ...] = ()
    manifest: msgspec.Raw = msgspec.Raw(b"null")
    trouble: Trouble | None = None


class _Context:
    """What of Lambda's context the handler asks for."""

    def get_remaining_time_in_millis(self) -> int:
        """As long as a function needs to have at the least."""
        return TIMEOUT_MS


def look(handler: str, roots: Sequence[str]) -> Found:
    """Import a handler and ask it what it serves."""
    module, _, name = handler.partition(":")
    before = set(sys.modules)
    try:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
                where = ", ".join(roots)
                return Found((), trouble=Trouble("Not found", f"there is no module {error.name} in {where}"))
            raise
        function = getattr(loaded, name, None)
        if not callable(function):
            file = str(getattr(loaded, "__file__", module))
            text = f"{module} has no handler called {name!r}: {name} = aws.handler(...) makes one"
            return Found(_own(before, roots), trouble=Trouble("Not found", text, (Frame(file, 1),)))
        answer: Any = function(DISCOVER, _Context())
        if not isinstance(answer, dict) or answer.get("type") != MANIFEST:
            file = str(getattr(loaded, "__file__", module))
            text = f"{module}:{name} is not a tenuto handler: {name} = aws.handler(...) makes one"
            return Found(_own(before, roots), trouble=Trouble("Not found", text, (Frame(file, 1),)))
        return Found(_own(before, roots), msgspec.Raw(msgspec.json.encode(answer)))
    except BaseException as error:  # noqa: BLE001 - whatever a module raises when it is imported
        return Found(_own(before, roots), trouble=trouble_of(error, roots))


def _own(before: set[str], roots: Sequence[str]) -> tuple[str, ...]:
    files = (getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name not in before)
    return tuple(sorted({os.path.realpath(file) for file in files if file and is_own(os.path.realpath(file), roots)}))


def main() -> None:
    """Answer on standard output, whatever the module prints: that goes to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    handler, *roots = sys.argv[1:]
    import_what_was_saved()
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.json.encode(look(handler, roots)))
    # Not by returning: a thread that the module has started would be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
