"""What the scaling run says of its points, and the page it writes. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.scaling import SERIES, Point, Scaling, Series, faster_than_expected, render, write_page
from bench.scaling_handlers import bench


def points(name: str, power: float) -> list[Point]:
    """Points of a series whose time grows with this power of the size."""
    return [Point(size, 2.0 * size**power, 1.0, 0.0) for size in SERIES[name].sizes]


@pytest.mark.parametrize("series", SERIES.values(), ids=lambda series: series.name)
def test_a_series_has_an_expected_growth_and_says_where_it_is_exceeded(series: Series) -> None:
    assert faster_than_expected(series, points(series.name, series.exponent)) == []
    assert faster_than_expected(series, points(series.name, series.exponent - 1)) == []
    told = faster_than_expected(series, points(series.name, series.exponent + 1))
    assert len(told) == len(series.sizes) - 1
    assert f"from {series.sizes[0]:g} to {series.sizes[1]:g} {series.across}" in told[0]
    assert len(series.sizes) == len(series.events)
    assert series.handler in {handler.name for handler in bench.handlers.values()}


def test_the_page_has_a_plot_for_each_series(tmp_path: Path) -> None:
    report = Scaling(
        started="2026-01-01T00:00:00+00:00",
        command="python -m bench.scaling",
        machine={"cores": 2, "cpu": "a <cpu>"},
        settings={"table": "dynoxide", "function_workers": 8},
        points={name: points(name, series.exponent + (name == "heads")) for name, series in SERIES.items()},
    )
    page = write_page(report, tmp_path).read_text()
    assert page.count("- heads: from ") == len(SERIES["heads"].sizes) - 1
    assert "- keys: " not in page
    assert "64" in render(report)
    for name in SERIES:
        drawn = ET.fromstring((tmp_path / f"scaling_{name}.svg").read_text())
        circles = sum(element.tag.endswith("circle") for element in drawn.iter())
        assert circles == 2 * len(SERIES[name].sizes)
