"""The hashes that the Java components' files have to have: `maven/*.sha256`, beside the versions in `maven/*.pom.xml`.

Owns the form of these lists, which is that of `sha256sum`, and the comparison. Does not own fetching (`jars`).
`make lock-jars` writes the lists again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

SHOWN_MAX = 5
"""Files that a complaint names."""


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, in hexadecimal, by its name. A link counts as the file that it leads to."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def written(hashes: Mapping[str, str]) -> str:
    """A list as a file holds it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def read(text: str) -> dict[str, str]:
    """The list that a file holds. Raises ValueError for a line that is none of one."""
    listed = {}
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != hashlib.sha256().digest_size * 2:
            raise ValueError(f"{line!r} is not a SHA-256 followed by a file name")
        listed[name] = digest
    return listed


def difference(listed: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """What is wrong with the files that were found, for people; None when they are those of the list."""
    wrong = [f"{name} is missing" for name in listed.keys() - found.keys()]
    wrong += [f"{name} is not in the list" for name in found.keys() - listed.keys()]
    wrong += [f"{name} is another file" for name in listed.keys() & found.keys() if listed[name] != found[name]]
    if not wrong:
        return None
    more = f" and {len(wrong) - SHOWN_MAX} more" if len(wrong) > SHOWN_MAX else ""
    return ", ".join(sorted(wrong)[:SHOWN_MAX]) + more
