"""Whether an attempt continues, and what has ended it.

Owns the reason why an attempt is over, and how that is told to the handler's code and to durable work. Does not own
what follows from the end (`activation`).
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from tenuto.errors import Suspension

T = TypeVar("T")

UNWOUND_MAX: Final = 100
"""How often a handler whose attempt is over is told so before it is left behind."""


class Unwind(Suspension):
    """Ends a handler's coroutine because its attempt is over: suspended, fenced or failed."""


class OutOfTimeError(Exception):
    """The function's deadline is near: the invocation continues in the next function, at once."""


class Ending:
    """How one attempt stands: `open` while it continues, afterwards `suspended`, or failed by an `error`.

    `returned`: its handler has ended, and what is left of its tasks issues no command.
    """

    def __init__(self) -> None:
        self.open = True
        self.suspended = False
        self.error: BaseException | None = None
        self.returned = False
        self._unwound = 0

    def suspend(self) -> None:
        """The invocation waits; a later attempt continues with it."""
        self.open, self.suspended = False, True

    def fail(self, error: BaseException) -> None:
        """The attempt fails with this, unless it has failed already."""
        self.open, self.error = False, self.error or error

    def goes_on(self) -> bool:
        """Whether the attempt continues. Raises Unwind when it does not.

        A handler may swallow that and try again. Then it is not told any more: whatever it awaits next never comes, and
        so it is left behind.
        """
        if self.open:
            return True
        self._unwound += 1
        if self._unwound <= UNWOUND_MAX:
            raise Unwind
        return False

    async def durably(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of durable work. Its failure fails the attempt, and raises Unwind."""
        try:
            return await work
        except Exception as e:
            self.fail(e)
            raise Unwind from e
