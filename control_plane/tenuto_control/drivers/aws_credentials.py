"""Credentials of an aiobotocore session, for clients that sign by themselves.

Owns when they are looked at again: temporary ones are renewed beside the requests, well before they expire. Does not
own where they come from, which is botocore's chain of providers.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from botocore.credentials import RefreshableCredentials
from botocore.exceptions import NoCredentialsError

from tenuto.wire.sigv4 import Credentials

LOOK_INTERVAL_S: Final = 5.0
"""How often temporary credentials are compared with their expiry: botocore begins to renew them 15 minutes before."""

WAIT_BEFORE_EXPIRY_S: Final = 120
"""With less time left, requests wait for new credentials."""


class SessionCredentials:
    """A `CredentialSource` over an aiobotocore session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._busy = asyncio.Lock()
        self._held: Any = None
        self._known: Credentials | None = None
        self._looked_s = 0.0
        self._renewing: asyncio.Task[None] | None = None

    @property
    def current(self) -> Credentials | None:
        """The credentials to sign with; None when they have to be waited for."""
        if self._known is None or not isinstance(self._held, RefreshableCredentials):
            return self._known
        # The clock of the wall: it is what expiry is told by, and it continues while a process is frozen.
        now_s = time.time()
        if abs(now_s - self._looked_s) >= LOOK_INTERVAL_S:
            if self._held.refresh_needed(WAIT_BEFORE_EXPIRY_S):
                return None
            self._looked_s = now_s
            if self._held.refresh_needed() and (self._renewing is None or self._renewing.done()):
                self._renewing = asyncio.get_running_loop().create_task(self._renew())
        return self._known

    async def renewed(self) -> Credentials:
        """The session's credentials, new ones when they are due. Raises botocore's errors."""
        async with self._busy:
            if self._held is None:
                self._held = await self._session.get_credentials()
            if self._held is None:
                raise NoCredentialsError
            frozen = await self._held.get_frozen_credentials()
            known = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
            if self._known is None or known != self._known:
                self._known = known
            return self._known

    async def close(self) -> None:
        """End a renewal that is in progress."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def _renew(self) -> None:
        try:
            await self.renewed()
        except Exception:  # noqa: BLE001 - botocore logs it, and whoever has to wait for new ones meets it again
            return
