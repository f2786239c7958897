"""Wake-ups from outside by EventBridge Scheduler (the WakeScheduler port).

Owns names, expressions and error mapping. A schedule has the precision of a minute and may fire twice; the
dispatcher treats it as the hint it is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from tenuto.protocol.ids import digest
from tenuto_control.config import SchedulerConfig
from tenuto_control.ports import SchedulerUnavailableError

if TYPE_CHECKING:
    from types_aiobotocore_scheduler import EventBridgeSchedulerClient
    from types_aiobotocore_scheduler.type_defs import TargetTypeDef

NAME_CHARS_MAX = 64
"""Longest schedule name (EventBridge Scheduler API reference, CreateSchedule)."""

MS_PER_S = 1_000

LAST_SECOND = 253_402_300_799
"""The end of the year 9999, in seconds since the epoch."""


class EventBridgeScheduler:
    """One-time schedules in one group that invoke one target and delete themselves."""

    def __init__(self, client: EventBridgeSchedulerClient, config: SchedulerConfig) -> None:
        self._client = client
        self._config = config

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """Idempotent by `name`. `payload` is UTF-8 text. Raises SchedulerUnavailableError."""
        try:
            await self._client.create_schedule(
                Name=schedule_name(name),
                GroupName=self._config.group,
                ScheduleExpression=at_expression(at_ms),
                ScheduleExpressionTimezone="UTC",
                FlexibleTimeWindow={"Mode": "OFF"},
                ActionAfterCompletion="DELETE",
                Target=self._target(payload),
            )
        except ClientError as e:
            # The name stands for the wake-up: a schedule that has it already is this one.
            if e.response.get("Error", {}).get("Code") != "ConflictException":
                raise SchedulerUnavailableError(f"the scheduler refused a wake-up: {e}") from e
        except (BotoCoreError, aiohttp.ClientError, OSError) as e:
            raise SchedulerUnavailableError(f"the scheduler gave no answer: {str(e) or type(e).__name__}") from e

    def _target(self, payload: bytes) -> TargetTypeDef:
        target: TargetTypeDef = {
            "Arn": self._config.target_arn,
            "RoleArn": self._config.role_arn,
            "Input": payload.decode(),
        }
        if self._config.dlq_arn is not None:
            target["DeadLetterConfig"] = {"Arn": self._config.dlq_arn}
        return target

    async def cancel(self, name: str) -> None:
        """Forget a schedule; unknown names are no error. Raises SchedulerUnavailableError."""
        try:
            await self._client.delete_schedule(Name=schedule_name(name), GroupName=self._config.group)
        except ClientError as e:
            if e.response.get("Error", {}).get("Code") != "ResourceNotFoundException":
                raise SchedulerUnavailableError(f"the scheduler refused to delete a wake-up: {e}") from e
        except (BotoCoreError, aiohttp.ClientError, OSError) as e:
            raise SchedulerUnavailableError(f"the scheduler gave no answer: {str(e) or type(e).__name__}") from e


class NoScheduler:
    """For deployments whose control plane is always on: its own timers and sweep wake every lane."""

    async def schedule(self, name: str, at_ms: int, payload: bytes) -> None:
        """Nothing: a wake-up is a hint."""

    async def cancel(self, name: str) -> None:
        """Nothing was scheduled."""


def schedule_name(name: str) -> str:
    """A legal schedule name for any text.

    A readable beginning, and a digest that keeps different texts apart.
    """
    tail = f"-{digest(name)}"
    return re.sub(r"[^0-9a-zA-Z._-]", "-", name)[: NAME_CHARS_MAX - len(tail)] + tail


def at_expression(at_ms: int) -> str:
    """A one-time expression for a moment, rounded up to its full second.

    Late is allowed, early is useless. The calendar ends with the year 9999, the numbers of a table do not.
    """
    second = min(max(0, -(-at_ms // MS_PER_S)), LAST_SECOND)
    return f"at({datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S})"
