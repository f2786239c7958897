"""How log lines look: text for people, or one JSON object each, as AWS Lambda Powertools writes it.

Owns the handler of the root logger, and what the two settings of logs may be. Every line leaves through it, so it is
where foreign text is made harmless, whoever has put it into a line, and where repeated lines are thinned. Does not own
what is logged, nor the fields of a line (`core.log_fields`).
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TextIO

from tenuto.protocol.failures import printable
from tenuto.protocol.texts import shown
from tenuto_control.config import ConfigError

FORMAT_VARIABLE: Final = "TENUTO_LOG_FORMAT"
LEVEL_VARIABLE: Final = "TENUTO_LOG_LEVEL"

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
TEXT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

LINE_CHARACTERS_MAX: Final = 4_000
"""How long a line may be: a key and its id take half of that at the most, and what is foreign in it is cut before."""

SERIES_S: Final = 10.0
SERIES_LINES_MAX: Final = 100
"""So many lines of one kind, about one service, are written in such a time; the others are counted."""

SERIES_MAX: Final = 1_000
"""So many kinds are counted for each service. Beyond that, one kind is one for all services."""

SERVICES_MAX: Final = 32
OTHERS_LINES_MAX: Final = 20
"""So many services have lines of one kind in such a time; all others together have so many. Names of services may come
from outside, and there may be any number of them."""

OTHERS: Final = "\x00"
"""Stands for the services beyond those that have lines of their own. No service can have the name."""

REQUEST_ID_FIELD: Final = "function_request_id"
"""Powertools' name for the id of an invocation of a Lambda function."""


def set_up(log_format: str, level: str, *, in_function: bool = False) -> None:
    """Send all lines to standard error. Raises ConfigError for a setting that is none.

    In a function this takes the place of Lambda's own handler, which knows another form and writes to the same log.
    """
    chosen = _one_of(FORMATS, log_format, f"the log format (--log-format, {FORMAT_VARIABLE})")
    least = _one_of(LEVELS, level, f"the log level (--log-level, {LEVEL_VARIABLE})")
    handler = Lines(json_formatter() if chosen == "json" else logging.Formatter(TEXT))
    if chosen == "json" and not in_function:
        sys.excepthook = _end_of_process
    logging.basicConfig(level=least.upper(), handlers=[handler], force=in_function)


@dataclass(slots=True)
class _Series:
    """Lines of one kind: since when they are counted, how many were written, and how many were not."""

    began_s: float
    written: int = 0
    dropped: int = 0


class Lines(logging.StreamHandler[TextIO]):
    """Writes records as lines: none too long, none that is more than one, and of those that repeat, not all.

    A kind of line is what one place in the code says; each service has its own lines of it, up to a number of services.
    `stream` is standard error by default.
    """

    def __init__(
        self,
        formatter: logging.Formatter,
        stream: TextIO | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._now_s = now_s
        self._series: dict[tuple[str, int, str, str], _Series] = {}
        self._services: Counter[tuple[str, int, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        try:
            now_s = self._now_s()
            self._tell_dropped(now_s)
            if self._admits(record, now_s):
                super().emit(harmless(record))
        except Exception:  # noqa: BLE001 - as every handler: what cannot be logged must not end what logs it
            self.handleError(record)

    def close(self) -> None:
        """See `logging.Handler.close`."""
        self._tell_dropped(self._now_s() + SERIES_S)
        super().close()

    def _admits(self, record: logging.LogRecord, now_s: float) -> bool:
        kind = (record.name, record.levelno, str(record.msg)[:LINE_CHARACTERS_MAX])
        service = str(record.__dict__.get("service", "")) if len(self._series) < SERIES_MAX else ""
        if service and (*kind, service) not in self._series and self._services[kind] >= SERVICES_MAX:
            service = OTHERS
        series = self._series.get((*kind, service))
        if series is None:
            series = self._series[(*kind, service)] = _Series(now_s)
            self._services[kind] += 1
        most = OTHERS_LINES_MAX if service == OTHERS else SERIES_LINES_MAX
        if series.written >= most and record.levelno < logging.CRITICAL:
            series.dropped += 1
            return False
        series.written += 1
        return True

    def _tell_dropped(self, now_s: float) -> None:
        """Forget the series that are over, with a line for each that was too long."""
        # In the order of their beginnings: the first one that is not over ends the look.
        while self._series:
            kind, series = next(iter(self._series.items()))
            if series.began_s + SERIES_S > now_s:
                return
            del self._series[kind]
            name, level, text, service = kind
            self._services[name, level, text] -= 1
            if not self._services[name, level, text]:
                del self._services[name, level, text]
            if series.dropped:
                about = "%d more lines like this one, about other services: %s"
                told = about if service == OTHERS else "%d more lines like this one: %s"
                more = logging.LogRecord(name, level, __file__, 0, told, (), None)
                more.args = (series.dropped, text)
                more.__dict__ |= {"service": service} if service not in ("", OTHERS) else {}
                super().emit(harmless(more))


def harmless(record: logging.LogRecord) -> logging.LogRecord:
    """A record whose texts are short and no more than text, whatever they quote."""
    made = copy.copy(record)
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - a line that lacks what it would quote is better than none
        text = f"{record.msg} (with other arguments than it has places for)"
    # As an argument: a formatter might read its own text as JSON.
    made.msg, made.args = "%s", (shown(text, LINE_CHARACTERS_MAX),)
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
        error = printable(record.exc_info[1])
        made.exc_info, made.exc_text = (type(error), error, error.__traceback__), None
    for name, value in record.__dict__.items():
        if name not in {"msg", "message"} and isinstance(value, str) and len(value) > LINE_CHARACTERS_MAX:
            made.__dict__[name] = shown(value, LINE_CHARACTERS_MAX)
    return made


def _one_of(allowed: Sequence[str], value: str, name: str) -> str:
    if value.lower() not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {value!r}")
    return value.lower()


def json_formatter() -> logging.Formatter:
    """Powertools' formatter, with the logger's name, and without its own service: that is a field of lines."""
    # Imported here: text needs none of it.
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    # `exception` holds the traceback. Frame by frame, as `stack_trace`, it would be there a second time.
    return LambdaPowertoolsFormatter(
        json_serializer=_one_line_of_json, use_rfc3339=True, utc=True, serialize_stacktrace=False, name="%(name)s"
    )


def _one_line_of_json(fields: Mapping[str, Any]) -> str:
    """JSON in which what is not printable is an escape: a key may hold what turns the direction of a terminal."""
    text = json.dumps(fields, default=str, separators=(",", ":"), ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def begin_request(request_id: str) -> None:
    """Put the id of a function's invocation into all JSON lines from here on; text has no place for it."""
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LambdaPowertoolsFormatter):
            handler.formatter.append_keys(**{REQUEST_ID_FIELD: request_id})


def _end_of_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends the process is one line as well, and not a traceback of many."""
    logging.getLogger("tenuto").critical("the process ends: %s", error, exc_info=(kind, error, trace))
