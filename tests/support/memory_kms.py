"""AWS KMS in memory: wrapping that binds a key to its context, and can be away.

Owns the twin of `Wrapping`. Does not own data keys, which are as random here as anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tenuto.store.data_keys import SECRET_BYTES, Wrapping
from tenuto.store.port import TableRefusedError, TableUnavailableError


class MemoryKms(Wrapping):
    """One KMS key. `requests` counts what was asked; while `away`, nothing is answered."""

    def __init__(self) -> None:
        self.requests = {"generate": 0, "unwrap": 0}
        self.away = False
        self._wrapped: dict[bytes, tuple[bytes, dict[str, str]]] = {}

    async def generate(self, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """See `Wrapping.generate`."""
        self._ask("generate")
        secret, wrapped = os.urandom(SECRET_BYTES), os.urandom(SECRET_BYTES)
        self._wrapped[wrapped] = (secret, dict(context))
        return secret, wrapped

    async def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """See `Wrapping.unwrap`."""
        self._ask("unwrap")
        secret, made_with = self._wrapped.get(wrapped, (b"", None))
        if made_with != dict(context):
            raise TableRefusedError("InvalidCiphertextException: wrapped by another key, or with another context")
        return secret

    def _ask(self, what: str) -> None:
        if self.away:
            raise TableUnavailableError("KMS does not answer")
        self.requests[what] += 1
