"""The page about the commands says what the code does.

Owns the comparison. Does not own the page, which `tools/document_commands.py` writes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import document_commands as documented


def test_the_committed_page_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Defaults that variables of this machine set are none of the page's.
    for variable in ("TENUTO_CONFIG_FILE", "TENUTO_LOG_LEVEL", "TENUTO_LOG_FORMAT"):
        monkeypatch.delenv(variable, raising=False)
    assert documented.PAGE.read_text("utf-8") == documented.page(), "run `python tools/document_commands.py`"


def test_no_default_names_this_machine() -> None:
    assert str(Path.home()) not in documented.page()
