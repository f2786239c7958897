"""Which code a function has, and which functions a change concerns.

Owns running the probe, and the decision about a change, which is a pure function of what was found before. Does not own
watching files, nor replacing a function.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from tenuto_local.dev.lines import Trouble
from tenuto_local.dev.probe import Found
from tenuto_local.dev.project import Function, Project
from tenuto_local.processes import die_with_parent, signal_group

PROBE_SECONDS_MAX: Final = 30.0
COMPLAINT_CHARACTERS_MAX: Final = 500
_decoder = msgspec.json.Decoder(Found)


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of a function's code: its files, what it serves, and what is wrong with the newest version."""

    files: frozenset[str] = frozenset()
    manifest: bytes = b"null"
    trouble: Trouble | None = None

    @property
    def sound(self) -> bool:
        """Whether it can be run."""
        return self.trouble is None


def after(before: Code, found: Found) -> Code:
    """What is known after a probe. Of code that cannot be imported, the files are all that were ever seen."""
    if found.trouble is None:
        return Code(frozenset(found.files), bytes(found.manifest))
    seen = {frame.file for frame in found.trouble.frames}
    return Code(before.files | frozenset(found.files) | seen, before.manifest, found.trouble)


def concerned(known: Mapping[str, Code], functions: Iterable[Function], changed: Iterable[str]) -> list[Function]:
    """The functions that a change of these files concerns.

    A file that no function is known to have concerns those whose own files lie in the same folder or above it: a module
    that is imported later, or data beside the code. Code that could not be imported may be helped by any change.
    """
    files = set(changed)
    owned = {file for code in known.values() for file in code.files}
    strangers = files - owned
    return [
        function
        for function in functions
        if (code := known.get(function.name, Code())).files & files
        or (files and not code.sound)
        or any(_beside(stranger, code.files) for stranger in strangers)
    ]


def _beside(stranger: str, files: Iterable[str]) -> bool:
    folders = {os.path.dirname(file) for file in files}  # noqa: PTH120 - many of them, and only their text counts
    return any(stranger.startswith(folder + os.sep) for folder in folders)


async def probed(project: Project, function: Function, environment: Mapping[str, str]) -> Found:
    """Import a function in its own process. `environment` is that of its workers."""
    roots = [str(folder) for folder in project.import_path]
    # Files and no pipes: what the module starts may hold a pipe open for longer than the import takes.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaint:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tenuto_local.dev.probe", function.handler, *roots),
            cwd=project.root,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=answer,
            stderr=complaint,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                status = await process.wait()
        except TimeoutError:
            text = f"importing {function.module} takes over {PROBE_SECONDS_MAX:.0f} s"
            return Found(trouble=Trouble("Timeout", text))
        finally:
            # What the module has started ends with the look at it.
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
        return _found(function, status, _all_of(answer), _all_of(complaint))


def _found(function: Function, status: int, answer: bytes, complaint: bytes) -> Found:
    try:
        return _decoder.decode(answer)
    except msgspec.DecodeError:
        text = complaint.decode(errors="replace").strip()[-COMPLAINT_CHARACTERS_MAX:]
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        said = f": {text}" if text else ""
        return Found(trouble=Trouble("Ended", f"importing {function.module} ended the process {how}{said}"))


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def shown_file(file: str, root: Path) -> str:
    """A file as a person knows it: from the project's folder, if it is in there."""
    path = Path(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else file
