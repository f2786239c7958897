"""The limits that decide about lanes, as one value. `tenuto_control.limits` says what each is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits that decide about lanes, and the name of the process that they are for."""

    spill_after_ms: int
    spill_records_max: int
    lease_margin_ms: int
    call_look_ms: int
    event_look_ms: int
    owner_ms: int
    keep_events_ms: int
    process: str
