"""The memory of one control plane, divided into parts, and what its task has.

Owns the sum and the warning that it does not fit. Does not own the parts' bounds (`limits`) nor holding to them: each
part says beside its bound what it does when it is full.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenuto.protocol.limits import PAYLOAD_BYTES_MAX
from tenuto_control.limits import HTTP_AHEAD_BYTES_MAX, MIB, REQUEST_COPIES, Limits

VARIABLE: Final = "TENUTO_MEMORY_MIB"
"""What the task has, for a container that cannot see it otherwise."""

TASK_MIB: Final = 512
"""What the template gives a task (infra/control_plane.yaml)."""

PROCESS_BYTES: Final = 96 * MIB
"""An idle control plane, measured, with its libraries and connections."""

RESTING_BYTES: Final = 2_048
"""A lane that waits for its next attempt, with what it remembers of the last; 1,850 bytes are measured
(`tests/attack/test_memory`)."""

AWAITED_BYTES: Final = 8 * 1024
"""A caller that waits for a result: a request and its question to the table."""

CALL_BYTES: Final = 16 * 1024
CONNECTION_BYTES: Final = 6 * 1024
"""A call that waits, besides its body and its lane; a connection. Estimates."""

BACKGROUND_BYTES: Final = 12 * MIB
"""Deliveries and schedules that wait to be made (`dispatcher.background`)."""

BROKERS: Final = 3
"""So many brokers answer at once."""

ROOT: Final = Path("/")
CGROUPS: Final = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
UNLIMITED_BYTES: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    """What a task has, and who says so."""

    bytes: int
    told_by: str


def parts(limits: Limits) -> dict[str, int]:
    """What each part may take, in bytes, with the limits that bound it as its name."""
    return {
        "the process itself": PROCESS_BYTES,
        # A partition that holds little continues when others have filled the bound (`loops.consume`).
        "process_bytes_max, and a quarter": limits.process_bytes_max * 5 // 4,
        "lanes_at_work_bytes_max": limits.lanes_at_work_bytes_max,
        "lanes_max": limits.lanes_max * RESTING_BYTES,
        "lane_cache_bytes_max": limits.lane_cache_bytes_max,
        "invoke_bytes_max, and a large request": limits.invoke_bytes_max + REQUEST_COPIES * PAYLOAD_BYTES_MAX,
        "answers_bytes_max": limits.answers_bytes_max,
        "calls_bytes_max": limits.calls_bytes_max,
        "calls_max": limits.calls_max * CALL_BYTES,
        "http_connections_max": limits.http_connections_max * CONNECTION_BYTES,
        "requests ahead of their turn": HTTP_AHEAD_BYTES_MAX,
        "wheel_bytes_max": limits.wheel_bytes_max,
        "results_awaited_max": limits.results_awaited_max * AWAITED_BYTES,
        "deliveries and schedules": BACKGROUND_BYTES,
        f"fetch_bytes_max of {BROKERS} brokers": BROKERS * limits.fetch_bytes_max,
        "poll_bytes_max": limits.poll_bytes_max,
        # It is inflated, and then decoded from a copy.
        "batch_inflated_bytes_max, twice": 2 * limits.batch_inflated_bytes_max,
    }


def memory_problem(limits: Limits, memory: Memory) -> str | None:
    """In one line, what is wrong with these limits for a task of this size; None when nothing is."""
    divided = parts(limits)
    together = sum(divided.values())
    if together <= memory.bytes:
        return None
    largest = sorted(divided.items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} ({_mib(size)})" for name, size in largest)
    return (
        f"[limits] may take {_mib(together)} of memory and the task has {_mib(memory.bytes)} ({memory.told_by}): lower "
        f"some, or give it more. They are {named}"
    )


def memory_of_task(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> Memory | None:
    """What this process may take: as the environment says, or else its memory group. None when neither does."""
    told = environment.get(VARIABLE, "")
    if told.isascii() and told.isdigit() and int(told) > 0:
        return Memory(int(told) * MIB, VARIABLE)
    for name in CGROUPS:
        try:
            text = (root / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit() and 0 < int(text) < UNLIMITED_BYTES:
            return Memory(int(text), "its memory group")
    return None


def task_to_be(environment: Mapping[str, str]) -> Memory:
    """What the task will have that is to run a configuration: as the environment says, or else as in the template.

    The memory group of this process says nothing of that, as it is checked on other machines.
    """
    told = memory_of_task(environment, Path("/nowhere"))
    return told or Memory(TASK_MIB * MIB, f"as in the template; {VARIABLE} says otherwise")


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
