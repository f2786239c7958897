"""AWS clients of the control plane, tuned for its hot path.

Owns their settings and lifetime. Endpoints and credentials come from AWS's own variables (`AWS_ENDPOINT_URL`,
`AWS_ENDPOINT_URL_DYNAMODB`, …), so that a local stack takes AWS's place by environment alone.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError

from tenuto_control.config import Config, ConfigError
from tenuto_control.limits import Limits

if TYPE_CHECKING:
    # Installed for development only: the running control plane has no use for stubs.
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_kms import KMSClient
    from types_aiobotocore_lambda import LambdaClient
    from types_aiobotocore_scheduler import EventBridgeSchedulerClient

USER_AGENT = "tenuto-control"
"""Fixed, because composing botocore's own user agent costs tens of microseconds a request."""

MS_PER_S = 1_000


@dataclass(frozen=True, slots=True)
class AwsClients:
    """Open clients; closed by the context manager that made them."""

    dynamodb: DynamoDBClient
    lambda_: LambdaClient
    scheduler: EventBridgeSchedulerClient
    kms: KMSClient | None


@asynccontextmanager
async def open_clients(config: Config) -> AsyncIterator[AwsClients]:
    """Clients for the table, the functions, the scheduler, and the keys that payloads are encrypted under.

    Raises ConfigError when AWS settings are missing.
    """
    limits = config.limits
    session = get_session()
    # Lambda and most tools set AWS_REGION, botocore reads AWS_DEFAULT_REGION; None leaves the choice to the profile.
    region = config.aws.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    async with AsyncExitStack() as stack:
        try:
            dynamodb = await stack.enter_async_context(
                session.create_client("dynamodb", region_name=region, config=_service_settings(limits))
            )
            lambda_ = await stack.enter_async_context(
                session.create_client(
                    "lambda", region_name=region, config=_invoke_settings(limits, len(config.functions))
                )
            )
            scheduler = await stack.enter_async_context(
                session.create_client("scheduler", region_name=region, config=_service_settings(limits))
            )
            kms = None
            if config.encryption is not None:
                kms = await stack.enter_async_context(
                    session.create_client("kms", region_name=region, config=_service_settings(limits))
                )
        except (BotoCoreError, ValueError) as e:
            raise ConfigError(
                f"AWS: {str(e).rstrip('.')}; set AWS_REGION or [aws] region, and check AWS_ENDPOINT_URL"
            ) from e
        yield AwsClients(dynamodb, lambda_, scheduler, kms)


def _service_settings(limits: Limits) -> AioConfig:
    # Retries are the stores' and dispatcher's own: only they know whether a write may have been applied.
    return AioConfig(
        connect_timeout=limits.aws_connect_timeout_ms / MS_PER_S,
        read_timeout=limits.aws_read_timeout_ms / MS_PER_S,
        max_pool_connections=limits.aws_connections_max,
        retries={"total_max_attempts": 1},
        parameter_validation=False,
        user_agent=USER_AGENT,
        account_id_endpoint_mode="disabled",
    )


def _invoke_settings(limits: Limits, functions: int) -> AioConfig:
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
