"""Makes a process import what was saved last, however quickly one save follows the other.

Owns when bytecode is trusted. Python keeps a module's bytecode with the size of its source and the time of its last
change in whole seconds (PEP 552 names the weakness), so that of two saves within one second, of one size, the second is
taken for the first, in this process and in each one after it. Does not own which files are a project's.
"""

from __future__ import annotations

import sys
import time
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any, Final

SETTLED_S: Final = 2.0
"""A source that was saved longer ago than this has no other save in the second that its bytecode names. One second, and
one more for a file system whose clock counts in ticks."""


class _Loader(SourceFileLoader):
    def path_stats(self, path: str) -> Any:
        """Raises OSError for a source just saved: its bytecode is then neither read nor written (`importlib.abc`)."""
        stats = super().path_stats(path)
        if time.time() - stats["mtime"] < SETTLED_S:
            raise OSError(f"{path} was saved just now")
        return stats


def import_what_was_saved() -> None:
    """From now on, read a module whose source was just saved from its source."""
    loaders = (
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (_Loader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )
    sys.path_hooks.insert(0, FileFinder.path_hook(*loaders))
    sys.path_importer_cache.clear()
