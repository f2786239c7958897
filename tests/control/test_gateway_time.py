"""A request by way of API Gateway, which waits for 29 s: it has its answer before that, whatever runs or is missing.

Owns the time from the gateway's own clock to the end of the invocation. Does not own the ingress (`test_ingress`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.service import Services
from tenuto_control.ingress import create_app
from tenuto_control.limits import SERVERLESS, Limits
from tenuto_control.ports import AnswerHolder
from tests.control.test_continuations import Apart
from tests.support.virtual_time import run_virtual

AGE_S_MAX = 25.0
LIMITS = Limits(**SERVERLESS)


@dataclass(slots=True)
class Computing(Apart):
    """Functions that compute for a while before they answer, and can be asked nothing meanwhile."""

    compute_s: float = 0.0
    answers: set[asyncio.Task[Any]] = field(default_factory=set)

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        await asyncio.sleep(self.compute_s)
        return await Apart.invoke(self, function, payload)


def box() -> VirtualObject:
    box = VirtualObject("box")

    @box.handler()
    async def computes(ctx: ObjectContext, n: int) -> int:
        ctx.set("n", n)
        return n

    @box.handler()
    async def steps(ctx: ObjectContext, n: int) -> int:
        await ctx.run("slow", asyncio.sleep, 33)
        return n

    return box


async def asked(f: Computing, handler: str, cold_s: float, unanswered: tuple[str, ...] = ()) -> tuple[int, float]:
    """The status of a call and its age when the invocation has ended, after a cold start."""

    async def ready() -> str | None:
        return None

    app = create_app(
        f.dispatcher,
        f,
        ready=ready,
        wait_ms_max=LIMITS.http_wait_ms_max,
        unanswered=lambda: dict.fromkeys(unanswered, "no answer"),
        now_ms=f.clock.now_ms,
    )
    taken_ms = f.clock.now_ms()
    path = f"/call/{handler}"
    context = {"http": {"method": "POST", "path": path}, "timeEpoch": taken_ms}

    async def gateway(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "aws.event": {"version": "2.0", "rawPath": path, "requestContext": context}}, receive, send)

    await asyncio.sleep(cold_s)
    transport = httpx.ASGITransport(app=gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://tenuto", timeout=None) as http:
        answer = await http.post(path, json=1)
    await f.serverless.answered()
    return answer.status_code, (f.clock.now_ms() - taken_ms) / 1_000


@pytest.mark.parametrize("handler", ["computes", "steps"])
@pytest.mark.parametrize("cold_s", [0.0, 3.1])
def test_a_202_has_left_by_25_seconds_of_the_requests_own_age(handler: str, cold_s: float) -> None:
    """Found from outside: after 28.1 s from cold, and not before 33 s for a handler that takes no durable action."""

    async def scenario() -> None:
        f = Computing(Services([box()]), limits=LIMITS, compute_s=33.0 if handler == "computes" else 0.0)
        status, age_s = await asked(f, f"box/k/{handler}", cold_s)
        assert status == 202
        assert AGE_S_MAX - 2 < age_s <= AGE_S_MAX

    run_virtual(scenario())


def test_a_service_that_may_be_of_a_function_that_did_not_answer_is_not_said_to_be_none() -> None:
    async def scenario() -> None:
        f = Computing(Services([box()]), limits=LIMITS)
        assert (await asked(f, "mail/post", 0.0, unanswered=("post",)))[0] == 503
        assert (await asked(f, "mail/post", 0.0))[0] == 404
        assert (await asked(f, "box/k/computes", 0.0, unanswered=("post",)))[0] == 200

    run_virtual(scenario())
