"""A project as its `tenuto.toml` describes it: functions by import path, topics with their partitions.

Owns where code is imported from, and the defaults of a development machine. Reads the file and nothing else: no source
code is searched for anything. Does not own the file's form (`tenuto_control.config`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tenuto_control.config import (
    ENVIRONMENT,
    Config,
    ConfigError,
    FunctionConfig,
    TopicConfig,
    function_variable,
    parse,
)
from tenuto_local.errors import ConfigurationError

CONFIG_FILE: Final = "tenuto.toml"
ENVIRONMENT_FILE: Final = ".env"
STATE_FOLDER: Final = ".tenuto"
"""Where a project keeps its broker's data, its table and its logs between two starts."""

DEFAULT_HANDLER: Final = "handler:handler"
"""Of a function without the key `handler`: what `handler.py` exports."""

DEFAULT_PARTITIONS: Final = TopicConfig().partitions
FUNCTION_TIMEOUT_S: Final = 15
"""Of a function that names none. After a crash, its key waits for so long: until then somebody might still hold it."""

FUNCTION_CONCURRENCY_MAX: Final = 4
"""Processes of one function: a machine for development has few processors."""

DEV_VARIABLES: Final = tuple(name for name, (section, _) in ENVIRONMENT.items() if section == "dev")
"""The variables that say what a session listens on and runs on."""

_EXAMPLES: Final = "examples"


@dataclass(frozen=True, slots=True)
class Function:
    """One function: its name, the import path of its handler (`module:name`), its timeout in seconds, its variables.

    Variables that a parameter of the deployment gives are left out: on this machine `.env` or the shell has them.
    """

    name: str
    handler: str
    timeout_s: int
    concurrency: int
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The module that the handler is imported from."""
        return self.handler.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with `tenuto.toml`. `import_path` are the folders that code is imported from, the first one first."""

    root: Path
    config_text: str
    config: Config
    functions: tuple[Function, ...]
    topics: Mapping[str, int]
    import_path: tuple[Path, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called where it is talked about."""
        return self.root.name

    @property
    def state(self) -> Path:
        """The folder that outlives a session."""
        return self.root / STATE_FOLDER


def read_project(folder: Path, current: Path) -> Project:
    """Read a project. `current` is the folder the command was started in. Raises `ConfigurationError`."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder")
    file = folder / CONFIG_FILE
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{folder}: there is no {CONFIG_FILE}; `tenuto init NAME` makes a project, or name a folder that has one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    return made_project(folder, text, current)


def made_project(folder: Path, text: str, current: Path) -> Project:
    """The project that a text of `tenuto.toml` makes. Raises `ConfigurationError`."""
    root = folder.resolve()
    try:
        # Of the environment no more than this: what else it overrides are addresses, which are the stack's own here.
        own = {name: os.environ[name] for name in DEV_VARIABLES if name in os.environ}
        config = parse(text, f"{folder / CONFIG_FILE}", own)
    except ConfigError as error:
        raise ConfigurationError(str(error)) from error
    functions = tuple(_function(name, found) for name, found in config.functions.items())
    path = import_path(root, current, [function.module for function in functions])
    return Project(root, text, config, functions, topics_of(config), path, read_environment(root))


def _function(name: str, found: FunctionConfig) -> Function:
    return Function(
        name,
        found.handler or DEFAULT_HANDLER,
        found.timeout_s or FUNCTION_TIMEOUT_S,
        min(found.concurrency, FUNCTION_CONCURRENCY_MAX),
        {name: value for name, value in (found.environment or {}).items() if isinstance(value, str)},
    )


def topics_of(config: Config) -> dict[str, int]:
    """Every topic the file names, with its partitions: those of subscriptions, their dead letters, and `[topics]`."""
    named = {name for s in config.subscriptions for name in (s.topic, s.dead_letter_topic)} | set(config.topics)
    own = {name: topic.partitions for name, topic in config.topics.items()}
    return {name: own.get(name, DEFAULT_PARTITIONS) for name in sorted(named)}


def import_path(root: Path, current: Path, modules: Iterable[str] = ()) -> tuple[Path, ...]:
    """The folders that handlers are imported from: `src/` if there is one, the project, and where the command runs.

    A project may lie inside the package that its modules name, as `examples/food_order` does with
    `examples.food_order.handler`: then the folder above that package is one as well.
    """
    found = [root / "src"] if (root / "src").is_dir() else []
    packages = {module.partition(".")[0] for module in modules if "." in module}
    above = [folder.parent for folder in (root, *root.parents) if folder.name in packages]
    return tuple(dict.fromkeys([*found, root, current.resolve(), *above]))


def project_folder(named: str | None, current: Path) -> Path:
    """The folder that a command means: the one that is named, else this one or the nearest above with `tenuto.toml`."""
    if named is not None:
        return Path(named)
    above = (folder for folder in current.parents if (folder / CONFIG_FILE).is_file())
    return Path() if (current / CONFIG_FILE).is_file() else next(above, Path())


def read_environment(root: Path) -> dict[str, str]:
    """The variables of the file `.env`, if there is one: a line `NAME=value` each. Raises `ConfigurationError`."""
    file = root / ENVIRONMENT_FILE
    if not file.is_file():
        return {}
    variables: dict[str, str] = {}
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ").strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigurationError(f"{file}:{number}: expected NAME=value")
        variables[name.strip()] = _unquoted(value.strip())
    return variables


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def local_config_text(text: str) -> tuple[str, list[str]]:
    """The file without what only AWS has, and what that is, a line each.

    Taken out by its lines: what remains is the user's own text, in which places of mistakes stay right.
    """
    kept: list[str] = []
    told: list[str] = []
    dropping = False
    for line in text.splitlines():
        stripped = line.split("#", 1)[0].strip()
        if stripped.startswith("["):
            dropping = stripped in ("[encryption]", "[scheduler]", "[aws]")
            if stripped == "[encryption]":
                told.append("[encryption] is left out: there is no AWS KMS on this machine, so payloads stay readable")
        kept.append("" if dropping else line)
    return "\n".join(kept) + "\n", told


def control_plane_environment(project: Project, *, own_broker: bool) -> dict[str, str]:
    """Variables that put this machine's functions and broker in the place of those that the file names for AWS."""
    variables = {function_variable(f.name): f.name for f in project.functions}
    if own_broker:
        variables |= {"TENUTO_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "TENUTO_KAFKA_IAM": "false"}
    return variables


def example_environment(project: Project) -> dict[str, str]:
    """What the repository's examples need besides: where their outside keeps its records."""
    in_examples = project.root.parent.name == _EXAMPLES and (project.root.parent / "ledger.py").is_file()
    if not in_examples or os.environ.get("TENUTO_EXAMPLE_DIR"):
        return {}
    return {"TENUTO_EXAMPLE_DIR": str(project.state / "ledgers")}
