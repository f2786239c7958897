"""What the demo says at its end about writes; `tests/stack/test_demo.py` runs the whole of it."""

from __future__ import annotations

from tenuto_local.demo.outcome import writes_line


def test_writes_above_the_table_are_explained_and_no_verdict() -> None:
    assert writes_line(100, 120, 60) == "DynamoDB writes per event: 1.67, by the cost table 2.00"
    above = writes_line(150, 120, 60)
    assert above.startswith("DynamoDB writes per event: 2.50, by the cost table 2.00; a busy machine ")
    assert not any(mark in above for mark in "✓✗")
