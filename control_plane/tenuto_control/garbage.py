"""Garbage collection of a process that must not stand still: how often cycles are looked for, and among what.

Owns the settings of Python's collector while such a process runs. Does not own memory bounds (`limits`, `memory`).

A full collection walks over every object that there is, and nothing else happens meanwhile. Most of what a control
plane holds is there from its start on: modules, and the models of AWS's interfaces. With Python's own settings a burst
of callers, each with some dozens of objects, makes for one full collection after the other: measured with 10,000
callers on two busy cores, more than a third of the time went there, and one of them took 2.7 s. So what is there at the
start is left out of it, and full collections are very rare. What they would find is little: exceptions make cycles,
which die young, and the young ones are looked at as often as ever.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

YOUNG_OBJECTS: Final = 2_000
"""So many more objects are made than have gone before the young ones are looked at (Python 3.11: 700)."""

YOUNG_COLLECTIONS: Final = 5
"""Every so many looks take in what has survived one: 10,000 objects, about 20 ms of a slow core's time. With 100,000 it
was 240 ms."""

OLDER_COLLECTIONS: Final = 1_000
"""Every so many of those take in all objects, after 10,000,000 more of them, which is beyond what 512 MB hold; and then
only when a quarter of them is new."""


@contextmanager
def collected_rarely() -> Iterator[None]:
    """While it lasts, what there is now is never looked at again, and what comes is looked at rarely."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_COLLECTIONS, OLDER_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
