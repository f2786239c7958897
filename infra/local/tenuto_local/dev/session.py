"""A session of `tenuto dev`: everything started, code reloaded as it is saved, all logs in one, until Ctrl-C.

Owns the life of a session and what is known of each function's code. Does not own the system (`system`), what a change
concerns (`code`), nor what a line looks like (`view`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tenuto.protocol.messages import Manifest, ServiceManifest
from tenuto_control.admin.deployments import check_subscriptions
from tenuto_control.config import ConfigError
from tenuto_local import running
from tenuto_local.dev.code import Code, after, concerned, probed, shown_file
from tenuto_local.dev.follow import Follower
from tenuto_local.dev.function_host import DEBUG_VARIABLE, HANDLER_VARIABLE, ROOTS_VARIABLE, TERMINAL_VARIABLE
from tenuto_local.dev.project import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    Function,
    Project,
    control_plane_environment,
    example_environment,
    local_config_text,
    read_project,
)
from tenuto_local.dev.view import View
from tenuto_local.dev.watch import saved
from tenuto_local.errors import ConfigurationError, ProcessFailed
from tenuto_local.lambda_service.function_spec import INIT_TIMEOUT_S, TIMEOUT_S_MAX, FunctionSpec
from tenuto_local.system import System, import_path

HOST: Final = "tenuto_local.dev.function_host.handler"
QUEUE_LIMIT: Final = 500
LOOK_INTERVAL_S: Final = 0.1
_decode_manifest = msgspec.json.Decoder(Manifest)


@dataclass(frozen=True, slots=True)
class Debugged:
    """The function that is debugged: debugpy listens on `port`, or pdb opens at `terminal`."""

    function: str
    port: int | None = None
    terminal: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the function's process knows (`function_host`)."""
        if self.port is None:
            return {TERMINAL_VARIABLE: self.terminal or ""}
        # The standard library's own modules are frozen, which debugpy would warn of at each start.
        return {DEBUG_VARIABLE: str(self.port), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@dataclass(slots=True)
class Session:
    """One project at work. `current` is the folder the command was started in."""

    project: Project
    system: System
    view: View
    current: Path
    known: dict[str, Code]
    debugged: Debugged | None = None
    looked_at_ns: int = field(default_factory=time.time_ns)
    """When its code was first read, on the wall clock: what is saved later is to be reloaded."""

    def say(self, lines: Iterable[str]) -> None:
        """Print lines as they are."""
        for line in lines:
            print(line, flush=True)

    def tell(self, text: str) -> None:
        """A line of the session's own."""
        self.say([f"{time.strftime('%H:%M:%S')} dev  {text}"])

    # --- what a function is ----------------------------------------------------------------------------------------

    async def look(self, functions: Sequence[Function]) -> None:
        """Import these functions' code, apart from what runs, and keep what is found."""
        self.known |= await looked(self.project, functions, self.known)

    def sound(self, functions: Iterable[Function]) -> list[Function]:
        """Those whose code can be run."""
        return [function for function in functions if self.known[function.name].sound]

    def spec(self, function: Function) -> FunctionSpec:
        """How the stack runs a function."""
        return function_spec(self.project, function, self.debugged)

    def show_trouble(self, function: Function, *, running_already: bool) -> None:
        """Say once why a function's code cannot be run."""
        trouble = self.known[function.name].trouble
        if trouble is None:
            return
        then = (
            "the previous code keeps running until you save a fix"
            if running_already
            else "the function waits, and so does its work; save a fix, and it starts"
        )
        self.say(self.view.of_trouble(function.name, trouble, then, time.time()))

    # --- a save ----------------------------------------------------------------------------------------------------

    async def follow_saves(self) -> None:
        """Reload what each save concerns, indefinitely."""
        async for files in saved(self.project.root, self.looked_at_ns):
            try:
                own = files & {str(self.project.root / name) for name in (CONFIG_FILE, ENVIRONMENT_FILE)}
                if own:
                    await self._reconfigure()
                await self._reload(files - own)
            except ConfigurationError as error:
                self.tell(f"✗ {error}")

    async def _reload(self, files: frozenset[str]) -> None:
        begun_s = time.monotonic()
        functions = concerned(self.known, self.project.functions, files)
        if not functions:
            return
        before = {function.name: self.known.get(function.name, Code()) for function in functions}
        # A process that starts now could import what has not been looked at.
        await asyncio.gather(*(self.system.stack.hold(f.name) for f in functions if before[f.name].manifest != b"null"))
        await self.look(functions)
        for function in functions:
            code, old = self.known[function.name], before[function.name]
            if not code.sound and code.trouble != old.trouble:
                self.show_trouble(function, running_already=old.manifest != b"null")
        fresh = self.sound(functions)
        if not fresh:
            return
        await self.system.register(*map(self.spec, fresh))
        if any(self.known[f.name].manifest != before[f.name].manifest or not before[f.name].sound for f in fresh):
            for plane in self.system.control_planes:
                plane.look_again()
        names = ", ".join(function.name for function in fresh)
        what = ", ".join(sorted({shown_file(file, self.project.root) for file in files})[:3])
        self.tell(f"reloaded {names} after a change of {what}, in {time.monotonic() - begun_s:.2f} s")

    async def _reconfigure(self) -> None:
        """Take up a saved `tenuto.toml` or `.env`. Raises `ConfigurationError`, and what ran before continues."""
        project = read_project(self.project.root, self.current)
        if (project.config_text, project.environment) == (self.project.config_text, self.project.environment):
            return
        before, self.project = self.project, project
        try:
            await self.look(project.functions)
            check(project, self.known)
        except ConfigurationError:
            self.project = before
            raise
        for function in project.functions:
            self.show_trouble(function, running_already=False)
        text, _ = local_config_text(project.config_text)
        await self.system.register(*map(self.spec, self.sound(project.functions)))
        await self.system.reconfigure(text, project.topics, plane_environment(project))
        self.tell(f"{CONFIG_FILE} is in force: the control plane was restarted")
        if project.config.dev != before.config.dev:
            self.tell("what [dev] says of ports and engines counts from the next start on")

    # --- logs ------------------------------------------------------------------------------------------------------

    async def follow_logs(self) -> None:
        """Show what is added to all logs, indefinitely. Raises `ProcessFailed` when the control plane has ended."""
        functions: dict[str, Follower] = {}
        planes: dict[Path, Follower] = {}
        while True:
            # Read before the functions' lines and shown after them: a function tells of a failure before it answers.
            told = [
                (plane, [*planes.setdefault(plane.log_path, Follower(plane.log_path)).lines()])
                for plane in self.system.control_planes
            ]
            for function in self.project.functions:
                path = self.system.stack.workdir / "functions" / f"{function.name}.log"
                follower = functions.setdefault(function.name, Follower(path))
                for text in follower.lines():
                    self.say(self.view.of_function(function.name, text, time.time()))
            for plane, texts in told:
                for text in texts:
                    self.say(self.view.of_control_plane(text, time.time()))
                if plane.ended:
                    raise ProcessFailed(f"{plane.name} has ended; the end of its log:\n{plane.log_tail()}")
            await asyncio.sleep(LOOK_INTERVAL_S)


async def looked(project: Project, functions: Sequence[Function], known: Mapping[str, Code]) -> dict[str, Code]:
    """Import these functions' code, apart from what runs: what is known of each afterwards."""
    # A breakpoint of a module is for the function's own process.
    path = {"PYTHONPATH": python_path(project), "PYTHONBREAKPOINT": "0"}
    found = await asyncio.gather(
        *(probed(project, f, {**os.environ, **function_environment(project, f), **path}) for f in functions)
    )
    return {
        function.name: after(known.get(function.name, Code()), one)
        for function, one in zip(functions, found, strict=True)
    }


def check(project: Project, known: Mapping[str, Code]) -> None:
    """See that each subscription has its handler. Raises `ConfigurationError` that says which one has none.

    Nothing is said while the code of a function cannot be imported: it may be what serves the handler.
    """
    codes = [known[function.name] for function in project.functions]
    if not all(code.sound for code in codes):
        return
    services = {service.name: service for code in codes for service in services_of(code)}
    try:
        check_subscriptions(project.config.subscriptions, services)
    except ConfigError as error:
        raise ConfigurationError(f"{project.root / CONFIG_FILE}: {error}") from error


def services_of(code: Code) -> tuple[ServiceManifest, ...]:
    """The services a function was found to serve."""
    try:
        return _decode_manifest.decode(code.manifest).services
    except msgspec.DecodeError:
        return ()


def python_path(project: Project) -> str:
    """Where a function's process imports from: the project first, then what this command itself runs on."""
    own = [str(folder) for folder in project.import_path]
    return os.pathsep.join([*own, import_path("tenuto", "tenuto_local")])


def function_environment(project: Project, function: Function) -> dict[str, str]:
    """The variables of a function, besides those of whoever started the command: `.env` comes before the file's."""
    return {**example_environment(project), **function.environment, **project.environment}


def function_spec(project: Project, function: Function, debugged: Debugged | None) -> FunctionSpec:
    """How the stack runs a function. One that is debugged has one process and as much time as there can be."""
    environment = {
        **function_environment(project, function),
        "PYTHONPATH": python_path(project),
        HANDLER_VARIABLE: function.handler,
        ROOTS_VARIABLE: os.pathsep.join(str(folder) for folder in project.import_path),
    }
    attached = debugged is not None and debugged.function == function.name
    if debugged is not None and attached:
        environment |= debugged.environment
    return FunctionSpec(
        name=function.name,
        handler=HOST,
        root=str(project.root),
        timeout_s=TIMEOUT_S_MAX if attached else float(function.timeout_s),
        init_timeout_s=TIMEOUT_S_MAX if attached else INIT_TIMEOUT_S,
        environment=environment,
        concurrency=1 if attached else function.concurrency,
        queue_limit=QUEUE_LIMIT,
        inherits=True,
    )


def plane_environment(project: Project) -> dict[str, str]:
    """The variables of the control plane: its log as this session reads it, and this machine in AWS's place."""
    return {
        "TENUTO_LOG_FORMAT": "json",
        **control_plane_environment(project, own_broker=not os.environ.get("TENUTO_BOOTSTRAP_SERVERS")),
    }


def written(session: Session, engines: Mapping[str, str]) -> running.Running:
    """What other commands find of this session."""
    system = session.system
    return running.Running(
        pid=os.getpid(),
        project=str(session.project.root),
        ingress=system.ingress,
        bootstrap_servers=system.bootstrap_servers,
        dynamodb=system.stack.dynamodb_endpoint_url,
        aws=system.stack.aws_endpoint_url,
        engines=dict(engines),
    )
