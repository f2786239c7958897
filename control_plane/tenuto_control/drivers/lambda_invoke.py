"""Invokes Lambda functions by the ordinary Invoke call (the FunctionInvoker port).

Owns the translation of AWS's answers and errors into the port's. Retries nothing: the dispatcher decides what
a failure means.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from tenuto.protocol.decoding import bounded
from tenuto_control.config import FunctionConfig
from tenuto_control.core.log_fields import shown
from tenuto_control.limits import ANSWER_BYTES_MAX
from tenuto_control.ports import (
    AnswerHolder,
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    InvokeError,
    PayloadTooLargeError,
)

if TYPE_CHECKING:
    from types_aiobotocore_lambda import LambdaClient

log = logging.getLogger("tenuto.dispatcher")

NOT_IMPORTED: Final = frozenset(
    {
        "Runtime.HandlerNotFound",
        "Runtime.ImportModuleError",
        "Runtime.MalformedHandlerName",
        "Runtime.UserCodeSyntaxError",
    }
)
"""Errors of AWS's runtime client for code that cannot be imported: no handler of it has run."""

AT_IMPORT: Final = ", in <module>"
"""In a traceback, a line that runs when its module is imported."""

PLACES_MAX: Final = 5
"""So many places of a traceback are logged, the last ones: the user's own code is there."""

STREAMED_BYTES_MIN = 1024 * 1024
"""Requests of this size are handed over as a stream.

Written in one piece, they would hold up the event loop.
"""

SIZE_DIGITS_MAX = 18
"""No size has more digits than that."""

_TOO_MANY_REQUESTS = 429
_CONFLICT = 409
_PAYLOAD_TOO_LARGE = 413
_SERVER_ERROR_MIN = 500


class LambdaInvoker:
    """Functions by their name in the configuration.

    The client must not retry and must outwait the slowest function.
    """

    def __init__(self, client: LambdaClient, functions: Mapping[str, FunctionConfig]) -> None:
        self._client = client
        self._targets = {name: _target(name, function) for name, function in functions.items()}
        self._broken: dict[str, str] = {}

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        target = self._targets.get(function)
        if target is None:
            raise FunctionMissingError(f'no function "{function}" is configured; add a section [functions.{function}]')
        body_in = payload if len(payload) < STREAMED_BYTES_MIN else io.BytesIO(payload)
        try:
            response = await self._client.invoke(**target, InvocationType="RequestResponse", Payload=body_in)
            body = await _body(function, response, room)
        except ClientError as e:
            raise _of_refusal(function, e) from e
        except (BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, KeyError) as e:
            # A KeyError: an answer without a payload, as no Lambda gives one.
            raise FunctionUnreachableError(
                f'function "{function}" gave no answer: {shown(str(e)) or type(e).__name__}'
            ) from e
        if response.get("FunctionError"):
            raise self._failed(function, body)
        self._broken.pop(function, None)
        return body

    def _failed(self, function: str, body: bytes) -> InvokeError:
        """The port's error for a function that failed.

        One whose code cannot be imported is as good as missing: a deployment heals it, and no event is to blame. It is
        said once, with the place, until the function has answered.
        """
        failure = _failure_in(body)
        if failure is None:
            # It may be anything, a payload included, and what is returned here is logged.
            text = f"an error that has not the form of Lambda's ({len(body)} bytes)"
            return FunctionFailedError(f'function "{function}" failed: {text}')
        text = shown(f"{failure.error_type}: {failure.error_message}")
        if failure.error_type not in NOT_IMPORTED and not any(AT_IMPORT in line for line in failure.lines):
            return FunctionFailedError(f'function "{function}" failed: {text}')
        if self._broken.get(function) != text:
            self._broken[function] = text
            # The rest of a traceback is the machinery of imports.
            at_import = [line for line in failure.lines if AT_IMPORT in line] or failure.lines
            log.error(
                'function "%s" cannot be imported, so nothing of it runs until it is deployed anew: %s%s',
                function,
                text,
                "".join(f"; {shown(' '.join(line.split()))}" for line in at_import[-PLACES_MAX:]),
            )
        return FunctionMissingError(f'function "{function}" cannot be imported: {text}')


async def _body(function: str, response: Mapping[str, Any], room: AnswerHolder | None) -> bytes:
    """The whole of an answer, without more than that of it in memory, and none of it before there is room for it.

    Raises FunctionFailedError for a larger one.
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
    if left > 0:
        return b"".join(parts)
    payload.close()
    raise FunctionFailedError(f'function "{function}" answered more than {ANSWER_BYTES_MAX:,} bytes')


def _told_bytes(response: Mapping[str, Any]) -> int:
    """How large an answer is, as its headers tell; as large as any may be where they do not."""
    told = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-length", "")
    return int(told) if told.isascii() and told.isdigit() and len(told) <= SIZE_DIGITS_MAX else ANSWER_BYTES_MAX


def _target(name: str, function: FunctionConfig) -> dict[str, Any]:
    target = {"FunctionName": function.function or name}
    if function.qualifier is not None:
        target["Qualifier"] = function.qualifier
    return target


def _of_refusal(function: str, error: ClientError) -> InvokeError:
    """The port's error for an HTTP error of the Invoke call (status codes.

    AWS Lambda API reference, Invoke).
    """
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    details = error.response.get("Error", {})
    code, message = details.get("Code", "?"), details.get("Message", "no message")
    text = shown(f"{code}: {message}")
    if status in (_TOO_MANY_REQUESTS, _CONFLICT):
        # A conflict is a function that is being created, updated or restored: like throttling, it passes and
        # nothing ran.
        return FunctionThrottledError(f'function "{function}" takes no invocation at the moment ({text})')
    if status == _PAYLOAD_TOO_LARGE or code == "RequestTooLargeException":
        return PayloadTooLargeError(f'the request to function "{function}" is too large ({text})')
    if status == 0 or status >= _SERVER_ERROR_MIN:
        return FunctionUnreachableError(f'function "{function}" could not be reached ({text})')
    return FunctionMissingError(
        f'function "{function}" cannot be invoked ({text}); check its name, qualifier and permission'
    )


class _FailurePayload(msgspec.Struct, rename="camel"):
    """What Lambda answers when a function failed."""

    error_type: str = "Unknown"
    error_message: str = ""
    stack_trace: Any = None

    @property
    def lines(self) -> list[str]:
        """The traceback, of which a foreign runtime may make anything."""
        found = self.stack_trace if isinstance(self.stack_trace, list) else []
        return [line for line in found if isinstance(line, str)]


_decode_failure = bounded(msgspec.json.Decoder(_FailurePayload))


def _failure_in(body: bytes) -> _FailurePayload | None:
    try:
        return _decode_failure(body)
    except msgspec.DecodeError:
        return None
