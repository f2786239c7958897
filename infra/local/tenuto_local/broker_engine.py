"""The broker of the embedded stack: one small port, and the engines that implement it.

Owns what each needs on the machine, and which one is taken when none is asked for: Apache Kafka, the reference, where
Java and its jars can be had, because topics outlive it; tansu elsewhere. Does not own the engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tenuto_local import tansu
from tenuto_local.cache import Progress
from tenuto_local.engine_choice import chosen
from tenuto_local.errors import PrerequisiteMissing
from tenuto_local.jars import KAFKA_BROKER, JarSet
from tenuto_local.kafka_broker import KafkaBroker
from tenuto_local.tansu import Tansu

ENGINE_VARIABLE: Final = "TENUTO_BROKER_ENGINE"


class Broker(Protocol):
    """One process that serves Kafka's protocol on the loopback interface."""

    @property
    def bootstrap_servers(self) -> str:
        """`host:port`, valid once started."""
        ...

    @property
    def pid(self) -> int:
        """The process id; raises `ProcessFailed` when it does not run."""
        ...

    async def start(self) -> None:
        """Fetch what is missing, then start and wait until clients are served. Raises `LocalStackError`."""
        ...

    async def stop(self) -> None:
        """Stop it; nothing happens when it does not run."""
        ...

    async def kill(self) -> None:
        """SIGKILL it."""
        ...

    async def restart(self) -> None:
        """Start it again at the same port."""
        ...


class Making(Protocol):
    """How an engine is made. It logs under `workdir`, and keeps its data there if it keeps any."""

    def __call__(self, workdir: Path, port: int | None, progress: Progress) -> Broker:
        """Make one, not started yet."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerKind:
    """One engine by its name in the setting. `jars` are what it needs Java for; `keeps` if topics outlive it."""

    name: str
    make: Making
    keeps: bool
    jars: tuple[JarSet, ...] = ()


REFERENCE: Final = BrokerKind("kafka", KafkaBroker, True, (KAFKA_BROKER,))
NATIVE: Final = BrokerKind("tansu", Tansu, False)
ENGINES: Final = {kind.name: kind for kind in (REFERENCE, NATIVE)}


def chosen_broker(name: str | None = None) -> BrokerKind:
    """The engine of that name, else of TENUTO_BROKER_ENGINE, else Apache Kafka. Raises `ConfigurationError`."""
    return chosen(ENGINES, "broker", ENGINE_VARIABLE, name)


def best_broker(missing_for_kafka: str | None) -> BrokerKind:
    """Apache Kafka unless something is missing for it, else tansu. Raises `PrerequisiteMissing` with the ways out."""
    if missing_for_kafka is None:
        return REFERENCE
    if tansu.available():
        return NATIVE
    raise PrerequisiteMissing(
        f"no broker can be started: {missing_for_kafka} That is for Apache Kafka; without Java: {tansu.HOW_TO_GET}; "
        "or name a broker with --kafka HOST:PORT"
    )
