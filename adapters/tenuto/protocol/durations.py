"""Durations as users give them: a timedelta, or seconds as a number.

Owns the one conversion to whole milliseconds, and the text that shows the right form. Does not own the bounds of a
certain duration (`backoff`, `tenuto.checks`). Standard library only: `tenuto.errors` imports it.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final, TypeAlias

Duration: TypeAlias = timedelta | float
"""A timedelta, or seconds as an int or float."""

DURATION_FORM: Final = "give a timedelta or seconds as a number, such as timedelta(seconds=5), 5 or 0.25"

SATURATED_S: Final = 10**12
"""Numbers beyond this many seconds (31,000 years) count as this many: every bound is far below."""

_MILLISECOND: Final = timedelta(milliseconds=1)
_DIGITS: Final = 3
"""Digits of a millisecond that count: what float arithmetic leaves below a microsecond is noise."""


def milliseconds(duration: object, what: str) -> int:
    """Milliseconds of a duration, rounded up, so that nothing ends early. It may be negative.

    `what` names the argument. Raises TypeError for anything but a timedelta, int or float (a bool is none), ValueError
    for nan and the infinities.
    """
    if isinstance(duration, timedelta):
        whole, rest = divmod(duration, _MILLISECOND)
        return whole + bool(rest)
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        raise TypeError(f"{what} is a duration, not {type(duration).__name__}: {DURATION_FORM}")
    if isinstance(duration, float) and not math.isfinite(duration):
        raise ValueError(f"{what} is {duration}, which is not a duration: {DURATION_FORM}")
    seconds = min(max(duration, -SATURATED_S), SATURATED_S)
    return math.ceil(round(seconds * 1000, _DIGITS))
