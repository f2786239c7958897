"""The one exception by which a request is refused.

Owns its shape. Does not own how it is worded in HTTP (`answers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus


class RefusedError(Exception):
    """The request cannot be served as it is; the message tells the caller the way out."""

    def __init__(
        self, message: str, status: int = HTTPStatus.BAD_REQUEST, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = int(status)
        self.headers: dict[str, str] = dict(headers or {})
