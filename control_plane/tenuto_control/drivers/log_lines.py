"""How log lines look: text for people, or one JSON object each, as AWS Lambda Powertools writes it.

Owns the handler of the root logger, and what the two settings of logs may be. Does not own what is logged, nor the
fields of a line (`core.log_fields`): a formatter shows whatever a record carries.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from tenuto_control.config import ConfigError

FORMAT_VARIABLE: Final = "TENUTO_LOG_FORMAT"
LEVEL_VARIABLE: Final = "TENUTO_LOG_LEVEL"

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
TEXT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

REQUEST_ID_FIELD: Final = "function_request_id"
"""Powertools' name for the id of an invocation of a Lambda function."""


def set_up(log_format: str, level: str, *, in_function: bool = False) -> None:
    """Send all lines to standard error. Raises ConfigError for a setting that is none.

    In a function this takes the place of Lambda's own handler, which knows another form and writes to the same log.
    """
    chosen = _one_of(FORMATS, log_format, f"the log format (--log-format, {FORMAT_VARIABLE})")
    least = _one_of(LEVELS, level, f"the log level (--log-level, {LEVEL_VARIABLE})")
    handler = logging.StreamHandler()
    handler.setFormatter(json_formatter() if chosen == "json" else logging.Formatter(TEXT))
    if chosen == "json" and not in_function:
        sys.excepthook = _end_of_process
    logging.basicConfig(level=least.upper(), handlers=[handler], force=in_function)


def _one_of(allowed: Sequence[str], value: str, name: str) -> str:
    if value.lower() not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {value!r}")
    return value.lower()


def json_formatter() -> logging.Formatter:
    """Powertools' formatter, with the logger's name, and without a service of its own: that is a field of lines."""
    # Imported here: text needs none of it.
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    # `exception` holds the traceback. Frame by frame, as `stack_trace`, it would be there a second time.
    return LambdaPowertoolsFormatter(use_rfc3339=True, utc=True, serialize_stacktrace=False, name="%(name)s")


def begin_request(request_id: str) -> None:
    """Put the id of a function's invocation into all JSON lines from here on; text has no place for it."""
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LambdaPowertoolsFormatter):
            handler.formatter.append_keys(**{REQUEST_ID_FIELD: request_id})


def _end_of_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends the process is one line as well, and not a traceback of many."""
    logging.getLogger("tenuto").critical("the process ends: %s", error, exc_info=(kind, error, trace))
