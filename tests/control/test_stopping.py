"""What a caller hears whose call is still waited for when the server stops: over a real socket, by uvicorn's own end.

Owns the answer to given-up requests. Does not own what became of their invocations.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import uvicorn

from tenuto_control.ingress import create_app
from tenuto_local.ports import bind_loopback_socket
from tests.control.in_memory_execution import Context, InMemoryExecution, Services


async def stopped_while_serving() -> httpx.Response:
    """Stop a server while it serves a call; the caller's answer."""
    begun = asyncio.Event()

    async def wait(_ctx: Context, _: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def ready() -> None:
        return None

    services = Services()
    services.register("counter", "exclusive", wait)
    app = create_app(InMemoryExecution(services), services, ready=ready)
    with bind_loopback_socket() as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=0))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # as always_on does
        serving = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            calling = asyncio.create_task(client.post("/call/counter/k/wait", headers={"idempotency-key": "once"}))
            await begun.wait()
            server.should_exit = True
            answer = await calling
        await serving
    return answer


def test_a_call_that_a_stop_gives_up_is_answered_503_and_can_be_repeated() -> None:
    answer = asyncio.run(stopped_while_serving())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-tenuto-invocation-id"].startswith("inv_")
    assert "stopping" in answer.json()["error"]["message"]
    assert "idempotency-key" in answer.json()["error"]["message"]
