"""Invokes Lambda functions by the ordinary Invoke call (the FunctionInvoker port).

Owns the translation of AWS's answers and errors into the port's. Retries nothing: the dispatcher decides what
a failure means.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from botocore.exceptions import BotoCoreError

from tenuto.protocol.decoding import bounded
from tenuto.wire.errors import AnswerTooLargeError, ServiceError, WireError
from tenuto_control.config import FunctionConfig
from tenuto_control.core.log_fields import shown
from tenuto_control.drivers.invoke_client import InvokeClient
from tenuto_control.limits import ANSWER_BYTES_MAX
from tenuto_control.ports import (
    AnswerHolder,
    FunctionBrokenError,
    FunctionFailedError,
    FunctionMissingError,
    FunctionThrottledError,
    FunctionUnreachableError,
    InvokeError,
    PayloadTooLargeError,
)

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

_TOO_MANY_REQUESTS = 429
_CONFLICT = 409
_PAYLOAD_TOO_LARGE = 413
_SERVER_ERROR_MIN = 500


class LambdaInvoker:
    """Functions by their name in the configuration."""

    def __init__(self, client: InvokeClient, functions: Mapping[str, FunctionConfig]) -> None:
        self._client = client
        self._targets = {name: _target(name, function) for name, function in functions.items()}
        self._broken: dict[str, str] = {}

    async def invoke(self, function: str, payload: bytes, room: AnswerHolder | None = None) -> bytes:
        """See `FunctionInvoker.invoke`."""
        target = self._targets.get(function)
        if target is None:
            raise FunctionMissingError(f'no function "{function}" is configured; add a section [functions.{function}]')
        try:
            invoked = await self._client.call(*target, payload, room)
        except ServiceError as e:
            raise _of_refusal(function, e) from e
        except AnswerTooLargeError as e:
            raise FunctionFailedError(f'function "{function}" answered more than {ANSWER_BYTES_MAX:,} bytes') from e
        except (WireError, BotoCoreError) as e:
            raise FunctionUnreachableError(
                f'function "{function}" gave no answer: {shown(str(e)) or type(e).__name__}'
            ) from e
        if invoked.failed:
            raise self._failed(function, invoked.payload)
        self._broken.pop(function, None)
        return invoked.payload

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
                'function "%s" cannot be imported, so none of it runs until it is deployed again: %s%s',
                function,
                text,
                "".join(f"; {shown(' '.join(line.split()))}" for line in at_import[-PLACES_MAX:]),
            )
        return FunctionBrokenError(f'function "{function}" cannot be imported: {text}')


def _target(name: str, function: FunctionConfig) -> tuple[str, str | None]:
    return function.function or name, function.qualifier


def _of_refusal(function: str, error: ServiceError) -> InvokeError:
    """The port's error for an HTTP error of the Invoke call (status codes.

    AWS Lambda API reference, Invoke).
    """
    status, code = error.status, error.code
    text = shown(f"{code}: {error.message or 'no message'}")
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
