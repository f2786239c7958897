"""One suite over the simulated Lambda and the driver on the embedded stack: what the FunctionInvoker port promises.

Owns the port's contract, and that the client behind the real driver invokes once. Does not own the words of the
driver's errors (`test_aws_drivers`) nor Lambda's own behaviour (`tests/local`).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import pytest

from tenuto.protocol.messages import (
    Activation,
    EventResult,
    Pooled,
    Speculated,
    decode_outcome,
    decode_outcomes,
    decode_request,
    encode,
)
from tenuto.protocol.records import Success
from tenuto.service import Services
from tenuto.store.aws_client import CLIENT_VARIABLE
from tenuto_control.config import Config, FunctionConfig
from tenuto_control.drivers.aws import AwsClients, invoke_settings, open_clients
from tenuto_control.drivers.aws_wire import WireLambda
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    FunctionBrokenError,
    FunctionFailedError,
    FunctionInvoker,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    PayloadTooLargeError,
)
from tenuto_local import EmbeddedStack, FunctionSpec
from tests.contract import invoked
from tests.contract.conftest import NOBODY, WithClients
from tests.contract.invoked import event, request, senseless
from tests.contract.table_clients import AWS_CLIENTS
from tests.simulation.faults import FaultPlan, Rates
from tests.simulation.gate import Gate, Process, adopt, current, never
from tests.simulation.loop import SimulatedLoop
from tests.simulation.twins import GatedTable, SimulatedLambda, World
from tests.support.stack import register, run

ROOT = Path(__file__).resolve().parents[2]
FUNCTION = "sim"
TIMEOUT_S = 2
IDLE_POLL_S = 0.02
TOO_MUCH = b'"' + b"x" * 6_300_000 + b'"'
"""An argument above what a synchronous invocation carries (6,291,456 bytes)."""

LAMBDA_TIMEOUT_S_MAX = 900
"""The longest a function can run (AWS Lambda quotas)."""

Surroundings: TypeAlias = Literal["sound", "narrow", "refusing", "silent"]
"""All is well; the function has one place; every connection is refused; no answer arrives."""

Scenario = Callable[[FunctionInvoker], Coroutine[Any, Any, None]]


class Backend(Protocol):
    """Plays a scenario with an invoker that knows the function "sim"."""

    def __call__(self, scenario: Scenario, surroundings: Surroundings = "sound") -> None: ...


class SlowLambda(SimulatedLambda):
    """Waits before it serves a handler, as the function on the stack does."""

    async def _serve(self, process: Process, payload: bytes, end: Callable[[bytes | str], None]) -> None:
        asked = decode_request(payload)
        if isinstance(asked, Activation) and asked.events:
            await asyncio.sleep(invoked.wait_s(asked.events[0].handler))
        await super()._serve(process, payload, end)


def twin(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The simulation's Lambda, on virtual time."""

    class Killed(invoked.Ending):
        async def now(self) -> None:
            process = current.get()
            assert process is not None
            process.kill()
            await never()

    monkeypatch.setattr(invoked, "ending", Killed())
    faults = {
        "sound": Rates(),
        "narrow": Rates(),
        "refusing": Rates(invoke_unreachable=1.0),
        "silent": Rates(answer_lost=1.0),
    }

    def play(scenario: Scenario, surroundings: Surroundings = "sound") -> None:
        loop = SimulatedLoop()
        loop.adopt = adopt
        gate = Gate(loop, FaultPlan(random.Random(1), faults[surroundings]))
        table = GatedTable(World(lambda *_: None), gate)
        functions = SlowLambda(Services([invoked.probe]), table, gate, random.Random(1), lambda _line: None)
        functions.timeout_ms = TIMEOUT_S * 1_000
        functions.concurrency_max = 1 if surroundings == "narrow" else 4
        try:
            loop.run_until_complete(scenario(functions))
        finally:
            loop.abandon()

    return play


@pytest.fixture(scope="module")
def functions(stack: EmbeddedStack) -> EmbeddedStack:
    """The stack with the function, once with room and once with a single place."""
    register(
        stack,
        *(
            FunctionSpec(
                name=name,
                handler="tests.contract.invoked.handler",
                root=str(ROOT),
                timeout_s=float(TIMEOUT_S),
                concurrency=places,
            )
            for name, places in (("invoked", 4), ("invoked-narrow", 1))
        ),
    )
    return stack


def driver(with_clients: WithClients) -> Backend:
    """The real driver, with the client that the control plane opens."""

    def play(scenario: Scenario, surroundings: Surroundings = "sound") -> None:
        name = "invoked-narrow" if surroundings == "narrow" else "invoked"
        limits = Limits(invoke_read_timeout_ms=200) if surroundings == "silent" else None

        async def opened(clients: AwsClients) -> None:
            await scenario(LambdaInvoker(clients.lambda_, {FUNCTION: FunctionConfig(function=name)}))

        with_clients(opened, limits, NOBODY if surroundings == "refusing" else None)

    return play


async def idle(stack: EmbeddedStack) -> None:
    """Wait until no invocation is under way."""
    while True:
        described = (await stack.describe_functions()).values()
        if not any(one["queued"] or any(worker["request_id"] for worker in one["workers"]) for one in described):
            return
        await asyncio.sleep(IDLE_POLL_S)


@pytest.fixture(params=["twin", *(pytest.param(client, marks=pytest.mark.stack) for client in AWS_CLIENTS)])
def play(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The twin, and the driver over either client."""
    if request.param == "twin":
        return twin(monkeypatch)
    monkeypatch.setenv(CLIENT_VARIABLE, request.param)
    # What the test before left running, such as an attempt whose answer nobody awaited, holds a place of the function.
    run(idle(request.getfixturevalue("functions")))
    return driver(request.getfixturevalue("with_clients"))


async def answers(invoker: FunctionInvoker, text: str) -> None:
    """The function is there and does what it is asked."""
    answer = await invoker.invoke(FUNCTION, request("echo", f'"{text}"'.encode()))
    expected = Speculated((EventResult(event("echo").id, Success(f'"{text}"'.encode())),))
    assert decode_outcome(answer) == expected


def test_the_answer_is_the_functions_outcome(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        await answers(invoker, "hello")
        await answers(invoker, "é")

    play(scenario)


def test_invocations_run_side_by_side_and_each_has_its_own_answer(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        texts = [f'"{number}"'.encode() for number in range(4)]
        found = await asyncio.gather(*(invoker.invoke(FUNCTION, request("pause", text)) for text in texts))
        outcomes = [decode_outcome(answer) for answer in found]
        assert outcomes == [Speculated((EventResult(event("pause").id, Success(text)),)) for text in texts]

    play(scenario)


def test_one_invocation_carries_several_activations_and_an_answer_to_each(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        activations = [decode_request(request("echo", f'"{number}"'.encode())) for number in range(3)]
        pooled = Pooled(tuple(one for one in activations if isinstance(one, Activation)))
        answer = await invoker.invoke(FUNCTION, encode(pooled))
        expected = [
            Speculated((EventResult(event("echo").id, Success(f'"{number}"'.encode())),)) for number in range(3)
        ]
        assert list(decode_outcomes(answer).outcomes) == expected

    play(scenario)


def test_an_unknown_function_is_missing(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        with pytest.raises(FunctionMissingError, match="unheard"):
            await invoker.invoke("unheard", request("echo", b'""'))

    play(scenario)


def test_a_request_above_six_megabytes_is_refused_and_the_next_is_not(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        with pytest.raises(PayloadTooLargeError):
            await invoker.invoke(FUNCTION, request("echo", TOO_MUCH))
        await answers(invoker, "again")

    play(scenario)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(request("large", times=2), id="an answer above six megabytes"),
        pytest.param(senseless(), id="an error"),
        pytest.param(request("hang"), id="a time-out"),
        pytest.param(request("crash"), id="a crash"),
    ],
)
def test_a_function_that_gives_no_outcome_has_failed_and_serves_again(play: Backend, payload: bytes) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        with pytest.raises(FunctionFailedError):
            await invoker.invoke(FUNCTION, payload)
        await answers(invoker, "again")

    play(scenario)


def test_an_answer_just_below_six_megabytes_arrives(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        outcome = decode_outcome(await invoker.invoke(FUNCTION, request("large")))
        assert outcome == Speculated((EventResult(event("large").id, Success(b"x" * invoked.LARGE_BYTES)),))

    play(scenario)


def test_no_place_is_throttling_and_passes(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        busy = asyncio.ensure_future(invoker.invoke(FUNCTION, request("pause", b'"first"')))
        await asyncio.sleep(0.3)
        with pytest.raises(FunctionThrottledError):
            await invoker.invoke(FUNCTION, request("echo", b'"second"'))
        assert decode_outcome(await busy) == Speculated((EventResult(event("pause").id, Success(b'"first"')),))
        await answers(invoker, "third")

    play(scenario, "narrow")


def test_a_refused_connection_is_unreachable(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        with pytest.raises(FunctionUnreachableError):
            await invoker.invoke(FUNCTION, request("echo", b'""'))

    play(scenario, "refusing")


def test_an_answer_that_never_comes_is_unreachable(play: Backend) -> None:
    async def scenario(invoker: FunctionInvoker) -> None:
        with pytest.raises(FunctionUnreachableError):
            await invoker.invoke(FUNCTION, request("pause", b'""'))

    play(scenario, "silent")


# --- the client invokes once -----------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
SILENCE = b""


class Endpoint:
    """A server that counts requests and gives each the next of its answers; an empty one closes the connection."""

    def __init__(self, *answers: bytes) -> None:
        self.requests = 0
        self._answers = answers
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._open.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                answer = self._answers[min(self.requests, len(self._answers) - 1)]
                self.requests += 1
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    @asynccontextmanager
    async def opened(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Clients that talk to this server."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        async with server, open_clients(Config(functions={})) as clients:
            try:
                yield LambdaInvoker(clients.lambda_, {FUNCTION: FunctionConfig()})
            finally:
                for writer in self._open:
                    writer.close()


@pytest.fixture(params=AWS_CLIENTS)
def eager_to_retry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Credentials, and an environment that asks every AWS client for several attempts."""
    monkeypatch.setenv(CLIENT_VARIABLE, request.param)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    return monkeypatch


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(SILENCE, FunctionUnreachableError, id="the connection is lost"),
        pytest.param(BROKEN, FunctionUnreachableError, id="the service is broken"),
        pytest.param(BUSY, FunctionThrottledError, id="the service is busy"),
    ],
)
def test_the_client_never_invokes_a_second_time(
    eager_to_retry: pytest.MonkeyPatch, answer: bytes, error: type[Exception]
) -> None:
    async def scenario() -> None:
        endpoint = Endpoint(answer, OK)
        async with endpoint.opened(eager_to_retry) as invoker:
            with pytest.raises(error):
                await invoker.invoke(FUNCTION, b"{}")
            assert endpoint.requests == 1

    run(scenario())


def test_a_connection_that_was_used_before_and_breaks_is_no_reason_to_invoke_again(
    eager_to_retry: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        endpoint = Endpoint(OK, SILENCE, OK)
        async with endpoint.opened(eager_to_retry) as invoker:
            assert await invoker.invoke(FUNCTION, b"{}") == b"{}"
            with pytest.raises(FunctionUnreachableError):
                await invoker.invoke(FUNCTION, b"{}")
            assert endpoint.requests == 2

    run(scenario())


def test_the_client_outwaits_the_slowest_function(eager_to_retry: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        eager_to_retry.delenv(CLIENT_VARIABLE)
        settings: Any = invoke_settings(Limits(), 1)
        assert settings.retries["total_max_attempts"] == 1
        assert settings.read_timeout > LAMBDA_TIMEOUT_S_MAX
        async with open_clients(Config(functions={})) as clients:
            assert isinstance(clients.lambda_, WireLambda)
            assert clients.lambda_._http.timeouts.read_s == settings.read_timeout

    run(scenario())


UNIMPORTABLE = {
    "module": ("import there_is_no_such_module", "Runtime.ImportModuleError: "),
    "syntax": ("def handler(:", "Runtime.UserCodeSyntaxError: "),
    "handler": ("other = 1", "Runtime.HandlerNotFound: "),
    "declaration": ("from tenuto import aws\nhandler = aws.handler()", "ValueError: aws.handler() serves nothing"),
}
"""The code of functions that cannot be imported, and what AWS's runtime client says of them."""


@pytest.mark.stack
def test_code_that_cannot_be_imported_is_told_once_on_lambda(
    functions: EmbeddedStack, with_clients: WithClients, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, (code, _) in UNIMPORTABLE.items():
        (tmp_path / f"broken_{name}.py").write_text(code + "\n", "utf-8")
    specs = [FunctionSpec(name=name, handler=f"broken_{name}.handler", root=str(tmp_path)) for name in UNIMPORTABLE]
    register(functions, *specs)

    async def opened(clients: AwsClients) -> None:
        invoker = LambdaInvoker(clients.lambda_, {name: FunctionConfig() for name in UNIMPORTABLE})
        for name, (_, said) in UNIMPORTABLE.items():
            for _ in range(2):
                with pytest.raises(FunctionBrokenError, match=rf'"{name}" cannot be imported: {re.escape(said)}'):
                    await invoker.invoke(name, request("echo", b'""'))

    with_clients(opened)
    told = [record.getMessage() for record in caplog.records if record.name == "tenuto.dispatcher"]
    assert [line.split('"')[1] for line in told] == [*UNIMPORTABLE]
    assert 'broken_declaration.py", line 2, in <module>' in told[-1]
