"""`tenuto init NAME`: creates a small project that runs without changes.

Owns the templates and where their files go. What follows from `tenuto.toml` for AWS is written by `tenuto sam`.
"""

from __future__ import annotations

import argparse
import contextlib
import keyword
import re
import shlex
import shutil
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenuto_cli.parsing import EXIT_USAGE, Parser, UsageError
from tenuto_cli.sam import command as sam
from tenuto_cli.sam.model import DeploymentError
from tenuto_cli.sam.reading import read

FOLDER: Final = Path(__file__).parent / "templates"
COMMON: Final = "common"
SUFFIX: Final = ".tmpl"
PACKAGE: Final = "package"
"""The folder in a template that becomes the project's package."""

NAME_CHARACTERS_MAX: Final = 40
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN: Final = frozenset({"tenuto", "tenuto_cli", "tenuto_control", "tenuto_local", "tests", "src"})


@dataclass(frozen=True, slots=True)
class Template:
    """A template: its description, and the commands to try once it runs."""

    about: str
    commands: tuple[str, ...]


TEMPLATES: Final = {
    "minimal": Template(
        "A greeter that remembers whom it has greeted: one virtual object, one topic.",
        (
            "tenuto call greeter ann greet Hello",
            "tenuto send greetings ann '\"Hi\"'",
            "tenuto call greeter ann greeted",
        ),
    ),
    "kafka-enricher": Template(
        "Orders leave with the customer they belong to: two topics into one virtual object, and one topic downstream.",
        (
            'tenuto send customers c-1 \'{"name": "Ann", "city": "Oslo"}\'',
            'tenuto send orders c-1 \'{"order": "o-7", "amount": 3}\'',
            "tenuto tail enriched-orders",
        ),
    ),
    "workflow": Template(
        "A purchase waits for a decision, for an hour at most: a callback with a timeout.",
        (
            'tenuto send purchases p-1 \'{"item": "a chair", "price": 80}\'',
            "tenuto tail decisions-wanted          # shows the callback, awk_...",
            "tenuto resolve awk_... true",
            "tenuto call purchase p-1 status",
        ),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(prog="tenuto init", description="Write a small project that runs as it is, into a folder NAME.")
    made.add_argument("name", metavar="NAME", help="its name, such as my-shop; the package is my_shop")
    about = "; ".join(f"{name}: {template.about.partition(':')[0]}" for name, template in TEMPLATES.items())
    made.add_argument("--template", choices=tuple(TEMPLATES), default="minimal", help=about)
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    try:
        folder = Path.cwd() / (options.name or "''")
        count = write_project(folder, options.template)
    except (UsageError, DeploymentError) as error:
        print(f"tenuto init: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"{folder.name}: {count} files from the template {options.template}. Next:\n")
    for line in (f"cd {shlex.quote(options.name)}", 'pip install -e ".[dev]"', "pytest", "tenuto dev"):
        print(f"  {line}")
    return 0


def write_project(folder: Path, template: str) -> int:
    """Write a project, and return the number of its files. Raises UsageError and DeploymentError."""
    package = package_of(folder.name)
    there = _is_free(folder)
    try:
        return _write_all(folder, package, template)
    except OSError as error:
        _remove(folder, keep=there)
        raise UsageError(f"{folder.name} cannot be written: {error}; choose another name or place") from error
    except (KeyboardInterrupt, DeploymentError):
        _remove(folder, keep=there)
        raise


def _is_free(folder: Path) -> bool:
    """Whether the folder is there, and empty; False when nothing is. Raises UsageError when something is in the way."""
    try:
        empty = next(folder.iterdir(), None) is None
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"{folder.name} cannot be written: {error}; choose another name or place") from error
    if not empty:
        raise UsageError(f"{folder.name} already exists and is not empty; choose another name")
    return True


def _remove(folder: Path, *, keep: bool) -> None:
    """What was written so far: the folder was empty, or not there."""
    # What cannot be removed could not be written either, and that is what the command says.
    with contextlib.suppress(OSError):
        for path in folder.iterdir() if keep and folder.is_dir() else [folder]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_symlink():
                path.unlink(missing_ok=True)


def _write_all(folder: Path, package: str, template: str) -> int:
    chosen = TEMPLATES[template]
    words = {
        "name": folder.name,
        "package": package,
        "function": folder.name,
        "about": chosen.about,
        "commands": "\n".join(chosen.commands),
    }
    written = dict(files(template, words))
    for place, text in written.items():
        _write(folder / place, text)
    deployment = sam.deployment(read(folder / "tenuto.toml"), sam.FOLDER, folder.name)
    for place, text in deployment.items():
        _write(folder / place, text)
    return len(written) + len(deployment)


def package_of(name: str) -> str:
    """Return the package name of a project. Raises UsageError for an invalid name."""
    package = name.lower().replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
        raise UsageError(
            f"{name!r} is not a valid project name: a letter, then letters, digits, - and _, "
            f"{NAME_CHARACTERS_MAX} at most"
        )
    if keyword.iskeyword(package) or package in _TAKEN or package in sys.stdlib_module_names:
        raise UsageError(f"{name!r} would make a package {package}, which Python itself uses; choose another")
    return package


def files(template: str, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The files of a template by their place in the project."""
    for root in (FOLDER / COMMON, FOLDER / template):
        for path in sorted(root.rglob(f"*{SUFFIX}")):
            parts = [words[PACKAGE] if part == PACKAGE else part for part in path.relative_to(root).parts]
            place = "/".join(parts).removesuffix(SUFFIX)
            place = ".gitignore" if place == "gitignore" else place
            yield place, string.Template(path.read_text("utf-8")).substitute(words)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
