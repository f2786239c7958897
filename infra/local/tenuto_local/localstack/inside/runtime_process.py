"""One process under AWS's runtime client, and the Runtime API that it alone talks to.

Owns the process, its listener and the one invocation it has. A listener belongs to one process, so that a crash
or a timeout is that of its invocation. Needs the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
# Linux hands out ports from 32768 upwards to outgoing connections.
PORT_MIN = 18_000
PORT_MAX = 32_000
PORT_ATTEMPTS_MAX = 200
INIT_TIMEOUT_S = 15.0
REAP_TIMEOUT_S = 5.0
ACCEPT_POLL_S = 0.05
RUNTIME = "/2018-06-01/runtime/"


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the process is to do."""

    request_id: str
    arn: str
    trace_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """The handler's answer, or with `failed` the JSON error object."""

    payload: bytes
    failed: bool = False


class RuntimeProcess:
    """A process, started at once. `wait_ready`, then `run` one invocation after another."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self._log_path = log_path
        self._ready: Future[bytes | None] = Future()
        self._next: queue.Queue[Invocation] = queue.Queue(maxsize=1)
        self._outcome: Future[Outcome] | None = None
        self._deadline_ms = 0
        self._lock = threading.Lock()
        self._server = _bind(self)
        api = f"{LOOPBACK}:{self._server.server_address[1]}"
        _in_background(lambda: self._server.serve_forever(ACCEPT_POLL_S))
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            # In the process group of LocalStack: whoever ends that group ends the functions as well.
            self._process = subprocess.Popen(
                list(argv),
                cwd=environment["LAMBDA_TASK_ROOT"],
                env={**environment, "AWS_LAMBDA_RUNTIME_API": api},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _in_background(self._watch)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def wait_ready(self) -> bytes | None:
        """None once the handler's module is imported, otherwise the error object that says why it is not."""
        try:
            return self._ready.result(INIT_TIMEOUT_S)
        except TimeoutError:
            return _error("Sandbox.Timedout", f"Error: Task timed out after {INIT_TIMEOUT_S:.2f} seconds")

    def run(self, invocation: Invocation, timeout_s: float) -> Outcome:
        """Run one invocation. Past its time, or when the process ends, the process is gone."""
        outcome: Future[Outcome] = Future()
        with self._lock:
            self._outcome = outcome
            self._deadline_ms = int((time.time() + timeout_s) * 1000)
        if self.running:
            self._next.put_nowait(invocation)
        else:
            self._ended(self._process.returncode)
        try:
            return outcome.result(timeout_s)
        except TimeoutError:
            self.kill()
            text = f"RequestId: {invocation.request_id} Error: Task timed out after {timeout_s:.2f} seconds"
            return Outcome(_error("Sandbox.Timedout", text), failed=True)

    def kill(self) -> None:
        """SIGKILL the process, and wait until it is reaped."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_TIMEOUT_S)

    def log_size(self) -> int:
        """How much was logged up to now, in bytes."""
        return self._log_path.stat().st_size

    def log_from(self, offset: int) -> str:
        """What was logged since `log_size` answered `offset`."""
        with self._log_path.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def next(self) -> tuple[Invocation, int]:
        """The next invocation and its deadline in Unix milliseconds; waits for it."""
        self._initialised(None)
        return self._next.get(), self._deadline_ms

    def answered(self, outcome: Outcome) -> None:
        """The process has answered its invocation."""
        with self._lock:
            future, self._outcome = self._outcome, None
        if future is not None and not future.done():
            future.set_result(outcome)

    def init_failed(self, error: bytes) -> None:
        """The process could not import the handler's module."""
        self._initialised(error)

    def _initialised(self, error: bytes | None) -> None:
        # The first word counts: the process asks for work repeatedly, and ends after it has failed.
        with self._lock:
            if not self._ready.done():
                self._ready.set_result(error)

    def _watch(self) -> None:
        status = self._process.wait()
        self._ended(status)
        self._server.shutdown()
        self._server.server_close()

    def _ended(self, status: int) -> None:
        if status < 0:
            cause = "with error: signal: " + (signal.strsignal(-status) or str(-status)).lower()
        else:
            cause = f"with error: exit status {status}" if status else "without providing a reason"
        error = _error("Runtime.ExitError", f"Error: Runtime exited {cause}")
        self.init_failed(error)
        self.answered(Outcome(error, failed=True))


class _RuntimeApi(ThreadingHTTPServer):
    """The Runtime API of one process."""

    daemon_threads = True

    def __init__(self, port: int, owner: RuntimeProcess) -> None:
        self.owner = owner
        super().__init__((LOOPBACK, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _RuntimeApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._refused():
            return
        invocation, deadline_ms = self.server.owner.next()
        self._answer(
            200,
            invocation.payload,
            {
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
                "Lambda-Runtime-Invoked-Function-Arn": invocation.arn,
                "Lambda-Runtime-Trace-Id": invocation.trace_id,
            },
        )

    def do_POST(self) -> None:
        if self._refused():
            return
        body = self._body()
        kind = self.path.removeprefix(RUNTIME)
        # The runtime first: it can already ask for more work while the caller reads the answer.
        self._answer(202, b'{"status":"OK"}', {})
        if kind == "init/error":
            self.server.owner.init_failed(body)
        else:
            self.server.owner.answered(Outcome(body, failed=kind.endswith("/error")))

    def _refused(self) -> bool:
        """Refuse what a browser sends for a web page, as `tenuto_local.own_requests` does, which is not here."""
        page = any(name in self.headers for name in ("Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode"))
        if not page and self.headers.get_all("Host") == [f"{LOOPBACK}:{self.server.server_address[1]}"]:
            return False
        self.close_connection = True
        self._answer(403, b"{}", {"Connection": "close"})
        return True

    def log_message(self, *_: Any) -> None:
        """Say nothing: LocalStack logs invocations itself."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _bind(owner: RuntimeProcess) -> _RuntimeApi:
    for _ in range(PORT_ATTEMPTS_MAX):
        try:
            return _RuntimeApi(random.randint(PORT_MIN, PORT_MAX), owner)
        except OSError:
            continue
    raise OSError(f"no free port between {PORT_MIN} and {PORT_MAX} on {LOOPBACK}")


def _in_background(work: Any) -> None:
    threading.Thread(target=work, daemon=True).start()


def _error(error_type: str, message: str) -> bytes:
    return json.dumps({"errorType": error_type, "errorMessage": message}).encode()
