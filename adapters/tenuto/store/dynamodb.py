"""The table on DynamoDB: over an asyncio client for the control plane, over a blocking one inside functions.

Owns sending requests, telling their errors apart, and counting them. Does not own their wording
(`expressions`), nor retries of single writes: whoever decides on a write decides whether to repeat it, since
a repetition can meet the effect of the first. Nothing of botocore is imported before the first request, so
that a function that makes none does not pay for it.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, assert_never, get_args

from tenuto.lane.writes import Answer, Applied, Delete, Item, Key, Put, Refused, Update, Write, check_unconditional
from tenuto.store.aws_client import translated
from tenuto.store.expressions import (
    Arguments,
    render_batch_delete,
    render_batch_get,
    render_batch_put,
    render_get,
    render_query,
    render_write,
    unmarshal_item,
)
from tenuto.store.memory import BATCH_READS_MAX, BATCH_WRITES_MAX
from tenuto.store.port import Page, TableUnavailableError
from tenuto.store.senders import Sender, open_sender
from tenuto.store.sizes import item_bytes
from tenuto.wire.errors import ServiceError

BATCH_ATTEMPTS_MAX: Final = 6
BATCH_PAUSE_S: Final = 0.05
"""Pause before what a batch left undone is sent again; it doubles each time."""

WRITE_UNIT_BYTES: Final = 1024

NOTHING_BYTES_MAX: Final = 4
"""What an answer may weigh that says nothing: it is an empty JSON object, with room for the end of a line."""

UNREADABLE: Final = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What reading an answer raises that is none of DynamoDB, though its status says that it is."""

CONDITION_FAILED: Final = "ConditionalCheckFailedException"

T = TypeVar("T")

Operation: TypeAlias = Literal[
    "update_item", "put_item", "delete_item", "get_item", "query", "batch_write_item", "batch_get_item"
]

_WRITE_OPERATIONS: Final[Mapping[str, Operation]] = {
    "update": "update_item",
    "put": "put_item",
    "delete": "delete_item",
}


_API_NAMES: Final[Mapping[Operation, str]] = {
    operation: operation.title().replace("_", "") for operation in get_args(Operation)
}


class DynamoClient(Protocol):
    """What is used here of an asyncio client for DynamoDB: aiobotocore's, or that of `tenuto_control.drivers.wire`."""

    async def update_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's UpdateItem."""
        ...

    async def put_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's PutItem."""
        ...

    async def delete_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's DeleteItem."""
        ...

    async def get_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's GetItem."""
        ...

    async def query(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's Query."""
        ...

    async def batch_write_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's BatchWriteItem."""
        ...

    async def batch_get_item(self, **arguments: Any) -> dict[str, Any]:
        """DynamoDB's BatchGetItem."""
        ...


class _ConditionFailedError(Exception):
    """DynamoDB found a condition not to hold; `item` is what it found instead."""

    def __init__(self, item: Item | None) -> None:
        super().__init__()
        self.item = item


class _Table(ABC):
    """Everything but the way a request is sent and a pause is made.

    `requests` counts requests sent by kind: update, put, delete, get, query, and batch_get,
    batch_put, batch_delete. With
    `count_capacity`, `write_units` adds up what the writes were billed, refused ones included.
    """

    def __init__(self, name: str, *, count_capacity: bool = False) -> None:
        self.name = name
        self.requests: dict[str, int] = {}
        self.write_units = 0.0
        self._count_capacity = count_capacity

    @abstractmethod
    async def _send(self, operation: Operation, arguments: Arguments) -> dict[str, Any]:
        """One request, and the parsed response. Raises whatever the client does."""

    @abstractmethod
    async def _pause(self, seconds: float) -> None:
        """Let time pass."""

    async def write(self, write: Write) -> Answer:
        """See `Table.write`. Raises TypeError or ValueError for a value that an attribute cannot hold."""
        kind = type(write).__name__.lower()
        arguments = render_write(self.name, write)
        try:
            return await self._request(kind, _WRITE_OPERATIONS[kind], arguments, partial(_applied, write))
        except _ConditionFailedError as failed:
            if self._count_capacity:
                # The response does not say; DynamoDB bills the item that was looked at.
                self.write_units += max(1, ceil(item_bytes(failed.item or {}) / WRITE_UNIT_BYTES))
            return Refused(failed.item)

    async def get(self, key: Key) -> Item | None:
        """See `Table.get`."""
        return await self._request("get", "get_item", render_get(self.name, key), _found)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """See `Table.get_all`."""
        found: dict[Key, Item] = {}
        different = list(dict.fromkeys(keys))
        for start in range(0, len(different), BATCH_READS_MAX):
            arguments = render_batch_get(self.name, different[start : start + BATCH_READS_MAX])
            for attempt in range(BATCH_ATTEMPTS_MAX):
                items, left = await self._request(
                    "batch_get", "batch_get_item", arguments, partial(_batch_found, self.name)
                )
                found |= items
                if not left:
                    break
                arguments = {"RequestItems": {self.name: left}}
                if not items:  # What did not fit into one answer is asked for at once.
                    await self._pause(BATCH_PAUSE_S * 2**attempt)
            else:
                raise TableUnavailableError(
                    f"table {self.name}: some of {len(keys)} reads not answered in {BATCH_ATTEMPTS_MAX} attempts"
                )
        return [found.get(key) for key in keys]

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        """See `Table.query`. A page also ends at DynamoDB's 1 MB."""
        assert limit >= 1, "a page holds at least one item"
        if after is not None and after < low:
            after = None  # DynamoDB refuses to start outside of the range.
        if low > high or (after is not None and after >= high):
            return Page([])
        # One item more than asked for tells whether there are more: DynamoDB sets its own marker even when
        # the limit falls on the very end.
        arguments = render_query(self.name, pk, low, high, limit=limit + 1, after=after)
        return await self._request("query", "query", arguments, partial(_page, limit))

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        """See `Table.delete_all`. When it raises, any of the items may be gone."""
        # DynamoDB refuses a batch that names a key twice.
        keys = list(dict.fromkeys(delete.key for delete in deletes))
        for start in range(0, len(keys), BATCH_WRITES_MAX):
            arguments = render_batch_delete(self.name, keys[start : start + BATCH_WRITES_MAX])
            await self._write_batch("delete", arguments)

    async def put_all(self, puts: Sequence[Put]) -> None:
        """See `Table.put_all`. Of several for one key, the last one is made."""
        check_unconditional(puts)
        last = list({put.key: put for put in puts}.values())
        for start in range(0, len(last), BATCH_WRITES_MAX):
            await self._write_batch("put", render_batch_put(self.name, last[start : start + BATCH_WRITES_MAX]))

    async def _write_batch(self, kind: str, arguments: Arguments) -> None:
        count = len(arguments["RequestItems"][self.name])
        for attempt in range(BATCH_ATTEMPTS_MAX):
            undone = await self._request(f"batch_{kind}", "batch_write_item", arguments, partial(_undone, self.name))
            if not undone:
                return
            arguments = {"RequestItems": {self.name: undone}}
            await self._pause(BATCH_PAUSE_S * 2**attempt)
        left = len(arguments["RequestItems"][self.name])
        raise TableUnavailableError(
            f"table {self.name}: {left} of {count} {kind}s not accepted in {BATCH_ATTEMPTS_MAX} attempts"
        )

    async def _request(
        self, kind: str, operation: Operation, arguments: Arguments, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """One request, and what `read` makes of its answer. One that it cannot read is a table that did not answer."""
        self.requests[kind] = self.requests.get(kind, 0) + 1
        counted = self._count_capacity and kind not in ("get", "batch_get", "query")
        if counted:
            arguments = {**arguments, "ReturnConsumedCapacity": "TOTAL"}
        try:
            response = await self._send(operation, arguments)
        except Exception as error:
            raise _meaning(error, f"{operation} on table {self.name}") from error
        try:
            if counted:
                self.write_units += sum(_capacity_units(response))
            return read(response)
        except UNREADABLE as error:
            raise TableUnavailableError(
                f"{operation} on table {self.name}: was answered with something that is not a DynamoDB answer "
                f"({type(error).__name__})"
            ) from error


class DynamoTable(_Table):
    """A `Table` over an asyncio client, which the caller opens and closes."""

    def __init__(self, client: DynamoClient, name: str, *, count_capacity: bool = False) -> None:
        super().__init__(name, count_capacity=count_capacity)
        self._client = client

    async def _send(self, operation: Operation, arguments: Arguments) -> dict[str, Any]:
        response: dict[str, Any] = await getattr(self._client, operation)(**arguments)
        return response

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class BlockingDynamoTable(_Table):
    """A `Table` whose methods block: give it a thread with its own loop.

    The client is made at the first request, from the environment: region, credentials, and
    AWS_ENDPOINT_URL_DYNAMODB or AWS_ENDPOINT_URL, as for every AWS tool.
    """

    def __init__(self, name: str, *, count_capacity: bool = False) -> None:
        super().__init__(name, count_capacity=count_capacity)
        self._sender: Sender | None = None

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    async def _send(self, operation: Operation, arguments: Arguments) -> dict[str, Any]:
        if self._sender is None:
            self._sender = open_sender()
        return self._sender.send(_API_NAMES[operation], arguments)

    async def _pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this class is for; its loop runs nothing else


def _meaning(error: Exception, doing: str) -> Exception:
    """What a client's exception means to the port."""
    if isinstance(error, ServiceError):
        code, document = error.code, error.document
    else:
        document = getattr(error, "response", None) or {}
        code = document.get("Error", {}).get("Code")
    if code != CONDITION_FAILED:
        return translated(error, doing)
    attributes = document.get("Item")
    try:
        return _ConditionFailedError(unmarshal_item(attributes) if attributes else None)
    except UNREADABLE:
        return TableUnavailableError(f"{doing}: was refused with something that is not a DynamoDB item")


def _applied(write: Write, response: Mapping[str, Any]) -> Applied:
    match write:
        case Put(key, attributes):
            # PutItem cannot return what it stored, which is what it was given.
            _expect_nothing(response)
            return Applied({"pk": key.pk, "sk": key.sk, **attributes})
        case Delete():
            _expect_nothing(response)
            return Applied(None)
        case Update(quiet=True):
            _expect_nothing(response)
            return Applied(None)
        case Update(sets=sets):
            # Nothing is there after an update that only removes, and from an item that never was.
            if sets or response.get("Attributes"):
                return Applied(unmarshal_item(response["Attributes"]))
            _expect_nothing(response)
            return Applied(None)
        case _:
            assert_never(write)


def _found(response: Mapping[str, Any]) -> Item | None:
    if "Item" in response:
        return unmarshal_item(response["Item"])
    _expect_nothing(response)
    return None


def _page(limit: int, response: Mapping[str, Any]) -> Page:
    items = [unmarshal_item(attributes) for attributes in response["Items"]]
    if not all(isinstance(item["pk"], str) and isinstance(item["sk"], str) for item in items):
        raise TypeError("items without keys")
    if len(items) > limit:
        return Page(items[:limit], str(items[limit - 1]["sk"]))
    marker = response.get("LastEvaluatedKey")
    return Page(items, str(marker["sk"]["S"]) if marker else None)


def _batch_found(table: str, response: Mapping[str, Any]) -> tuple[dict[Key, Item], Any]:
    """The items of a batch of reads by their keys, and what is to be asked for again."""
    items = [unmarshal_item(attributes) for attributes in response["Responses"].get(table, [])]
    if not all(isinstance(item["pk"], str) and isinstance(item["sk"], str) for item in items):
        raise TypeError("items without keys")
    left = response["UnprocessedKeys"]
    if left != {} and not isinstance(left[table]["Keys"], list):
        raise TypeError("no keys")
    return {Key(str(item["pk"]), str(item["sk"])): item for item in items}, left[table] if left != {} else None


def _undone(table: str, response: Mapping[str, Any]) -> list[Any]:
    """The requests of a batch that are to be sent again."""
    left = response["UnprocessedItems"]
    undone = left[table] if left != {} else []
    if not isinstance(undone, list):
        raise TypeError(f"no requests: {type(undone).__name__}")
    return undone


def _expect_nothing(response: Mapping[str, Any]) -> None:
    """Raises ValueError unless an answer that says nothing is one: a body that botocore cannot read looks the same."""
    metadata = response.get("ResponseMetadata")
    if metadata is None:
        unknown = sorted(response.keys() - {"ConsumedCapacity"})
        if unknown:
            raise ValueError(f"unknown fields: {len(unknown)}")
        return
    length = int(metadata.get("HTTPHeaders", {}).get("content-length", len("{}")))
    if "ConsumedCapacity" not in response and not len("{}") <= length <= NOTHING_BYTES_MAX:
        raise ValueError(f"nothing in {length} bytes")


def _capacity_units(response: Mapping[str, Any]) -> Iterator[float]:
    # A single write answers with one record, a batch with a list of one per table.
    consumed = response.get("ConsumedCapacity") or []
    for record in consumed if isinstance(consumed, list) else [consumed]:
        yield float(record.get("CapacityUnits", 0.0))
