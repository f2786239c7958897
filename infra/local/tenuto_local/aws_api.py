"""What the local AWS services share: the account, the credentials of this start, and the shape of errors."""

from __future__ import annotations

import os
import secrets

from tenuto_local.http_server import Responder

ACCOUNT_ID = "000000000000"
DEFAULT_REGION = "us-east-1"
ACCESS_KEY_VARIABLE = "AWS_ACCESS_KEY_ID"
SECRET_KEY_VARIABLE = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a variable, no secret
_CREDENTIAL_VARIABLES = (ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE, "AWS_SESSION_TOKEN")


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
    """The credentials of the environment, which a person's own table may need; else a pair made up for this start.

    The name of such a pair is always the same: a DynamoDB Local of a person's own keeps a database for each name.
    """
    own = {name: os.environ[name] for name in _CREDENTIAL_VARIABLES if os.environ.get(name)}
    if own.keys() >= {ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE}:
        return own
    return {ACCESS_KEY_VARIABLE: "tenuto", SECRET_KEY_VARIABLE: secrets.token_hex(32)}


def function_arn(name: str) -> str:
    """The ARN of a local function."""
    return f"arn:aws:lambda:{region()}:{ACCOUNT_ID}:function:{name}"
