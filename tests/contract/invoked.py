"""The function behind both invokers of the contract suite: one handler for each way in which an invocation can end.

Owns the handlers and the requests that reach them. Does not own what an invoker makes of their ends. The same file is
deployed on the embedded stack and served by the twin.
"""

from __future__ import annotations

import os
import time
from typing import Any

from tenuto import ObjectContext, VirtualObject, aws
from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import Activation, Head, encode
from tenuto.protocol.records import CallSource, Event

WAIT_S = {"pause": 1.0, "hang": 60.0}
"""How long the function waits before it serves a handler: a while, and longer than it may take."""

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
    return text


@probe.handler()
async def hang(_ctx: ObjectContext) -> None:
    """Never answer in time."""


@probe.handler()
async def crash(_ctx: ObjectContext) -> None:
    """End the process."""
    await ending.now()


@probe.handler()
async def large(_ctx: ObjectContext) -> bytes:
    """A large result."""
    return b"x" * LARGE_BYTES


serve = aws.handler(probe)


def handler(request: Any, context: Any) -> Any:
    """Lambda's entry point. It waits outside of the handlers, whose own sleeps are durable."""
    time.sleep(wait_s(request["events"][0]["handler"] if request.get("events") else ""))
    return serve(request, context)


def wait_s(name: str) -> float:
    """How long the function waits before it serves a handler of this name."""
    return WAIT_S.get(name, 0)


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
