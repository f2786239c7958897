"""CPU time and memory of the processes under this one, read from `/proc`.

Owns which process plays which role, and the sampling. Where there is no `/proc` (macOS), there are no figures.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from bench.figures import Processes

PROC: Final = Path("/proc")
INTERVAL_S: Final = 0.25
MB: Final = 1_000_000
DEPTH_MAX: Final = 5
"""Parent to child: this process, the gateway, a function worker, and one to spare."""

ROLES: Final = (
    ("awslambdaric", "functions"),
    ("tenuto_local.gateway", "gateway"),
    ("tenuto_control", "control plane"),
    ("bench.naive", "consumer"),
    ("kafka.Kafka", "broker"),
    ("LoopbackDynamoDB", "table"),
    ("dynoxide", "table"),
    ("restate-server", "restate server"),
    ("wrk", "load generator"),
)
"""A word of the command line, and what its process is. The first match counts."""

OWN: Final = "load generator"


class ResourceSampler:
    """Samples while it is entered. `mark` starts the count, for warm-up is not to be in it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._roles: dict[int, str] = {}
        self._cpu_s: dict[int, float] = {}
        self._before_s: dict[int, float] = {}
        self._peaks: dict[str, int] = {}
        self._marked = (0.0, 0.0)

    async def __aenter__(self) -> Self:
        if (PROC / "self" / "stat").exists():
            self._task = asyncio.create_task(self._sample_regularly())
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def mark(self) -> None:
        """Count from now on."""
        self._sample()
        self._before_s = dict(self._cpu_s)
        self._peaks.clear()
        self._marked = (time.monotonic(), machine_busy_s())

    def others(self) -> float:
        """The share of the machine (0 to 1) that processes other than these have taken since the mark."""
        self._sample()
        began_s, busy_s = self._marked
        ours_s = sum(seconds - self._before_s.get(pid, 0.0) for pid, seconds in self._cpu_s.items())
        return share_of_others(machine_busy_s() - busy_s, ours_s, time.monotonic() - began_s, os.cpu_count() or 1)

    def usage(self, events: int) -> dict[str, Processes]:
        """What each role has used since the mark; a process that ended meanwhile counts up to its last sample."""
        self._sample()
        cpu: dict[str, float] = {}
        for pid, seconds in self._cpu_s.items():
            role = self._roles[pid]
            cpu[role] = cpu.get(role, 0.0) + seconds - self._before_s.get(pid, 0.0)
        return {
            role: Processes(
                cpu_s=round(cpu[role], 3),
                cpu_ms_per_event=round(1000 * cpu[role] / events, 4),
                memory_peak_mb=round(self._peaks.get(role, 0) / MB, 1),
            )
            for role in sorted(cpu)
        }

    async def _sample_regularly(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(INTERVAL_S)

    def _sample(self) -> None:
        if self._task is None:
            return
        memory: dict[str, int] = {}
        for pid in (os.getpid(), *_descendants(os.getpid(), DEPTH_MAX)):
            # A process may end while it is looked at.
            with suppress(OSError):
                role = self._roles.get(pid) or _role(pid)
                if role is None:
                    continue
                self._roles[pid] = role
                self._cpu_s[pid] = cpu_s(pid)
                memory[role] = memory.get(role, 0) + _rss_bytes(pid)
        for role, size in memory.items():
            self._peaks[role] = max(self._peaks.get(role, 0), size)


def share_of_others(busy_s: float, ours_s: float, wall_s: float, cores: int) -> float:
    """What is left of the machine's busy time without our own, as a share of all there was, 0 to 1."""
    return round(min(1.0, max(0.0, busy_s - ours_s) / max(wall_s * cores, 1e-9)), 3)


def machine_busy_s() -> float:
    """CPU seconds that all cores were busy since the machine started, time stolen by its host included; 0 off Linux."""
    try:
        fields = (PROC / "stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _descendants(pid: int, depth: int) -> Iterator[int]:
    if depth == 0:
        return
    for listing in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, listing.read_text().split()):
                yield child
                yield from _descendants(child, depth - 1)


def _role(pid: int) -> str | None:
    if pid == os.getpid():
        return OWN
    command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((role for word, role in ROLES if word in command), None)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, ended threads included. Raises OSError when there is no such process."""
    # The second field is a name in brackets, which may itself hold spaces: count from behind it (proc(5)).
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _rss_bytes(pid: int) -> int:
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
