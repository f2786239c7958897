# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Write the hashes of the Java components anew: `make lock-jars`, after a change of a version in `maven/*.pom.xml`.

Owns that everything is fetched afresh, past what Maven has kept on this machine. Look at what the version control shows
then: a file whose version has not changed, and whose hash has, is a reason to stop.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tenuto_local.errors import LocalStackError
from tenuto_local.jar_hashes import hashes_of, written
from tenuto_local.jars import DYNAMODB_LOCAL, KAFKA_BROKER, download


async def lock() -> None:
    """Fetch each component and list its files. Raises FetchFailed."""
    with tempfile.TemporaryDirectory(prefix="tenuto-lock-jars-") as scratch:
        repository = Path(scratch) / "repository"
        for jar_set in (KAFKA_BROKER, DYNAMODB_LOCAL):
            folder = Path(scratch) / jar_set.directory
            folder.mkdir()
            await download(jar_set, folder, f"-Dmaven.repo.local={repository}")
            jar_set.hashes.write_text(written(hashes_of(folder / "lib")))
            sys.stdout.write(f"{jar_set.hashes.name}: {len(list((folder / 'lib').iterdir()))} files\n")


if __name__ == "__main__":
    try:
        asyncio.run(lock())
    except LocalStackError as error:
        sys.exit(f"lock-jars: {error}")
