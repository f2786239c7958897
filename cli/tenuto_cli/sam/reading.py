"""What a project says of its deployment: `tenuto.toml`, where its code lies, and what its functions serve.

Owns finding the code and asking it. A function is asked in its own process, which imports it as Lambda would. Does
not own the configuration's rules (`tenuto_control.config`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tenuto.protocol.messages import Discover, Manifest, decode_outcome, encode
from tenuto_cli.sam.model import MEMORY_MB, DeploymentError, Function, Given, Project, Topic
from tenuto_control.config import Config, ConfigError, FunctionConfig, load

SOURCE_FOLDERS: Final = ("src", ".")
"""Where code lies in a project; the first that has a handler's package is taken."""

REQUIREMENTS: Final = "requirements.txt"
ASKING_SECONDS_MAX: Final = 60.0
"""For an import of a project's code, with all that it imports."""

_ASK: Final = """
import importlib, json, sys, traceback
module, _, name = sys.argv[1].partition(":")
class Context:
    def get_remaining_time_in_millis(self):
        return 10_000
try:
    answer = getattr(importlib.import_module(module), name)(json.loads(sys.argv[2]), Context())
except Exception as e:
    own = [frame for frame in traceback.extract_tb(e.__traceback__) if frame.filename.startswith(sys.argv[3])]
    sys.exit("".join(traceback.format_list(own) + traceback.format_exception_only(e)).rstrip())
sys.stdout.write("\\n" + json.dumps(answer))
"""
"""Prints a function's answer to discovery, or the frames of the project's own code that keep it from being imported."""


def read(file: Path) -> Project:
    """The deployment of the project whose `tenuto.toml` this is. Raises DeploymentError."""
    if not file.parent.is_dir():
        raise DeploymentError(f"there is no folder {file.parent}; name that of a project, or none for this one")
    if not file.is_file():
        raise DeploymentError(f"{file}: no such file; write one, or name the folder of a project: tenuto sam FOLDER")
    try:
        # Of this file alone: what the environment says is said to a running control plane.
        config = load(file, {})
    except ConfigError as e:
        raise DeploymentError(str(e)) from e
    root = file.resolve().parent
    handlers = {name: _handler(file, name, one) for name, one in config.functions.items()}
    source, packages = _code(root, handlers)
    functions = tuple(_function(root / source, name, handlers[name], one) for name, one in config.functions.items())
    requirements = REQUIREMENTS if (root / REQUIREMENTS).is_file() else None
    return Project(
        functions=functions, topics=_topics(config), source=source, packages=packages, requirements=requirements
    )


def _handler(file: Path, name: str, function: FunctionConfig) -> str:
    if function.handler is None:
        raise DeploymentError(
            f'{file}: functions.{name}: say where its code is: handler = "module:name", such as "{name}.app:handler"'
        )
    return function.handler


def _code(root: Path, handlers: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The folder of the code, and what is copied of it if not all. Raises DeploymentError."""
    places: dict[str, set[str]] = {}
    for name, handler in handlers.items():
        top = handler.partition(":")[0].partition(".")[0]
        places[name] = {source for source in SOURCE_FOLDERS if _package(root / source, top) is not None}
        if not places[name]:
            raise DeploymentError(
                f"functions.{name}.handler: there is neither {top}.py nor a package {top} in {root} or its folder src"
            )
    shared = [source for source in SOURCE_FOLDERS if all(source in found for found in places.values())]
    if not shared:
        raise DeploymentError(f"the functions' code is partly in {root} and partly in its folder src; keep it in one")
    source = shared[0]
    if source != ".":
        # A folder of sources holds nothing else.
        return source, ()
    tops = dict.fromkeys(handler.partition(":")[0].partition(".")[0] for handler in handlers.values())
    return source, tuple(found for top in tops if (found := _package(root, top)) is not None)


def _package(folder: Path, top: str) -> str | None:
    """The file or folder of a top-level module, by its name in the folder."""
    if (folder / top).is_dir():
        return top
    return f"{top}.py" if (folder / f"{top}.py").is_file() else None


def _topics(config: Config) -> tuple[Topic, ...]:
    return tuple(Topic(one.topic, one.start) for one in config.subscriptions)


def _function(source: Path, name: str, handler: str, config: FunctionConfig) -> Function:
    environment = {
        variable: value if isinstance(value, str) else Given(value["parameter"])
        for variable, value in (config.environment or {}).items()
    }
    literal = {variable: value for variable, value in environment.items() if isinstance(value, str)}
    return Function(
        name=name,
        handler=handler,
        services=_served(source, name, handler, literal),
        memory_mb=config.memory_mb or MEMORY_MB,
        timeout_s=config.timeout_s,
        environment=environment,
        policies=config.policies,
    )


def _served(source: Path, name: str, handler: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The services of a function, by its own word. Raises DeploymentError."""
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        asked = subprocess.run(  # noqa: S603 - the project's own code, which its author asks to deploy
            [sys.executable, "-c", _ASK, handler, encode(Discover()).decode(), str(source)],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ASKING_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as e:
        raise DeploymentError(f"functions.{name}: {handler} is not imported within {e.timeout:g} s") from e
    if asked.returncode != 0:
        said = asked.stderr.decode(errors="replace").strip()
        raise DeploymentError(f"functions.{name}: {handler} cannot be imported:\n{said}")
    try:
        # What the code prints while it is imported comes first.
        outcome = decode_outcome(asked.stdout.rstrip().rpartition(b"\n")[2])
    except msgspec.DecodeError as e:
        raise DeploymentError(f"functions.{name}: {handler} is not a tenuto handler: write aws.handler(...)") from e
    if not isinstance(outcome, Manifest):
        raise DeploymentError(f"functions.{name}: {handler} is not a tenuto handler: write aws.handler(...)")
    return tuple(service.name for service in outcome.services)
