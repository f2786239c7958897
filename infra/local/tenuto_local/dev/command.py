"""The beginning of `tenuto dev`: what is checked before anything runs, and the lines that say where everything is.

Does not own the arguments (`tenuto_cli.dev`) nor the session (`session`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tenuto_control.core.settings import brokers_problem
from tenuto_local import running
from tenuto_local.commands import forget_own_services, run_to_end
from tenuto_local.dev import engines, ports
from tenuto_local.dev.engines import Engines
from tenuto_local.dev.project import Project, example_environment, local_config_text, project_folder, read_project
from tenuto_local.dev.session import (
    Debugged,
    Session,
    check,
    function_spec,
    looked,
    plane_environment,
    services_of,
    written,
)
from tenuto_local.dev.view import View
from tenuto_local.errors import ConfigurationError, LocalStackError
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.ports import LOOPBACK
from tenuto_local.stack import Ports
from tenuto_local.system import System
from tenuto_local.workdir import Workdir

Say = Callable[[str], None]

EXIT_USAGE: Final = 2
BROKERS_VARIABLE: Final = "TENUTO_BOOTSTRAP_SERVERS"
LOG_BYTES_KEPT_MAX: Final = 10 * 1024 * 1024
GITIGNORE: Final = "# Everything here belongs to `tenuto dev`; without it, the next start is from scratch.\n*\n"
EXAMPLE_KEY: Final = "KEY"


def start(options: argparse.Namespace) -> int:
    """Run a session. 0 or 130 after Ctrl-C; 2 and one line for a mistake; 1 when something cannot be started."""
    # What its client says of a broker that does not answer is said once, by this command.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if options.kafka:
        os.environ[BROKERS_VARIABLE] = options.kafka
    current = Path.cwd()
    try:
        _see_that_brokers_can_be()
        folder = project_folder(options.folder, current)
        project = read_project(folder, current)
        debugged = _debugged(options, project)
        _alone(project)
        chosen = engines.choose(options.engines, project.config.dev.engines)
    except LocalStackError as error:
        print(f"tenuto dev: {error}", file=sys.stderr)
        return EXIT_USAGE
    if options.json:
        os.environ.pop("AWS_ENDPOINT_URL", None)
    else:
        forget_own_services("dev starts the functions itself", "AWS_ENDPOINT_URL")
        above = folder.is_absolute() and options.folder is None
        print(f"tenuto dev: {project.name}{f' in {project.root}' if above else ''}", flush=True)
        print(f"  {chosen.line}", flush=True)
    return run_to_end("tenuto dev", dev(project, options, current, debugged, chosen))


async def dev(
    project: Project, options: argparse.Namespace, current: Path, debugged: Debugged | None, chosen: Engines
) -> int:
    """Keep the project running until cancelled. Raises `LocalStackError` when something cannot be started."""
    prepare(project, fresh=options.fresh)
    running.begins(project.state)
    try:
        return await _dev(project, options, current, debugged, chosen)
    finally:
        running.begun(project.state)


async def _dev(
    project: Project, options: argparse.Namespace, current: Path, debugged: Debugged | None, chosen: Engines
) -> int:
    say = _silent if options.json else _say
    ports_chosen = chosen_ports(options, project, say)
    text, left_out = local_config_text(project.config_text)
    for line in left_out:
        say(line)
    view = View(project.root, options.verbose)
    looked_at_ns = time.time_ns()
    known = await looked(project, project.functions, {})
    check(project, known)
    specs = [function_spec(project, f, debugged) for f in project.functions if known[f.name].sound]
    session = Session(
        project,
        _system(project, specs, ports_chosen, chosen, text, say),
        view,
        current,
        known,
        debugged,
        looked_at_ns,
    )
    for function in project.functions:
        session.show_trouble(function, running_already=False)
    async with session.system:
        found = written(session, chosen.names())
        running.write(project.state, found)
        running.begun(project.state)
        try:
            if options.json:
                print(json.dumps(asdict(found)), flush=True)
            else:
                _introduce(session)
            async with asyncio.TaskGroup() as group:
                group.create_task(session.follow_logs())
                group.create_task(session.follow_saves())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            running.forget(project.state)
    return 0


def _system(
    project: Project, specs: Sequence[FunctionSpec], listening: Ports, chosen: Engines, text: str, say: Say
) -> System:
    return System(
        specs,
        topics=project.topics,
        config_text=text,
        workdir=project.state,
        progress=say,
        table_engine=chosen.table,
        table_data=chosen.table_data(project.state),
        broker_engine=chosen.broker,
        ports=listening,
        plane_environment=plane_environment(project),
    )


def _debugged(options: argparse.Namespace, project: Project) -> Debugged | None:
    """What is to be debugged, and by what. Raises `ConfigurationError` for what is not there.

    debugpy, where it is installed, listens for an editor; otherwise pdb opens in the terminal.
    """
    if options.debug is None:
        return None
    names = [function.name for function in project.functions]
    if options.debug not in names:
        raise ConfigurationError(f"--debug {options.debug}: there is no such function; known: {', '.join(names)}")
    debugger = options.debugger or ("debugpy" if _installed("debugpy") else "pdb")
    if debugger == "pdb":
        return Debugged(options.debug, terminal=_terminal())
    if not _installed("debugpy"):
        raise ConfigurationError(
            "debugpy needs the extra 'debug': pip install \"tenuto[debug]\"; --debugger pdb needs none"
        )
    chosen = ports.choose("the debugger", options.debug_port, set(), "--debug-port")
    if chosen.notice:
        print(chosen.notice, flush=True)
    return Debugged(options.debug, port=chosen.port)


def _terminal() -> str:
    """The terminal that this command was started in. Raises `ConfigurationError` when there is none."""
    try:
        return os.ttyname(0)
    except OSError:
        raise ConfigurationError(
            'pdb needs a terminal, and standard input is not one; for an editor, pip install "tenuto[debug]"'
        ) from None


def _see_that_brokers_can_be() -> None:
    """Look at the brokers of the user's own. Raises `ConfigurationError`."""
    problem = brokers_problem(os.environ.get(BROKERS_VARIABLE) or LOOPBACK)
    if problem is not None:
        raise ConfigurationError(f"the brokers (--kafka, {BROKERS_VARIABLE}): {problem}")


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _alone(project: Project) -> None:
    """See that no other session has the project. Raises `ConfigurationError`."""
    other = running.read(project.state)
    if other is not None:
        raise ConfigurationError(
            f"{project.root} is already running: process {other.pid}, at {other.ingress}; stop it first (Ctrl-C there)"
        )


def prepare(project: Project, *, fresh: bool) -> None:
    """Make `.tenuto/`, empty if it is to be. Raises `ConfigurationError` when a session uses it, or nobody can."""
    try:
        _prepare(project.state, fresh=fresh)
    except OSError as error:
        raise ConfigurationError(f"{project.state} cannot be used: {error}") from error


def _prepare(state: Path, *, fresh: bool) -> None:
    lock = Workdir(state)
    try:
        if fresh:
            for path in state.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
        (state / ".gitignore").write_text(GITIGNORE, "utf-8")
        (state / "ledgers").mkdir(exist_ok=True)
        for log in (*state.glob("*.log"), *state.glob("functions/*.log")):
            if log.stat().st_size > LOG_BYTES_KEPT_MAX:
                log.replace(log.with_suffix(".log.1"))
    finally:
        lock.close()


def chosen_ports(options: argparse.Namespace, project: Project, say: Say) -> Ports:
    """What a session listens on: options come before the project's own. Raises `ConfigurationError`."""
    taken: set[int] = set()
    own = project.config.dev
    http = _first(options.http_port, own.http_port, project.config.http.port)
    chosen = {
        "http": ports.choose("HTTP", http, taken, "--http-port"),
        "aws": ports.choose("the local Lambda", _first(options.aws_port, own.aws_port), taken, "--aws-port"),
    }
    if not os.environ.get(BROKERS_VARIABLE):
        chosen["kafka"] = ports.choose("Kafka", _first(options.kafka_port, own.kafka_port), taken, "--kafka-port")
    for one in chosen.values():
        if one.notice:
            say(one.notice)
    return Ports(**{name: one.port for name, one in chosen.items()})


def _first(*ports: int | None) -> int:
    """The first port that was named; 0 is one."""
    return next(port for port in ports if port is not None)


def _introduce(session: Session) -> None:
    """Say once where everything is, and what to type in a second terminal."""
    project, system = session.project, session.system
    print(f"\n{project.name} is up. HTTP {system.ingress}   Kafka {system.bootstrap_servers}")
    print(f"Table {system.stack.dynamodb_endpoint_url}   AWS {system.stack.aws_endpoint_url}")
    exports = {"INGRESS": system.ingress, "BOOTSTRAP": system.bootstrap_servers, **example_environment(project)}
    print("For other tools: export " + " ".join(f"{name}={value}" for name, value in exports.items()))
    print(f"For the AWS CLI and boto3, with this start's credentials: . {system.stack.aws_environment}\n")
    if session.debugged is not None:
        print(f"{_debugger(session.debugged)}\n")
    examples = [*_examples(session)]
    if examples:
        print("In a second terminal, in this project:\n")
        for example in examples:
            print(f"  {example}")
        print()
    print(
        "Its log follows. Saved changes are reloaded. Ctrl-C stops it, and the next start continues with the same "
        "data.\n",
        flush=True,
    )


def _debugger(debugged: Debugged) -> str:
    if debugged.port is None:
        return f"breakpoint() in {debugged.function} opens pdb here; its prompt is (Pdb), and `c` continues"
    return f"A debugger may attach to {debugged.function} at 127.0.0.1:{debugged.port} (debugpy)"


def _examples(session: Session) -> Iterator[str]:
    """What may be typed in a second terminal: a command for each subscription and each handler."""
    for subscription in session.project.config.subscriptions:
        yield f"tenuto send {subscription.topic} {EXAMPLE_KEY} VALUE"
    for function in session.project.functions:
        for service in services_of(session.known[function.name]):
            for handler in service.handlers:
                key = f" {EXAMPLE_KEY}" if service.keyed else ""
                body = " BODY" if handler.takes_input else ""
                yield f"tenuto call {service.name}{key} {handler.name}{body}"


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def _silent(_line: str) -> None:
    """For `--json`: standard output has one line."""
