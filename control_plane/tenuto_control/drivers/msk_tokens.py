"""Tokens by which MSK lets clients in with IAM: a presigned request to connect, which brokers check with AWS.

Owns the form of a token. Does not own when one is asked for (aiokafka) nor the credentials' refresh (botocore). Made
with what the AWS clients bring anyway, so that no second AWS SDK is deployed for it.
"""

from __future__ import annotations

import asyncio
import base64

from aiokafka.abc import AbstractTokenProvider
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.session import Session

TOKEN_S = 900
"""How long a token lets in; a connection that it opened continues."""

SERVICE = "kafka-cluster"


class NoCredentialsError(Exception):
    """There is nothing to sign with. The message says what to do."""


class MskTokens(AbstractTokenProvider):  # type: ignore[misc] # the base class carries no types
    """IAM tokens for the clusters of a region.

    Signing is local, but looking for credentials may block, so it happens in a thread.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        self._session = Session()

    async def token(self) -> str:
        """A token for one connection. Raises NoCredentialsError."""
        return await asyncio.to_thread(self._signed)

    def _signed(self) -> str:
        credentials = self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError("kafka.iam: there are no AWS credentials; give the process a role")
        return token_of(credentials.get_frozen_credentials(), self._region)


def token_of(credentials: Credentials | ReadOnlyCredentials, region: str) -> str:
    """The token that these credentials give now."""
    url = f"https://kafka.{region}.amazonaws.com/?Action=kafka-cluster%3AConnect"
    request = AWSRequest("GET", url)
    SigV4QueryAuth(credentials, SERVICE, region, expires=TOKEN_S).add_auth(request)
    # Not signed: it tells AWS whose client this is.
    named = f"{request.url}&User-Agent=tenuto"
    return base64.urlsafe_b64encode(named.encode()).rstrip(b"=").decode()
