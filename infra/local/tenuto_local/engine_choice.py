"""Choosing one of several engines by its name, for the broker and for the table alike.

Owns the setting's rule and the complaint. Does not own the engines (`broker_engine`, `table_engine`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

from tenuto_local.errors import ConfigurationError

E = TypeVar("E")


def chosen(engines: Mapping[str, E], what: str, variable: str, name: str | None) -> E:
    """The engine of that name, else of the variable, else the first. Raises `ConfigurationError`."""
    wanted = name or os.environ.get(variable) or next(iter(engines))
    if wanted not in engines:
        raise ConfigurationError(f"there is no {what} engine {wanted!r}; {variable} may be {' or '.join(engines)}")
    return engines[wanted]
