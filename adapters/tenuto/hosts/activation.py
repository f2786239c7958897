"""Activations: the payload of an ordinary synchronous Lambda invocation, and its answer.

Owns the translation between Lambda's parsed JSON and protocol messages. Does not own what an activation does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tenuto.errors import ProtocolError
from tenuto.protocol.messages import (
    PROTOCOL_VERSION,
    Answer,
    Rejected,
    Request,
    request_from_builtins,
    to_builtins,
)
from tenuto.protocol.records import Failure
from tenuto.serde import problem_of


def read(payload: Any) -> Request:
    """The request in a Lambda payload. Raises ProtocolError that says what came instead."""
    try:
        return request_from_builtins(payload)
    except msgspec.ValidationError as e:
        shape = sorted(payload) if isinstance(payload, dict) else type(payload).__name__
        raise ProtocolError(
            f"this function takes tenuto activations, not {shape}: {problem_of(e)}. Kafka, API Gateway and Scheduler "
            "events go to the control plane"
        ) from None


def refusal(request: Request) -> Rejected | None:
    """Why a request cannot be served by this version of the SDK, if so."""
    if request.version == PROTOCOL_VERSION:
        return None
    return Rejected(
        Failure(
            f"control plane speaks protocol {request.version}, this function {PROTOCOL_VERSION}: deploy both alike", 505
        )
    )


def answer(found: Answer) -> Any:
    """The Lambda response of an answer."""
    return to_builtins(found)
