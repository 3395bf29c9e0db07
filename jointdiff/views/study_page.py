"""The page of a study: one HTML file with its tables and plots, that opens offline."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from jointdiff.study_summary import (
    FAILED,
    FEDERATED,
    FINISHED,
    METRICS,
    WAITING,
    Cell,
    Design,
    Line,
    StudyFacts,
    StudyRow,
    against_first_setting,
    cells,
)
from jointdiff.views import study_words as words
from jointdiff.views.format import MISSING, duration, number
from jointdiff.views.markup import Child, Html, banner, element, headline, page, table
from jointdiff.views.study_charts import Curve, Dot, dot_chart, ends, labels_chart
from jointdiff.views.study_markdown import draw_table

_STYLE = ".charts > figure:only-child { max-width: 36rem; }"


def study_page(rows: Sequence[StudyRow], design: Design, facts: StudyFacts) -> Html:
    """Return the whole page."""
    by_auc = cells(rows, design)
    several = len(design.num_labels) > 1
    contents: list[tuple[str, str, Child]] = [
        ("labels", "AUC by number of labels" if several else "AUC by method", _curves(by_auc, design)),
        ("pairs", f"In pairs: {design.reference} against every other row", _pairs(by_auc, design)),
        ("gap", "How much of the gap to all labels is recovered", _gaps(by_auc)),
        ("tables", f"On the {words.split_name(facts)} images", [_tables(by_auc, design, "auc")]),
        ("other", "Other metrics", _other_metrics(rows, design)),
        ("settings", f"Against the setting {design.settings[0]}", _settings(rows, design)),
        ("draws", "Every draw", _draws(rows, design)),
        ("missing", "What has no result", _missing(rows, facts)),
        (
            "equal",
            "What is equal, and what the numbers mean",
            _list(words.what_is_equal(facts, [r.place for r in rows])),
        ),
        ("configuration", "The study", _configuration(facts)),
    ]
    shown = [(anchor, title, content) for anchor, title, content in contents if content]
    return page(
        f"{facts.name} - JointDiff study",
        banner(real=facts.real, where=f"Data set: {facts.dataset}."),
        element("h1", f"Study {facts.name}"),
        element("p", _lead(rows, design, facts), class_="lead"),
        _state(rows),
        _headline(rows, by_auc, design),
        element("nav", [element("a", title, href=f"#{anchor}") for anchor, title, _ in shown], aria_label="Sections"),
        [element("section", element("h2", title), content, id=anchor) for anchor, title, content in shown],
        style=_STYLE,
    )


def _lead(rows: Sequence[StudyRow], design: Design, facts: StudyFacts) -> str:
    splits, seeds = len({row.split_seed for row in rows}), len({row.seed for row in rows})
    counts = ", ".join(str(count) if count else "all" for count in design.num_labels)
    settings = f" {len(design.settings)} settings," if len(design.settings) > 1 else ""
    return (
        f"{len(design.methods)} methods,{settings} {counts} labels in all, {splits} draw{'s' * (splits > 1)} of labels "
        f"and partition, {seeds} training seed{'s' * (seeds > 1)}; {facts.num_hospitals} hospitals."
    )


def _state(rows: Sequence[StudyRow]) -> Html | None:
    failed, waiting = (sum(row.status == status for row in rows) for status in (FAILED, WAITING))
    if not failed and not waiting:
        return None
    told = [f"{failed} failed"] * bool(failed) + [f"{waiting} are still to do"] * bool(waiting)
    return element(
        "p", f"Of {len(rows)} runs {' and '.join(told)}: ", element("a", "which, and why", href="#missing"), ".",
        class_="alert",
    )  # fmt: skip


def _headline(rows: Sequence[StudyRow], by_auc: Sequence[Cell], design: Design) -> Html:
    tiles: list[tuple[Child, Child, Child]] = []
    for cell in [cell for cell in by_auc if cell.setting == design.settings[0]][:3]:
        line = next((x for x in cell.lines if (x.method, x.place) == (design.reference, FEDERATED)), None)
        note = f"{design.reference}, {cell.setting}" if len(design.settings) > 1 else design.reference
        interval = f"; 95% {words.interval(line.mean)}" if line and line.mean and line.mean.low is not None else ""
        value = number(line.mean.value) if line and line.mean else MISSING
        tiles.append((f"AUC, {words.labels(cell.num_labels)}", value, note + interval))
    pairs = [x.difference for cell in by_auc for x in cell.lines if x.difference and x.bound != "upper"]
    ahead = sum(d.clear_of_zero and d.value > 0 for d in pairs)
    behind = sum(d.clear_of_zero and d.value < 0 for d in pairs)
    tiles.append(("Ahead, clear of zero", f"{ahead} of {len(pairs)}", f"paired comparisons; {behind} clearly behind"))
    done = [row for row in rows if row.status == FINISHED]
    spent = sum(row.seconds or 0.0 for row in done)
    tiles.append(("Runs", f"{len(done)} of {len(rows)}", f"{duration(spent)} of computing"))
    return headline(tiles)


def _curves(by_auc: Sequence[Cell], design: Design) -> Child:
    if not any(line.mean for cell in by_auc for line in cell.lines):
        return None
    figures = []
    every = [dot for cell in by_auc for dot in _dots(cell, design)]
    low, high = ends(every)
    limits = max(0.0, low), min(1.0, high)
    for setting in design.settings:
        mine = [cell for cell in by_auc if cell.setting == setting]
        title = setting if len(design.settings) > 1 else "Mean AUC"
        if len(mine) == 1:
            name = f"{title}, {words.labels(mine[0].num_labels)}"
            figures.append(dot_chart(name, _dots(mine[0], design), limits=limits, note="mean (sd), 95% interval"))
            continue
        keys = dict.fromkeys((x.method, x.place, x.which) for cell in mine for x in cell.lines if x.bound != "upper")
        curves, ceiling = [], None
        for key in keys:
            found = [_find(cell, key) for cell in mine]
            line = next(x for x in found if x)
            curves.append(Curve(line.label, [x.mean if x else None for x in found], _is_reference(line, design)))
        for cell in mine:
            ceiling = next((x.mean.value for x in cell.lines if x.bound == "upper" and x.mean), ceiling)
        names = [str(cell.num_labels) if cell.num_labels else "all" for cell in mine]
        figures.append(labels_chart(title, names, curves, ceiling=ceiling, note="whiskers: 95% intervals of the mean"))
    return element("div", figures, class_="charts")


def _dots(cell: Cell, design: Design) -> list[Dot]:
    return [Dot(x.label, x.mean, words.mean(x), _is_reference(x, design)) for x in cell.lines if x.mean is not None]


def _find(cell: Cell, key: tuple[str, str, str]) -> Line | None:
    return next((x for x in cell.lines if (x.method, x.place, x.which) == key and x.bound != "upper"), None)


def _is_reference(line: Line, design: Design) -> bool:
    return (line.method, line.place) == (design.reference, FEDERATED) and line.bound != "upper"


def _title(cell: Cell) -> str:
    return words.title(cell.setting, cell.num_labels)


def _pairs(by_auc: Sequence[Cell], design: Design) -> Child:
    figures = []
    found = {
        _title(cell): [Dot(x.label, x.difference, words.signed(x.difference)) for x in cell.lines if x.difference]
        for cell in by_auc
    }
    every = [dot for dots in found.values() for dot in dots]
    for title, dots in found.items():
        if dots:
            n = sorted({dot.value.n for dot in dots})
            note = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
            axis = "behind ← 0 → ahead of the row"
            figures.append(dot_chart(title, dots, limits=ends(every), zero=0.0, note=note, axis=axis))
    if not figures:
        return None
    words_above = (
        f"AUC of {design.reference} minus that of the row, on the same draws, with 95% intervals. An interval clear of "
        "zero lies on one side of the line."
    )
    return [element("p", words_above, class_="soft"), element("div", figures, class_="charts")]


def _gaps(by_auc: Sequence[Cell]) -> Child:
    figures = []
    for cell in by_auc:
        dots = [Dot(x.label, x.gap, words.share(x.gap)) for x in cell.lines if x.gap]
        if dots:
            n = dots[0].value.n
            figures.append(
                dot_chart(_title(cell), dots, zero=0.0, note=f"n = {n}", axis="0 labelled only, 1 all labels")
            )
    return element("div", figures, class_="charts") if figures else None


def _tables(found: Sequence[Cell], design: Design, metric: str) -> Child:
    parts = []
    for cell in found:
        head, body = words.columns(cell, design.reference)
        parts.append(table(head, body, caption=f"{_title(cell)}: {words.METRIC_NAMES[metric]}"))
    return parts


def _other_metrics(rows: Sequence[StudyRow], design: Design) -> Child:
    parts = []
    for metric in METRICS[1:]:
        if any(getattr(row, metric) is not None for row in rows):
            name = words.METRIC_NAMES[metric]
            body = _tables(cells(rows, design, metric), design, metric)
            parts.append(element("details", element("summary", name[:1].upper() + name[1:]), body))
    return parts


def _settings(rows: Sequence[StudyRow], design: Design) -> Child:
    figures = []
    for cell in against_first_setting(rows, design):
        dots = [Dot(x.method, x.difference, words.signed(x.difference)) for x in cell.lines if x.difference]
        note = f"minus {design.settings[0]}, n = {dots[0].value.n}"
        figures.append(dot_chart(_title(cell), dots, zero=0.0, note=note, axis="loses ← 0 → gains"))
    return element("div", figures, class_="charts") if figures else None


def _draws(rows: Sequence[StudyRow], design: Design) -> Child:
    parts = []
    for setting in design.settings:
        for count in dict.fromkeys((*design.num_labels, 0)):
            head, body = draw_table(rows, setting, count)
            if body:
                name = words.title(setting, count)
                parts.append(element("details", element("summary", f"{name}: AUC of every run"), table(head, body)))
    return parts


def _missing(rows: Sequence[StudyRow], facts: StudyFacts) -> Child:
    failed = [[row.run, row.reason] for row in rows if row.status == FAILED]
    waiting = [[row.run, row.reason or "not begun"] for row in rows if row.status == WAITING]
    parts: list[Child] = []
    if failed:
        parts.append(table(["failed", "why"], failed, numeric_from=9))
    if waiting:
        parts.append(
            element("details", element("summary", f"{len(waiting)} runs to do"),
                    table(["to do", "so far"], waiting, numeric_from=9))
        )  # fmt: skip
    return [*parts, _list(facts.notes)] if parts or facts.notes else None


def _list(lines: Sequence[str]) -> Html | None:
    return element("ul", [element("li", line) for line in lines]) if lines else None


def _configuration(facts: StudyFacts) -> Child:
    content = yaml.safe_dump(dict(facts.content), sort_keys=False, allow_unicode=True)
    return element("details", element("summary", "study.yaml, with everything that the file leaves to defaults"),
                   element("pre", content))  # fmt: skip
