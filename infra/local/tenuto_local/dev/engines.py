"""Which engines a session runs on, and the line that says so.

Owns the choice: what was asked for, else the best of what this machine has. Does not own the engines.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenuto_local import broker_engine, dynoxide, npm, table_engine
from tenuto_local.errors import PrerequisiteMissing
from tenuto_local.jars import JarSet, fetched
from tenuto_local.prerequisites import check_prerequisites

AUTO: Final = "auto"
NATIVE: Final = "native"
REFERENCE: Final = "reference"
EXTERNAL: Final = "external"


@dataclass(frozen=True, slots=True)
class Engines:
    """The names of both engines; None for a component of the user's own."""

    broker: str | None
    table: str | None

    @property
    def line(self) -> str:
        """What runs, and what of it does not outlive the session."""
        broker = "a broker of your own" if self.broker is None else _TITLES[self.broker]
        table = "a table of your own" if self.table is None else _TITLES[self.table]
        kept = self.broker is None or broker_engine.ENGINES[self.broker].keeps
        return f"engines: {broker}{'' if kept else ' (topics are gone when it ends; the table stays)'}, {table}"

    def table_data(self, state: Path) -> Path | None:
        """Where the table is kept: each engine has its own form."""
        return None if self.table is None else state / "table" / self.table

    def names(self) -> dict[str, str]:
        """For other commands."""
        return {"broker": self.broker or EXTERNAL, "table": self.table or EXTERNAL}


_TITLES: Final = {
    broker_engine.REFERENCE.name: "Apache Kafka",
    broker_engine.NATIVE.name: "tansu",
    table_engine.REFERENCE.name: "DynamoDB Local",
    table_engine.NATIVE.name: "dynoxide",
}


def choose(option: str | None, configured: str) -> Engines:
    """The engines of a session: what the option says, else the variable of each, else the configuration.

    Raises `LocalStackError` in one line with the ways to get one.
    """
    return Engines(_broker(option, configured), _table(option, configured))


def _broker(option: str | None, configured: str) -> str | None:
    if os.environ.get("TENUTO_BOOTSTRAP_SERVERS"):
        return None
    named = os.environ.get(broker_engine.ENGINE_VARIABLE)
    if option is None and named:
        return broker_engine.chosen_broker(named).name
    asked = option or configured
    if asked == AUTO:
        return broker_engine.best_broker(missing_for(broker_engine.REFERENCE.jars)).name
    return (broker_engine.NATIVE if asked == NATIVE else broker_engine.REFERENCE).name


def _table(option: str | None, configured: str) -> str | None:
    if os.environ.get("AWS_ENDPOINT_URL_DYNAMODB"):
        return None
    named = os.environ.get(table_engine.ENGINE_VARIABLE)
    if option is None and named:
        return table_engine.chosen_engine(named).name
    asked = option or configured
    if asked != AUTO:
        return (table_engine.NATIVE if asked == NATIVE else table_engine.REFERENCE).name
    if native_table_available():
        return table_engine.NATIVE.name
    missing = missing_for(table_engine.REFERENCE.jars)
    if missing is None:
        return table_engine.REFERENCE.name
    raise PrerequisiteMissing(
        f"no table can be started: {missing} That is for DynamoDB Local; without Java, install npm, or put a dynoxide "
        "on the PATH (cargo install dynoxide-rs); or name a table with AWS_ENDPOINT_URL_DYNAMODB"
    )


def native_table_available() -> bool:
    """Whether dynoxide is there, or can be fetched. Raises ConfigurationError when the one that is named is not."""
    if dynoxide.own_program() is not None or shutil.which(dynoxide.PROGRAM.name) is not None:
        return True
    return npm.runs_here() and (dynoxide.PROGRAM.path.is_file() or shutil.which("npm") is not None)


def missing_for(jars: Sequence[JarSet]) -> str | None:
    """What is missing to run these jars, as a sentence; None when nothing is."""
    try:
        check_prerequisites().require(maven=not fetched(*jars))
    except PrerequisiteMissing as error:
        return f"{error}."
    return None
