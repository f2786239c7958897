"""The table of the embedded stack: one small port, and the engines that implement it.

Owns the setting by which a person chooses one, and what each needs on the machine. An engine is one process that speaks
DynamoDB's protocol; what the engines do differently is in docs/internals/engines.md. Does not own the engines.

    engine = chosen_engine().make(workdir)     # TENUTO_TABLE_ENGINE, else DynamoDB Local
    await engine.start()
    ...                                        # engine.endpoint_url
    await engine.stop()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tenuto_local.cache import Progress, silent
from tenuto_local.dynamodb_local import DynamoDBLocal
from tenuto_local.dynoxide import Dynoxide, title
from tenuto_local.engine_choice import chosen
from tenuto_local.jars import DYNAMODB_LOCAL, JarSet

ENGINE_VARIABLE: Final = "TENUTO_TABLE_ENGINE"


class TableEngine(Protocol):
    """One process that serves DynamoDB's protocol on the loopback interface."""

    @property
    def endpoint_url(self) -> str:
        """`http://host:port`, valid once started."""
        ...

    @property
    def pid(self) -> int:
        """The process id; raises `ProcessFailed` when it does not run."""
        ...

    async def start(self) -> None:
        """Fetch what is missing, then start and wait until requests are served. Raises `LocalStackError`."""
        ...

    async def stop(self) -> None:
        """Stop it; nothing happens when it does not run."""
        ...


class Making(Protocol):
    """How an engine is made. It logs under `workdir`; `data` is a folder that its table outlives it in."""

    def __call__(self, workdir: Path, *, progress: Progress = silent, data: Path | None = None) -> TableEngine:
        """Make one, not started yet."""
        ...


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One engine by its name in the setting; `title` tells its version. `jars` are what it needs Java for."""

    name: str
    title: Callable[[], str]
    make: Making
    jars: tuple[JarSet, ...] = ()


REFERENCE: Final = EngineKind("dynamodb-local", lambda: DYNAMODB_LOCAL.directory, DynamoDBLocal, (DYNAMODB_LOCAL,))
NATIVE: Final = EngineKind("dynoxide", title, Dynoxide)
ENGINES: Final = {kind.name: kind for kind in (REFERENCE, NATIVE)}


def chosen_engine(name: str | None = None) -> EngineKind:
    """The engine of that name, else of TENUTO_TABLE_ENGINE, else DynamoDB Local. Raises `ConfigurationError`."""
    return chosen(ENGINES, "table", ENGINE_VARIABLE, name)
