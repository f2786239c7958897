"""What `make dev` shows of logs: whole lines at once, and the end of a traceback without waiting for what comes next.

Owns the cutting of a log into lines. Does not own the processes that write it.
"""

from __future__ import annotations

import pytest

from tenuto_control.ingress.listing import as_text
from tenuto_local.app import LOG_BYTES_MAX, NO_SERVICES, complete, lines_of, why_unanswered

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


def test_an_app_that_does_not_start_says_why_once() -> None:
    lines = [
        "WARNING function shop does not answer discovery, asking again: it is slow",
        'WARNING [functions.shop-2] does not answer discovery: function "shop-2" failed: another',
        'WARNING [functions.shop] does not answer discovery: function "shop" failed: TypeError: no; its work waits',
        "INFO listening",
    ]
    assert why_unanswered("shop", "\n".join(lines)) == 'function "shop" failed: TypeError: no'
    assert why_unanswered("shop", "") == "it serves nothing"
    assert as_text([], "$TENUTO_URL").strip() == NO_SERVICES
