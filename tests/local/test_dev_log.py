"""What `make dev` shows of logs: whole lines at once, and the end of a traceback without waiting for what comes next.

Owns the cutting of a log into lines. Does not own the processes that write it.
"""

from __future__ import annotations

import pytest

from tenuto_local.app import LOG_BYTES_MAX, complete, lines_of

RECORD = b"[WARNING]\t2026-11-29T12:00:00.000Z\tid\tfailed\n"
LAST = b"ValueError: no"
"""The end of a traceback, as Lambda's runtime client leaves it: without an end of line."""


@pytest.mark.parametrize(
    ("data", "grown", "shown"),
    [
        (b"", False, 0),
        (RECORD, True, len(RECORD)),
        (RECORD + LAST, True, len(RECORD)),
        (LAST, True, 0),
        (LAST, False, len(LAST)),
        (b"x" * LOG_BYTES_MAX, True, LOG_BYTES_MAX),
    ],
)
def test_what_has_no_end_of_line_is_shown_once_it_grows_no_more(data: bytes, grown: bool, shown: int) -> None:
    assert complete(data, grown=grown) == shown


def test_a_record_starts_a_line_of_its_own() -> None:
    lines = lines_of(LAST + RECORD + b"  in [WARNING] brackets\n")
    assert lines == [LAST.decode(), RECORD.decode().rstrip(), "  in [WARNING] brackets"]
