"""One function: its workers, and the invocations that wait for them.

Owns admission (the concurrency limit), the short queue, spawning workers as they are needed up to the limit,
and replacing those that are lost. Workers pull: one that asks for its next invocation takes the oldest
waiting. A function that is held keeps the workers it has and starts no others: its code on disk cannot be imported at
the moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tenuto_local.aws_api import AwsError
from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.lambda_service.invocation import Failed, Invocation, Outcome
from tenuto_local.lambda_service.worker import Worker, WorkerState


class LambdaFunction:
    """A registered function. `submit` an invocation; its `done` callback gets the outcome."""

    def __init__(self, spec: FunctionSpec, base_environment: dict[str, str], log_path: Path) -> None:
        self.spec = spec
        self.invocations = 0
        self.cold_starts = 0
        self.held = False
        self._base_environment = base_environment
        self._log_path = log_path
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []  # last in, first out: the warmest first
        self._queue: deque[Invocation] = deque()
        self._running = 0
        self._retired = False

    def submit(self, invocation: Invocation) -> None:
        """Accept an invocation; raises `TooManyRequestsException` at the concurrency limit, as AWS does."""
        if self._running + len(self._queue) >= self.spec.concurrency + self.spec.queue_limit:
            raise AwsError(
                *(429, "TooManyRequestsException", "Rate Exceeded."),
                Reason="ReservedFunctionConcurrentInvocationLimitExceeded",
                Type="User",
            )
        self.invocations += 1
        worker = self._pop_idle()
        if worker is not None:
            self._running += 1
            worker.take(invocation)
        else:
            self._queue.append(invocation)
            self._spawn_as_needed()

    def describe(self) -> dict[str, object]:
        """Counters and workers, as the admin endpoint shows them."""
        workers = [
            {
                "pid": worker.pid,
                "state": worker.state.value,
                "request_id": worker.current and worker.current.request_id,
            }
            for worker in self._workers
            if worker.pid is not None
        ]
        return {
            "name": self.spec.name,
            "workers": workers,
            "queued": len(self._queue),
            "invocations": self.invocations,
            "cold_starts": self.cold_starts,
            "log": str(self._log_path),
        }

    async def close(self) -> None:
        """Kill all workers; what they were doing fails."""
        self._retired = True
        await asyncio.gather(*(worker.close() for worker in tuple(self._workers)))

    def retire(self) -> list[Invocation]:
        """A new version takes its place: let what runs finish, then end each worker. Returns what has not begun."""
        self._retired = True
        while (worker := self._pop_idle()) is not None:
            worker.kill()
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    def adopt(self, waiting: list[Invocation]) -> None:
        """Take over what the version before had accepted and not begun."""
        self._queue.extend(waiting)
        self.invocations += len(waiting)
        self._spawn_as_needed()

    def worker_ready(self, worker: Worker) -> None:
        """A worker asks for work (`Pool`)."""
        if self._queue:
            self._running += 1
            worker.take(self._queue.popleft())
        elif self._retired:
            worker.kill()
        else:
            self._idle.append(worker)

    def worker_gone(self, worker: Worker, failure: Callable[[str], Failed]) -> None:
        """A worker's process has ended (`Pool`)."""
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if not worker.reached_ready and self._queue:
            # It died before it could ask for work: the oldest invocation that waited for a start has failed
            # with it.
            invocation = self._queue.popleft()
            invocation.done(failure(invocation.request_id))
        if worker.lost_idle and not self._retired and not self.held:
            self._spawn()
        self._spawn_as_needed()

    def invocation_ended(self, invocation: Invocation, outcome: Outcome) -> None:
        """A worker is done with an invocation (`Pool`)."""
        self._running -= 1
        invocation.done(outcome)

    def _pop_idle(self) -> Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.can_take():
                return worker
        return None

    def _spawn_as_needed(self) -> None:
        if self.held:
            return
        coming = sum(worker.state in (WorkerState.STARTING, WorkerState.RETURNING) for worker in self._workers)
        room = self.spec.concurrency - sum(worker.state is not WorkerState.GONE for worker in self._workers)
        for _ in range(min(len(self._queue) - coming, room)):
            self._spawn()

    def _spawn(self) -> None:
        self.cold_starts += 1
        worker = Worker(self.spec, self._base_environment, self._log_path, self)
        self._workers.append(worker)
        worker.start()
