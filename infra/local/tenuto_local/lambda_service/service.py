"""The Lambda HTTP API: Invoke in its three types, and the configuration of a function.

Owns the registry of functions, the payload limits, and asynchronous invocations with their retries. Versions
and aliases are accepted and all mean the one version there is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import sys
import uuid
from pathlib import Path
from urllib.parse import unquote

from tenuto_local.aws_api import AwsError, function_arn
from tenuto_local.errors import ConfigurationError
from tenuto_local.http_server import Header, Request, Responder
from tenuto_local.lambda_service.function import LambdaFunction
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.lambda_service.invocation import Failed, Invocation, Outcome, Succeeded

PATH_PREFIX = "/2015-03-31/functions"
REQUEST_BYTES_MAX = 6_291_456
EVENT_BYTES_MAX = 1_048_576
EVENT_BACKLOG_MAX = 10_000
EVENT_AGE_S_MAX = 6 * 3600.0
THROTTLE_PAUSE_S_MIN = 0.05
THROTTLE_PAUSE_S_MAX = 1.0
EXECUTED_VERSION: Header = ("X-Amz-Executed-Version", "$LATEST")

_ROUTE = re.compile(PATH_PREFIX + r"/(?P<name>[^/]+)(?P<tail>/invocations|/configuration)?")
_FUNCTION = re.compile(
    r"(?:arn:[^:]+:lambda:[^:]*:\d{12}:function:|\d{12}:function:)?(?P<name>[^:]+)(?::(?P<alias>[^:]+))?"
)
log = logging.getLogger(__name__)


class LambdaService:
    """All functions of a stack. `base_environment` is given to every worker, under the function's own."""

    def __init__(self, base_environment: dict[str, str], log_directory: Path) -> None:
        self._base_environment = base_environment
        self._log_directory = log_directory
        self._functions: dict[str, LambdaFunction] = {}
        self._retired: list[LambdaFunction] = []
        self._events: set[asyncio.Task[None]] = set()

    def register(self, spec: FunctionSpec) -> None:
        """Make a function known, or replace its old version, whose running work may finish."""
        previous = self._functions.get(spec.name)
        log_path = self._log_directory / f"{spec.name}.log"
        self._functions[spec.name] = made = LambdaFunction(spec, self._base_environment, log_path)
        if previous is not None:
            made.adopt(previous.retire())
            self._retired.append(previous)

    def hold(self, name: str) -> None:
        """Start no further workers of a function until it is registered again; those that run continue.

        Raises `ConfigurationError` for a function that is not there.
        """
        function = self._functions.get(name)
        if function is None:
            raise ConfigurationError(f"there is no function {name!r}; there are {sorted(self._functions)}")
        function.held = True

    def describe(self) -> list[dict[str, object]]:
        """Every function with its workers and counters."""
        return [function.describe() for function in self._functions.values()]

    async def close(self) -> None:
        """Kill all workers and forget what was still to be done."""
        for task in tuple(self._events):
            task.cancel()
        await asyncio.gather(*(function.close() for function in (*self._functions.values(), *self._retired)))

    def handle(self, request: Request, responder: Responder) -> None:
        """Answer one request of the Lambda API, now or when its invocation ends."""
        try:
            self._route(request, responder)
        except AwsError as error:
            error.send(responder)

    def invoke_event(self, reference: str, payload: bytes) -> str:
        """Accept an asynchronous invocation and return its request id; raises `AwsError`.

        `reference` is a name or an ARN. A failed one is repeated after the function's retry pauses; a
        throttled one waits as long as AWS would keep it.
        """
        function = self._find(reference)
        if len(payload) > EVENT_BYTES_MAX:
            raise _too_large(EVENT_BYTES_MAX)
        if len(self._events) >= EVENT_BACKLOG_MAX:
            raise AwsError(429, "TooManyRequestsException", "The queue of asynchronous invocations is full.")
        request_id = str(uuid.uuid4())
        task = asyncio.create_task(self._run_event(function, request_id, payload))
        self._events.add(task)
        task.add_done_callback(self._events.discard)
        return request_id

    def _route(self, request: Request, responder: Responder) -> None:
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            raise AwsError(404, "UnknownOperationException", f"{request.method} {request.path} is not served locally")
        function = self._find(unquote(match["name"]))
        if match["tail"] == "/invocations" and request.method == "POST":
            self._invoke(function, request, responder)
        elif match["tail"] == "/configuration" and request.method == "GET":
            responder.send_json(200, _configuration(function.spec))
        elif match["tail"] is None and request.method == "GET":
            concurrency = {"ReservedConcurrentExecutions": function.spec.concurrency}
            responder.send_json(200, {"Configuration": _configuration(function.spec), "Concurrency": concurrency})
        else:
            raise AwsError(405, "UnknownOperationException", f"{request.method} {request.path} is not served locally")

    def _find(self, reference: str) -> LambdaFunction:
        match = _FUNCTION.fullmatch(reference)
        function = self._functions.get(match["name"]) if match else None
        if function is None:
            name = match["name"] if match else reference
            arn = name if name.startswith("arn:") else function_arn(name)
            raise AwsError(404, "ResourceNotFoundException", f"Function not found: {arn}", Type="User")
        return function

    def _invoke(self, function: LambdaFunction, request: Request, responder: Responder) -> None:
        headers = request.headers
        if len(request.body) > REQUEST_BYTES_MAX:
            raise _too_large(REQUEST_BYTES_MAX)
        payload = request.body or b"{}"
        kind = headers.get("x-amz-invocation-type", "RequestResponse")
        if kind == "RequestResponse":
            request_id = str(uuid.uuid4())

            def answer(outcome: Outcome) -> None:
                responder.send(200, _result_headers(request_id, outcome), outcome.payload)

            function.submit(Invocation(request_id, payload, answer, _client_context(headers)))
        elif kind == "Event":
            responder.send(202, [("x-amzn-RequestId", self.invoke_event(function.spec.name, payload))])
        elif kind == "DryRun":
            responder.send(204, [("x-amzn-RequestId", str(uuid.uuid4())), EXECUTED_VERSION])
        else:
            raise AwsError(400, "InvalidParameterValueException", f"{kind!r} is not an invocation type", Type="User")

    async def _run_event(self, function: LambdaFunction, request_id: str, payload: bytes) -> None:
        for pause_s in (*function.spec.async_retry_delays_s, None):
            outcome = await self._run_when_admitted(function, request_id, payload)
            if isinstance(outcome, Succeeded):
                return
            error = outcome.payload.decode(errors="replace") if outcome else "throttled for too long"
            if pause_s is None:
                log.warning("event %s of %s failed for good: %s", request_id, function.spec.name, error)
            else:
                await asyncio.sleep(pause_s)

    async def _run_when_admitted(self, function: LambdaFunction, request_id: str, payload: bytes) -> Outcome | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + EVENT_AGE_S_MAX
        pause_s = THROTTLE_PAUSE_S_MIN
        while loop.time() < deadline:
            ended: asyncio.Future[Outcome] = loop.create_future()
            try:
                function.submit(Invocation(request_id, payload, ended.set_result))
            except AwsError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, THROTTLE_PAUSE_S_MAX)
            else:
                return await ended
        return None


def _result_headers(request_id: str, outcome: Outcome) -> list[Header]:
    headers = [("Content-Type", "application/json"), ("x-amzn-RequestId", request_id), EXECUTED_VERSION]
    if isinstance(outcome, Failed):
        headers.append(("X-Amz-Function-Error", "Unhandled"))
    return headers


def _client_context(headers: dict[str, str]) -> str | None:
    encoded = headers.get("x-amz-client-context")
    if encoded is None:
        return None
    try:
        text = base64.b64decode(encoded, validate=True).decode()
        json.loads(text)
    except (binascii.Error, ValueError) as error:
        raise AwsError(
            400,
            "InvalidRequestContentException",
            "Client context must be a valid Base64-encoded JSON object.",
        ) from error
    return text


def _configuration(spec: FunctionSpec) -> dict[str, object]:
    return {
        "FunctionName": spec.name,
        "FunctionArn": function_arn(spec.name),
        "Handler": spec.handler,
        "Runtime": f"python{sys.version_info.major}.{sys.version_info.minor}",
        "Timeout": round(spec.timeout_s),
        "MemorySize": spec.memory_mb,
        "Version": "$LATEST",
        "Environment": {"Variables": spec.environment},
        "State": "Active",
        "LastUpdateStatus": "Successful",
    }


def _too_large(limit: int) -> AwsError:
    text = f"Request must be smaller than {limit} bytes for the InvokeFunction operation"
    return AwsError(413, "RequestTooLargeException", text, Type="User")
