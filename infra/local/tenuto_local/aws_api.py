"""What the local AWS services share: the account, the routing by signature, and the shape of errors.

Signatures are not verified, only read: the credential scope of a SigV4 header names the service a request is
for.
"""

from __future__ import annotations

import os
import re

from tenuto_local.http_server import Request, Responder

ACCOUNT_ID = "000000000000"
DEFAULT_REGION = "us-east-1"
_CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request")


class AwsError(Exception):
    """An error as a service answers it: HTTP status, error code, message, and members beside the message."""

    def __init__(self, status: int, code: str, message: str, **members: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.members = members

    def send(self, responder: Responder, message_member: str = "message") -> None:
        """Answer with this error in the REST-JSON form."""
        body = {**self.members, message_member: str(self)}
        responder.send_json(self.status, body, [("x-amzn-ErrorType", self.code)])


def region() -> str:
    """The region everything local says it is in."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


def credentials() -> dict[str, str]:
    """The credentials of the environment, which a person's own table may need; dummy ones for want of any."""
    own = {name: os.environ[name] for name in _CREDENTIAL_VARIABLES if os.environ.get(name)}
    return own or {"AWS_ACCESS_KEY_ID": "tenuto", "AWS_SECRET_ACCESS_KEY": "tenuto"}


def function_arn(name: str) -> str:
    """The ARN of a local function."""
    return f"arn:aws:lambda:{region()}:{ACCOUNT_ID}:function:{name}"


def signed_service(request: Request) -> str | None:
    """The service a request is signed for, such as `lambda`; None when it is not signed."""
    match = _SCOPE.search(request.headers.get("authorization", ""))
    return match["service"] if match else None
