"""What the outside saw: a small SQLite file that stands for the systems the examples call.

Owns the record of calls, and the manners of a good external system: a repeated idempotency key gets the
answer of the first call. Does not own what the systems do (each example's `outside`). Several function
processes may write to one file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from tenuto import idempotency_key

DIRECTORY_VARIABLE = "TENUTO_EXAMPLE_DIR"
"""Environment variable that names the directory of the file; the working directory without it."""

LATENCY_VARIABLE = "TENUTO_EXAMPLE_LATENCY_MS"
"""Environment variable: milliseconds that a system takes before it acts on a call; none without it."""

LOCK_TIMEOUT_S = 10.0
T = TypeVar("T")

_SCHEMA = """CREATE TABLE IF NOT EXISTS calls
  (number INTEGER PRIMARY KEY, system TEXT, subject TEXT, event TEXT,
   idempotency_key TEXT, process INTEGER, answer TEXT)"""

_INSERT = "INSERT INTO calls (system, subject, event, idempotency_key, process, answer) VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the outside.

    `event` names its cause, `process` is the id of the process it came from; `number` rises as calls arrive.
    """

    number: int
    system: str
    subject: str
    event: str
    idempotency_key: str
    process: int
    answer: object


class Ledger:
    """The calls of one example."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return Path(os.environ.get(DIRECTORY_VARIABLE, ".")) / f"{self._name}.sqlite"

    def call(self, system: str, subject: str, event: str, answer: Callable[[int], T]) -> T:
        """Record a call made inside `ctx.run` and return its answer.

        `answer` is given how many other calls this system has had for this subject before; a repeated
        idempotency key gets the first answer again, read back from JSON. Raises TenutoError outside a step.
        """
        key = idempotency_key()
        time.sleep(float(os.environ.get(LATENCY_VARIABLE, "0")) / 1000)
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            first = db.execute("SELECT answer FROM calls WHERE idempotency_key = ?", (key,)).fetchone()
            if first is None:
                counted = db.execute(
                    "SELECT COUNT(DISTINCT idempotency_key) FROM calls WHERE system = ? AND subject = ?",
                    (system, subject),
                ).fetchone()
                text = json.dumps(answer(counted[0]))
            else:
                text = first[0]
            row = (system, subject, event, key, os.getpid(), text)
            db.execute(_INSERT, row)
            db.execute("COMMIT")
        return cast("T", json.loads(text))

    def calls(self) -> list[Call]:
        """Every call so far, repetitions included, in order of arrival."""
        with self._open() as db:
            rows = db.execute(
                "SELECT number, system, subject, event, idempotency_key, process, answer FROM calls ORDER BY number"
            )
            return [Call(n, sy, su, ev, key, pid, json.loads(answer)) for n, sy, su, ev, key, pid, answer in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as db:
            # Only a crash of the machine could lose rows; a killed process cannot.
            db.execute("PRAGMA synchronous = OFF")
            db.execute(_SCHEMA)
            yield db


def finished_calls(calls: list[Call]) -> dict[str, list[str]]:
    """The systems each event called, in order, with repetitions of one call counted once."""
    systems: dict[str, list[str]] = {}
    seen: set[str] = set()
    for call in calls:
        if call.idempotency_key not in seen:
            seen.add(call.idempotency_key)
            systems.setdefault(call.event, []).append(call.system)
    return systems


def repeated_calls(calls: list[Call]) -> list[Call]:
    """Calls whose idempotency key came before: steps that were in flight when their function ended."""
    seen: set[str] = set()
    repeated: list[Call] = []
    for call in calls:
        if call.idempotency_key in seen:
            repeated.append(call)
        seen.add(call.idempotency_key)
    return repeated


def repeated_finished_steps(calls: list[Call]) -> list[Call]:
    """Repetitions that must never happen: a step came again although a later one of its event had begun."""
    latest: dict[str, str] = {}
    seen: set[str] = set()
    wrong: list[Call] = []
    for call in calls:
        if call.idempotency_key not in seen:
            seen.add(call.idempotency_key)
            latest[call.event] = call.idempotency_key
        elif latest[call.event] != call.idempotency_key:
            wrong.append(call)
    return wrong
