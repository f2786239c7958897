"""How late the event loop says that it was.

Owns the measurement. Does not own where it is told (`test_ingress.py`), nor what holds a loop.
"""

from __future__ import annotations

import asyncio
import gc

import pytest

from tenuto_control.garbage import OLDER_COLLECTIONS, YOUNG_COLLECTIONS, YOUNG_OBJECTS, collected_rarely
from tenuto_control.loops.lateness import LOOK_S, WINDOW_S, Lateness
from tests.support.virtual_time import run_virtual


def test_a_loop_that_was_held_says_for_how_long_and_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        assert Lateness().worst_ms is None, "where nothing measures, nothing is told"
        measured = Lateness()
        running = asyncio.create_task(measured.run())
        await asyncio.sleep(1)
        assert measured.worst_ms == 0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + 0.7)  # As if a callback had taken so long.
        await asyncio.sleep(LOOK_S)
        assert measured.worst_ms == 700
        await asyncio.sleep(WINDOW_S)
        assert measured.worst_ms == 700
        await asyncio.sleep(2 * WINDOW_S)
        assert measured.worst_ms == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(scenario())


def test_what_is_there_at_the_start_is_left_out_of_collections_until_the_end() -> None:
    before = gc.get_threshold()
    with collected_rarely():
        assert len(gc.get_objects()) < gc.get_freeze_count() / 100
        assert gc.get_threshold() == (YOUNG_OBJECTS, YOUNG_COLLECTIONS, OLDER_COLLECTIONS)
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
