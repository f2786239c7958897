"""What the figures were measured on.

Owns the facts about this machine and the versions of what ran. Measures nothing.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tenuto_local.jars import KAFKA_BROKER
from tenuto_local.prerequisites import check_prerequisites

PACKAGES: Final = ("tenuto", "aiokafka", "aiobotocore", "botocore", "awslambdaric", "uvloop", "msgspec", "starlette")
CPU_INFO: Final = Path("/proc/cpuinfo")


def facts() -> dict[str, Any]:
    """Cores, memory, and versions. `load_before` is the one-minute load average: what else the machine was doing."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "java": check_prerequisites().line,
        "kafka": KAFKA_BROKER.directory,
        "packages": {name: version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
