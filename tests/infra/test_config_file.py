"""The configuration that `sam build` packs: by a path from the repository's root, or an absolute one.

Owns what `infra/lambda/Makefile` makes of TENUTO_CONFIG_FILE. Runs the recipe's own lines, without installing anything.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.tidy import tree

MAKEFILE = tree.ROOT / "infra" / "lambda" / "Makefile"


def packed(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    """Run the target `pack-config` as SAM runs the others: in another folder, naming the Makefile by its place."""
    environment = {**os.environ, "TENUTO_CONFIG_FILE": file, "ARTIFACTS_DIR": str(folder / "artifacts")}
    command = ["make", "--file", str(MAKEFILE), "pack-config"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", ["absolute", "with a space", "from the root"])
def test_the_file_that_is_named_is_packed(tmp_path: Path, kind: str) -> None:
    if kind == "from the root":
        named, text = (
            "examples/food_order/tenuto.toml",
            (tree.ROOT / "examples/food_order/tenuto.toml").read_text("utf-8"),
        )
    else:
        file, text = tmp_path / ("my tenuto.toml" if kind == "with a space" else "mine.toml"), "[functions.f]\n"
        file.write_text(text, "utf-8")
        named = str(file)
    ended = packed(tmp_path, named)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "artifacts" / "tenuto.toml").read_text("utf-8") == text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = packed(tmp_path, "/nowhere/tenuto.toml")
    assert ended.returncode != 0
    assert "TENUTO_CONFIG_FILE: there is no file /nowhere/tenuto.toml" in ended.stderr
