"""A local EventBridge Scheduler that fires: one-time `at(...)` schedules whose target is a Lambda function.

Owns the schedules of the default group, their validation and their timers. Delivery is the Lambda service's:
a fired schedule is an asynchronous invocation with `Target.Input` as payload, at least once. AWS promises a
precision of a minute; here a schedule fires within milliseconds of its time, never early, and one in the past
fires at once. Recurring schedules, flexible windows and other targets are refused with a clear message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tenuto_local.aws_api import ACCOUNT_ID, AwsError, region
from tenuto_local.http_server import Request, Responder

PATH_PREFIX = "/schedules"
DEFAULT_GROUP = "default"
PAGE_SIZE_MAX = 100
SCHEDULES_MAX = 1_000_000  # the quota of an AWS account
# Timers of an event loop measure monotonic time; a long one is re-read against the calendar now and then.
TIMER_S_MAX = 60.0
_NAME = re.compile(r"[0-9a-zA-Z\-_.]{1,64}")
_AT = re.compile(r"at\((\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})\)")
_LAMBDA_ARN = re.compile(r"arn:[^:]+:lambda:[^:]*:\d{12}:function:.+")
_UPDATABLE = (
    "ActionAfterCompletion",
    "Description",
    "EndDate",
    "FlexibleTimeWindow",
    "KmsKeyArn",
    "ScheduleExpression",
    "ScheduleExpressionTimezone",
    "StartDate",
    "State",
    "Target",
)
InvokeEvent = Callable[[str, bytes], str]
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Schedule:
    name: str
    definition: dict[str, Any]  # what CreateSchedule was given, with defaults filled in
    due_s: float  # Unix seconds
    created_s: float
    modified_s: float
    client_token: str | None
    timer: asyncio.TimerHandle | None = None

    @property
    def arn(self) -> str:
        return f"arn:aws:scheduler:{region()}:{ACCOUNT_ID}:schedule/{DEFAULT_GROUP}/{self.name}"


class SchedulerService:
    """All schedules of a stack; `invoke_event(function arn, payload)` is called for each that falls due."""

    def __init__(self, invoke_event: InvokeEvent) -> None:
        self._invoke_event = invoke_event
        self._schedules: dict[str, _Schedule] = {}

    def close(self) -> None:
        """Forget all schedules."""
        for schedule in self._schedules.values():
            _disarm(schedule)
        self._schedules.clear()

    def handle(self, request: Request, responder: Responder) -> None:
        """Answer one request of the Scheduler API."""
        try:
            responder.send_json(200, self._route(request))
        except AwsError as error:
            error.send(responder, message_member="Message")

    def _route(self, request: Request) -> dict[str, Any]:
        query = {name: values[-1] for name, values in parse_qs(request.query).items()}
        if request.path == PATH_PREFIX and request.method == "GET":
            return self._list(query)
        name = unquote(request.path.removeprefix(f"{PATH_PREFIX}/"))
        match request.method:
            case "POST":
                return self._create(_valid_name(name), _json_object(request.body))
            case "PUT":
                return self._update(self._find(name, query), _json_object(request.body))
            case "GET":
                return _full_view(self._find(name, query))
            case "DELETE":
                self._remove(self._find(name, query))
                return {}
            case method:
                raise _invalid(f"{method} {request.path} is not served by the local scheduler")

    def _create(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        _check_group(body.get("GroupName"))
        token = body.get("ClientToken")
        existing = self._schedules.get(name)
        if existing is not None:
            if token is not None and token == existing.client_token:
                return {"ScheduleArn": existing.arn}  # the client's own retry
            raise AwsError(409, "ConflictException", f"Schedule {name} already exists.")
        if len(self._schedules) >= SCHEDULES_MAX:
            raise AwsError(402, "ServiceQuotaExceededException", f"There are {SCHEDULES_MAX} schedules already.")
        definition = _valid_definition(body)
        now_s = time.time()
        schedule = _Schedule(name, definition, _due_s(definition), now_s, now_s, token)
        self._schedules[name] = schedule
        self._arm(schedule)
        return {"ScheduleArn": schedule.arn}

    def _update(self, schedule: _Schedule, body: dict[str, Any]) -> dict[str, Any]:
        _check_group(body.get("GroupName"))
        definition = _valid_definition(body)
        schedule.due_s = _due_s(definition)
        schedule.definition = definition
        schedule.modified_s = time.time()
        self._arm(schedule)
        return {"ScheduleArn": schedule.arn}

    def _remove(self, schedule: _Schedule) -> None:
        _disarm(schedule)
        del self._schedules[schedule.name]

    def _find(self, name: str, query: dict[str, str]) -> _Schedule:
        _check_group(query.get("groupName"))
        schedule = self._schedules.get(_valid_name(name))
        if schedule is None:
            raise AwsError(404, "ResourceNotFoundException", f"Schedule {name} does not exist.")
        return schedule

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        _check_group(query.get("ScheduleGroup"))
        limit = query.get("MaxResults", str(PAGE_SIZE_MAX))
        if not limit.isdecimal() or not 1 <= int(limit) <= PAGE_SIZE_MAX:
            raise _invalid(f"MaxResults must be 1 to {PAGE_SIZE_MAX}")
        after, prefix, state = query.get("NextToken", ""), query.get("NamePrefix", ""), query.get("State")
        names = sorted(
            name
            for name, schedule in self._schedules.items()
            if name > after and name.startswith(prefix) and state in (None, schedule.definition["State"])
        )
        page = names[: int(limit)]
        result: dict[str, Any] = {"Schedules": [_summary(self._schedules[name]) for name in page]}
        if len(names) > len(page):
            result["NextToken"] = page[-1]
        return result

    def _arm(self, schedule: _Schedule) -> None:
        _disarm(schedule)
        if schedule.definition["State"] == "ENABLED":
            delay_s = min(max(schedule.due_s - time.time(), 0.0), TIMER_S_MAX)
            schedule.timer = asyncio.get_running_loop().call_later(delay_s, self._wake, schedule)

    def _wake(self, schedule: _Schedule) -> None:
        if time.time() < schedule.due_s:
            self._arm(schedule)
            return
        schedule.timer = None
        target = schedule.definition["Target"]
        if schedule.definition["ActionAfterCompletion"] == "DELETE":
            self._remove(schedule)
        try:
            self._invoke_event(target["Arn"], target.get("Input", "{}").encode())
        except AwsError as error:
            log.warning("schedule %s could not reach %s: %s", schedule.name, target["Arn"], error)


def _disarm(schedule: _Schedule) -> None:
    if schedule.timer is not None:
        schedule.timer.cancel()
        schedule.timer = None


def _invalid(message: str) -> AwsError:
    return AwsError(400, "ValidationException", message)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise _invalid(f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid("the request is not a JSON object")
    return value


def _valid_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise _invalid(f"Name {name!r} must match ^[0-9a-zA-Z-_.]+$ and have at most 64 characters.")
    return name


def _check_group(group: str | None) -> None:
    if group not in (None, DEFAULT_GROUP):
        raise AwsError(404, "ResourceNotFoundException", f"Schedule group {group} does not exist.")


def _valid_definition(body: dict[str, Any]) -> dict[str, Any]:
    definition: dict[str, Any] = {
        "ActionAfterCompletion": "NONE",
        "ScheduleExpressionTimezone": "UTC",
        "State": "ENABLED",
    }
    definition |= {name: body[name] for name in _UPDATABLE if body.get(name) is not None}
    target = definition.get("Target")
    if not isinstance(target, dict) or not target.get("RoleArn"):
        raise _invalid("Target with Arn and RoleArn is required.")
    if _LAMBDA_ARN.fullmatch(str(target.get("Arn"))) is None:
        raise _invalid(f"Target.Arn {target.get('Arn')!r}: only Lambda functions are served locally.")
    window = definition.get("FlexibleTimeWindow")
    if not isinstance(window, dict) or window.get("Mode") != "OFF":
        raise _invalid("FlexibleTimeWindow is required, and only its mode OFF is served locally.")
    if definition["ActionAfterCompletion"] not in ("NONE", "DELETE"):
        raise _invalid("ActionAfterCompletion must be NONE or DELETE.")
    if definition["State"] not in ("ENABLED", "DISABLED"):
        raise _invalid("State must be ENABLED or DISABLED.")
    return definition


def _due_s(definition: dict[str, Any]) -> float:
    expression = str(definition.get("ScheduleExpression", ""))
    match = _AT.fullmatch(expression)
    if match is None:
        raise _invalid(f"ScheduleExpression {expression!r}: at(yyyy-mm-ddThh:mm:ss) is what is served locally.")
    try:
        zone = ZoneInfo(definition["ScheduleExpressionTimezone"])
        return datetime.fromisoformat(match[1]).replace(tzinfo=zone).timestamp()
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise _invalid(f"ScheduleExpression {expression!r} is not a time: {error}") from error


def _summary(schedule: _Schedule) -> dict[str, Any]:
    return {
        "Arn": schedule.arn,
        "Name": schedule.name,
        "GroupName": DEFAULT_GROUP,
        "State": schedule.definition["State"],
        "CreationDate": schedule.created_s,
        "LastModificationDate": schedule.modified_s,
        "Target": {"Arn": schedule.definition["Target"]["Arn"]},
    }


def _full_view(schedule: _Schedule) -> dict[str, Any]:
    return {**_summary(schedule), **schedule.definition}
