"""The function behind both invokers of the contract suite: one handler for each way in which an invocation can end.

Owns the handlers and the requests that reach them. Does not own what an invoker makes of their ends. The same file is
deployed on the embedded stack and served by the twin.
"""

from __future__ import annotations

import asyncio
import os

from tenuto import ObjectContext, VirtualObject, aws
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Activation, Head, encode
from tenuto.protocol.records import CallSource, Event

LONG_S = 60.0
"""Longer than the function may take."""

PAUSE_S = 1.0
LARGE_BYTES = 3_900_000
"""A result that fits into one answer, while two of them do not."""

probe = VirtualObject("probe")


class Ending:
    """How the function's process ends itself; the twin's processes end in another way."""

    async def now(self) -> None:
        """End without an answer, as a crash does."""
        os._exit(3)


ending = Ending()


@probe.handler()
async def echo(_ctx: ObjectContext, text: str) -> str:
    """Answer what came."""
    return text


@probe.handler()
async def pause(_ctx: ObjectContext, text: str) -> str:
    """Answer after a while."""
    await asyncio.sleep(PAUSE_S)
    return text


@probe.handler()
async def hang(_ctx: ObjectContext) -> None:
    """Never answer in time."""
    await asyncio.sleep(LONG_S)


@probe.handler()
async def crash(_ctx: ObjectContext) -> None:
    """End the process."""
    await ending.now()


@probe.handler()
async def large(_ctx: ObjectContext) -> bytes:
    """A large result."""
    return b"x" * LARGE_BYTES


handler = aws.handler(probe)


def event(name: str, argument: bytes | None = None, number: int = 0) -> Event:
    """A call whose caller waits for the result, which is stored nowhere."""
    return Event(str(InvocationId(Lane("probe", "k"), f"c{number}")), name, CallSource(), argument)


def request(name: str, argument: bytes | None = None, times: int = 1) -> bytes:
    """A request to run a handler, so many times in one activation."""
    events = tuple(event(name, argument, number) for number in range(times))
    return encode(Activation("probe", "k", "speculate", Head(), "h", events))


def senseless() -> bytes:
    """A request to resume a run that is not there, which fails the activation as a whole."""
    return encode(Activation("probe", "k", "resume", Head(), "h"))
