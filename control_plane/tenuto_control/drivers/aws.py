"""AWS clients of the control plane, tuned for its hot path.

Owns their settings and lifetime, and which of them sends what is sent often: `tenuto.wire`, or aiobotocore where the
environment asks for it or an endpoint needs it. Endpoints and credentials come from AWS's own variables
(`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_DYNAMODB`, …), so that a local stack takes AWS's place by environment alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, NoRegionError

from tenuto.store.aws_client import (
    CaughtRequest,
    UnsupportedDestinationError,
    catch_requests,
    destination_of,
    wants_botocore,
)
from tenuto.store.dynamodb import DynamoClient
from tenuto.wire.aio import AsyncClient
from tenuto.wire.destination import Destination
from tenuto.wire.dynamodb import WireDynamo
from tenuto.wire.limits import DYNAMODB_ANSWER_BYTES_MAX, Timeouts
from tenuto_control.config import Config, ConfigError
from tenuto_control.drivers.aws_credentials import SessionCredentials
from tenuto_control.drivers.aws_wire import USER_AGENT, WireLambda
from tenuto_control.drivers.invoke_client import BotocoreLambda, InvokeClient
from tenuto_control.limits import ANSWER_BYTES_MAX, Limits

if TYPE_CHECKING:
    # Installed for development only: the running control plane has no use for stubs.
    from types_aiobotocore_kms import KMSClient
    from types_aiobotocore_scheduler import EventBridgeSchedulerClient

log = logging.getLogger("tenuto.aws")

MS_PER_S = 1_000

DYNAMODB_PATH = "/"
INVOKE_PATH = "/2015-03-31/functions/f/invocations"
"""The ends of paths that belong to an operation: all of DynamoDB's, and an Invoke of the function f."""


@dataclass(frozen=True, slots=True)
class AwsClients:
    """Open clients; closed by the context manager that made them."""

    dynamodb: DynamoClient
    lambda_: InvokeClient
    scheduler: EventBridgeSchedulerClient
    kms: KMSClient | None


@asynccontextmanager
async def open_clients(config: Config) -> AsyncIterator[AwsClients]:
    """Clients for the table, the functions, the scheduler, and the keys that payloads are encrypted under.

    Raises ConfigError when AWS settings are missing.
    """
    async with AsyncExitStack() as stack:
        opened = _Opening(config, stack)
        try:
            clients = AwsClients(
                dynamodb=await opened.dynamodb(),
                lambda_=await opened.lambda_(),
                scheduler=await opened.client("scheduler", service_settings(config.limits)),
                kms=None if config.encryption is None else await opened.client("kms", service_settings(config.limits)),
            )
        except NoRegionError as e:
            raise ConfigError(
                "no AWS region is set: set AWS_REGION, or region under [aws]; for a project on this machine, start "
                "`tenuto dev` in its folder, which `tenuto check` and `tenuto journal` then use"
            ) from e
        except (BotoCoreError, ValueError) as e:
            raise ConfigError(
                f"AWS: {str(e).rstrip('.')}; set AWS_REGION or [aws] region, and check AWS_ENDPOINT_URL"
            ) from e
        yield clients


class _Opening:
    """Opens clients of one session. What is opened is closed with `stack`."""

    def __init__(self, config: Config, stack: AsyncExitStack) -> None:
        self._session: AioSession = get_session()
        self._limits = config.limits
        self._functions = len(config.functions)
        self._stack = stack
        # Lambda and most tools set AWS_REGION, botocore reads AWS_DEFAULT_REGION; None leaves it to the profile.
        self._region = config.aws.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self._botocore = _wants_botocore()
        self._credentials: SessionCredentials | None = None

    async def dynamodb(self) -> DynamoClient:
        """A client of the table."""
        limits, settings = self._limits, service_settings(self._limits)
        to = await self._destination("dynamodb", settings, lambda client: client.describe_limits(), DYNAMODB_PATH)
        if to is None:
            client: DynamoClient = await self.client("dynamodb", settings)
            return client
        timeouts = Timeouts(limits.aws_connect_timeout_ms / MS_PER_S, limits.aws_read_timeout_ms / MS_PER_S)
        http = self._wire(to, timeouts, limits.aws_connections_max, DYNAMODB_ANSWER_BYTES_MAX)
        return WireDynamo(http, USER_AGENT)

    async def lambda_(self) -> InvokeClient:
        """A client of the functions."""
        limits, settings = self._limits, invoke_settings(self._limits, self._functions)
        to = await self._destination("lambda", settings, lambda client: client.invoke(FunctionName="f"), INVOKE_PATH)
        if to is None:
            return BotocoreLambda(await self.client("lambda", settings))
        timeouts = Timeouts(limits.invoke_connect_timeout_ms / MS_PER_S, limits.invoke_read_timeout_ms / MS_PER_S)
        places = limits.invoke_concurrency_max + self._functions
        return WireLambda(self._wire(to, timeouts, places, ANSWER_BYTES_MAX))

    async def client(self, service: Any, settings: AioConfig) -> Any:
        """aiobotocore's client of a service."""
        created = self._session.create_client(service, region_name=self._region, config=settings)
        return await self._stack.enter_async_context(created)

    def _wire(self, to: Destination, timeouts: Timeouts, connections_max: int, body_bytes_max: int) -> AsyncClient:
        if self._credentials is None:
            self._credentials = SessionCredentials(self._session)
            self._stack.push_async_callback(self._credentials.close)
        client = AsyncClient(
            to, self._credentials, timeouts, connections_max=connections_max, body_bytes_max=body_bytes_max
        )
        self._stack.push_async_callback(client.close)
        return client

    async def _destination(
        self, service: Any, settings: AioConfig, call: Callable[[Any], Awaitable[Any]], path: str
    ) -> Destination | None:
        """Where `tenuto.wire` is to send requests of a service; None when aiobotocore is to send them."""
        if self._botocore:
            return None
        created = self._session.create_client(service, region_name=self._region, config=settings)
        async with created as client:
            catch_requests(client)
            try:
                await call(client)
            except CaughtRequest as caught:
                try:
                    return destination_of(self._session, caught, path)
                except UnsupportedDestinationError as error:
                    log.warning("requests to %s are sent by aiobotocore: %s", service, error)
                    return None
        raise AssertionError("a client whose requests are caught sends none")


def _wants_botocore() -> bool:
    try:
        return wants_botocore()
    except ValueError as e:
        raise ConfigError(str(e)) from e


def service_settings(limits: Limits) -> AioConfig:
    """What an aiobotocore client of the table, the scheduler or the keys is made with."""
    # Retries are the stores' and dispatcher's own: only they know whether a write may have been applied.
    return AioConfig(
        connect_timeout=limits.aws_connect_timeout_ms / MS_PER_S,
        read_timeout=limits.aws_read_timeout_ms / MS_PER_S,
        max_pool_connections=limits.aws_connections_max,
        retries={"total_max_attempts": 1},
        parameter_validation=False,
        # Fixed, because composing botocore's own user agent costs tens of microseconds a request.
        user_agent=USER_AGENT,
        account_id_endpoint_mode="disabled",
    )


def invoke_settings(limits: Limits, functions: int) -> AioConfig:
    """What an aiobotocore client of the functions is made with."""
    # One attempt only: a second one would be a second invocation. Keep-alive finds connections that died
    # during a long wait. Functions are asked what they serve while others hold all places for invocations.
    return AioConfig(
        connect_timeout=limits.invoke_connect_timeout_ms / MS_PER_S,
        read_timeout=limits.invoke_read_timeout_ms / MS_PER_S,
        max_pool_connections=limits.invoke_concurrency_max + functions,
        retries={"total_max_attempts": 1},
        tcp_keepalive=True,
        parameter_validation=False,
        user_agent=USER_AGENT,
        account_id_endpoint_mode="disabled",
    )
