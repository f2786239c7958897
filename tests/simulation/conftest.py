"""What the simulation asks of pytest.

Owns the silence about processes that were cut off: their coroutines are dropped where they stood, as a crash drops
them, and the interpreter notes that they did not end well. Does not own any test.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _crashed_processes_end_in_silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "unraisablehook", lambda _: None)
        yield
        # Collected here, or the notes would come up in whatever test runs next.
        gc.collect()
    # Judging a run silences the product's logs, which other tests read.
    logging.disable(logging.NOTSET)
