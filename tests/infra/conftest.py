"""The fixture of this suite: the templates as SAM translates them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.infra.deployment import Templates
from tests.infra.tools import run_tool
from tests.tidy import tree

TEMPLATES: Final = ("template.yaml", *sorted(f"infra/{path.name}" for path in (tree.ROOT / "infra").glob("*.yaml")))
TABLE: Final = "infra/table.json"


@pytest.fixture(scope="session")
def templates() -> Templates:
    """Every template after the SAM transform, by file."""
    script = Path(__file__).with_name("translate.py")
    answer = run_tool("python", str(script), *TEMPLATES, TABLE)
    assert answer.returncode == 0, answer.stderr
    translated: dict[str, Any] = json.loads(answer.stdout)
    return translated
