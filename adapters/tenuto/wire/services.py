"""DynamoDB's and Lambda's requests and answers, without I/O.

Owns their paths, headers and error documents, and DynamoDB's JSON 1.0 with its checksum. Does not own what arguments
say (`tenuto.store.expressions`) nor payloads of functions. Source of facts: the API references of both services.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import structs

from tenuto.protocol.decoding import bounded
from tenuto.wire.errors import BadAnswerError, ServiceError
from tenuto.wire.http1 import Answer, is_refusal
from tenuto.wire.sigv4 import Request

JSON_1_0: Final = "application/x-amz-json-1.0"
TARGET_PREFIX: Final = "DynamoDB_20120810."
CHECKSUM: Final = "x-amz-crc32"
ERROR_TYPE: Final = "x-amzn-errortype"
FUNCTION_ERROR: Final = "x-amz-function-error"
INVOCATION_TYPE: Final = "x-amz-invocation-type"
TRACE: Final = "x-amzn-trace-id"
LAMBDA_API: Final = "/2015-03-31/functions/"

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = bounded(msgspec.json.Decoder())


def dynamodb_request(base_path: str, operation: str, arguments: Mapping[str, Any], user_agent: str) -> Request:
    """One of DynamoDB's operations, by its name such as UpdateItem. Binary values are bytes, sent as base64."""
    headers = {"content-type": JSON_1_0, "x-amz-target": TARGET_PREFIX + operation, "user-agent": user_agent}
    return Request(f"{base_path}/", headers, _encode(arguments))


def dynamodb_answer(operation: str, answer: Answer) -> dict[str, Any]:
    """The document that DynamoDB answered with. Raises ServiceError and BadAnswerError."""
    _check_sum(answer)
    document = _document(answer)
    if answer.status == HTTPStatus.OK:
        if document is None:
            raise BadAnswerError(f"{operation} was answered with something that is not a JSON object")
        return document
    raise _error(answer, document)


def invoke_request(
    base_path: str, function: str, qualifier: str | None, payload: bytes, invocation_type: str, user_agent: str
) -> Request:
    """Lambda's Invoke of a function by its name or ARN, at a version or alias."""
    headers = {INVOCATION_TYPE: invocation_type, "user-agent": user_agent}
    path, query = _invoke_target(base_path, function, qualifier)
    return Request(path, headers, payload, query)


def with_header(request: Request, name: str, value: str) -> Request:
    """The same request with one header more."""
    return structs.replace(request, headers={**request.headers, name: value})


@lru_cache(maxsize=1_024)
def _invoke_target(base_path: str, function: str, qualifier: str | None) -> tuple[str, str]:
    query = "" if qualifier is None else f"Qualifier={quote(qualifier, safe='-_.~')}"
    return f"{base_path}{LAMBDA_API}{quote(function, safe='-_.~')}/invocations", query


def invoke_answer(answer: Answer) -> bytes:
    """What Lambda answered with; a function's own failure is in the header FUNCTION_ERROR. Raises ServiceError."""
    if is_refusal(answer):
        raise error_of(answer)
    return answer.body


def error_of(answer: Answer) -> ServiceError:
    """The error in an answer whose status says that it is one."""
    return _error(answer, _document(answer))


def _document(answer: Answer) -> dict[str, Any] | None:
    try:
        document = _decode(answer.body)
    except msgspec.DecodeError:
        return None
    return document if isinstance(document, dict) else None


def _error(answer: Answer, document: dict[str, Any] | None) -> ServiceError:
    if document is None:
        # A proxy's page, for instance, or a body that was cut.
        document = {"message": answer.body.decode("utf-8", "replace")}
    told = document.get("__type") or answer.headers.get(ERROR_TYPE) or document.get("code") or document.get("Code")
    # Two forms beside the plain name: a name space and # before it, a colon and a URL behind it.
    code = str(told or answer.status).partition(":")[0].rpartition("#")[2]
    message = document.get("message") or document.get("Message") or ""
    return ServiceError(code, str(message), answer.status, document)


def _check_sum(answer: Answer) -> None:
    told = answer.headers.get(CHECKSUM)
    if told is not None and told != str(zlib.crc32(answer.body)):
        raise BadAnswerError("the answer does not match its checksum")
