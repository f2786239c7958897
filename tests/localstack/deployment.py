"""Functions at the endpoint, as a person would deploy them: a zip archive of the SDK and a module of handlers.

Owns packing, creating and removing, and the activations they are sent. `boto3` stays out of the archive, as on AWS
it is part of the runtime.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError

import tenuto
from tenuto.protocol.ids import InvocationId, Lane, call_nonce
from tenuto.protocol.messages import Activation, Head
from tenuto.protocol.records import CallSource, Event
from tests.localstack.capabilities import why_lacking

APP = Path(__file__).parent / "functions" / "app.py"
ROLE = "arn:aws:iam::000000000000:role/tenuto-suite"
# msgspec is compiled, so the functions need the very Python that this suite runs on.
RUNTIME = f"python{sys.version_info.major}.{sys.version_info.minor}"
TIMEOUT_S = 20
ACTIVE_WITHIN_S = 60
MEMORY_MB = 256


class Deployment:
    """The functions of one run, one for each attribute of the module that was asked for."""

    def __init__(self, client: Any, run_name: str) -> None:
        self._client = client
        self._run_name = run_name
        self._archive = archive()
        self._arns: dict[str, str] = {}

    def function(self, attribute: str) -> str:
        """The ARN of the function that runs `app.<attribute>`. Skips where the endpoint deploys no functions."""
        if attribute not in self._arns:
            name = f"{self._run_name}-{attribute}"
            try:
                created = self._client.create_function(
                    FunctionName=name,
                    Runtime=RUNTIME,
                    Handler=f"app.{attribute}",
                    Role=ROLE,
                    Code={"ZipFile": self._archive},
                    Timeout=TIMEOUT_S,
                    MemorySize=MEMORY_MB,
                )
            except ClientError as error:
                if reason := why_lacking(error):
                    pytest.skip(f"the endpoint deploys no functions: {reason}")
                raise
            self._arns[attribute] = str(created["FunctionArn"])
            self._client.get_waiter("function_active_v2").wait(
                FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": ACTIVE_WITHIN_S}
            )
        return self._arns[attribute]

    def remove(self) -> None:
        """Delete them."""
        for arn in self._arns.values():
            self._client.delete_function(FunctionName=arn)


def archive() -> bytes:
    """The archive: `tenuto`, `msgspec` and `app.py`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(APP, APP.name)
        for package in (tenuto, msgspec):
            assert package.__file__ is not None
            folder = Path(package.__file__).parent
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix != ".pyc":
                    packed.write(path, path.relative_to(folder.parent))
    return buffer.getvalue()


def activation(handler: str, amount: int, table: str, head: Head | None = None) -> Activation:
    """One event for a counter nobody has used."""
    lane = Lane("counter", token_hex(4))
    event = Event(
        id=str(InvocationId(lane, call_nonce(handler, token_hex(4)))),
        handler=handler,
        source=CallSource(),
        input=str(amount).encode(),
    )
    return Activation(
        service=lane.service,
        key=lane.key,
        mode="speculate",
        head=head or Head(),
        holder="holder",
        events=(event,),
        table=table,
    )
