"""Handlers that do everything with marked values: what they read, keep, return, send and publish has the marker in it.

Owns those handlers. Their own errors never quote anything, since the text of an exception is its author's.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import pydantic

from tenuto import (
    Context,
    InvocationRetryPolicy,
    ObjectContext,
    ObjectSharedContext,
    RetryableError,
    RunOptions,
    Service,
    TerminalError,
    VirtualObject,
)
from tenuto.protocol.limits import OUT_BYTES_MAX, STATE_BYTES_MAX, VALUE_BYTES_MAX
from tenuto.protocol.records import Success
from tests.control.marked_world import MARK

NAP = timedelta(seconds=30)
LONG_NAP = timedelta(minutes=10)


class Cargo(msgspec.Struct):
    """An input: what to do, and what must not be seen."""

    act: str
    secret: str = MARK


class Colour(enum.Enum):
    """An input of which no marked value is one."""

    RED = "red"


class Model(pydantic.BaseModel):
    """Another, whose library quotes what it refuses."""

    number: int


class Opaque:
    """A value that has no JSON form."""

    def __repr__(self) -> str:
        return MARK


@dataclass(slots=True)
class Marked:
    """The services, and what the outside was told."""

    box: VirtualObject = field(default_factory=lambda: VirtualObject("box"))
    plain: Service = field(default_factory=lambda: Service("plain"))
    tries: Counter[str] = field(default_factory=Counter)
    awakeables: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Declare the handlers."""
        few = InvocationRetryPolicy(initial_interval=timedelta(milliseconds=50), max_attempts=3)
        self.box.handler("act", retry_policy=few)(self._act)
        self.box.handler("always", retry_policy=InvocationRetryPolicy(max_attempts=2))(self._always)
        self.box.handler("look", kind="shared")(self._look)
        self.plain.handler("act", retry_policy=few)(self._plain)

        async def paint(ctx: ObjectContext, colour: Colour) -> None:
            raise AssertionError("nothing marked is a colour")

        async def fill(ctx: ObjectContext, model: Model) -> None:
            raise AssertionError("nothing marked is a number")

        self.box.handler()(paint)
        self.box.handler()(fill)

    async def _look(self, ctx: ObjectSharedContext, cargo: Cargo) -> Any:
        if cargo.act == "fail":
            raise RuntimeError("no luck")
        return [await ctx.get("kept"), cargo.secret]

    async def _plain(self, ctx: Context, cargo: Cargo) -> str:
        await ctx.run("step", lambda: cargo.secret)
        self._fail(f"plain {cargo.act}", 1)
        return cargo.secret

    async def _always(self, ctx: ObjectContext, cargo: Cargo) -> None:
        if cargo.act == "durably":
            await ctx.run("step", lambda: cargo.secret)
        raise RuntimeError("no luck")

    async def _act(self, ctx: ObjectContext, cargo: Cargo) -> Any:
        return await getattr(self, f"_{cargo.act}")(ctx, cargo.secret)

    # --- what `act` does, by name -----------------------------------------------------------------------------------

    def _fail(self, what: str, times: int, error: type[Exception] = RuntimeError) -> None:
        """Fail the first times that this is come to."""
        self.tries[what] += 1
        if self.tries[what] <= times:
            raise error("no luck")

    async def _remember(self, ctx: ObjectContext, secret: str) -> str:
        ctx.set("kept", {"deep": [secret]})
        return secret

    async def _fails(self, ctx: ObjectContext, secret: str) -> str:
        ctx.set("kept", secret)
        self._fail("fails", 2)
        return secret

    async def _later(self, ctx: ObjectContext, secret: str) -> str:
        ctx.set("kept", secret)
        self._fail("later", 1, RetryableError)
        return secret

    async def _step(self, ctx: ObjectContext, secret: str) -> str:
        got: str = await ctx.run("step", lambda: secret)
        return got

    async def _step_fails(self, ctx: ObjectContext, secret: str) -> None:
        def step() -> str:
            self._fail("step", 2)
            return secret

        await ctx.run("step", step)

    async def _gives_up(self, ctx: ObjectContext, secret: str) -> None:
        def step() -> str:
            raise RuntimeError("no luck")

        await ctx.run("before", lambda: secret)
        await ctx.run_with(RunOptions(max_attempts=2), "step", step)

    async def _refuses(self, ctx: ObjectContext, secret: str) -> None:
        ctx.set("kept", secret)
        raise TerminalError("refused", 409)

    async def _refuses_late(self, ctx: ObjectContext, secret: str) -> None:
        await ctx.run("step", lambda: secret)
        raise TerminalError("refused", 409)

    async def _naps(self, ctx: ObjectContext, secret: str) -> str:
        await ctx.run("before", lambda: secret)
        await ctx.sleep(NAP)
        await ctx.run("after", lambda: secret)
        return secret

    async def _naps_long(self, ctx: ObjectContext, secret: str) -> None:
        await ctx.sleep(LONG_NAP)
        ctx.set("kept", secret)

    async def _asks(self, ctx: ObjectContext, secret: str) -> Any:
        awakeable, answer = ctx.awakeable()
        await ctx.run("hand out", lambda: self.awakeables.append(awakeable))
        try:
            return await answer
        finally:
            ctx.set("kept", secret)

    async def _races(self, ctx: ObjectContext, secret: str) -> Any:
        awakeable, answer = ctx.awakeable()
        await ctx.run("hand out", lambda: self.awakeables.append(awakeable))
        return await ctx.select(answer=answer, timeout=ctx.sleep(LONG_NAP))

    async def _asks_number(self, ctx: ObjectContext, secret: str) -> Any:
        awakeable, answer = ctx.awakeable(int)
        await ctx.run("hand out", lambda: self.awakeables.append(awakeable))
        return await answer

    async def _answers(self, ctx: ObjectContext, secret: str) -> None:
        with contextlib.suppress(TerminalError):
            ctx.resolve_awakeable(secret, secret)
        # As a function of another version might send it, which does not check ids.
        ctx._commands.resolve(secret, Success(secret.encode()))
        ctx.resolve_awakeable(self.awakeables[0], secret)
        ctx.reject_awakeable(self.awakeables[0], secret)
        # This one still waits, and gets two answers.
        ctx.resolve_awakeable(self.awakeables[-1], secret)
        ctx.reject_awakeable(self.awakeables[-1], secret)

    async def _forgets_tasks(self, ctx: ObjectContext, secret: str) -> None:
        async def fails() -> None:
            raise ValueError("what it says is the user's business")

        async def lingers() -> None:
            await ctx.sleep(LONG_NAP)

        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        asyncio.create_task(lingers())  # noqa: RUF006 - the mistake under test
        asyncio.create_task(fails())  # noqa: RUF006 - the mistake under test
        await ctx.run("step", int)
        ctx.set("kept", secret)

    async def _tells(self, ctx: ObjectContext, secret: str) -> None:
        ctx.object_send(self.box.handlers["act"], "other", Cargo("remember", secret))
        ctx.object_send(self.box.handlers["act"], "other", Cargo("fails", secret), send_delay=NAP)
        ctx.service_send(self.plain.handlers["act"], Cargo("told", secret))

    async def _tells_gone(self, ctx: ObjectContext, secret: str) -> None:
        gone = VirtualObject("gone")

        async def act(ctx: ObjectContext, cargo: Cargo) -> None:
            """Served by no function."""

        ctx.object_send(gone.handler()(act), "k", Cargo("x", secret))

    async def _publishes(self, ctx: ObjectContext, secret: str) -> None:
        ctx.publish("out", {"value": secret}, key=secret, headers={"secret": secret})

    async def _publishes_nowhere(self, ctx: ObjectContext, secret: str) -> None:
        ctx.publish("not-there-yet", {"value": secret}, key=secret, headers={"secret": secret})

    async def _publishes_much(self, ctx: ObjectContext, secret: str) -> None:
        ctx.publish("out", secret * (OUT_BYTES_MAX // len(secret) + 1))

    async def _keeps_much(self, ctx: ObjectContext, secret: str) -> None:
        ctx.set("kept", secret * (STATE_BYTES_MAX // len(secret) + 1))

    async def _steps_much(self, ctx: ObjectContext, secret: str) -> None:
        await ctx.run("step", lambda: secret * (VALUE_BYTES_MAX // len(secret) + 1))

    async def _returns_much(self, ctx: ObjectContext, secret: str) -> str:
        return secret * 400_000

    async def _returns_bytes(self, ctx: ObjectContext, secret: str) -> Any:
        return {"a": secret.encode()}

    async def _keeps_opaque(self, ctx: ObjectContext, secret: str) -> None:
        ctx.set("kept", {secret: Opaque()})

    async def _steps_opaque(self, ctx: ObjectContext, secret: str) -> None:
        await ctx.run("step", Opaque)

    async def _keeps_surrogate(self, ctx: ObjectContext, secret: str) -> None:
        ctx.set("kept", secret + "\ud800")

    async def _misreads_state(self, ctx: ObjectContext, secret: str) -> None:
        ctx.set("kept", secret)
        await ctx.get("kept", int)

    async def _misreads_step(self, ctx: ObjectContext, secret: str) -> None:
        await ctx.run_with(RunOptions(type_hint=Model), "step", lambda: secret)
        await ctx.sleep(NAP)

    async def _diverges(self, ctx: ObjectContext, secret: str) -> None:
        await ctx.run("step" if self.tries["diverges"] != 1 else "other", lambda: secret)
        self._fail("diverges", 1)
