"""What `tenuto dev` shows of all logs: one line of time for each event, with its invocation, and where to look next.

Owns the reading of both logs (functions tell by `lines`, the control plane by JSON) and how a line looks. Pure: text
in, text out. Does not own the files (`follow`).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tenuto_local.dev.code import shown_file
from tenuto_local.dev.lines import Line, Trouble, decoded

SHOWN_CHARACTERS_MAX: Final = 1_000
INDENT: Final = " " * 11
HINTS_MAX: Final = 1_000
LOUD: Final = ("WARNING", "ERROR", "CRITICAL")

_DIVERGED: Final = (
    "the code has changed before a step that is done: undo that change, or add new steps after the existing ones. It "
    "is retried each minute, and then resumes by itself; `tenuto dev --fresh` deletes it"
)
_RETRIED: Final = "retried after a pause, while later events of this key wait; save a fix, and the next attempt runs it"
_KEPT: Final = (
    "not retried; its message is kept in the table, and the guide Operate says how to read it, under Dead letters of "
    "the table"
)
_TERMINAL: Final = (
    "a terminal error is the handler's own decision: the caller gets it, a record counts as handled, and nothing is "
    "retried"
)
_REFUSED: Final = (
    "not retried, because no attempt can succeed: a caller gets the error, a record is in TOPIC.dead-letter, and a "
    "message is kept in the table"
)
_GIVEN_UP: Final = "not retried any more; the caller gets the error"
_MOVED: Final = "`tenuto tail TOPIC.dead-letter` shows it, with the reason in its headers"
_UNSERVED: Final = "declare that service in a function of tenuto.toml, and pass it to aws.handler(...)"
_NO_TOPIC: Final = "add [topics.NAME] to tenuto.toml, with the topic's name, and save: dev creates it"

_HINTS: Final = (
    (re.compile(r"JournalMismatchError"), _DIVERGED),
    (re.compile(r"attempt failed|attempt at .* failed"), _RETRIED),
    (
        re.compile(r'topic ".*" does not exist|the topic does not exist|UNKNOWN_TOPIC|unknown topic', re.IGNORECASE),
        _NO_TOPIC,
    ),
    (re.compile(r"kept as dead letter"), _KEPT),
    (re.compile(r'(ended as failed|cannot be handled) and is in "|dead letter'), _MOVED),
    (re.compile(r"\S+ is refused: "), _REFUSED),
    (re.compile(r"ends as failed"), _GIVEN_UP),
    # A step's failure is the handler's to catch.
    (re.compile(r"^(?!step ).*failed for good|by a terminal error"), _TERMINAL),
    (re.compile(r"no function serves"), _UNSERVED),
)
"""Where to look next, by what a line says; the first that fits."""

_NOISE: Final = re.compile(r"^LAMBDA_WARNING")
"""Advice of Lambda's runtime client that is about AWS's own updates."""

_QUIET: Final = re.compile(r"does not answer discovery|cannot be asked|answers discovery again")
"""What the control plane says of a function whose code cannot be imported: `session` has shown why."""

_FAILED_IN_FUNCTION: Final = re.compile(r": attempt failed: (.*?)(?: \(\d+ times\))?$", re.DOTALL)
_FAILED: Final = re.compile(r"attempt at .*? failed(?:, next in [\d.]+ s)?: (.*?)(?: \(\d+ times\))?$", re.DOTALL)
"""A failed attempt, as its function and the control plane tell of it."""

FAILURES_MAX: Final = 1_000
COMPARED_CHARACTERS_MAX: Final = 200


@dataclass(slots=True)
class View:
    """How lines of one project look. `verbose` shows the control plane's ordinary lines, too.

    A hint is given once for each invocation, with its whole id. A failed attempt is shown as its function tells of it,
    with the user's own line, and not once more as the control plane does.
    """

    root: Path
    verbose: bool = False
    _hinted: set[tuple[str, str]] = field(default_factory=set)
    _failures: set[tuple[str, str]] = field(default_factory=set)

    def of_function(self, function: str, text: str, now_s: float) -> Iterator[str]:
        """Lines for a line of a function's log."""
        if not text.strip():
            return
        line = decoded(text)
        if _NOISE.match(text if line is None else line.text):
            return
        if line is None:
            yield f"{_clock(now_s)} {function}  {text[:SHOWN_CHARACTERS_MAX]}"
            return
        failure = _failure(line, _FAILED_IN_FUNCTION)
        if failure is not None:
            if len(self._failures) >= FAILURES_MAX:
                self._failures.clear()
            self._failures.add(failure)
        yield from self._lines(line, function, now_s)

    def of_control_plane(self, text: str, now_s: float) -> Iterator[str]:
        """Lines for a line of the control plane's log."""
        try:
            told = json.loads(text)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            if text.strip():
                yield f"{_clock(now_s)} control plane  {text[:SHOWN_CHARACTERS_MAX]}"
            return
        line = Line(
            str(told.get("message", "")),
            str(told.get("level", "INFO")),
            str(told.get("name", "tenuto")),
            str(told.get("invocation_id", "")),
            str(told.get("service", "")),
            str(told.get("key", "")),
            str(told.get("handler", "")),
            int(told.get("attempt", 0) or 0),
        )
        told_already = _failure(line, _FAILED) in self._failures
        if self.verbose or (line.level in LOUD and not _QUIET.search(line.text) and not told_already):
            yield from self._lines(line, "control plane", now_s)

    def of_trouble(self, function: str, trouble: Trouble, then: str, now_s: float) -> Iterator[str]:
        """Lines for code that cannot be imported."""
        yield f"{_clock(now_s)} {function}  ✗ {trouble.kind}: {trouble.text}"
        yield from self._frames(trouble)
        yield f"{INDENT}→ {then}"

    def _lines(self, line: Line, where: str, now_s: float) -> Iterator[str]:
        lane = f"{line.service}/{line.key}: " if line.key else f"{line.service}: "
        text = line.text.removeprefix(lane)[:SHOWN_CHARACTERS_MAX]
        mark = "✗ " if line.level in LOUD and line.source != "print" else ""
        yield f"{_clock(now_s)} {_who(line) or where}  {mark}{text}"
        if line.trouble is not None:
            yield from self._frames(line.trouble)
        hint = next((hint for pattern, hint in _HINTS if line.level in LOUD and pattern.search(line.text)), None)
        if hint is not None and self._hint_is_new(line.invocation_id or line.text, hint):
            yield f"{INDENT}→ {hint}{f' ({line.invocation_id})' if line.invocation_id else ''}"

    def _hint_is_new(self, about: str, hint: str) -> bool:
        if len(self._hinted) >= HINTS_MAX:
            self._hinted.clear()
        new = (about, hint) not in self._hinted
        self._hinted.add((about, hint))
        return new

    def _frames(self, trouble: Trouble) -> Iterator[str]:
        if trouble.cause is not None:
            yield from self._frames(trouble.cause)
            if trouble.cause.frames and trouble.frames:
                yield f"{INDENT}then {trouble.kind}: {trouble.text[:SHOWN_CHARACTERS_MAX]}"
        for frame in trouble.frames:
            function = f" in {frame.function}" if frame.function and frame.function != "<module>" else ""
            yield f"{INDENT}{shown_file(frame.file, self.root)}:{frame.line}{function}   {frame.code}".rstrip()
        for note in trouble.notes:
            yield f"{INDENT}{note[:SHOWN_CHARACTERS_MAX]}"


def _failure(line: Line, pattern: re.Pattern[str]) -> tuple[str, str] | None:
    """The invocation of a failed attempt, and its error; None for any other line."""
    found = pattern.search(line.text) if line.source != "print" and line.level in LOUD and line.invocation_id else None
    return None if found is None else (line.invocation_id, found[1][:COMPARED_CHARACTERS_MAX])


def _who(line: Line) -> str:
    """Such as `orders/o-1 place #2 ~4f2a1c`: service and key, handler, attempt, and the invocation in six digits."""
    if not line.service:
        return ""
    lane = f"{line.service}/{line.key}" if line.key else line.service
    attempt = f" #{line.attempt}" if line.attempt else ""
    invocation = f" ~{hashlib.sha256(line.invocation_id.encode()).hexdigest()[:6]}" if line.invocation_id else ""
    return f"{lane} {line.handler}{attempt}{invocation}".rstrip()


def _clock(now_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(now_s))
