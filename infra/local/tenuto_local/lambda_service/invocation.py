"""One invocation and the ways it can end. Pure data; the messages are those a caller of AWS Lambda sees."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

RESPONSE_BYTES_MAX = 6 * 1024 * 1024 + 100  # AWS allows a response a hundred bytes more than a request.


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned; `payload` is its JSON."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or its process did not live to return; `payload` is the JSON error object."""

    payload: bytes


Outcome = Succeeded | Failed


class Invocation:
    """A payload on its way through a function; `done` is called once, with its outcome."""

    __slots__ = ("client_context", "deadline_ms", "done", "payload", "request_id")

    def __init__(
        self,
        request_id: str,
        payload: bytes,
        done: Callable[[Outcome], None],
        client_context: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.payload = payload
        self.done = done
        self.client_context = client_context  # JSON
        self.deadline_ms = 0  # Unix milliseconds; set when a worker takes the invocation


def timed_out(timeout_s: float, request_id: str) -> Failed:
    """The function ran into its own timeout and was killed."""
    return _failed("Sandbox.Timedout", f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds")


def exited(status: int, request_id: str) -> Failed:
    """The function's process ended (status as `subprocess` gives it) before it answered."""
    if status < 0:
        cause = "with error: signal: " + (signal.strsignal(-status) or str(-status)).lower()
    elif status > 0:
        cause = f"with error: exit status {status}"
    else:
        cause = "without providing a reason"
    return _failed("Runtime.ExitError", f"RequestId: {request_id} Error: Runtime exited {cause}")


def init_failed(error: bytes, _request_id: str) -> Failed:
    """The function's module could not be imported; `error` is what the runtime client posted about it."""
    return Failed(error)


def could_not_start(reason: str, request_id: str) -> Failed:
    """No process could be made for the function."""
    return _failed("Runtime.InvalidEntrypoint", f"RequestId: {request_id} Error: {reason}")


def response_too_large() -> Failed:
    """The handler returned more than may be handed back."""
    text = f"Response payload size exceeded maximum allowed payload size ({RESPONSE_BYTES_MAX} bytes)."
    return _failed("Function.ResponseSizeTooLarge", text)


def _failed(error_type: str, message: str) -> Failed:
    return Failed(json.dumps({"errorType": error_type, "errorMessage": message}).encode())
