"""Delays as people write them: `5s`, `250ms`, `1.5h`, `2d`, or ISO 8601 such as `PT5S` and `P1DT12H`.

Owns the notation and its bound. Does not own what is done with a delay.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

from tenuto_control.ingress.problems import RefusedError

DELAY_MS_MAX: Final = 365 * 86_400_000
"""Longest delay: a year. A longer one is a mistake in the unit far more often than a plan."""

DELAY_CHARACTERS_MAX: Final = 64
"""Longest notation that is looked at."""

_UNIT_MS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_SIMPLE: Final = re.compile(rf"(?P<amount>{_NUMBER})(?P<unit>ms|s|m|h|d)", re.ASCII)
_ISO: Final = re.compile(
    rf"P(?:(?P<d>{_NUMBER})D)?(?P<time>T(?:(?P<h>{_NUMBER})H)?(?:(?P<m>{_NUMBER})M)?(?:(?P<s>{_NUMBER})S)?)?",
    re.ASCII,
)


def parse_delay(text: str) -> int:
    """Milliseconds, rounded up so that nothing runs early. Raises RefusedError (400) when it is no delay."""
    amounts = _amounts(text) if len(text) <= DELAY_CHARACTERS_MAX else None
    if not amounts:
        shown = text[:DELAY_CHARACTERS_MAX]
        raise RefusedError(
            f"delay {shown!r} is not a duration: write a number with a unit (ms, s, m, h, d) such as 5s or "
            "1.5h, or ISO 8601 such as PT5S"
        )
    exact = sum((Decimal(amount) * _UNIT_MS[unit] for unit, amount in amounts.items()), Decimal(0))
    if exact > DELAY_MS_MAX:
        raise RefusedError(f"delay {text!r} is longer than the longest, {DELAY_MS_MAX // _UNIT_MS['d']}d")
    return int(exact.to_integral_value(ROUND_CEILING))


def _amounts(text: str) -> dict[str, str] | None:
    """The amount of each unit; None or empty when `text` is not in either notation."""
    simple = _SIMPLE.fullmatch(text)
    if simple is not None:
        return {simple["unit"]: simple["amount"]}
    iso = _ISO.fullmatch(text)
    if iso is None or iso["time"] == "T":
        return None
    return {unit: iso[unit] for unit in ("d", "h", "m", "s") if iso[unit] is not None}
