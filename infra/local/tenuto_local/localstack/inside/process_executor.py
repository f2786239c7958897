"""Lambda functions as processes, where LocalStack by itself needs Docker and a download.

Owns the plugin for LocalStack's entry point `localstack.lambda.runtime_executor`: which process runs a version
of a function, and what becomes of an invocation. The process and its Runtime API are `runtime_process`'s.

    TENUTO_LAMBDA_PYTHON   the interpreter that runs the functions; it must have `awslambdaric`

Layers and container images are not supported. A function keeps this machine's interpreter, whatever its
`Runtime` says.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from localstack import config
from localstack.services.lambda_.invocation.executor_endpoint import StatusErrorException
from localstack.services.lambda_.invocation.lambda_models import FunctionVersion, InvocationResult
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor
from runtime_process import Invocation, RuntimeProcess

LOOPBACK = "127.0.0.1"
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


class ProcessExecutor(RuntimeExecutor):  # type: ignore[misc] # LocalStack is not in the environment that is checked
    """One execution environment: a process that is replaced when it was lost."""

    def __init__(self, id: str, function_version: FunctionVersion) -> None:  # noqa: A002 - LocalStack names it so
        super().__init__(id=id, function_version=function_version)
        self._environment: dict[str, str] = {}
        self._process: RuntimeProcess | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._log_path = Path(config.dirs.logs) / f"{function_version.id.function_name}-{id}.log"

    def start(self, env_vars: dict[str, str]) -> None:
        """Start the process and wait until the handler's module is imported."""
        root = str(self.function_version.config.code.get_unzipped_code_location())
        self._environment = {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            **{name: str(value) for name, value in env_vars.items()},
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{self.function_version.config.runtime}",
            "LAMBDA_TASK_ROOT": root,
            "PYTHONPATH": root,
        }
        self._running()

    def invoke(self, payload: dict[str, str]) -> InvocationResult:
        """Run one invocation; what the process could not answer, its end answers."""
        process = self._running()
        logged = process.log_size()
        invocation = Invocation(
            request_id=payload["invoke-id"],
            arn=payload["invoked-function-arn"],
            trace_id=payload["trace-id"],
            payload=payload["payload"].encode(),
        )
        outcome = process.run(invocation, float(self.function_version.config.timeout))
        return InvocationResult(
            invocation.request_id, outcome.payload, is_error=outcome.failed, logs=process.log_from(logged)
        )

    def stop(self) -> None:
        """End the process for good."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def get_address(self) -> str:
        """See `RuntimeExecutor`."""
        return LOOPBACK

    def get_endpoint_from_executor(self) -> str:
        """See `RuntimeExecutor`."""
        return LOOPBACK

    def get_runtime_endpoint(self) -> str:
        """Only LocalStack's own program inside a container asks for it."""
        return ""

    def get_logs(self) -> str:
        """See `RuntimeExecutor`."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    @classmethod
    def prepare_version(cls, function_version: FunctionVersion) -> None:
        """Unpack the code."""
        if function_version.config.code is None:
            raise ValueError("only functions packed as a zip archive can run here")
        function_version.config.code.prepare_for_execution()

    @classmethod
    def cleanup_version(cls, function_version: FunctionVersion) -> None:
        """LocalStack itself removes the unpacked code."""

    def _running(self) -> RuntimeProcess:
        with self._lock:
            if self._process is None or not self._process.running:
                if self._process is not None:
                    self._process.kill()
                argv = [os.environ["TENUTO_LAMBDA_PYTHON"], "-m", "awslambdaric", self._environment["_HANDLER"]]
                self._process = RuntimeProcess(argv, self._environment, self._log_path)
            process = self._process
        # Outside the lock: a start that hangs must not keep `stop` from ending it.
        failure = process.wait_ready()
        if failure is not None:
            process.kill()
            raise StatusErrorException("the function did not start", payload=failure)
        return process


class ProcessExecutorPlugin(RuntimeExecutorPlugin):  # type: ignore[misc] # its base is LocalStack's
    """What the entry point names."""

    name = "process"

    def load(self, *_arguments: object, **_named: object) -> type[ProcessExecutor]:
        """See `plux.Plugin`."""
        return ProcessExecutor
