"""What the stack knows of the gateway, which is another process: its paths, its secret, what it logs when ready."""

from __future__ import annotations

from typing import Final

ADMIN_FUNCTIONS: Final = "/_tenuto/functions"
ADMIN_HOLD: Final = "/_tenuto/hold"
ADMIN_DYNAMODB: Final = "/_tenuto/dynamodb"
READY_MARKER: Final = "tenuto gateway is listening"
ADMIN_HEADER: Final = "x-tenuto-secret"
"""The header that a request to an admin path carries this start's secret in."""

ADMIN_VARIABLE: Final = "TENUTO_GATEWAY_SECRET"
"""The environment variable that the gateway takes the secret from; functions do not get it."""
