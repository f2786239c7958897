"""The system that a command talks to: named by an option, a variable, or the running `tenuto dev` of the project.

Owns their order of precedence, and the error if none is there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tenuto_cli.parsing import UsageError
from tenuto_control.core.settings import brokers_problem
from tenuto_local import running

URL_VARIABLE: Final = "TENUTO_URL"
BROKERS_VARIABLE: Final = "TENUTO_BOOTSTRAP_SERVERS"
CONFIG_VARIABLE: Final = "TENUTO_CONFIG_FILE"
AWS_VARIABLES: Final = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_LAMBDA",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
)
"""A user who has set one of these means what it names, not a session on this machine."""

START_WAIT_S_MAX: Final = 60.0
"""How long a command waits for a `tenuto dev` that is starting. A first start fetches engines, and may take longer."""

LOOK_S: Final = 0.1

OF_TABLE: Final = frozenset({"journal", "set-aside"})
"""Commands that read the table of a session."""


def ingress(option: str | None) -> str:
    """Return the address of the control plane, without a trailing slash. Raises UsageError."""
    found = option or os.environ.get(URL_VARIABLE)
    if not found and (session := _session()) is not None:
        found = session.ingress
    if not found:
        raise UsageError(
            f"no `tenuto dev` runs for this folder; start one, or name a control plane with --url or {URL_VARIABLE}"
        )
    return found.rstrip("/")


def brokers(option: str | None) -> str:
    """Return the bootstrap address of Kafka. Raises UsageError."""
    found = option or os.environ.get(BROKERS_VARIABLE)
    if not found and (session := _session()) is not None:
        found = session.bootstrap_servers
    if not found:
        raise UsageError(
            f"no `tenuto dev` runs for this folder; start one, or name a broker with --kafka or {BROKERS_VARIABLE}"
        )
    problem = brokers_problem(found)
    if problem is not None:
        raise UsageError(f"{'--kafka' if option else BROKERS_VARIABLE}: {problem}")
    return found


def _session() -> running.Running | None:
    """Return the session of this folder; one that is starting, once it is up. Raises UsageError if that takes long."""
    folder = Path.cwd()
    session, project = running.find(folder), running.starting(folder)
    if session is not None or project is None:
        return session
    print(f"tenuto: the `tenuto dev` of {project} is starting; waiting for it", file=sys.stderr)
    deadline_s = time.monotonic() + START_WAIT_S_MAX
    while running.starting(folder) is not None:
        if time.monotonic() >= deadline_s:
            raise UsageError(f"the `tenuto dev` of {project} is still starting after {START_WAIT_S_MAX:g} s; try again")
        time.sleep(LOOK_S)
    # It writes its addresses before it says that it has started.
    return running.find(folder)


def of_session(command: str, arguments: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the variables that point a command of the control plane at the running `tenuto dev`, and a line about it.

    Both are empty if none runs for this folder, or if the user named a configuration or set AWS's variables.
    """
    named = any(word == "--config" or word.startswith("--config=") for word in arguments)
    if named or {"--offline", "-h", "--help"} & set(arguments):
        return {}, ""
    if any(os.environ.get(variable) for variable in (CONFIG_VARIABLE, *AWS_VARIABLES)):
        return {}, ""
    session = running.find(Path.cwd())
    variables = running.aws_environment(session) if session is not None else {}
    if session is None or not variables:
        return {}, ""
    told = f"tenuto {command}: using the `tenuto dev` of {session.project} (process {session.pid})"
    return {**variables, **_as_the_session_sees_it(command, session, variables)}, told


def _as_the_session_sees_it(command: str, session: running.Running, variables: dict[str, str]) -> dict[str, str]:
    """What a session's own control plane is told in the place of what `tenuto.toml` says of AWS."""
    # The stack is imported for a session that runs, so its extra is installed.
    from tenuto_local.dev.project import CONFIG_FILE, control_plane_environment, read_project
    from tenuto_local.errors import ConfigurationError
    from tenuto_local.system import TABLE

    project = Path(session.project)
    # The table is read as it was written: without what the session leaves out. A check is of the user's own file.
    of_table = command in OF_TABLE
    file = session.state / CONFIG_FILE if of_table else project / CONFIG_FILE
    own = {"TENUTO_TABLE": TABLE, "TENUTO_REGION": variables.get("AWS_REGION", "")}
    if of_table or not (Path.cwd() / CONFIG_FILE).is_file():
        own[CONFIG_VARIABLE] = str(file)
    try:
        return own | control_plane_environment(read_project(project, Path.cwd()), own_broker=True)
    except ConfigurationError:
        # The command itself says what is wrong with the file.
        return own
