"""What looks at requests on their way finds the same with either client: the table's clock, and X-Ray's header.

Owns the equality. Does not own what a date says (`tests/attack/test_clocks`) or traces (`tests/control/test_traces`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from email.utils import formatdate

import pytest

from tenuto.lane.writes import Key
from tenuto.store.aws_client import CLIENT_VARIABLE
from tenuto.store.dynamodb import DynamoTable
from tenuto.store.port import TableRefusedError
from tenuto_control.config import Config
from tenuto_control.core.metrics import Tally
from tenuto_control.drivers import table_clock
from tenuto_control.drivers.aws import open_clients
from tenuto_control.drivers.system import SystemClock
from tenuto_control.drivers.table_clock import DynamoClock
from tests.contract.table_clients import AWS_CLIENTS, use_environment
from tests.wire.servers import Server, answer, ok

MARGIN_MS = 500
HOUR_S = 3_600


@pytest.fixture(params=AWS_CLIENTS)
def _client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLIENT_VARIABLE, request.param)


@pytest.mark.usefixtures("_client")
@pytest.mark.parametrize("status", [200, 400])
def test_the_tables_clock_is_read_from_answers(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_clock, "READING_INTERVAL_S", float(HOUR_S))
    tally = Tally()
    dated = answer(status, b"{}", b"date: " + formatdate(time.time() - HOUR_S, usegmt=True).encode())

    async def main(url: str) -> None:
        use_environment(monkeypatch, url)
        async with open_clients(Config(functions={})) as clients:
            clock = DynamoClock(clients.dynamodb, SystemClock(), MARGIN_MS, tally)
            table = DynamoTable(clients.dynamodb, "lanes")
            for _ in range(3):
                with suppress(TableRefusedError):
                    await table.get(Key("a", "H"))
            assert clock.check is not None
            assert abs(clock.check.offset_ms - HOUR_S * 1_000) < 60_000
            assert clock.check.differs(MARGIN_MS)

    with Server(lambda _number, _request: [dated]) as server:
        asyncio.run(main(f"http://127.0.0.1:{server.port}"))
        assert len(server.requests) == 3
    # The answers between two readings pass by without being looked at.
    assert len(tally.take().samples["ClockDifferenceMs"]) == 1


OWN = "Root=1-67891233-abcdef012345678912345678;Parent=463ac35c9f6413ad;Sampled=1"
NAMED = "Root=1-00000000-000000000000000000000001;Parent=0000000000000002;Sampled=1"


@pytest.mark.usefixtures("_client")
@pytest.mark.parametrize(
    ("function", "segment", "named", "sent"),
    [
        (None, None, None, None),
        (None, None, NAMED, NAMED),
        ("dispatcher", OWN, None, OWN),
        ("dispatcher", OWN, NAMED, OWN),
        ("dispatcher", "Root=1;lineage=a b", None, "Root=1;lineage=a%20b"),
    ],
    ids=["none", "the span", "the function", "the function and not the span", "escaped"],
)
def test_invocations_name_a_segment(
    function: str | None, segment: str | None, named: str | None, sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AWS_LAMBDA_FUNCTION_NAME", function), ("_X_AMZN_TRACE_ID", segment)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    async def main(url: str) -> None:
        use_environment(monkeypatch, url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", url)
        async with open_clients(Config(functions={})) as clients:
            clients.lambda_.name_segments(lambda: named)
            await clients.lambda_.call("f", None, b"{}")

    with Server(lambda _number, _request: [ok()]) as server:
        asyncio.run(main(f"http://127.0.0.1:{server.port}"))
        (request,) = server.requests
    headers = [line for line in request.split(b"\r\n") if line.lower().startswith(b"x-amzn-trace-id:")]
    assert [line.partition(b": ")[2].decode() for line in headers] == ([] if sent is None else [sent])
