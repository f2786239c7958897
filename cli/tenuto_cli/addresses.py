"""Where a command finds the system it talks to: an option, a variable, or the running `tenuto dev` of the project.

Owns the order in which these are looked at, and the line that says that there is none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tenuto_cli.parsing import UsageError
from tenuto_local import running

URL_VARIABLE: Final = "TENUTO_URL"
BROKERS_VARIABLE: Final = "TENUTO_BOOTSTRAP_SERVERS"


def ingress(option: str | None) -> str:
    """The address of a control plane, without a slash at its end. Raises UsageError."""
    session = running.find(Path.cwd())
    found = option or os.environ.get(URL_VARIABLE) or (session and session.ingress)
    if not found:
        raise UsageError(
            f"no `tenuto dev` runs for this folder; start one, or name a control plane with --url or {URL_VARIABLE}"
        )
    return found.rstrip("/")


def brokers(option: str | None) -> str:
    """The address of Kafka. Raises UsageError."""
    session = running.find(Path.cwd())
    found = option or os.environ.get(BROKERS_VARIABLE) or (session and session.bootstrap_servers)
    if not found:
        raise UsageError(
            f"no `tenuto dev` runs for this folder; start one, or name a broker with --kafka or {BROKERS_VARIABLE}"
        )
    return found
