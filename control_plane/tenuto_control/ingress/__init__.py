"""The HTTP ingress: calls, sends, attachments and awakeable results, as one ASGI application.

Owns what HTTP means for handlers. Does not own how invocations run (the dispatcher) nor the server around the
application.
"""

from tenuto_control.ingress.app import create_app
from tenuto_control.ingress.listing import Catalogue

__all__ = ["Catalogue", "create_app"]
