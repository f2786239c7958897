"""The page about the configuration says what the code does.

Owns the comparison. Does not own the page, which `tools/document_configuration.py` writes.
"""

from __future__ import annotations

import re

from tenuto_control.config import ENVIRONMENT
from tests.tidy import tree
from tools import document_configuration as documented

VARIABLE = re.compile(r'"(TENUTO_[A-Z0-9_]+[A-Z0-9])"')


def test_the_committed_page_is_the_generated_one() -> None:
    assert documented.missing() == []
    assert documented.PAGE.read_text("utf-8") == documented.page(), "run `python tools/document_configuration.py`"


def test_every_other_variable_is_on_the_page() -> None:
    sources = [path for root in ("adapters", "cli", "infra/local") for path in (tree.ROOT / root).rglob("*.py")]
    read = {name for path in sources for name in VARIABLE.findall(path.read_text("utf-8"))}
    told = {name for meanings in documented.OTHER_VARIABLES.values() for name in meanings}
    assert read - told - set(ENVIRONMENT) - set(documented.VARIABLES) == documented.UNDOCUMENTED
    makefile = (tree.ROOT / "infra/lambda/Makefile").read_text("utf-8")
    assert set(re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)) == set(documented.OTHER_VARIABLES["`sam build`"])


def test_every_variable_of_the_control_plane_is_on_the_page() -> None:
    sources = (tree.ROOT / "control_plane").rglob("*.py")
    read = {name for path in sources for name in VARIABLE.findall(path.read_text("utf-8"))}
    assert read == set(ENVIRONMENT) | set(documented.VARIABLES)
