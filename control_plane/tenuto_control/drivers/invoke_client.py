"""Lambda's Invoke as the invoker uses it, and aiobotocore's client in that form.

Owns the seam between the driver of functions and the client under it. Does not own what errors mean to the dispatcher
(`lambda_invoke`).
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from tenuto.wire.errors import AnswerTooLargeError, LostError, ServiceError
from tenuto_control.limits import ANSWER_BYTES_MAX
from tenuto_control.ports import AnswerHolder

if TYPE_CHECKING:
    from types_aiobotocore_lambda import LambdaClient

SYNCHRONOUS: Final = "RequestResponse"
ASYNCHRONOUS: Final = "Event"
TRACE_HEADER: Final = "X-Amzn-Trace-Id"

LAMBDA_NAME: Final = "AWS_LAMBDA_FUNCTION_NAME"
LAMBDA_TRACE: Final = "_X_AMZN_TRACE_ID"
"""Where Lambda tells a function its name, and its segment of a trace."""

TRACE_SAFE: Final = "-=;:+&[]{}\"',"
"""Characters that are left as they are in the header that names the segment, as botocore leaves them."""

SIZE_DIGITS_MAX: Final = 18
"""No size has more digits than that."""

STREAMED_BYTES_MIN: Final = 1024 * 1024
"""Requests of this size are handed to aiohttp as a stream. Written in one piece, they would delay the event loop."""


@dataclass(frozen=True, slots=True)
class Invoked:
    """What a function answered; `failed` when it is Lambda's word about its failure."""

    payload: bytes
    failed: bool


class InvokeClient(ABC):
    """Invokes functions by name or ARN, once each.

    Both calls raise ServiceError for an error that Lambda answers with, WireError or botocore's BotoCoreError when
    there is no answer, and AnswerTooLargeError (a WireError) for an answer above ANSWER_BYTES_MAX.
    """

    @abstractmethod
    async def call(
        self, function: str, qualifier: str | None, payload: bytes, room: AnswerHolder | None = None
    ) -> Invoked:
        """Invoke and wait for the answer, for which there is `room` before it is read."""

    @abstractmethod
    async def post(self, function: str, payload: bytes) -> None:
        """Have Lambda invoke it, without waiting for it."""

    @abstractmethod
    def name_segments(self, segment: Callable[[], str | None]) -> None:
        """Have each invocation name what `segment` returns to X-Ray, unless this process is a segment itself."""


class BotocoreLambda(InvokeClient):
    """Over an aiobotocore client, which must not retry and must outwait the slowest function."""

    def __init__(self, client: LambdaClient) -> None:
        self._client = client

    def name_segments(self, segment: Callable[[], str | None]) -> None:
        """See `InvokeClient.name_segments`. botocore's client names the own segment by itself."""

        def name(params: dict[str, Any], **_: Any) -> None:
            named = segment()
            if named is not None and own_segment() is None:
                params["headers"].setdefault(TRACE_HEADER, named)

        self._client.meta.events.register("before-call.lambda.Invoke", name)

    async def call(
        self, function: str, qualifier: str | None, payload: bytes, room: AnswerHolder | None = None
    ) -> Invoked:
        """See `InvokeClient.call`."""
        target: dict[str, Any] = {"FunctionName": function}
        if qualifier is not None:
            target["Qualifier"] = qualifier
        body = payload if len(payload) < STREAMED_BYTES_MIN else io.BytesIO(payload)
        response = await self._invoke(**target, InvocationType=SYNCHRONOUS, Payload=body)
        try:
            return Invoked(await _closed(response, room), failed=bool(response.get("FunctionError")))
        except (BotoCoreError, aiohttp.ClientError, OSError, KeyError) as error:
            # A KeyError: an answer without a payload, as no Lambda gives one.
            raise LostError(str(error) or type(error).__name__) from error

    async def post(self, function: str, payload: bytes) -> None:
        """See `InvokeClient.post`."""
        await self._invoke(FunctionName=function, InvocationType=ASYNCHRONOUS, Payload=payload)

    async def _invoke(self, **arguments: Any) -> Any:
        try:
            return await self._client.invoke(**arguments)
        except ClientError as error:
            details, metadata = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
            code, message = str(details.get("Code", "?")), str(details.get("Message", "no message"))
            raise ServiceError(code, message, int(metadata.get("HTTPStatusCode", 0)), {}) from error
        except (ResponseParserError, aiohttp.ClientError, OSError) as error:
            raise LostError(str(error) or type(error).__name__) from error


def own_segment() -> str | None:
    """The segment of a trace that this process is, as a Lambda function: Lambda also ends loops of functions by it."""
    segment = os.environ.get(LAMBDA_TRACE)
    return quote(segment, safe=TRACE_SAFE) if segment and LAMBDA_NAME in os.environ else None


async def _closed(response: Mapping[str, Any], room: AnswerHolder | None) -> bytes:
    """See `_body`. What is not read whole is closed."""
    try:
        return await _body(response, room)
    except BaseException:
        response["Payload"].close()
        raise


async def _body(response: Mapping[str, Any], room: AnswerHolder | None) -> bytes:
    """The whole of an answer, without more than that of it in memory, and none of it before there is room for it.

    Raises AnswerTooLargeError.
    """
    payload = response["Payload"]
    size = _told_bytes(response)
    left = 0 if size > ANSWER_BYTES_MAX else ANSWER_BYTES_MAX + 1
    if room is not None and left:
        await room.hold(size)
    parts: list[bytes] = []
    while left > 0 and (part := await payload.read(left)):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise AnswerTooLargeError(f"more than {ANSWER_BYTES_MAX:,} bytes")
    return b"".join(parts)


def _told_bytes(response: Mapping[str, Any]) -> int:
    """How large an answer is, as its headers tell; as large as any may be where they do not."""
    told = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-length", "")
    return int(told) if told.isascii() and told.isdigit() and len(told) <= SIZE_DIGITS_MAX else ANSWER_BYTES_MAX
