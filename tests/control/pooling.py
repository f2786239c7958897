"""A control plane whose function serves few invocations at a time, which lanes may share.

Owns the function, its handlers and a load. Does not own what is expected of it (`test_pools`, `test_beside`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.protocol.limits import BESIDE_MS_MAX, POOLED_MAX
from tenuto.protocol.messages import Activation, Outcome, Pooled, decode_request, encode
from tenuto.runtime.activation import activate
from tenuto.runtime.beside import run_beside
from tenuto.runtime.environment import Beside, Environment, InlineWriteLoop
from tenuto.runtime.placement import QuickSteps
from tenuto.runtime.pool import run_pooled
from tenuto.service import Services
from tenuto_control.dispatcher.pools import Sharing
from tenuto_control.limits import Limits
from tenuto_control.ports import AnswerHolder, InvokeError, Target
from tests.costs.meter import FUNCTION_TIMEOUT_MS, Meter, at_once

KEYS = 40
TAKES_S = 0.005


@dataclass(slots=True)
class Pooling(Meter):
    """A control plane whose function serves `places` invocations at a time, of which each takes a while.

    `asked` is how many activations each invocation carried; `broken` fails those that are pooled, or `garbled`
    is what they answer: without having run, unless they break after that. An invocation takes
    `takes_s` before it begins, one of several lanes `holds_s` besides before it answers. One that `is_old` does not
    know of lanes side by side, whatever it tells.
    """

    places: int = 1
    pools: int = POOLED_MAX
    beside: int = 0
    takes_s: float = TAKES_S
    holds_s: float = 0.0
    asked: list[int] = field(default_factory=list)
    running: int = 0
    running_most: int = 0
    broken: InvokeError | None = None
    garbled: bytes | None = None
    breaks_after: bool = False
    is_old: bool = False
    quick: QuickSteps = field(default_factory=QuickSteps)

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        found = Meter.find(self, service)
        if found is None:
            return None
        return Target("f", found.manifest, FUNCTION_TIMEOUT_MS, self.places, self.pools, self.beside)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        request = decode_request(payload)
        self.asked.append(len(request.activations) if isinstance(request, Pooled) else 1)
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        assert self.running <= self.places
        try:
            await asyncio.sleep(self.takes_s)
            if not isinstance(request, Pooled):
                return await Meter.invoke(self, function, payload, room)
            broken, garbled = self.broken, self.garbled
            answer = b"" if (broken or garbled) and not self.breaks_after else await self._together(request)
            if broken is not None:
                raise broken
            return answer if garbled is None else garbled
        finally:
            self.running -= 1

    def sharing(self, handler: str) -> Sharing:
        """How work of a handler may share invocations now."""
        target = self.find("box")
        assert target is not None
        return self.dispatcher._parts.quick.sharing(("box", handler), target)

    async def _together(self, request: Pooled) -> bytes:
        now_ms = self.clock.now_ms
        env = Environment(self.table, now_ms, now_ms() + FUNCTION_TIMEOUT_MS, InlineWriteLoop(), at_once)

        def alone(one: Activation) -> Awaitable[Outcome]:
            return activate(one, self.services, replace(env, pooled=True))

        def beside(one: Activation) -> Awaitable[Outcome]:
            others = Beside(now_ms() + BESIDE_MS_MAX, self.quick)
            return activate(one, self.services, replace(env, writes=InlineWriteLoop(), beside=others))

        if not request.beside or self.is_old:
            return encode(await run_pooled(request, alone, now_ms))
        answer = encode(await run_beside(request, beside))
        await asyncio.sleep(self.holds_s)
        return answer


def declared(done: list[str]) -> VirtualObject:
    box = VirtualObject("box")

    @box.handler()
    async def quick(ctx: ObjectContext, number: int) -> int:
        done.append(ctx.key)
        ctx.set("count", (await ctx.get("count", int) or 0) + 1)
        return number

    @box.handler()
    async def steps(ctx: ObjectContext, number: int) -> int:
        await ctx.run("step", done.append, ctx.key)
        ctx.set("count", (await ctx.get("count", int) or 0) + 1)
        return number

    @box.handler(retry_policy=InvocationRetryPolicy(max_attempts=1))
    async def once(ctx: ObjectContext, number: int) -> int:
        done.append(ctx.key)
        ctx.set("count", number)
        return number

    @box.handler()
    async def bulky(ctx: ObjectContext, text: str) -> None:
        ctx.set("text", text)
        ctx.set("count", 1)

    return box


def pooling(box: VirtualObject, *, places: int = 1, pools: int = POOLED_MAX, beside: int = 0) -> Pooling:
    return Pooling(Services([box]), Limits(quick_in_a_row=1), places=places, pools=pools, beside=beside)


async def shown(box: VirtualObject, handler: str, value: bytes = b"1", *, places: int = 1, beside: int = 0) -> Pooling:
    """A control plane that has seen how quick a handler is."""
    meter = pooling(box, places=places, beside=beside)
    await show(meter, box, handler, value)
    return meter


async def show(meter: Pooling, box: VirtualObject, handler: str, value: bytes = b"1") -> None:
    """Have one event of a handler run, on a key of its own."""
    meter.deliver(box.handlers[handler], "first", value)
    await meter.quiet()


async def delivered(meter: Pooling, box: VirtualObject, handler: str, keys: int = KEYS, value: bytes = b"1") -> None:
    """One record for each of so many keys, at once, behind one that shows how quick its handler is."""
    await show(meter, box, handler, value)
    meter.asked.clear()
    for number in range(keys):
        meter.deliver(box.handlers[handler], f"k{number}", value)
    await meter.quiet()
    assert meter.running_most <= meter.places
    for number in range(keys):
        assert meter.head("box", f"k{number}").state["count"] == b"1"
    assert sorted(meter.released) == list(range(keys + 1))
    await meter.dispatcher.stop()
