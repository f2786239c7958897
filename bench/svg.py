"""Two plots as SVG text: bars of ratios, and lines over logarithmic axes.

Owns the drawing, without a plotting library: a few shapes and words. Colours are legible on white and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 860
FONT: Final = "font-family='system-ui, sans-serif' font-size='13'"
INK: Final = "#8b949e"
COLOURS: Final = ("#2f81f7", "#db6d28", "#3fb950", "#a371f7", "#d29922", "#f85149")

Point = tuple[float, float]


def bars(title: str, rows: Sequence[tuple[str, float | None, str]]) -> str:
    """A bar for each (label, ratio, words behind it), on a logarithmic scale around 1; None: only the words."""
    left, right, step, top = 360, 90, 26, 48
    known = [ratio for _, ratio, _ in rows if ratio is not None]
    low, high = min([0.5, *known]) * 0.9, max([2.0, *known]) * 1.1

    def x(ratio: float) -> float:
        return left + (WIDTH - left - right) * math.log(ratio / low) / math.log(high / low)

    height = top + step * len(rows) + 16
    body = [_text(16, 24, title, bold=True)]
    body.append(f"<line x1='{x(1):.1f}' x2='{x(1):.1f}' y1='{top - 8}' y2='{height - 8}' stroke='{INK}'/>")
    for place, (label, ratio, words) in enumerate(rows):
        y = top + step * place
        body.append(_text(left - 12, y + 13, label, anchor="end"))
        if ratio is None:
            body.append(_text(x(1) + 6, y + 13, words))
            continue
        start, end = sorted((x(1), x(ratio)))
        colour = COLOURS[0] if ratio >= 1 else COLOURS[1]
        body.append(f"<rect x='{start:.1f}' y='{y}' width='{max(end - start, 1):.1f}' height='18' fill='{colour}'/>")
        body.append(_text(max(end, x(1)) + 6, y + 13, words))
    return _document(height, body)


def lines(title: str, across: str, series: Mapping[str, Sequence[Point]]) -> str:
    """A line for each series of points above zero, both axes logarithmic; `across` names the horizontal one."""
    left, right, top, bottom, height = 80, 190, 48, 52, 420
    points = [point for line in series.values() for point in line]
    (x_low, x_high), (y_low, y_high) = (_decades([p[axis] for p in points]) for axis in (0, 1))

    def at(point: Point) -> str:
        x = left + (WIDTH - left - right) * math.log(point[0] / x_low) / math.log(x_high / x_low)
        y = height - bottom - (height - top - bottom) * math.log(point[1] / y_low) / math.log(y_high / y_low)
        return f"{x:.1f},{y:.1f}"

    body = [_text(16, 24, title, bold=True), _text((left + WIDTH - right) / 2, height - 12, across, anchor="middle")]
    for tick in _ticks(x_low, x_high):
        x = float(at((tick, y_low)).partition(",")[0])
        body.append(f"<line x1='{x}' x2='{x}' y1='{top}' y2='{height - bottom}' stroke='{INK}' stroke-opacity='0.3'/>")
        body.append(_text(x, height - bottom + 18, f"{tick:,g}", anchor="middle"))
    for tick in _ticks(y_low, y_high):
        y = float(at((x_low, tick)).partition(",")[2])
        body.append(f"<line x1='{left}' x2='{WIDTH - right}' y1='{y}' y2='{y}' stroke='{INK}' stroke-opacity='0.3'/>")
        body.append(_text(left - 8, y + 4, f"{tick:,g}", anchor="end"))
    for place, (name, line) in enumerate(series.items()):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(at(point) for point in line)
        body.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        body += ["<circle cx='{}' cy='{}' r='3' fill='{}'/>".format(*at(point).split(","), colour) for point in line]
        body.append(_text(WIDTH - right + 14, top + 12 + 20 * place, name, colour=colour))
    return _document(height, body)


def _decades(values: Sequence[float]) -> Point:
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    return (low, high) if high > low else (low, low * 10)


def _ticks(low: float, high: float) -> Iterator[float]:
    tick = low
    while tick <= high * 1.001:
        yield tick
        tick *= 10


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False, colour: str = INK) -> str:
    weight = " font-weight='bold'" if bold else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' {FONT} fill='{colour}' text-anchor='{anchor}'{weight}>{escape(words)}</text>"


def _document(height: int, body: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>"
    return "\n".join([head, *body, "</svg>"]) + "\n"
