"""Showing what happens: a table that moves on a terminal, plain lines everywhere else.

Owns the two forms. Does not own what is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tenuto_local.demo.observe import Doing, LaneView

ROWS_MAX: Final = 14
STORY_LINES_MAX: Final = 8
PLAIN_INTERVAL_S: Final = 2.0
_RANK: Final[dict[Doing, int]] = {"sleeping": 0, "retrying": 1, "waiting": 2, "running": 3, "queued": 4}
_STYLE: Final[dict[Doing, str]] = {
    "sleeping": "magenta",
    "retrying": "red",
    "waiting": "yellow",
    "running": "green",
    "queued": "dim",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment of the stream. `watched` is the key of the killed function, shown first."""

    sent: int
    total: int
    over_http: int
    lanes: Sequence[LaneView]
    watched: str


class Screen(Protocol):
    """Where a demo shows itself."""

    def say(self, line: str) -> None:
        """Tell one event of the story."""
        ...

    def show(self, picture: Picture) -> None:
        """Show the present moment."""
        ...

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        ...


class PlainScreen:
    """Lines, each with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = 0.0

    def say(self, line: str) -> None:
        """See `Screen.say`."""
        print(f"{time.monotonic() - self._started:6.1f} s  {line}", flush=True)

    def show(self, picture: Picture) -> None:
        """See `Screen.show`; a line every two seconds."""
        if time.monotonic() - self._shown >= PLAIN_INTERVAL_S:
            self._shown = time.monotonic()
            self.say(summary(picture))

    def close(self) -> None:
        """See `Screen.close`."""


class LiveScreen:
    """A table of the busy keys over the last lines of the story."""

    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._lines: list[str] = []
        self._picture: Picture | None = None
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def say(self, line: str) -> None:
        """See `Screen.say`."""
        self._lines.append(f"{time.monotonic() - self._started:6.1f} s  {line}")
        self._draw()

    def show(self, picture: Picture) -> None:
        """See `Screen.show`."""
        self._picture = picture
        self._draw()

    def close(self) -> None:
        """See `Screen.close`; the whole story stays on the terminal."""
        if self._live.is_started:
            self._live.update(Text("\n".join(self._lines)), refresh=True)
            self._live.stop()

    def _draw(self) -> None:
        story = Text("\n".join(self._lines[-STORY_LINES_MAX:]))
        parts = [story] if self._picture is None else [Text(summary(self._picture)), _table(self._picture), story]
        self._live.update(Group(*parts), refresh=True)


def summary(picture: Picture) -> str:
    """One line: how far it is, and how many keys do what."""
    counts = dict.fromkeys(_RANK, 0)
    for view in picture.lanes:
        counts[view.doing] += 1
    doing = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    queued = sum(view.queue for view in picture.lanes)
    sent = f"sent {picture.sent} of {picture.total} ({picture.over_http} over HTTP)"
    return f"{sent}; keys: {doing or 'all idle'}; {queued} events queued"


def clock(at_ms: int | None) -> str:
    """A time of day to the tenth of a second, empty for None."""
    if at_ms is None:
        return ""
    at = datetime.fromtimestamp(at_ms / 1000).astimezone()
    return f"{at:%H:%M:%S}.{at.microsecond // 100_000}"


def _table(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "state", "last finished step", "sleeping until"):
        table.add_column(title, no_wrap=True)
    for title in ("attempt", "queue"):
        table.add_column(title, justify="right")
    for view in _first(picture.lanes, picture.watched):
        style = "bold cyan" if view.lane.key == picture.watched else ""
        key = Text(f"{view.lane.service}/{view.lane.key}", style=style)
        step = f"{len(view.steps)} {view.steps[-1]}" if view.steps else ""
        attempt = "" if view.doing == "queued" else str(view.attempt)
        doing = Text(view.doing, style=_STYLE[view.doing])
        table.add_row(key, doing, step, clock(view.wake_ms), attempt, str(view.queue or ""))
    hidden = len(picture.lanes) - ROWS_MAX
    if hidden > 0:
        table.add_row(Text(f"and {hidden} more keys", style="dim"))
    return table


def _first(lanes: Iterable[LaneView], watched: str) -> list[LaneView]:
    ranked = sorted(lanes, key=lambda view: (view.lane.key != watched, _RANK[view.doing], -view.queue, view.lane))
    return ranked[:ROWS_MAX]
