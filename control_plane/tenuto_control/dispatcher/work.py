"""Work that waits in a lane's queue in this process.

Owns the two kinds of it and what "finished" means for each. Does not own their order or execution.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from tenuto.protocol.messages import Head
from tenuto.protocol.records import Event, Result


@dataclass(slots=True, eq=False)
class KafkaWork:
    """A Kafka event whose offset is held until `released` is called; here since `since_ms`."""

    event: Event
    released: Callable[[], None]
    since_ms: int
    withdrawn: bool = False

    def renew(self, again: KafkaWork) -> None:
        """The event was delivered again, after its partition had gone and come back."""
        self.released = again.released
        self.withdrawn = False

    def release(self) -> None:
        """Let go of the offset, unless the partition has gone to someone else."""
        if not self.withdrawn:
            self.released()


@dataclass(slots=True, eq=False)
class CallWork:
    """A call whose caller waits in this process.

    `keep` asks for the result to be stored, because the caller went away with the id. `tentative` is a result whose
    commit may or may not have taken place. `checked` is the head for which the absence of a stored result was made
    sure; an `attempted` call may have one although none was asked for.
    """

    event: Event
    answer: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    keep: bool = False
    tentative: Result | None = None
    checked: Head | None = None
    attempted: bool = False

    def finish(self, result: Result) -> None:
        """Give the caller the result."""
        if not self.answer.done():
            self.answer.set_result(result)


Work: TypeAlias = KafkaWork | CallWork
