"""When a control plane counts as ended: by itself, and not when whoever started it stops or replaces it.

Owns `ControlPlane`'s own account of its process. The process is a small HTTP server under the control plane's name.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tenuto_local.system import ControlPlane
from tests.support import bounded

SERVER = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


HTTPServer((os.environ["TENUTO_HTTP_HOST"], int(os.environ["TENUTO_HTTP_PORT"])), Handler).serve_forever()
"""
EVENTUALLY_S = 20.0


@pytest.fixture
def plane(tmp_path: Path) -> ControlPlane:
    """A control plane that has not been started."""
    package = tmp_path / "tenuto_control"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return ControlPlane("control plane 1", tmp_path / "tenuto.toml", tmp_path / "plane.log", environment)


async def seen_while(plane: ControlPlane, ending: Callable[[], Awaitable[None]]) -> set[bool]:
    """What a watcher sees of `ended` while the control plane is ended, and after it."""
    task = asyncio.ensure_future(ending())
    seen = set()
    while not task.done():
        seen.add(plane.ended)
        await asyncio.sleep(0)
    await task
    return seen | {plane.ended}


@pytest.mark.parametrize("way", ["stop", "kill", "restart"])
def test_one_that_is_stopped_or_replaced_has_not_ended_by_itself(plane: ControlPlane, way: str) -> None:
    async def session() -> set[bool]:
        await plane.start()
        try:
            return await seen_while(plane, getattr(plane, way))
        finally:
            await plane.kill()

    assert bounded.run(session()) == {False}


def test_one_whose_process_dies_has_ended(plane: ControlPlane) -> None:
    bounded.run(plane.start())
    try:
        os.kill(plane.pid, signal.SIGKILL)
        deadline = time.monotonic() + EVENTUALLY_S
        while not plane.ended:
            assert time.monotonic() < deadline, "the dead process still counts as running"
            time.sleep(0.01)
    finally:
        bounded.run(plane.kill())
