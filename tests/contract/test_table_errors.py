"""What the DynamoDB drivers make of errors, and of answers that DynamoDB Local never gives.

Owns the line between "try again" and "never". Does not own the contract itself (`test_table`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from tenuto.lane.writes import Delete, Update
from tenuto.store.aws_client import CLIENT_OPTIONS
from tenuto.store.dynamodb import BATCH_ATTEMPTS_MAX, BlockingDynamoTable, DynamoTable
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto_local.ports import bind_loopback_socket
from tests.contract.table_clients import TABLE, client_for, fresh, use_environment


@pytest.mark.parametrize("answer", ["refuses", "hangs up", "is no DynamoDB", "is silent"])
def test_no_answer_is_one_readable_line(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(endpoint_url: str) -> None:
        options = {**CLIENT_OPTIONS, "read_timeout": 0.2}
        monkeypatch.setattr("tenuto.store.aws_client.CLIENT_OPTIONS", options)
        use_environment(monkeypatch, endpoint_url)
        blocking = BlockingDynamoTable(TABLE)
        async with client_for(endpoint_url, options) as client:
            for table in (DynamoTable(client, TABLE), blocking):
                with pytest.raises(TableUnavailableError, match=rf"^update_item on table {TABLE}: ") as caught:
                    await table.write(Update(fresh(), sets={"a": 1}))
                assert "\n" not in str(caught.value)
        blocking.close()

    with _server_that(answer) as endpoint_url:
        asyncio.run(main(endpoint_url))


@contextmanager
def _server_that(answer: str) -> Iterator[str]:
    """A server on which no DynamoDB request succeeds."""
    with bind_loopback_socket() as listener:
        if answer != "refuses":
            listener.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # The test is over.
                held.append(connection)
                if answer == "is silent":
                    continue
                connection.recv(65_536)
                if answer == "is no DynamoDB":
                    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 12\r\n\r\n<html>\n</ht>")
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # A blocked accept() notices a shutdown, not a close.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


class ScriptedClient:
    """Answers that DynamoDB Local never gives: each request takes the next one of the script."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self._answers = iter(answers)
        self.seen: list[dict[str, Any]] = []

    async def _answer(self, **arguments: Any) -> dict[str, Any]:
        self.seen.append(arguments)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    update_item = put_item = delete_item = get_item = query = batch_write_item = batch_get_item = _answer


def client_error(code: str, status: int = 400) -> ClientError:
    """An error as botocore raises it."""
    response: Any = {
        "Error": {"Code": code, "Message": "told\nin two lines"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "UpdateItem")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (client_error("ProvisionedThroughputExceededException"), TableUnavailableError),
        (client_error("ThrottlingException"), TableUnavailableError),
        (client_error("RequestLimitExceeded"), TableUnavailableError),
        (client_error("TransactionConflictException"), TableUnavailableError),
        (client_error("InternalServerError", 500), TableUnavailableError),
        (client_error("Anything", 503), TableUnavailableError),
        (client_error("Unheard", 429), TableUnavailableError),
        (client_error("ValidationException"), TableRefusedError),
        (client_error("ResourceNotFoundException"), TableRefusedError),
        (client_error("AccessDeniedException"), TableRefusedError),
        (client_error("ItemCollectionSizeLimitExceededException"), TableRefusedError),
        (NoCredentialsError(), TableRefusedError),
        (ReadTimeoutError(endpoint_url="http://x"), TableUnavailableError),
        (ConnectionResetError("reset"), TableUnavailableError),
    ],
    ids=lambda case: "-".join(str(case).split()[:6]) if isinstance(case, Exception) else case.__name__,
)
def test_errors_say_whether_trying_again_can_help(error: Exception, expected: type[Exception]) -> None:
    table = DynamoTable(ScriptedClient(error), TABLE)
    with pytest.raises(expected, match=rf"^update_item on table {TABLE}: .+") as caught:
        asyncio.run(table.write(Update(fresh(), sets={"a": 1})))
    assert "\n" not in str(caught.value)


def test_deletes_that_dynamodb_put_off_are_sent_again() -> None:
    keys = [fresh() for _ in range(3)]
    requests = [{"DeleteRequest": {"Key": {"pk": {"S": k.pk}, "sk": {"S": k.sk}}}} for k in keys]
    client = ScriptedClient({"UnprocessedItems": {TABLE: requests[1:]}}, {"UnprocessedItems": {}})
    table = DynamoTable(client, TABLE)
    asyncio.run(table.delete_all([Delete(key) for key in keys]))
    assert [seen["RequestItems"][TABLE] for seen in client.seen] == [requests, requests[1:]]
    assert table.requests == {"batch_delete": 2}


def test_reads_that_dynamodb_put_off_are_sent_again() -> None:
    keys = [fresh() for _ in range(3)]
    names = [{"pk": {"S": k.pk}, "sk": {"S": k.sk}} for k in keys]
    left = {"Keys": names[1:], "ConsistentRead": True}
    first = {"Responses": {TABLE: [{**names[0], "a": {"N": "0"}}]}, "UnprocessedKeys": {TABLE: left}}
    second = {"Responses": {TABLE: [{**names[2], "a": {"N": "2"}}]}, "UnprocessedKeys": {}}
    client = ScriptedClient(first, second)
    table = DynamoTable(client, TABLE)
    found = asyncio.run(table.get_all(keys))
    assert [item and item["a"] for item in found] == [0, None, 2]
    assert client.seen[1]["RequestItems"] == {TABLE: left}
    assert table.requests == {"batch_get": 2}


def test_reads_are_not_sent_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.store.dynamodb.BATCH_PAUSE_S", 0.0)
    undone: dict[str, Any] = {"Responses": {}, "UnprocessedKeys": {TABLE: {"Keys": [{}], "ConsistentRead": True}}}
    table = DynamoTable(ScriptedClient(*[undone] * BATCH_ATTEMPTS_MAX), TABLE)
    with pytest.raises(TableUnavailableError, match="some of 2 reads not answered"):
        asyncio.run(table.get_all([fresh(), fresh()]))


def test_deletes_are_not_sent_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.store.dynamodb.BATCH_PAUSE_S", 0.0)
    undone: dict[str, Any] = {"UnprocessedItems": {TABLE: [{"DeleteRequest": {}}]}}
    table = DynamoTable(ScriptedClient(*[undone] * BATCH_ATTEMPTS_MAX), TABLE)
    with pytest.raises(TableUnavailableError, match="1 of 2 deletes not accepted"):
        asyncio.run(table.delete_all([Delete(fresh()), Delete(fresh())]))


@pytest.mark.parametrize(
    ("value", "error"),
    [(True, TypeError), (1.5, TypeError), ({1}, TypeError), (10**38, ValueError)],
    ids=repr,
)
def test_what_an_attribute_cannot_hold_is_not_sent(value: Any, error: type[Exception]) -> None:
    client = ScriptedClient()
    with pytest.raises(error):
        asyncio.run(DynamoTable(client, TABLE).write(Update(fresh(), sets={"deep": [{"in": value}]})))
    assert not client.seen
