"""Answers that no AWS service gives: what `tenuto.wire` makes of them is what botocore's clients make of them.

Owns the equality of both clients, on both sides, for the same bytes. Does not own answers of a real DynamoDB
(`test_table`) or Lambda (`test_function_invoker`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import pytest

from tenuto.lane.writes import Applied, Equals, Refused, Update
from tenuto.store.aws_client import CLIENT_OPTIONS, CLIENT_VARIABLE
from tenuto.store.dynamodb import BlockingDynamoTable, DynamoTable
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError, UnstorableError
from tenuto_control.config import Config, FunctionConfig
from tenuto_control.drivers.aws import open_clients
from tenuto_control.drivers.lambda_invoke import LambdaInvoker
from tenuto_control.limits import ANSWER_BYTES_MAX, Limits
from tenuto_control.ports import (
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    PayloadTooLargeError,
)
from tests.contract.table_clients import AWS_CLIENTS, TABLE, client_for, fresh, use_environment, wire_for
from tests.wire.servers import Server, Step, answer, ok

READ_TIMEOUT_S: Final = 0.3
PATIENT_S: Final = 20.0
"""The timeout of cases that do not wait for one."""

SILENT: Final = ("silence", "silence in the body", "a length that is too long")

ITEM: Final = b'{"Attributes": {"pk": {"S": "k"}, "sk": {"S": "H"}, "a": {"N": "1"}, "b": {"B": "AAE="}}}'
APPLIED: Final = Applied({"pk": "k", "sk": "H", "a": 1, "b": b"\x00\x01"})
REFUSED: Final = json.dumps(
    {"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "message": "no"}
    | {"Item": {"pk": {"S": "k"}, "sk": {"S": "H"}, "a": {"N": "2"}}}
).encode()
HTML: Final = b"<html>\r\n<h1>Nothing to see here</h1>\r\n</html>"
JSON: Final = b"content-type: application/x-amz-json-1.0"


def error(code: str, status: int = 400, message: str = "told\nin two lines") -> bytes:
    """An error as DynamoDB answers it."""
    document = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}
    return answer(status, json.dumps(document).encode(), JSON)


def chunked(*chunks: bytes) -> bytes:
    """An answer in chunks."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % framed


def trickled(data: bytes, pause_s: float) -> list[Step]:
    """Bytes in some twelve pieces."""
    size = len(data) // 12 + 1
    return [step for i in range(0, len(data), size) for step in (data[i : i + size], pause_s)]


Outcome: TypeAlias = object
"""An answer of the port, or the class of an error."""

CASES: Final[Mapping[str, tuple[Sequence[Step], Outcome]]] = {
    "an item": ([ok(ITEM, JSON)], APPLIED),
    "an item in chunks": ([chunked(ITEM[:7], ITEM[7:8], ITEM[8:])], APPLIED),
    "an item and the end": ([b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + ITEM, "close"], APPLIED),
    "an item by HTTP/1.0": ([b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(ITEM), ITEM), "close"], APPLIED),
    "an item after 100": ([b"HTTP/1.1 100 Continue\r\n\r\n" + ok(ITEM)], APPLIED),
    "an item that trickles in": (trickled(ok(ITEM), 0.02), APPLIED),
    "a failed condition": ([answer(400, REFUSED, JSON)], Refused({"pk": "k", "sk": "H", "a": 2})),
    "a failed condition without an item": ([error("ConditionalCheckFailedException")], Refused(None)),
    "a failed condition in chunks": (
        [chunked(REFUSED).replace(b"200 OK", b"400 Bad Request", 1)],
        Refused({"pk": "k", "sk": "H", "a": 2}),
    ),
    "throttling": ([error("ThrottlingException")], TableUnavailableError),
    "too much throughput": ([error("ProvisionedThroughputExceededException")], TableUnavailableError),
    "a conflict": ([error("TransactionConflictException")], TableUnavailableError),
    "a server error": ([error("InternalServerError", 500)], TableUnavailableError),
    "no such table": ([error("ResourceNotFoundException")], TableRefusedError),
    "no permission": ([error("AccessDeniedException")], TableRefusedError),
    "an unknown key": ([error("UnrecognizedClientException")], TableRefusedError),
    "an expired token": ([error("ExpiredTokenException")], TableRefusedError),
    "too large an item": ([error("ValidationException")], UnstorableError),
    "too large a collection": ([error("ItemCollectionSizeLimitExceededException")], UnstorableError),
    "too large a body": ([answer(413, b'{"__type": "RequestEntityTooLarge"}')], UnstorableError),
    "413 of a proxy": ([answer(413, HTML)], TableRefusedError),
    "429 of a proxy": ([answer(429, HTML)], TableUnavailableError),
    "503 of a proxy": ([answer(503, HTML)], TableUnavailableError),
    "503 with nothing": ([answer(503, b"")], TableUnavailableError),
    "403 of a proxy": ([answer(403, HTML)], TableRefusedError),
    "a redirection": ([answer(302, b"", b"location: http://127.0.0.1:1/")], TableRefusedError),
    "a page in place of an item": ([ok(HTML)], TableUnavailableError),
    "nothing in place of an item": ([ok(b"")], TableUnavailableError),
    "half an item": ([ok(ITEM[:20])], TableUnavailableError),
    "an item of no form": ([ok(b'{"Attributes": {"pk": {"Q": 1}}}')], TableUnavailableError),
    "an end at once": (["close"], TableUnavailableError),
    "a reset at once": (["reset"], TableUnavailableError),
    "an end in the head": ([ok(ITEM)[:20], "close"], TableUnavailableError),
    "an end in the body": ([ok(ITEM)[:-20], "close"], TableUnavailableError),
    "a reset in the body": ([ok(ITEM)[:-20], 0.05, "reset"], TableUnavailableError),
    "an end in a chunk": ([chunked(ITEM)[:-30], "close"], TableUnavailableError),
    "an end before the last chunk": ([chunked(ITEM).removesuffix(b"0\r\n\r\n"), "close"], TableUnavailableError),
    "a length that is too long": (
        [ok(ITEM).replace(b"%d" % len(ITEM), b"%d" % (len(ITEM) + 9))],
        TableUnavailableError,
    ),
    "a length that is too short": (
        [ok(ITEM).replace(b"%d" % len(ITEM), b"%d" % (len(ITEM) - 9))],
        TableUnavailableError,
    ),
    "a length that is none": ([b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n" + ITEM, "close"], TableUnavailableError),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.6\r\n", "close"], TableUnavailableError),
    "a chunk that is none": (
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" + ITEM, "close"],
        TableUnavailableError,
    ),
    "huge headers": (
        [b"HTTP/1.1 200 OK\r\n" + b"x: %b\r\n" % (b"y" * 70_000) + b"\r\n", "close"],
        TableUnavailableError,
    ),
    "silence": ([4 * READ_TIMEOUT_S], TableUnavailableError),
    "silence in the body": ([ok(ITEM)[:-20], 4 * READ_TIMEOUT_S], TableUnavailableError),
    "garbage behind an item": ([ok(ITEM) + b"garbage" * 9], APPLIED),
    "another answer behind an item": ([ok(ITEM) + ok(b'{"Attributes": {}}')], APPLIED),
}

Kind: TypeAlias = Literal["blocking", "asyncio"]

OTHERWISE: Final[Mapping[tuple[str, Kind], Outcome]] = {
    # http.client takes a length that is none for an answer that goes on until the end.
    ("a length that is none", "blocking"): APPLIED,
    # aiohttp gives up the answer with what came behind it.
    ("garbage behind an item", "asyncio"): TableUnavailableError,
    # aiobotocore looks for what S3 says about redirections, and cannot read it.
    ("a redirection", "asyncio"): TableUnavailableError,
}
"""What botocore's clients make of bytes that the two of them take differently."""


async def outcome(table: Table) -> Outcome:
    """What a write comes to."""
    write = Update(fresh(), sets={"a": 1}, conditions=(Equals("c", "a", 1),))
    (found,) = await asyncio.gather(table.write(write), return_exceptions=True)
    return kind_of(found)


def kind_of(found: object) -> Outcome:
    """An answer as it is; of an error its class."""
    if not isinstance(found, BaseException):
        return found
    assert "\n" not in str(found)
    assert len(str(found)) < 500
    return type(found)


def blocking(url: str, client: str, timeout_s: float, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What a function's driver makes of it, the second time too: the first answer is over then."""
    use_environment(monkeypatch, url)
    options = {**CLIENT_OPTIONS, "read_timeout": timeout_s}
    monkeypatch.setattr("tenuto.store.aws_client.CLIENT_OPTIONS", options)
    monkeypatch.setattr("tenuto.store.senders.CLIENT_OPTIONS", options)
    monkeypatch.setenv(CLIENT_VARIABLE, client)
    table = BlockingDynamoTable(TABLE)
    try:
        found = asyncio.run(outcome(table))
        assert asyncio.run(outcome(table)) == found
    finally:
        table.close()
    return found


def over_asyncio(url: str, client: str, timeout_s: float) -> Outcome:
    """What the control plane's driver makes of it, the second time too."""

    async def main() -> Outcome:
        options = {**CLIENT_OPTIONS, "read_timeout": timeout_s}
        opened: Any = wire_for(url, read_s=timeout_s) if client == "wire" else client_for(url, options)
        async with opened as raw:
            table = DynamoTable(raw, TABLE)
            found = await outcome(table)
            assert await outcome(table) == found
            return found

    return asyncio.run(main())


@pytest.mark.parametrize("client", AWS_CLIENTS)
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize("case", CASES)
def test_a_write_comes_to_the_same(case: str, kind: Kind, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, expected = CASES[case]
    if client == "botocore":
        expected = OTHERWISE.get((case, kind), expected)
    with Server(lambda _number, _request: steps) as server:
        url = f"http://127.0.0.1:{server.port}"
        timeout_s = READ_TIMEOUT_S if case in SILENT else PATIENT_S
        if kind == "blocking":
            found = blocking(url, client, timeout_s, monkeypatch)
        else:
            found = over_asyncio(url, client, timeout_s)
        assert found == expected
        # Two writes, two requests: none is sent again in silence. urllib3 may find out about an end only by sending.
        assert len(server.requests) == 2 or (client == "botocore" and len(server.requests) == 1)


# --- Lambda ----------------------------------------------------------------------------------------------------------


def lambda_error(code: str, status: int, body: bytes = b'{"Message": "told\\nin two lines"}') -> bytes:
    """An error as Lambda answers it."""
    return answer(status, body, b"x-amzn-errortype: " + code.encode() + b":http://internal.amazon.com/")


INVOKED: Final = b'{"fine": true}'
FAILED: Final = ok(b'{"errorType": "ValueError", "errorMessage": "no luck"}', b"X-Amz-Function-Error: Unhandled")
LARGE: Final = b'"' + b"x" * (ANSWER_BYTES_MAX - 2) + b'"'

INVOCATIONS: Final[Mapping[str, tuple[Sequence[Step], Outcome]]] = {
    "an answer": ([ok(INVOKED)], INVOKED),
    "an answer in chunks": ([chunked(INVOKED[:3], INVOKED[3:])], INVOKED),
    "an answer and the end": ([b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + INVOKED, "close"], INVOKED),
    "the largest answer": ([ok(LARGE)], LARGE),
    "more than the largest answer": ([ok(LARGE + b" ")], FunctionFailedError),
    "more than the largest answer in chunks": ([chunked(LARGE, b" ")], FunctionFailedError),
    "a failure": ([FAILED], FunctionFailedError),
    "throttling": ([lambda_error("TooManyRequestsException", 429)], FunctionThrottledError),
    "a conflict": ([lambda_error("ResourceConflictException", 409)], FunctionThrottledError),
    "too large a request": ([lambda_error("RequestTooLargeException", 413)], PayloadTooLargeError),
    "413 of a proxy": ([answer(413, HTML)], PayloadTooLargeError),
    "no such function": ([lambda_error("ResourceNotFoundException", 404)], FunctionMissingError),
    "no permission": ([lambda_error("AccessDeniedException", 403)], FunctionMissingError),
    "a service error": ([lambda_error("ServiceException", 500)], FunctionUnreachableError),
    "a gateway that gave up": ([answer(504, HTML)], FunctionUnreachableError),
    "503 with nothing": ([answer(503, b"")], FunctionUnreachableError),
    "an end at once": (["close"], FunctionUnreachableError),
    "an end in the body": ([ok(INVOKED)[:-3], "close"], FunctionUnreachableError),
    "an end in a chunk": ([chunked(INVOKED)[:-9], "close"], FunctionUnreachableError),
    "silence": ([4 * READ_TIMEOUT_S], FunctionUnreachableError),
    "no HTTP": ([b"\x00\x01\x02\r\n\r\n", "close"], FunctionUnreachableError),
}


async def invoked(invoker: LambdaInvoker, payload: bytes) -> Outcome:
    """What an invocation comes to."""
    (found,) = await asyncio.gather(invoker.invoke("f", payload), return_exceptions=True)
    return kind_of(found)


@pytest.mark.parametrize("client", AWS_CLIENTS)
@pytest.mark.parametrize("case", INVOCATIONS)
def test_an_invocation_comes_to_the_same(case: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, expected = INVOCATIONS[case]
    limits = Limits(invoke_read_timeout_ms=int((READ_TIMEOUT_S if case in SILENT else PATIENT_S) * 1_000))
    config = Config(functions={}, limits=limits)

    async def main(server: Server) -> None:
        use_environment(monkeypatch, "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"http://127.0.0.1:{server.port}/base")
        monkeypatch.setenv(CLIENT_VARIABLE, client)
        async with open_clients(config) as clients:
            invoker = LambdaInvoker(clients.lambda_, {"f": FunctionConfig(function="fn:a", qualifier="live")})
            for payload in (b"{}", b'"' + b"x" * 400_000 + b'"'):
                assert await invoked(invoker, payload) == expected

    with Server(lambda _number, _request: steps) as server:
        asyncio.run(main(server))
        # Two invocations, two requests: none is sent again in silence.
        assert len(server.requests) == 2
        for request in server.requests:
            assert request.startswith(b"POST /base/2015-03-31/functions/fn%3Aa/invocations?Qualifier=live HTTP/1.1\r\n")


def test_a_function_that_is_not_waited_for_is_invoked_as_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(server: Server) -> None:
        use_environment(monkeypatch, "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"http://127.0.0.1:{server.port}")
        for client in AWS_CLIENTS:
            monkeypatch.setenv(CLIENT_VARIABLE, client)
            async with open_clients(Config(functions={})) as clients:
                await clients.lambda_.post("arn:aws:lambda:us-east-1:0:function:f", b'"x"')

    with Server(lambda _number, _request: [answer(202, b"")]) as server:
        asyncio.run(main(server))
        own, botocores = server.requests
        for request in (own, botocores):
            head, _, body = request.partition(b"\r\n\r\n")
            assert body == b'"x"'
            assert b"x-amz-invocation-type: event" in head.lower()
        assert own.split(b"\r\n")[0] == botocores.split(b"\r\n")[0]
