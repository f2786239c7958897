"""The page about the lane's protocol says what the code does.

Owns the comparison. Does not own the page, which `tools/draw_protocol.py` writes.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from tenuto.lane import continuations, dead_letters, items, joins, lives, naps, timers, transitions, tries
from tenuto.lane.writes import Delete, Put, Update

TOOL = Path(__file__).resolve().parents[2] / "tools" / "draw_protocol.py"
WRITES = {kind.__name__ for kind in (Update, Put, Delete)}


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_protocol", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_the_generated_one() -> None:
    drawn = tool()
    assert drawn.PAGE.read_text("utf-8") == drawn.page(), "run `python tools/draw_protocol.py`"


def test_every_write_is_on_the_page() -> None:
    builders = {
        name
        for module in (items, transitions, timers, dead_letters, continuations, tries, lives, naps, joins)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and inspect.signature(function).return_annotation in WRITES
        and not name.startswith("_")
    }
    assert {row.function.__name__ for row in tool().ROWS} == builders
