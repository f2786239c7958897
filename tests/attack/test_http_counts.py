"""Requests that end with an error of the control plane are counted by reason, and those with a handler's error are not.

Owns the four counts. Does not own which request is answered how (`test_http_inputs`, `test_http_bounds`).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import pytest

from tenuto import ObjectContext, ObjectSharedContext, TerminalError, VirtualObject
from tenuto.service import Services
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_control.core.metrics import Tally
from tenuto_control.dispatcher.room import Room
from tenuto_control.ingress import create_app
from tests.attack.asgi import asked
from tests.costs.meter import CountingTable, Meter
from tests.support.virtual_time import run_virtual

box = VirtualObject("box")


@box.handler()
async def fails(_ctx: ObjectContext, status: int) -> None:
    """Ends as it is told."""
    raise TerminalError("no", status_code=status)


@box.handler(kind="shared")
async def hangs(_ctx: ObjectSharedContext) -> None:
    """Takes longer than anybody waits."""
    await asyncio.sleep(1_000)


class Faulty(CountingTable):
    """Raises `fault` at each read, if there is one."""

    fault: Exception | None = None

    async def get(self, key: Any) -> Any:
        """See `Table.get`."""
        if self.fault is not None:
            raise self.fault
        return await super().get(key)


async def _ready() -> None:
    return None


FOREIGN = ((b"origin", b"https://evil.example"),)
LARGE = b"1" * 5_000_000
ATTACH = "/invocations/inv_Ym94H2sfYzE/output"

CASES: dict[str, tuple[tuple[Any, ...], Exception | None, int, str | None]] = {
    "a handler's 400": (("POST", "/call/box/k/fails", b"400"), None, 400, None),
    "a handler's 503": (("POST", "/call/box/k/fails", b"503"), None, 503, None),
    "nothing is there": (("GET", "/nothing"), None, 404, "HttpRefused"),
    "an unknown service": (("POST", "/call/nobody/k/h"), None, 404, "HttpRefused"),
    "another method": (("PUT", "/call/box/k/fails"), None, 405, "HttpRefused"),
    "a body that is none": (("POST", "/call/box/k/fails", b"{"), None, 400, "HttpRefused"),
    "an id that is none": (("GET", "/invocations/x/output"), None, 400, "HttpRefused"),
    "a large body": (("POST", "/call/box/k/fails", LARGE), None, 413, "HttpRefused"),
    "a foreign page": (("POST", "/call/box/k/fails", b"1", FOREIGN), None, 403, "HttpRefused"),
    "a long address": (("GET", "/" + "x" * 20_000), None, 414, "HttpRefused"),
    "no time": (("POST", "/call/box/k/hangs"), None, 504, "HttpUnanswered"),
    "no table": (("GET", ATTACH), TableUnavailableError("away"), 503, "HttpUnanswered"),
    "a table that refuses": (("GET", ATTACH), TableRefusedError("no"), 500, "HttpBroken"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_of_the_control_plane_is_counted_once_by_its_reason(name: str) -> None:
    request, fault, status, counted = CASES[name]

    async def scenario() -> None:
        tally, table = Tally(), Faulty()
        meter = Meter(Services([box]), table=table)
        app = create_app(meter.dispatcher, meter, ready=_ready, wait_ms_max=1_000, metrics=tally)
        table.fault = fault
        headers = ((b"content-type", b"application/json"), *(request[3] if len(request) > 3 else ()))
        body = request[2] if len(request) > 2 else b""
        assert (await asked(app, request[0], request[1], body, headers))[0] == status
        counts = {key: n for key, n in tally.take().counts.items() if key.startswith("Http")}
        assert counts == ({} if counted is None else {counted: 1})
        table.fault = None
        await meter.dispatcher.kill()

    run_virtual(scenario())


def test_so_it_is_where_there_is_no_room() -> None:
    async def scenario() -> None:
        tally = Tally()
        meter = Meter(Services([box]))
        room = Room(1, 1_000)
        app = create_app(meter.dispatcher, meter, ready=_ready, wait_ms_max=1_000, metrics=tally, room=room)
        waiting = asyncio.create_task(asked(app, "POST", "/call/box/k/hangs"))
        await asyncio.sleep(0.1)
        for path, body in (("/call/box/k/fails", b"400"), ("/call/box/k/fails", b"1" * 2_000)):
            headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
            assert (await asked(app, "POST", path, body, headers))[0] == HTTPStatus.SERVICE_UNAVAILABLE
        assert tally.take().counts == {"HttpOverloaded": 2}
        await waiting
        await meter.dispatcher.kill()

    run_virtual(scenario())
