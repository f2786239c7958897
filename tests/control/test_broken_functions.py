"""A function whose code cannot be imported: said once, with its place, and no event is blamed for it.

Owns what becomes of Lambda's answers for such functions. Does not own other answers (`tests/contract`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject
from tenuto.service import Services
from tenuto_control.config import FunctionConfig
from tenuto_control.drivers.invoke_client import Invoked
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.ports import (
    AnswerHolder,
    FunctionBrokenError,
    FunctionFailedError,
    InvokeError,
)
from tests.costs.meter import Meter
from tests.support.virtual_time import run_virtual

LANES = 20

MISSING_MODULE = {
    "errorType": "Runtime.ImportModuleError",
    "errorMessage": "Unable to import module 'app': No module named 'shop'",
    "stackTrace": [],
}
DECLARATION = {
    "errorType": "TypeError",
    "errorMessage": "orders/place is not an async function",
    "stackTrace": [
        '  File "/var/runtime/bootstrap.py", line 60, in _get_handler\n    m = importlib.import_module(modname)\n',
        '  File "/var/task/app.py", line 7, in <module>\n    @orders.handler()\n',
    ],
}
IN_A_HANDLER = {
    "errorType": "ProtocolError",
    "errorMessage": "this function takes tenuto activations",
    "stackTrace": ['  File "/var/task/tenuto/aws.py", line 60, in __call__\n    request = activation.read(event)\n'],
}


class Client:
    """A function that answers by turns."""

    def __init__(self, *answers: Any) -> None:
        self._answers = [*answers]

    async def call(self, _function: str, _qualifier: str | None, _payload: bytes, _room: object) -> Invoked:
        answer = self._answers.pop(0)
        return Invoked(json.dumps(answer).encode(), failed=answer != "well")


def outcomes(*answers: Any) -> list[InvokeError | bytes]:
    async def main() -> list[InvokeError | bytes]:
        invoker = LambdaInvoker(cast("Any", Client(*answers)), {"f": FunctionConfig()})
        found: list[InvokeError | bytes] = []
        for _ in answers:
            try:
                found.append(await invoker.invoke("f", b"{}"))
            except InvokeError as e:
                found.append(e)
        return found

    return asyncio.run(main())


@pytest.mark.parametrize("answer", [MISSING_MODULE, DECLARATION], ids=["module", "declaration"])
def test_what_cannot_be_imported_is_as_good_as_missing(answer: dict[str, Any]) -> None:
    (found,) = outcomes(answer)
    assert isinstance(found, FunctionBrokenError)
    assert str(found).startswith(f'function "f" cannot be imported: {answer["errorType"]}: ')


def test_it_is_said_once_with_the_users_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tenuto"):
        outcomes(DECLARATION, DECLARATION, DECLARATION)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    text = record.getMessage()
    assert 'function "f" cannot be imported, so none of it runs until it is deployed again: TypeError: ' in text
    assert '/var/task/app.py", line 7, in <module>' in text


def test_it_is_said_again_for_another_reason_and_after_a_recovery(caplog: pytest.LogCaptureFixture) -> None:
    outcomes(DECLARATION, MISSING_MODULE, MISSING_MODULE, "well", MISSING_MODULE)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


@pytest.mark.parametrize(
    "answer",
    [IN_A_HANDLER, {"errorType": "Sandbox.Timedout", "errorMessage": "Task timed out"}, {"stackTrace": 5}, [1]],
    ids=["handler", "time", "odd", "no object"],
)
def test_other_failures_are_the_functions(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    (found,) = outcomes(answer)
    assert isinstance(found, FunctionFailedError)
    assert caplog.records == []


@dataclass(slots=True)
class Deployed(Meter):
    """A meter whose function cannot be imported until it is deployed anew: the driver is the real one."""

    broken: bool = True
    _lambda: LambdaInvoker = field(
        default_factory=lambda: LambdaInvoker(cast("Any", Client(*[DECLARATION] * 1_000)), {"f": FunctionConfig()})
    )

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        if self.broken:
            self.invocations += 1
            return await self._lambda.invoke(function, payload, room)
        return await Meter.invoke(self, function, payload, room)


def test_no_event_pays_for_it_and_no_lane_says_it_again(caplog: pytest.LogCaptureFixture) -> None:
    box = VirtualObject("box", retry_policy=InvocationRetryPolicy(max_attempts=1))

    @box.handler()
    async def take(ctx: ObjectContext, number: int) -> None:
        ctx.set("number", await ctx.run("a step", lambda: number))

    async def scenario() -> None:
        meter = Deployed(Services([box]))
        for lane in range(LANES):
            meter.deliver(take, f"k{lane}")
        await asyncio.sleep(300)
        assert meter.released == []
        assert meter.invocations <= LANES * 31
        meter.broken = False
        await asyncio.sleep(11)
        assert len(meter.released) == LANES
        assert all(meter.head("box", f"k{lane}").state == {"number": b"1"} for lane in range(LANES))

    with caplog.at_level(logging.INFO, "tenuto"):
        run_virtual(scenario())
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
