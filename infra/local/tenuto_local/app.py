"""`make dev APP=examples/food_order`: one app on the whole stack, until Ctrl-C.

Owns the command line, the addresses and lines to paste, and showing the logs as they are written. Does not own the
system (`system`).

An app is a folder with `tenuto.toml` and `handler.py`, which exports `handler`; its `[functions]` section names one
function. TENUTO_BOOTSTRAP_SERVERS and AWS_ENDPOINT_URL_DYNAMODB put a person's own Kafka and DynamoDB in the place of
the embedded ones.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tenuto_control.config import ConfigError, parse
from tenuto_local.commands import forget_own_services, run_to_end
from tenuto_local.errors import ConfigurationError, LocalStackError
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.system import System
from tenuto_local.workdir import Workdir

DIRECTORY_VARIABLE: Final = "TENUTO_EXAMPLE_DIR"
"""Where the examples keep the record of what their outside saw."""

PUBLISHED: Final = re.compile(r'(?:\.publish\(\s*|TOPIC\s*=\s*)"([^"]+)"')
"""Topics that a handler names where it publishes: they are created too, as no broker here does it by itself."""

PARTITIONS: Final = 4
FUNCTION_TIMEOUT_S: Final = 10.0
CONCURRENCY: Final = 4
QUEUE_LIMIT: Final = 500
LOG_INTERVAL_S: Final = 0.2
LOG_BYTES_MAX: Final = 64 * 1024
HTTP_TIMEOUT_S: Final = 10.0
NO_SERVICES: Final = "no services"
"""The listing of an ingress that knows of no handler (`tenuto_control.ingress.listing`)."""
_RECORD = re.compile(r"(?<=.)(?=\[(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\]\t\d{4}-)")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d+ (\w+) +")


@dataclass(frozen=True, slots=True)
class App:
    """A folder with a handler and its configuration. `module` is how the handler is imported from `root`."""

    name: str
    root: Path
    module: str
    config_text: str
    topics: dict[str, int]


def read_app(folder: str) -> App:
    """Look at a folder. Raises `ConfigurationError` saying what it lacks."""
    path = Path(folder).resolve()
    if not path.is_dir():
        raise ConfigurationError(f"{folder}: no such folder; for instance: make dev APP=examples/food_order")
    for needed in ("tenuto.toml", "handler.py"):
        if not (path / needed).is_file():
            raise ConfigurationError(
                f"{folder}: there is no {needed}; an app is a folder with tenuto.toml and handler.py"
            )
    text = (path / "tenuto.toml").read_text("utf-8")
    try:
        # As the control plane will read it, so that a mistake shows now and under the file's own name.
        config = parse(text, f"{folder}/tenuto.toml", os.environ)
    except ConfigError as error:
        raise ConfigurationError(str(error)) from error
    names = list(config.functions)
    if len(names) != 1:
        raise ConfigurationError(f"{folder}/tenuto.toml: [functions] has to name one function, not {len(names)}")
    # The examples import each other by their full name; an app of one's own is imported from its folder.
    in_examples = path.parent.name == "examples" and (path.parent / "ledger.py").is_file()
    root = path.parents[1] if in_examples else path
    module = f"examples.{path.name}.handler" if in_examples else "handler"
    topics = {name for s in config.subscriptions for name in (s.topic, s.dead_letter_topic)}
    topics.update(PUBLISHED.findall((path / "handler.py").read_text("utf-8")))
    return App(names[0], root, module, text, dict.fromkeys(sorted(topics), PARTITIONS))


async def dev(app: App) -> int:
    """Keep the app running until cancelled. Raises `LocalStackError` when something cannot be started."""
    directory = Workdir()
    try:
        ledgers = directory.path / "ledgers"
        ledgers.mkdir()
        spec = FunctionSpec(
            name=app.name,
            handler=f"{app.module}.handler",
            root=str(app.root),
            timeout_s=FUNCTION_TIMEOUT_S,
            environment={DIRECTORY_VARIABLE: str(ledgers)},
            concurrency=CONCURRENCY,
            queue_limit=QUEUE_LIMIT,
        )
        async with System(
            [spec],
            topics=app.topics,
            config_text=app.config_text,
            workdir=directory.path / "stack",
            progress=_tell,
        ) as system:
            await _introduce(app, system, ledgers)
            logs = [plane.log_path for plane in system.control_planes]
            logs.append(system.stack.workdir / "functions" / f"{app.name}.log")
            await _follow(logs)
    finally:
        directory.close()
    return 0


async def _introduce(app: App, system: System, directory: Path) -> None:
    timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(system.ingress, headers={"accept": "text/plain"}) as answer,
    ):
        handlers = await answer.text()
    if handlers.strip() == NO_SERVICES:
        raise LocalStackError(f"{app.name} does not start: {why_unanswered(app.name, planes_log(system))}")
    print(f"\n{app.name} is up. In a second terminal:\n")
    print(f"  export BOOTSTRAP={system.bootstrap_servers} INGRESS={system.ingress} {DIRECTORY_VARIABLE}={directory}\n")
    for topic in app.topics:
        print(f"  echo 'KEY:JSON' | kcat -P -b \"$BOOTSTRAP\" -t {topic} -K:")
    print()
    print("\n".join(f"  {line}".rstrip() for line in handlers.splitlines()))
    print(f"\nDynamoDB {system.stack.dynamodb_endpoint_url}   Lambda {system.stack.aws_endpoint_url}")
    print(f"For the AWS CLI and boto3, with this start's credentials: . {system.stack.aws_environment}")
    print(
        "Its log follows; a changed handler needs a new start. Ctrl-C ends everything and leaves nothing.\n", flush=True
    )


def planes_log(system: System) -> str:
    """What the control planes have logged."""
    return "\n".join(plane.log_path.read_text("utf-8", "replace") for plane in system.control_planes)


def why_unanswered(function: str, log: str) -> str:
    """What a control plane's log says, the last time, of a function whose answer to discovery does not count."""
    said = re.findall(rf"\[functions\.{re.escape(function)}\] (.+)", log)
    reason = said[-1].removesuffix("; its work waits") if said else "it serves nothing"
    return reason.removeprefix("does not answer discovery: ")


async def _follow(paths: Sequence[Path]) -> None:
    """Print what is added to these files, tersely, until it is cancelled."""
    places = dict.fromkeys(paths, 0)
    seen = dict.fromkeys(paths, 0)
    while True:
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb") as log:
                log.seek(places[path])
                data = log.read(LOG_BYTES_MAX)
            end = complete(data, grown=len(data) > seen[path])
            places[path] += end
            seen[path] = len(data) - end
            for line in lines_of(data[:end]):
                print(f"{path.stem:<18} {_STAMP.sub(_terse, line)}", flush=True)
        await asyncio.sleep(LOG_INTERVAL_S)


def complete(data: bytes, *, grown: bool) -> int:
    """How many bytes of a log's end to show: whole lines, or what has no end of line and does not grow any more.

    Lambda's runtime client ends no line behind a traceback, so its last one would wait for the next record.
    """
    return data.rfind(b"\n") + 1 or (0 if grown and len(data) < LOG_BYTES_MAX else len(data))


def lines_of(data: bytes) -> list[str]:
    """Lines of a log; a record of a function starts one, even where the one before it has not ended its own."""
    return [part for line in data.decode(errors="replace").splitlines() for part in _RECORD.split(line)]


def _terse(stamp: re.Match[str]) -> str:
    time, level = stamp.groups()
    return f"{time} " if level == "INFO" else f"{time} {level} "


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0 or 130 after Ctrl-C; 1 and one line on standard error when the app cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m tenuto_local.dev", description="One app on the whole stack.")
    parser.add_argument("app", help="a folder with tenuto.toml and handler.py, such as examples/food_order")
    options = parser.parse_args(arguments)
    try:
        app = read_app(options.app)
    except LocalStackError as error:
        print(f"dev: {error}", file=sys.stderr)
        return 2
    forget_own_services("dev starts the functions itself", "AWS_ENDPOINT_URL")
    print(f"tenuto dev: {app.name} from {options.app}", flush=True)
    return run_to_end("dev", dev(app))
