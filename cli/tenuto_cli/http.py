"""Requests to a control plane, over one connection of the standard library.

Owns the form of requests and answers as commands need them. Does not own the API (docs/reference/http.md).
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tenuto_cli.parsing import UsageError

TIMEOUT_S: Final = 60.0
"""Above what a request is held open for (25 s) and the time to make a call durable after it."""

OK_MAX: Final = 299
ACCEPTED: Final = 202
_NO_ADDRESS: Final = "{!r} is not the address of a control plane; write one such as http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its body, and the id of the invocation it is about, if there is one."""

    status: int
    body: bytes
    invocation_id: str | None

    @property
    def ok(self) -> bool:
        """Whether it is a result or an acceptance."""
        return self.status <= OK_MAX

    @property
    def pending(self) -> bool:
        """Whether the invocation is still running."""
        return self.status == ACCEPTED

    def problem(self) -> str:
        """Return the message of an error."""
        try:
            told = json.loads(self.body)["error"]
            return str(told["message"] if isinstance(told, dict) else told)
        except (ValueError, KeyError, TypeError):
            return self.body.decode(errors="replace").strip() or f"status {self.status}"


def request(
    base: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request. Raises UsageError if the control plane does not answer."""
    connection, prefix = _connection(base)
    try:
        connection.request(method, prefix + path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(), answer.getheader("x-tenuto-invocation-id"))
    except (http.client.InvalidURL, ValueError) as error:
        # The standard library refuses a header or a path that no request can hold.
        raise UsageError(f"the request cannot be sent: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(
            f"{base} does not answer: {str(error) or type(error).__name__}; does `tenuto dev` run?"
        ) from error
    finally:
        connection.close()


def _connection(base: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection, not opened yet, and what paths begin with. Raises UsageError."""
    try:
        url = urlsplit(base)
        host, port = url.hostname, url.port
    except ValueError:
        # A port that is none, or brackets without an address between them.
        raise UsageError(_NO_ADDRESS.format(base)) from None
    if not host or url.scheme not in {"http", "https"}:
        raise UsageError(_NO_ADDRESS.format(base))
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=TIMEOUT_S), url.path


def listing(base: str) -> dict[str, dict[str, Any]]:
    """Return the services of a control plane by name, each with `kind` and `handlers`. Raises UsageError."""
    answer = request(base, "GET", "/", headers={"accept": "application/json"})
    try:
        return {service["name"]: service for service in json.loads(answer.body)["services"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{base} is not a tenuto control plane: GET / answered {answer.status}") from error


def segments(*parts: str) -> str:
    """Return a path of percent-encoded segments. Raises UsageError for a segment that is not text."""
    try:
        return "".join("/" + quote(part, safe="") for part in parts)
    except UnicodeEncodeError as error:
        raise UsageError(f"{error.object!r} is not text: it holds bytes that are not UTF-8") from error
