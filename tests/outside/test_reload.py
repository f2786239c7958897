"""A save reloads the function that it concerns; others serve every call meanwhile, in the processes that they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stack.reload import measured

pytestmark = [pytest.mark.stack, pytest.mark.slow]


def test_other_functions_go_on_under_load(tmp_path: Path) -> None:
    found = measured(tmp_path / "project", saves=3, callers=2)
    assert found.failures == []
    assert found.calls > 0
    assert len(found.processes) <= 2, "as many as its concurrency: none was started in the place of another"
