"""One worker: an operating-system process under AWS's runtime client, and the Runtime API it alone talks to.

Owns the process, its listener, and the one invocation it has. Each worker has its own listener, so a
crash, a timeout or an answer belongs to a process without asking. Which invocation it gets is its pool's
business.

    STARTING ──next──▶ IDLE ──take──▶ BUSY ──response, error──▶ RETURNING ──next──▶ IDLE
        any state ──init error, exit, timeout, kill──▶ GONE
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from tenuto_local.aws_api import function_arn, region
from tenuto_local.http_server import Header, HttpServer, Request, Responder
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.lambda_service.invocation import (
    RESPONSE_BYTES_MAX,
    Failed,
    Invocation,
    Outcome,
    Succeeded,
    could_not_start,
    exited,
    init_failed,
    response_too_large,
    timed_out,
)
from tenuto_local.ports import LOOPBACK, bind_loopback_socket
from tenuto_local.processes import die_with_parent, signal_group

_RUNTIME = "/2018-06-01/runtime"
_NEXT = f"{_RUNTIME}/invocation/next"
_INIT_ERROR = f"{_RUNTIME}/init/error"
_INVOCATION = f"{_RUNTIME}/invocation/"
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


class WorkerState(enum.Enum):
    """Where a worker is in its life; the diagram above has the transitions."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RETURNING = "returning"
    GONE = "gone"


class Pool(Protocol):
    """What a worker tells its pool."""

    def worker_ready(self, worker: Worker) -> None:
        """The worker asks for its next invocation."""

    def worker_gone(self, worker: Worker, failure: Callable[[str], Failed]) -> None:
        """The process is no more; `failure(request id)` is what one that waited for its start hears."""

    def invocation_ended(self, invocation: Invocation, outcome: Outcome) -> None:
        """The invocation the worker had has ended."""


class Worker:
    """A worker of one function; `start` it once."""

    def __init__(self, spec: FunctionSpec, base_environment: dict[str, str], log_path: Path, pool: Pool) -> None:
        self.spec = spec
        self.state = WorkerState.STARTING
        self.current: Invocation | None = None
        self._arn = function_arn(spec.name)
        self._environment = base_environment
        self._log_path = log_path
        self._pool = pool
        self._server = HttpServer(self._handle)
        self._waiting: Responder | None = None  # the unanswered request for the next invocation
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._init_error: bytes | None = None
        self._reached_ready = False
        self._lost_idle = False
        self._served = 0
        self._killed = False
        self._init_timed_out = False

    @property
    def reached_ready(self) -> bool:
        """Whether it ever asked for an invocation, that is, whether its module could be imported."""
        return self._reached_ready

    @property
    def lost_idle(self) -> bool:
        """Whether it ended between two invocations, having served one; otherwise it would just end again."""
        return self._lost_idle

    @property
    def pid(self) -> int | None:
        """The process id, None while the process is being made."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Make the process; the pool hears from it by `worker_ready` or `worker_gone`."""
        self._watch = asyncio.create_task(self._run(), name=f"worker of {self.spec.name}")

    def take(self, invocation: Invocation) -> None:
        """Hand an idle worker an invocation; its deadline counts from now."""
        assert self.state is WorkerState.IDLE
        assert self._waiting is not None
        invocation.deadline_ms = int((time.time() + self.spec.timeout_s) * 1000)
        self.state = WorkerState.BUSY
        self.current = invocation
        self._timer = asyncio.get_running_loop().call_later(self.spec.timeout_s, self._time_out)
        headers: list[Header] = [
            ("Content-Type", "application/json"),
            ("Lambda-Runtime-Aws-Request-Id", invocation.request_id),
            ("Lambda-Runtime-Deadline-Ms", str(invocation.deadline_ms)),
            ("Lambda-Runtime-Invoked-Function-Arn", self._arn),
        ]
        if invocation.client_context is not None:
            headers.append(("Lambda-Runtime-Client-Context", invocation.client_context))
        responder, self._waiting = self._waiting, None
        responder.send(200, headers, invocation.payload)

    def can_take(self) -> bool:
        """Whether it is idle and its connection still stands."""
        return self.state is WorkerState.IDLE and self._waiting is not None and self._waiting.connected

    def kill(self) -> None:
        """SIGKILL the process and what it started; the pool hears of it when the process is reaped."""
        self._killed = True
        if self._process is not None and self._process.returncode is None:
            signal_group(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill it and wait until it is reaped."""
        self.kill()
        if self._watch is not None:
            await self._watch

    async def _run(self) -> None:
        sock = bind_loopback_socket()
        await self._server.start(sock)
        try:
            process = await self._spawn(f"{LOOPBACK}:{sock.getsockname()[1]}")
            init_timer = asyncio.get_running_loop().call_later(self.spec.init_timeout_s, self._init_time_out)
            failure = self._how_it_ended(await process.wait())
            init_timer.cancel()
            # Whatever the handler forked goes with it, as it would with a sandbox.
            signal_group(process.pid, signal.SIGKILL)
        except OSError as error:
            failure = partial(could_not_start, str(error))
        finally:
            self._server.close()
        self._lost_idle = self.state in (WorkerState.IDLE, WorkerState.RETURNING) and self._served > 0
        self.state = WorkerState.GONE
        if self.current is not None:
            self._end(failure(self.current.request_id))
        self._pool.worker_gone(self, failure)

    async def _spawn(self, runtime_api: str) -> asyncio.subprocess.Process:
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "awslambdaric", self.spec.handler),
                cwd=self.spec.root,
                env=self._process_environment(runtime_api),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        if self._killed:
            # It was told to go while it was being made.
            self.kill()
        return self._process

    def _how_it_ended(self, status: int) -> Callable[[str], Failed]:
        if self._init_error is not None:
            return partial(init_failed, self._init_error)
        if self._init_timed_out:
            return partial(timed_out, self.spec.init_timeout_s)
        return partial(exited, status)

    def _process_environment(self, runtime_api: str) -> dict[str, str]:
        spec = self.spec
        python_path = os.pathsep.join(filter(None, (spec.root, os.environ.get("PYTHONPATH"))))
        return {
            **{name: value for name, value in os.environ.items() if spec.inherits or name in _INHERITED},
            "PYTHONPATH": python_path,
            "TZ": ":UTC",
            "AWS_REGION": region(),
            "AWS_DEFAULT_REGION": region(),
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
            **self._environment,
            **spec.environment,
            "AWS_LAMBDA_RUNTIME_API": runtime_api,
            "AWS_LAMBDA_FUNCTION_NAME": spec.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory_mb),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{spec.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": runtime_api,
            "LAMBDA_TASK_ROOT": spec.root,
            "_HANDLER": spec.handler,
        }

    def _handle(self, request: Request, responder: Responder) -> None:
        path = request.path
        if path == _NEXT:
            self._waiting = responder
            self._reached_ready = True
            self.state = WorkerState.IDLE
            self._pool.worker_ready(self)
        elif path.startswith(_INVOCATION) and request.method == "POST":
            self._handle_result(path.removeprefix(_INVOCATION), request.body, responder)
        elif path == _INIT_ERROR:
            self._init_error = request.body
            responder.send_json(202, {"status": "OK"})
        else:
            responder.send_json(404, {"errorType": "NotFound", "errorMessage": f"{request.method} {path} is not known"})

    def _handle_result(self, tail: str, body: bytes, responder: Responder) -> None:
        request_id, _, kind = tail.partition("/")
        current = self.current
        if current is None or current.request_id != request_id or kind not in ("response", "error"):
            responder.send_json(400, {"errorType": "InvalidRequestID", "errorMessage": "Invalid request ID"})
        elif len(body) > RESPONSE_BYTES_MAX:
            # The runtime client takes this for its own error and exits; the caller hears the real
            # reason.
            self._end(response_too_large())
            responder.send_json(413, {"errorType": "RequestEntityTooLarge", "errorMessage": "Exceeded maximum size"})
        else:
            # The caller first: it waits for this, and the runtime only for its next work.
            self._end(Succeeded(body) if kind == "response" else Failed(body))
            responder.send(202)

    def _end(self, outcome: Outcome) -> None:
        invocation, self.current = self.current, None
        assert invocation is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.state is WorkerState.BUSY:
            self.state = WorkerState.RETURNING
            self._served += 1
        if isinstance(outcome, Failed):
            self._end_line()
        self._pool.invocation_ended(invocation, outcome)

    def _end_line(self) -> None:
        """End the last line of a traceback, which the runtime client leaves open and a follower waits for."""
        with self._log_path.open("r+b") as log:
            if log.seek(0, os.SEEK_END) > 0:
                log.seek(-1, os.SEEK_END)
                if log.read(1) != b"\n":
                    log.write(b"\n")

    def _time_out(self) -> None:
        assert self.current is not None
        self.state = WorkerState.GONE
        self.kill()
        self._end(timed_out(self.spec.timeout_s, self.current.request_id))

    def _init_time_out(self) -> None:
        if self.state is WorkerState.STARTING:
            self._init_timed_out = True
            self.kill()
