"""A study's plots as inline SVG: means with intervals by number of labels, and one dot and interval per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jointdiff.paired import Interval
from jointdiff.views.charts import nice_ticks
from jointdiff.views.markup import Html, element, join

WIDTH = 460
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 270, 52, 14, 12, 40
_ROW, _NAMES, _VALUES = 26, 172, 112  # of the plot with a row per method: height; widths of the words beside it
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "5 5", "12 4")
_LETTERS = 27  # of a name, before it is cut


@dataclass(frozen=True)
class Curve:
    """One method over the numbers of labels: a mean with interval, or None, for each."""

    name: str
    points: Sequence[Interval | None]
    main: bool = False


@dataclass(frozen=True)
class Dot:
    """One row: a name, a number with its interval, and the words to the right of it."""

    name: str
    value: Interval
    words: str
    main: bool = False


def labels_chart(
    title: str, names: Sequence[str], curves: Sequence[Curve], *, ceiling: float | None = None, note: str = ""
) -> Html:
    """Return a figure of means by number of labels, with whiskers for the 95% intervals.

    Args:
        names: Of the places on the x axis.
        ceiling: A line across, such as the mean with all labels; None = none.
    """
    caption = element("figcaption", element("b", title), f" {note}" if note else None)
    drawn = [curve for curve in curves if any(curve.points)]
    if not drawn:
        return element("figure", caption, element("p", "Nothing has finished yet.", class_="soft"))
    values = [v for curve in drawn for p in curve.points if p for v in (p.value, p.low, p.high) if v is not None]
    ticks = nice_ticks(max(0.0, min(values)), min(1.0, max([*values, ceiling or 0.0])))

    def y(value: float) -> float:
        inside = min(max(value, ticks[0]), ticks[-1])
        return _HEIGHT - _BOTTOM - (inside - ticks[0]) / (ticks[-1] - ticks[0]) * (_HEIGHT - _TOP - _BOTTOM)

    gap = (WIDTH - _LEFT - _RIGHT) / len(names)
    parts = [
        element("g", element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=f"{y(t):.1f}", y2=f"{y(t):.1f}"),
                element("text", f"{t:.2f}", x=_LEFT - 8, y=f"{y(t) + 4:.1f}", text_anchor="end"))
        for t in ticks
    ]  # fmt: skip
    for place, name in enumerate(names):
        middle = _LEFT + (place + 0.5) * gap
        parts.append(element("text", name, x=f"{middle:.1f}", y=_HEIGHT - _BOTTOM + 17, text_anchor="middle"))
    parts.append(element("text", "labels kept, all hospitals together", x=(_LEFT + WIDTH - _RIGHT) / 2, y=_HEIGHT - 4,
                         text_anchor="middle"))  # fmt: skip
    if ceiling is not None:
        level = f"{y(ceiling):.1f}"
        parts.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=level, y2=level, stroke="var(--soft)",
                             stroke_dasharray="1 4", stroke_width=1.6))  # fmt: skip
    spread = min(9.0, 0.5 * gap / len(drawn))  # apart, so that whiskers do not hide each other
    styles = _styles([curve.main for curve in drawn])
    order = sorted(range(len(drawn)), key=lambda i: drawn[i].main)
    for i in order:
        shift = (i - (len(drawn) - 1) / 2) * spread
        xs = [_LEFT + (place + 0.5) * gap + shift for place in range(len(names))]
        parts.append(_curve(drawn[i], xs, y, *styles[i]))
    summary = "; ".join(f"{c.name}: {', '.join(f'{p.value:.3f}' if p else 'none' for p in c.points)}" for c in drawn)
    svg = element("svg", parts, viewBox=f"0 0 {WIDTH} {_HEIGHT}", role="img", aria_label=f"{title}. {summary}")
    legend = [(drawn[i].name, *styles[i]) for i in sorted(order, key=lambda i: not drawn[i].main)]
    if ceiling is not None:
        legend.append(("all labels", "var(--soft)", "1 4"))
    return element("figure", caption, svg, _legend(legend))


def ends(dots: Sequence[Dot]) -> tuple[float, float]:
    """Return the least and the greatest of some numbers, one or more, with their intervals."""
    values = [v for dot in dots for v in (dot.value.value, dot.value.low, dot.value.high) if v is not None]
    return min(values), max(values)


def dot_chart(
    title: str,
    dots: Sequence[Dot],
    *,
    limits: tuple[float, float] | None = None,
    zero: float | None = None,
    note: str = "",
    axis: str = "",
) -> Html:
    """Return a figure with a row per entry: its name, a dot with its interval, and its number in words.

    Args:
        limits: What the axis has to hold, the same for figures that are read side by side; what lies beyond is
            cut. None = all of these dots.
        zero: Where a line is drawn down through all rows, such as no difference.
        axis: Words below the axis.
    """
    caption = element("figcaption", element("b", title), f" {note}" if note else None)
    if not dots:
        return element("figure", caption, element("p", "Nothing has finished yet.", class_="soft"))
    low, high = limits or ends(dots)
    ticks = nice_ticks(low if zero is None else min(low, zero), high if zero is None else max(high, zero), 4)
    left, right, base = _NAMES, WIDTH - _VALUES, 8 + _ROW * len(dots)

    def x(value: float) -> float:
        inside = min(max(value, ticks[0]), ticks[-1])
        return left + (inside - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    decimals = max(1, min(3, len(f"{ticks[1] - ticks[0]:.6f}".rstrip("0").partition(".")[2])))
    parts = []
    for t in ticks:
        parts.append(element("line", class_="grid", x1=f"{x(t):.1f}", x2=f"{x(t):.1f}", y1=4, y2=base))
        parts.append(element("text", f"{t:.{decimals}f}", x=f"{x(t):.1f}", y=base + 16, text_anchor="middle"))
    if zero is not None:
        parts.append(element("line", x1=f"{x(zero):.1f}", x2=f"{x(zero):.1f}", y1=2, y2=base, stroke="var(--soft)",
                             stroke_width=1.4))  # fmt: skip
    for place, dot in enumerate(dots):
        y = 8 + _ROW * (place + 0.5)
        colour = "var(--ink)" if dot.main else "var(--s0)"
        name = dot.name if len(dot.name) <= _LETTERS else f"{dot.name[: _LETTERS - 1]}…"
        parts.append(
            element("text", name, element("title", dot.name), x=left - 10, y=f"{y + 4:.1f}", text_anchor="end")
        )
        if dot.value.low is not None and dot.value.high is not None:
            parts.append(element("line", x1=f"{x(dot.value.low):.1f}", x2=f"{x(dot.value.high):.1f}", y1=f"{y:.1f}",
                                 y2=f"{y:.1f}", stroke=colour, stroke_width=2))  # fmt: skip
        parts.append(element("circle", element("title", f"{dot.name}: {dot.words}"), cx=f"{x(dot.value.value):.1f}",
                             cy=f"{y:.1f}", r=4, fill=colour))  # fmt: skip
        parts.append(element("text", dot.words, x=right + 10, y=f"{y + 4:.1f}", text_anchor="start"))
    height = base + (38 if axis else 22)
    if axis:
        parts.append(element("text", axis, x=(left + right) / 2, y=base + 33, text_anchor="middle"))
    summary = "; ".join(f"{dot.name}: {dot.words}" for dot in dots)
    return element(
        "figure",
        caption,
        element("svg", parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=f"{title}. {summary}"),
    )


def _styles(mains: Sequence[bool]) -> list[tuple[str, str | None]]:
    styles: list[tuple[str, str | None]] = []
    index = 0
    for main in mains:
        if main:
            styles.append(("var(--ink)", None))
            continue
        place, round_ = index % len(_DASHES), index // len(_DASHES)  # more than six: the colours again, other dashes
        styles.append((f"var(--s{place})", _DASHES[(place + round_) % len(_DASHES)]))
        index += 1
    return styles


def _curve(curve: Curve, xs: Sequence[float], y: Callable[[float], float], colour: str, dash: str | None) -> Html:
    pieces, whiskers, dots = [], [], []
    pen_down = False
    for place, point in enumerate(curve.points):
        if point is None:
            pen_down = False
            continue
        x = f"{xs[place]:.1f}"
        pieces.append(f"{'L' if pen_down else 'M'}{x} {y(point.value):.1f}")
        pen_down = True
        if point.low is not None and point.high is not None:
            whiskers.append(element("line", x1=x, x2=x, y1=f"{y(point.low):.1f}", y2=f"{y(point.high):.1f}",
                                    stroke=colour, stroke_width=1.3, opacity=0.75))  # fmt: skip
        dots.append(element("circle", element("title", f"{curve.name}: {point.value:.3f}, n = {point.n}"), cx=x,
                            cy=f"{y(point.value):.1f}", r=3.6 if curve.main else 2.8, fill=colour))  # fmt: skip
    css = "series main" if curve.main else "series"
    return element(
        "g", whiskers, element("path", d="".join(pieces), class_=css, stroke=colour, stroke_dasharray=dash), dots
    )


def _legend(entries: Sequence[tuple[str, str, str | None]]) -> Html:
    items = []
    for name, colour, dash in entries:
        line = element("line", x1=1, x2=29, y1=6, y2=6, class_="series", stroke=colour, stroke_dasharray=dash)
        sample = element("svg", line, viewBox="0 0 30 12", aria_hidden="true")
        items.append(element("li", sample, element("span", name)))
    return element("ul", join(items), class_="legend")
