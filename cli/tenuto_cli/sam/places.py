"""Where tenuto's own deployment lies: in a wheel beside this module, in the repository at its root.

Owns reading it. Does not own what is made of it (`rendering`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tenuto_cli.sam.rendering import PLACES

TABLE: Final = "infra/table.json"
TABLE_IN_WHEEL: Final = "tenuto_local/table.json"
"""A wheel holds a file once, and the local stack reads the table's definition as well."""

_HERE: Final = Path(__file__).resolve().parent


def templates() -> dict[str, str]:
    """The texts of tenuto's own deployment, by their place in the repository."""
    wheel, repository = _HERE / "data", _HERE.parents[2]
    root = wheel if wheel.exists() else repository
    paths = {name: root / name for name in PLACES}
    if root == wheel:
        paths[TABLE] = _HERE.parents[1] / TABLE_IN_WHEEL
    return {name: path.read_text("utf-8") for name, path in paths.items()}
