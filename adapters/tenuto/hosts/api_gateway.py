"""API Gateway: HTTP API (payload 2.0) and REST API (1.0) proxy events, served by an ASGI application through Mangum.

Owns telling these events apart, the bridge, and the answer to an event that the bridge cannot carry. Does not own the
application (the control plane's ingress). Mangum is imported when the first one is served: functions that hold handlers
never need it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from tenuto.errors import ProtocolError


def is_request(event: Any) -> bool:
    """Whether a payload is a proxy event of API Gateway."""
    return isinstance(event, dict) and "requestContext" in event and ("rawPath" in event or "resource" in event)


def bridge(app: Any, loop: asyncio.AbstractEventLoop, base_path: str = "/") -> Callable[[Any, Any], dict[str, Any]]:
    """What answers proxy events with `app`, on `loop`. `base_path` is what of a custom domain's path is not the app's.

    The result raises ProtocolError for an event that is none.
    """
    from mangum import Mangum

    # Mangum runs the application on the thread's current loop; it has to be the one its clients were opened on.
    asyncio.set_event_loop(loop)
    mangum = Mangum(app, lifespan="off", api_gateway_base_path=base_path)

    def serve(event: Any, context: Any) -> dict[str, Any]:
        if not is_request(event):
            raise ProtocolError("this is not an API Gateway proxy event")
        try:
            return mangum(event, context)
        except (ValueError, LookupError, TypeError, AttributeError):
            # Base64 that is none, or a header that no server would have let through: Mangum parses, it does not check.
            return failed(HTTPStatus.BAD_REQUEST, "the request cannot be read: its body, headers or path are malformed")

    return serve


def failed(status: HTTPStatus, message: str) -> dict[str, Any]:
    """An error that comes before the application, in the application's shape."""
    body = json.dumps({"error": {"message": message}})
    headers = {"content-type": "application/json"}
    return {"statusCode": status.value, "headers": headers, "body": body, "isBase64Encoded": False}
