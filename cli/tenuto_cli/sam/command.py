"""`tenuto sam`: reads the project, and updates the folder of its deployment.

Owns the command line, the comparison with what is there, and writing. Does not own what is written (`rendering`).
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenuto_cli.parsing import EXIT_FAILED, EXIT_USAGE, Parser
from tenuto_cli.sam.dependencies import left_out
from tenuto_cli.sam.model import DeploymentError, Project, problems
from tenuto_cli.sam.places import templates
from tenuto_cli.sam.reading import REQUIREMENTS, read
from tenuto_cli.sam.rendering import WRITTEN_BY, files, parameters_of
from tenuto_cli.sam.starting import starting_files

FOLDER: Final = "deploy"
PYPROJECT: Final = "pyproject.toml"
DIFF_LINES_MAX: Final = 60
"""Lines of one file's difference that are shown; a changed lock file has thousands."""

ABOUT: Final = (
    "Generate the SAM templates of a project from its tenuto.toml: functions with their roles, the control plane, and "
    "an event source mapping for each subscription. The project's own template.yaml, which nests them, is created once "
    "and not changed afterwards. Run the command again whenever tenuto.toml changes; `sam build` and `sam deploy` do "
    "the rest."
)


@dataclass(frozen=True, slots=True)
class Change:
    """A file that differs. `before` is None if the file does not exist, `after` if it should not."""

    path: Path
    before: str | None
    after: str | None


def parser() -> Parser:
    """The command's options."""
    made = Parser(prog="tenuto sam", description=ABOUT)
    made.add_argument(
        "project", nargs="?", default=".", type=Path, help="the folder with tenuto.toml; default: the current folder"
    )
    made.add_argument(
        "--out", default=FOLDER, metavar="FOLDER", help=f"folder for the templates, in the project; default: {FOLDER}"
    )
    made.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a file would change")
    made.add_argument("--quiet", action="store_true", help="print the names of changed files only, without differences")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command with the arguments of `tenuto sam`.

    Returns the exit status: 1 if --check finds a difference, 2 for a mistake, which is printed.
    """
    options = parser().parse_args(arguments)
    project: Path = options.project
    try:
        folder = _folder(options.out)
        wanted = deployment(read(project / "tenuto.toml"), folder, project.resolve().name)
    except DeploymentError as e:
        print(f"tenuto sam: {e}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return _applied(options, wanted, folder)
    except OSError as e:
        print(f"tenuto sam: {e.filename or project} cannot be read or written: {e.strerror or e}", file=sys.stderr)
        return EXIT_USAGE


def _applied(options: argparse.Namespace, wanted: Mapping[str, str], folder: str) -> int:
    """Write what differs, or only say so; the exit status. Raises OSError."""
    project: Path = options.project
    _warn_of_dependencies(project)
    changes = list(_changes(project, wanted, folder))
    for change in changes:
        _show(change, project, quiet=options.quiet)
    if options.check:
        if changes:
            print(f"tenuto sam: {options.out} is not what tenuto.toml says; run `tenuto sam`", file=sys.stderr)
            return EXIT_FAILED
        print(f"{options.out} is up to date")
        return 0
    for change in changes:
        _write(change)
    if not changes:
        print(f"{options.out} is up to date")
    return 0


def _warn_of_dependencies(project: Path) -> None:
    """Say what the functions would miss on AWS, where nothing reads `pyproject.toml`."""
    declared, installed = (
        path.read_text("utf-8", errors="replace") if path.is_file() else ""
        for path in (project / PYPROJECT, project / REQUIREMENTS)
    )
    names = left_out(declared, installed)
    if names:
        print(
            f"tenuto sam: warning: the deployed functions will be without {', '.join(names)}, which {PYPROJECT} names: "
            f"`sam build` installs what {REQUIREMENTS} names, so add it there",
            file=sys.stderr,
        )


def deployment(project: Project, folder: str, name: str) -> dict[str, str]:
    """Every file of a project's deployment, by its path from the project's root. Raises DeploymentError."""
    own = templates()
    problem = next(problems(project, parameters_of(own["template.yaml"])), None)
    if problem is not None:
        raise DeploymentError(problem)
    made = {f"{folder}/{place}": text for place, text in files(own, project, folder).items()}
    return made | starting_files(name, folder)


def _folder(out: str) -> str:
    """The folder as a path below the project, with slashes. Raises DeploymentError."""
    parts = Path(out).parts
    if not parts or Path(out).is_absolute() or ".." in parts:
        raise DeploymentError(f"--out: {out!r} is not a folder inside the project")
    return "/".join(parts)


def _changes(root: Path, wanted: Mapping[str, str], folder: str) -> Iterator[Change]:
    """What differs in the folder, and which of the project's own files are missing."""
    for place, text in sorted(wanted.items()):
        path = root / place
        before = path.read_text("utf-8") if path.is_file() else None
        if before is not None and not place.startswith(f"{folder}/"):
            continue
        if before != text:
            yield Change(path, before, text)
    for path in sorted((root / folder).rglob("*")):
        place = path.relative_to(root).as_posix()
        if place not in wanted and path.is_file() and WRITTEN_BY in path.read_text("utf-8", errors="replace")[:200]:
            yield Change(path, path.read_text("utf-8"), None)


def _show(change: Change, root: Path, *, quiet: bool) -> None:
    name = change.path.relative_to(root).as_posix()
    if change.before is None:
        print(f"  new      {name}")
        return
    print(f"  {'changed' if change.after is not None else 'removed'}  {name}")
    if quiet or change.after is None:
        return
    lines = list(difflib.unified_diff(change.before.splitlines(), change.after.splitlines(), n=2, lineterm=""))[2:]
    for line in lines[:DIFF_LINES_MAX]:
        print(f"    {line}".rstrip())
    if len(lines) > DIFF_LINES_MAX:
        print(f"    … and {len(lines) - DIFF_LINES_MAX} more lines")


def _write(change: Change) -> None:
    if change.after is None:
        change.path.unlink()
        return
    change.path.parent.mkdir(parents=True, exist_ok=True)
    change.path.write_text(change.after, "utf-8")
