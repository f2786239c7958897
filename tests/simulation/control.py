"""A simulated control plane: the production dispatcher, consumer and sweeper in one process that can die.

Owns their wiring to the world's twins. Does not own any of their behaviour.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tenuto_control.dispatcher.dispatcher import Dispatcher
from tenuto_control.loops.consume import Consumer
from tenuto_control.loops.sweep import Sweeper
from tests.simulation.gate import Process

if TYPE_CHECKING:
    from tests.simulation.world import Simulation


class ControlPlane:
    """One process of the group."""

    def __init__(self, world: Simulation, process: Process, rng: random.Random) -> None:
        self.process = process
        self.member = world.kafka.member()
        sink = world.kafka.sink()
        self.dispatcher = Dispatcher(
            world.table,
            world.functions,
            sink,
            world,
            world.scheduler,
            process,
            rng,
            world.limits,
            process.name,
            "tenuto",
        )
        self._consumer = Consumer(self.member, sink, self.dispatcher, world.subscriptions, world.limits, process)
        self._sweeper = Sweeper(world.table, self.dispatcher, process, rng, world.limits)

    def start(self) -> None:
        """Begin to work."""
        self.process.spawn(self._run(), "main")

    async def _run(self) -> None:
        await self.dispatcher.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweeper.run(), name=f"{self.process.name}: sweep")
            tasks.create_task(self._consumer.run(), name=f"{self.process.name}: consume")
