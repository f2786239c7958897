"""API Gateway: HTTP API (payload 2.0) and REST API (1.0) proxy events, served by an ASGI application through Mangum.

Owns telling these events apart and the bridge. Does not own the application (the control plane's ingress). Mangum is
imported when the first one is served: functions that hold handlers never need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
            raise ProtocolError("this is no proxy event of API Gateway")
        return mangum(event, context)

    return serve
