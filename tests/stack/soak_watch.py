"""A process that asks another one for its health, over and over, and does nothing else.

    python -m tests.stack.soak_watch URL PID      # prints one line of JSON once its input ends

Owns the questions, each on a connection of its own as a load balancer asks, and what they tell: how long each answer
took, and the memory of the process. Does not own the judgement (`soak_memory`). It is a process of its own because
whoever makes ten thousand calls is late itself.
"""

from __future__ import annotations

import http.client
import json
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

EVERY_S = 0.25
TIMEOUT_S = 10.0


@dataclass(slots=True)
class Seen:
    """What was seen: peak of resident memory (bytes), seconds of each answer (`TIMEOUT_S` for none), what it said.

    `late_ms` is what the process says of itself: by how much its loop was late at most in some seconds.
    """

    peak: int = 0
    health_s: list[float] = field(default_factory=list)
    late_ms: list[int] = field(default_factory=list)


def peak_bytes(pid: int) -> int:
    """The most memory that a process had resident. Raises OSError when it is gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no memory any more")


def ask(host: str, port: int, seen: Seen) -> None:
    """One question."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        told = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        seen.health_s.append(TIMEOUT_S)
    else:
        seen.health_s.append(time.monotonic() - began)
        seen.late_ms.append(told.get("late_ms", 0))
    finally:
        connection.close()


def main() -> None:
    """Ask until the input ends."""
    # Ctrl-C is for whoever started this, and then ends the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    url, pid = urlsplit(sys.argv[1]), int(sys.argv[2])
    seen = Seen()
    while True:
        ask(url.hostname or "", url.port or 0, seen)
        with suppress(OSError):
            seen.peak = max(seen.peak, peak_bytes(pid))
        if select.select([sys.stdin], [], [], EVERY_S)[0]:
            break
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
