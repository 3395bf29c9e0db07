"""Line charts and bars as inline SVG: no script, colours from the page's style, told apart by dash and marker too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jointdiff.views.format import is_number
from jointdiff.views.markup import Html, element, join

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "5 5", "12 4")
NUM_COLOURS = len(_DASHES)  # beyond these, series are drawn as a crowd of thin lines


@dataclass(frozen=True)
class Series:
    """One line: points in order of x; a y of None (not measured) breaks the line."""

    name: str
    points: Sequence[tuple[float, float | None]]
    main: bool = False  # the line to look at: thick, in the text's colour

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points that were measured and are finite."""
        return [(x, float(y)) for x, y in self.points if is_number(y) and y is not None]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "round",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    note: str = "",
    missing: str = "Not measured in this run.",
) -> Html:
    """Return a figure: title, chart, legend.

    Args:
        missing: What stands there where no point is known.
        y_range: Limits that the y axis keeps inside, e.g. (0, 1) for shares; None follows the data.
        x_range: The x axis, so that charts beside each other share it; None follows the data.
    """
    caption = element("figcaption", element("b", title), f" {note}" if note else None)
    drawn = [line for line in series if line.known]
    if not drawn:
        return element("figure", caption, element("p", missing, class_="soft"))
    xs = [x for line in drawn for x, _ in line.known]
    ys = [y for line in drawn for _, y in line.known]
    y_ticks = nice_ticks(*_limits(ys, y_range))
    x_low, x_high = x_range or (min(xs), max(xs))
    x_ticks = _whole_ticks(x_low, x_high)
    scale = _Scale(x_low, x_high, y_ticks[0], y_ticks[-1])
    styles = _styles(drawn)
    # The main line is drawn last, on top.
    order = sorted(range(len(drawn)), key=lambda i: drawn[i].main)
    content = [
        _axes(scale, x_ticks, y_ticks, x_label, y_label),
        [_line(drawn[i], styles[i], scale) for i in order],
    ]
    summary = "; ".join(f"{line.name}: {line.known[0][1]:.3f} to {line.known[-1][1]:.3f}" for line in drawn[:8])
    svg = element(
        "svg", content, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title} by {x_label}. {summary}"
    )
    return element("figure", caption, svg, _legend(drawn, styles))


def probability_bars(before: float, after: float) -> Html:
    """Return two thin bars, a probability before (upper) and after (lower, lighter), on one track from 0 to 1."""

    def bar(y: int, value: float, opacity: float) -> Html:
        width = 100 * min(max(value, 0.0), 1.0)
        return element("rect", x=0, y=y, width=f"{width:.1f}", height=6, fill="var(--s0)", opacity=opacity)

    track = element("rect", x=0, y=1, width=100, height=16, fill="var(--rule)")
    return element(
        "svg", track, bar(2, before, 1), bar(10, after, 0.55), viewBox="0 0 100 18", preserveAspectRatio="none",
        role="img", aria_label=f"{before:.2f} before, {after:.2f} after",
    )  # fmt: skip


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that enclose [low, high].

    >>> nice_ticks(0.53, 0.97)
    [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    """
    if high <= low:
        pad = abs(low) * 0.1 or 0.1
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _limits(ys: list[float], y_range: tuple[float, float] | None) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if y_range is None:
        return low, high
    # A flat line needs room around it, but an axis for a share must not promise values beyond 0 and 1.
    middle, least = (low + high) / 2, 0.1 * (y_range[1] - y_range[0])
    low, high = min(low, middle - least / 2), max(high, middle + least / 2)
    return max(low, y_range[0]), min(high, y_range[1])


def _whole_ticks(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 8))
    step = next(s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 10**9) if s >= step)
    return [x for x in range(math.ceil(low), math.floor(high) + 1) if x % step == 0 or x == low]


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        if self.x_high == self.x_low:  # a single round stands in the middle
            return (_LEFT + WIDTH - _RIGHT) / 2
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)


@dataclass(frozen=True)
class _Style:
    colour: str
    dash: str | None
    css: str


def _styles(series: Sequence[Series]) -> list[_Style]:
    others = [line for line in series if not line.main]
    crowd = len(others) > NUM_COLOURS
    styles = []
    index = 0
    for line in series:
        if line.main:
            styles.append(_Style("var(--ink)", None, "series main"))
            continue
        if crowd:
            styles.append(_Style("var(--s0)", None, "series crowd"))
        else:
            styles.append(_Style(f"var(--s{index})", _DASHES[index], "series"))
        index += 1
    return styles


def _axes(scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> list[Html]:
    step = y_ticks[1] - y_ticks[0]
    decimals = max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1  # a step of 0.25 or 0.025
    parts = []
    for value in y_ticks:
        y = scale.y(value)
        parts.append(element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"))
        parts.append(element("text", f"{value:.{decimals}f}", x=_LEFT - 8, y=f"{y + 4:.1f}", text_anchor="end"))
    base = HEIGHT - _BOTTOM
    parts.append(element("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base))
    for value in x_ticks:
        parts.append(element("text", f"{value:g}", x=f"{scale.x(value):.1f}", y=base + 17, text_anchor="middle"))
    parts.append(element("text", x_label, x=(_LEFT + WIDTH - _RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"))
    if y_label:
        middle = (_TOP + base) / 2
        parts.append(
            element("text", y_label, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})")
        )
    return parts


def _line(line: Series, style: _Style, scale: _Scale) -> Html:
    pieces: list[str] = []
    pen_down = False
    for x, y in line.points:
        if y is None or not is_number(y):
            pen_down = False
            continue
        pieces.append(f"{'L' if pen_down else 'M'}{scale.x(x):.1f} {scale.y(y):.1f}")
        pen_down = True
    path = element("path", d="".join(pieces), class_=style.css, stroke=style.colour, stroke_dasharray=style.dash)
    crowd = "crowd" in style.css
    radius = 3.2 if line.main else 2.4
    dots = [
        element("circle", element("title", f"{line.name}, {x:g}: {y:.4g}"), cx=f"{scale.x(x):.1f}",
                cy=f"{scale.y(y):.1f}", r=radius, fill=style.colour)
        for x, y in (line.known if len(line.known) <= 40 and not crowd else line.known[-1:])
    ]  # fmt: skip
    return element("g", path, dots)


def _legend(series: Sequence[Series], styles: Sequence[_Style]) -> Html:
    entries = list(zip(series, styles, strict=True))
    crowd = [line for line, style in entries if "crowd" in style.css]
    shown = [(line.name, style) for line, style in entries if "crowd" not in style.css]
    if crowd:
        style = next(style for _, style in entries if "crowd" in style.css)
        shown.append((f"each of {len(crowd)} hospitals", style))
    items = []
    for name, style in sorted(shown, key=lambda entry: "main" not in entry[1].css):
        sample = element(
            "svg",
            element("line", x1=1, x2=29, y1=6, y2=6, class_=style.css, stroke=style.colour,
                    stroke_dasharray=style.dash),
            viewBox="0 0 30 12", aria_hidden="true",
        )  # fmt: skip
        items.append(element("li", sample, element("span", name)))
    return element("ul", join(items), class_="legend")
