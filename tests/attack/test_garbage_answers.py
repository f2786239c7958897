"""A table that answers 200 with what is no answer of DynamoDB: it did not answer, and is asked again.

Owns what both drivers make of such bodies. Does not own errors that DynamoDB does send (`tests/contract`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tenuto.lane.writes import Delete, Key, Put, Update
from tenuto.store.dynamodb import BlockingDynamoTable, DynamoTable
from tenuto.store.port import Table, TableUnavailableError
from tests.contract.table_clients import TABLE, client_for, use_environment

NO_JSON = [
    b"",
    b"<html>200 OK, the proxy is well</html>",
    b"\xff\xfe\x00 not text at all",
    b'{"Items": [',
    b"[" * 9_000,
]
NO_OBJECT = [
    b"null and void",
    b'["Items", "Count", "ScannedCount"]',
    b'"Items, but only their name"',
    b"1234567890123456789",
]
VALUES = [
    "null",
    "7",
    '"text"',
    "[7]",
    '{"pk": 7}',
    '{"pk": {}}',
    '{"a": {"Q": 1}}',
    '{"a": {"N": []}}',
    '{"a": {"L": 5}}',
]
"""What no item is, nor a list of requests."""

WRONG = [
    b'{"message": "hello, this is a captive portal"}',
    *(f'{{"Items": {v}, "Item": {v}, "Attributes": {v}, "UnprocessedItems": {v}}}'.encode() for v in VALUES),
    *(f'{{"Items": [{v}], "Item": [{v}], "Attributes": [{v}], "UnprocessedItems": [{v}]}}'.encode() for v in VALUES),
]
BODIES = [*NO_JSON, *NO_OBJECT, *WRONG]


@contextmanager
def _server_that_answers(bodies: list[bytes]) -> Iterator[str]:
    """A server whose answer to every request is 200 and the last body of the list."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one piece: apart, each answer waits for an acknowledgement.
        wbufsize = -1

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "application/x-amz-json-1.0")
            self.send_header("content-length", str(len(bodies[-1])))
            self.end_headers()
            self.wfile.write(bodies[-1])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def _ask(table: Table) -> list[BaseException | object]:
    """What each kind of request comes to."""
    key = Key("box/k", "H")
    return list(
        await asyncio.gather(
            table.get(key),
            table.query("box/k", "I#", "I$"),
            table.write(Update(key, {"a": 1})),
            table.write(Put(key, {"a": 1})),
            table.write(Delete(key)),
            table.delete_all([Delete(key)]),
            table.put_all([Put(key, {"a": 1})]),
            table.get_all([key]),
            return_exceptions=True,
        )
    )


@pytest.mark.parametrize("driver", ["asyncio", "blocking"])
def test_an_answer_that_is_none_is_no_answer(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(endpoint_url: str, bodies: list[bytes]) -> None:
        use_environment(monkeypatch, endpoint_url)
        async with client_for(endpoint_url) as client:
            blocking = BlockingDynamoTable(TABLE)
            table: Table = DynamoTable(client, TABLE) if driver == "asyncio" else blocking
            for body in BODIES:
                bodies.append(body)
                for outcome in await _ask(table):
                    assert isinstance(outcome, TableUnavailableError), (body[:60], outcome)
                    assert len(str(outcome)) < 500
            blocking.close()

    bodies: list[bytes] = [b"{}"]
    with _server_that_answers(bodies) as endpoint_url:
        asyncio.run(main(endpoint_url, bodies))
