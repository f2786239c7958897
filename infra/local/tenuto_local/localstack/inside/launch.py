"""Starts LocalStack in host mode: on the loopback interface only, before a DynamoDB Local that already runs.

Owns what LocalStack offers no setting for. Settings are the caller's, by environment: `DYNAMODB_LOCAL_PORT`
names the DynamoDB Local, `GATEWAY_LISTEN` the address to listen on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

from localstack import config
from localstack.runtime import main
from localstack.services.dynamodb.server import DynamodbServer
from localstack.services.s3 import provider
from twisted.internet import endpoints

LOOPBACK = "127.0.0.1"
BIND_FAILED = "Failed to bind"


def listen_on_loopback() -> None:
    """LocalStack takes only the port from `GATEWAY_LISTEN` and would be open to the network.

    It would also continue without its port, and call itself ready when another process answers there.
    """

    class LoopbackEndpoint(endpoints.TCP4ServerEndpoint):  # type: ignore[misc] # its base is Twisted's
        def __init__(self, reactor: Any, port: int) -> None:
            super().__init__(reactor, port, interface=LOOPBACK)

        def listen(self, factory: Any) -> Any:
            return super().listen(factory).addErrback(_leave)

    endpoints.TCP4ServerEndpoint = LoopbackEndpoint


def _leave(failure: Any) -> NoReturn:
    print(f"{BIND_FAILED}: {failure.getErrorMessage()}", flush=True)
    # At once: LocalStack's threads would keep it from leaving.
    os._exit(1)


def use_running_dynamodb() -> None:
    """LocalStack would download a DynamoDB Local and a Java, and leave both to their own devices at a SIGKILL."""

    def start(_server: DynamodbServer) -> bool:
        return True

    def stop(_server: DynamodbServer) -> None:
        # It belongs to whoever started LocalStack.
        return

    DynamodbServer.start_dynamodb = start
    DynamodbServer.stop_dynamodb = stop


def store_in_own_directory() -> None:
    """LocalStack keeps the objects of S3, hence the code of functions, at one place for the whole machine."""
    provider.DEFAULT_S3_TMP_DIR = str(Path(config.dirs.tmp) / "s3")


if __name__ == "__main__":
    listen_on_loopback()
    store_in_own_directory()
    use_running_dynamodb()
    main.main()
