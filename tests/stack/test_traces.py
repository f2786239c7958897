"""Traces over the wire: a control plane and a function, each a process of its own, send theirs to one collector.

Owns that both sides' spans arrive, in one trace, before a function could be frozen. Does not own which spans there are
(`tests/control/test_traces.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.ports import LOOPBACK, free_port
from tenuto_local.system import System
from tests.stack import app
from tests.stack.world import World, on_the_stack
from tests.support.stack import run

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "[functions.app]\n"
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
CALLER: Final = "b7ad6b7169203331"


@dataclass(slots=True)
class Collector:
    """An OTLP receiver over HTTP: (name of the service, span) of everything it was sent."""

    endpoint: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)
    away: bool = False

    def take(self, body: bytes) -> None:
        """Keep a request's spans. Raises ConnectionAbortedError while nobody is to be here."""
        if self.away:
            raise ConnectionAbortedError
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"]
            self.spans += [(names[0], span) for scope in resource.scope_spans for span in scope.spans]

    def named(self) -> Counter[tuple[str, str]]:
        """Which services sent spans of which names, of the one trace, and how often."""
        return Counter((service, span.name) for service, span in self.spans if span.trace_id.hex() == TRACE)

    def parent(self, name: str) -> str | None:
        """The id or, where it was sent here, the name of the parent of a span of the one trace."""
        ours = [span for _, span in self.spans if span.trace_id.hex() == TRACE]
        span = next(span for span in ours if span.name == name)
        names = {one.span_id: one.name for one in ours}
        return names.get(span.parent_span_id, span.parent_span_id.hex())


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: what arrives is kept."""

    server = ThreadingHTTPServer((LOOPBACK, free_port()), Receiver)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    found.endpoint = f"http://{LOOPBACK}:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        serving.join(10)


@pytest.fixture(scope="module")
def world(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    notes = tmp_path_factory.mktemp("notes") / "notes"
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        # A collector that is away is not waited for.
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    function = FunctionSpec(
        name="app",
        handler="tests.stack.traced_app.handler",
        root=str(ROOT),
        timeout_s=5.0,
        environment={app.NOTES_VARIABLE: str(notes), **variables},
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        system = System([function], topics={}, config_text=CONFIG)
        run(system.start(), timeout_s=600.0)  # the first start on a machine fetches the jars
    try:
        yield World(system, notes)
    finally:
        run(system.stop())


def test_a_call_is_one_trace_from_its_caller_to_its_steps(world: World, collector: Collector) -> None:
    # The sleep cuts the invocation in two.
    wanted = {
        ("tenuto", "activate account/work"): 2,
        ("app", "account/work"): 2,
        ("app", "run before"): 1,
        ("app", "run after"): 1,
    }

    @on_the_stack
    async def call(world: World) -> None:
        path = f"/call/account/{world.key('traced')}/work"
        answer = await world.post(path, app.Job("nap", "nap"), traceparent=f"00-{TRACE}-{CALLER}-01")
        assert (answer.status, answer.body) == (200, "nap")
        await world.eventually(collector.named, wanted)

    call(world)
    assert collector.parent("activate account/work") == CALLER
    assert collector.parent("account/work") == "activate account/work"
    assert collector.parent("run before") == "account/work"


def test_a_collector_that_is_away_holds_up_nothing(collector: Collector, world: World) -> None:
    @on_the_stack
    async def call(world: World) -> None:
        answer = await world.post(f"/call/account/{world.key('traced')}/work", app.Job("note", "here"))
        assert (answer.status, answer.body) == (200, "note")

    collector.away = True
    try:
        call(world)
    finally:
        collector.away = False
