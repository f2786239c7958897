"""What the stack knows of the gateway, which is another process: its paths, and the line it logs when ready."""

from __future__ import annotations

from typing import Final

ADMIN_FUNCTIONS: Final = "/_tenuto/functions"
ADMIN_DYNAMODB: Final = "/_tenuto/dynamodb"
READY_MARKER: Final = "tenuto gateway is listening"
