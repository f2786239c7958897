"""Errors of a request.

Owns the exceptions of this package:

    WireError                   there is no usable answer
        ConnectError            nothing was sent: no connection, a failed TLS handshake, or a proxy that refused
        LostError               the request may have been sent and no answer came: its effect is unknown
        BadAnswerError          the answer is not HTTP, or not an answer of the service
            AnswerTooLargeError the answer exceeds the caller's limit
    ServiceError                the service answered with an error
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WireError(Exception):
    """There is no usable answer."""


class ConnectError(WireError):
    """Nothing was sent, because there is no connection."""


class LostError(WireError):
    """No answer arrived for a request that may have taken effect."""


class BadAnswerError(WireError):
    """The answer is not one of the service."""


class AnswerTooLargeError(BadAnswerError):
    """The answer exceeds the caller's limit."""


class ServiceError(Exception):
    """An error that the service answered with: its code, its words, the HTTP status, and the whole document."""

    def __init__(self, code: str, message: str, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.document = document


def said(error: Exception) -> str:
    """An error of a connection in words."""
    if isinstance(error, TimeoutError):
        return "it takes too long"
    return str(error) or type(error).__name__
