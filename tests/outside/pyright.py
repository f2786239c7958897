"""pyright, fetched once by npm's own client, and compared with its pinned hash before it is run.

Owns where it is, and how it is asked. The integrity of a new version is printed by `npm view pyright@VERSION
dist.integrity`; the package needs nothing but Node.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.tidy import tree

VERSION: Final = "1.1.414"
INTEGRITY: Final = "sha512-FPZZb51jepDX4eP7TEYDeNFtmE3WgwkkEcJpvH3/QmUSsj0EAy3LXu+xB4T/FWDejtsXlCfFr/rbWFjwuwuXww=="
FOLDER: Final = tree.ROOT / ".cache" / f"pyright-{VERSION}"
SECONDS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Complaint:
    """What it says of a line of a file."""

    file: str
    line: int
    text: str


def program() -> Path:
    """Its first file. Skips where neither npm nor Node is."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("pyright is fetched by npm and runs on Node, which are not here")
    if not FOLDER.exists():
        staging = FOLDER.with_suffix(".new")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        command = ["npm", "pack", "--silent", "--ignore-scripts", f"pyright@{VERSION}"]
        subprocess.run(command, cwd=staging, check=True, capture_output=True, timeout=SECONDS_MAX)
        (archive,) = staging.glob("*.tgz")
        with archive.open("rb") as file:
            found = "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
        assert found == INTEGRITY, f"npm brought another pyright {VERSION} than is pinned: {found}"
        with tarfile.open(archive) as packed:
            packed.extractall(staging, filter="data")
        staging.rename(FOLDER)
    return FOLDER / "package" / "index.js"


def complaints(folder: Path, python: Path, **settings: Any) -> list[Complaint]:
    """What strict pyright says of a folder, with what an interpreter has installed."""
    own = {"typeCheckingMode": "strict", "include": ["."], **settings}
    (folder / "pyrightconfig.json").write_text(json.dumps(own), "utf-8")
    command = ["node", str(program()), "--pythonpath", str(python), "--outputjson"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    found = json.loads(ended.stdout)
    assert found["summary"]["filesAnalyzed"] > 0, "there was nothing to check"
    return [
        Complaint(Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"])
        for one in found["generalDiagnostics"]
    ]
