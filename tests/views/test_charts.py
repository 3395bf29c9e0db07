"""The picture must say what the numbers say: points are read back from the SVG."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from jointdiff.views.charts import HEIGHT, WIDTH, Series, line_chart, nice_ticks, probability_bars


class Shapes(HTMLParser):
    """Collects every element with its attributes, and the texts inside <text>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[tuple[dict[str, Any], str]] = []
        self._open: tuple[str, dict[str, Any]] = ("", {})
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = (tag, dict(attrs))
        self.found.append(self._open)

    def handle_data(self, data: str) -> None:
        if self._open[0] == "text":
            self.texts.append((self._open[1], data))

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


def points_of(path: dict[str, Any]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path["d"])]


def test_points_lie_where_the_axis_says() -> None:
    shapes = Shapes(line_chart("AUC", [Series("a", [(1, 0.62), (2, 0.75), (4, 0.98)])], y_range=(0, 1)))
    # read the scale back from the y axis' own labels, which are 4 px below their grid line
    ticks = {float(text): float(a["y"]) - 4 for a, text in shapes.texts if a.get("text-anchor") == "end"}
    low, high = min(ticks), max(ticks)
    per_unit = (ticks[high] - ticks[low]) / (high - low)
    (path,) = shapes.of("path")
    values = [low + (y - ticks[low]) / per_unit for _, y in points_of(path)]
    assert values == pytest.approx([0.62, 0.75, 0.98], abs=2e-3)
    xs = [x for x, _ in points_of(path)]
    assert (xs[1] - xs[0]) * 2 == pytest.approx(xs[2] - xs[1], abs=0.3)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points_of(path))


def test_a_gap_breaks_the_line() -> None:
    (path,) = Shapes(line_chart("x", [Series("a", [(1, 0.1), (2, None), (3, 0.3), (4, float("nan")), (5, 0.2)])])).of(
        "path"
    )
    assert path["d"].count("M") == 3 and "nan" not in path["d"]


def test_no_points_says_so_instead_of_an_empty_frame() -> None:
    chart = line_chart("Coverage", [Series("a", [(1, None)])])
    assert "Not measured" in chart and "<svg" not in chart


def test_lines_differ_in_dash_as_well_as_colour() -> None:
    series = [Series("mean", [(1, 1.0), (2, 2.0)], main=True)] + [Series(f"h{i}", [(1, i), (2, i)]) for i in range(5)]
    paths = Shapes(line_chart("x", series)).of("path")
    assert len({path["stroke"] for path in paths}) == 6
    assert len({path.get("stroke-dasharray") for path in paths if "main" not in path["class"]}) == 5
    assert "main" in paths[-1]["class"], "the main line lies on top"


def test_a_crowd_shares_one_legend_entry() -> None:
    series = [Series("all", [(1, 1.0), (2, 2.0)], main=True)] + [Series(f"h{i}", [(1, i), (2, i)]) for i in range(40)]
    chart = line_chart("x", series)
    shapes = Shapes(chart)
    assert len(shapes.of("path")) == 41
    assert len(shapes.of("li")) == 2 and "each of 40 hospitals" in chart


def test_one_round_and_equal_values_are_drawn() -> None:
    shapes = Shapes(line_chart("x", [Series("a", [(1, 0.5)])], y_range=(0, 1)))
    (circle,) = shapes.of("circle")
    assert 0 < float(circle["cx"]) < WIDTH and 0 < float(circle["cy"]) < HEIGHT


def test_names_are_escaped() -> None:
    chart = line_chart("<t>", [Series('<script>"', [(1, 1.0), (2, 2.0)])])
    assert "<script>" not in chart and "<t>" not in chart and "&lt;script&gt;&quot;" in chart


@pytest.mark.parametrize(("low", "high"), [(0.53, 0.97), (0, 1), (1e-6, 3e-6), (-5, 12000), (2, 2)])
def test_ticks_enclose_and_are_few(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 3 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))


def test_bars_are_as_long_as_the_probabilities() -> None:
    bars = Shapes(probability_bars(0.25, 0.875)).of("rect")[1:]
    assert [float(bar["width"]) for bar in bars] == pytest.approx([25, 87.5])
