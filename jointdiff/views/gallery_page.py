"""A gallery's pages: the first with what all of it is worth, its controls and its cards; plain ones for the others.

The first page holds every card. The first of them stand in it as they are, the others as text that gallery.js turns
into cards when they are asked for, so that a page of thousands opens at once. Without script the plain pages show them.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jointdiff.trust import LEVELS, Trust
from jointdiff.views.format import number
from jointdiff.views.gallery_assets import asset, document
from jointdiff.views.gallery_card import GRADES, card, chip, scale
from jointdiff.views.gallery_item import Record, Task
from jointdiff.views.gallery_store import FULL_SCALE, painted
from jointdiff.views.labels import class_name, grades
from jointdiff.views.markup import Child, Html, banner, element, facts

PAGE_SIZE = 48  # cards that stand on one page
WHAT_IT_IS_NOT = (
    "A counterfactual shows what this model reacts to: it is not how this patient looked or will look, not a "
    "diagnosis, and no proof that what was changed is the cause."
)
_SORTS = {
    "best": "best first", "worst": "worst first", "gain": "confidence gained", "small": "smallest edit first",
    "large": "largest edit first", "position": "position",
}  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """All that its pages tell."""

    records: Sequence[Record]  # best first
    metrics: Mapping[str, Any]
    class_names: Sequence[str]
    title: str
    real: bool
    trust: Trust  # of the whole page
    task: Task = "multi-class"

    def cards(self, records: Sequence[Record]) -> list[Html]:
        """Return the cards of some of its items."""
        return [card(record, self.class_names, self.trust, self.task) for record in records]

    @property
    def num_pages(self) -> int:
        """How many pages hold its cards where there is no script."""
        return max(1, -(-len(self.records) // PAGE_SIZE))


def page_name(number_from_one: int) -> str:
    """Return the file name of a page.

    >>> page_name(1), page_name(2)
    ('index.html', 'page-0002.html')
    """
    return "index.html" if number_from_one == 1 else f"page-{number_from_one:04d}.html"


def first_page(gallery: Gallery) -> Html:
    """Return index.html."""
    records = gallery.records
    body: list[Child] = [
        banner(real=gallery.real),
        element("h1", gallery.title),
        _lead(gallery) if records else element("p", "No scan was explained.", class_="alert"),
        _verdict(gallery) if records else None,
    ]
    if records:
        body += [
            _tools(gallery),
            _legend(),
            element("ul", gallery.cards(records[:PAGE_SIZE]), class_="cards", id="cards"),
            element("p", "No scan fits these filters.", class_="alert", id="nothing", hidden=True),
            _pager(),
            _plain_links(1, gallery.num_pages),
            _zoom(),
            _data("records", "application/json", _rows(gallery)),
            _data("more", "text/html", Html("\n".join(gallery.cards(records[PAGE_SIZE:])))),
            element("script", Html(asset("gallery.js"))),
        ]
    return document(gallery.title, *body, style=_colours())


def plain_page(gallery: Gallery, page: int) -> Html:
    """Return one of the pages that show the other cards where there is no script; the first is 2."""
    start = (page - 1) * PAGE_SIZE
    title = f"{gallery.title}, page {page}"
    return document(
        title,
        banner(real=gallery.real),
        element("h1", title),
        element("p", chip(gallery.trust.level), " ", gallery.trust.reason, " ", WHAT_IT_IS_NOT),
        _legend(),
        element("ul", gallery.cards(gallery.records[start : start + PAGE_SIZE]), class_="cards"),
        _plain_links(page, gallery.num_pages),
        style=_colours(),
    )


def _lead(gallery: Gallery) -> Html:
    count, found = len(gallery.records), sum(record.found for record in gallery.records)
    each = "One scan, edited" if count == 1 else f"{number(count)} scans, each edited"
    those = ("it did" if found else "it did not") if count == 1 else f"it did so for {number(found)} of them"
    return element("p", f"{each} a little until the model decides otherwise; {those}.", class_="lead")


def _verdict(gallery: Gallery) -> Html:
    levels = Counter(record.trust.within(gallery.trust).level for record in gallery.records)
    counts = [element("li", chip(level), f" {number(levels[level])}") for level in LEVELS]
    return element(
        "section",
        element("h2", "How far to rely on this page ", chip(gallery.trust.level)),
        element("p", gallery.trust.reason),
        element("p", element("b", "What this is not. "), WHAT_IT_IS_NOT),
        element("ul", element("li", "Scans by grade:"), counts, class_="counts"),
        element("details", element("summary", "All grades of this page"), facts(grades(gallery.metrics))),
        class_=f"verdict {gallery.trust.level}",
        aria_label="Grade of this page",
    )


def _tools(gallery: Gallery) -> Html:
    """Return the controls, hidden until the script that they need runs; a filter that cannot matter is left out."""
    records, names = gallery.records, gallery.class_names

    def by_class(of: Callable[[Record], Sequence[int]]) -> list[tuple[Any, str, int]]:
        found = Counter(k for record in records for k in of(record))
        return [(k, class_name(names, k), found[k]) for k in sorted(found)]

    errors = Counter(record.error for record in records if record.error is not None)
    levels = Counter(record.trust.within(gallery.trust).level for record in records)
    choices = [
        ("label", "True class", by_class(lambda record: () if record.label is None else (record.label,))),
        ("decided", "Decided", by_class(lambda record: record.decided)),
        ("target", "Target", by_class(lambda record: (record.target,))),
        ("error", "Decision", [(int(wrong), "differs from the label" if wrong else "is right", errors[wrong])
                               for wrong in (False, True) if errors[wrong]]),
        ("level", "Grade", [(index, GRADES[level], levels[level])
                            for index, level in enumerate(LEVELS) if levels[level]]),
    ]  # fmt: skip
    sort = element("label", "Sort", element("select", [element("option", text, value=value)
                                                       for value, text in _SORTS.items()], id="sort"))  # fmt: skip
    filters = [
        element("label", label, element(
            "select", element("option", "all", value=""),
            [element("option", f"{text} ({number(count)})", value=value) for value, text, count in options],
            id=f"by-{key}", data_filter=key,
        ))
        for key, label, options in choices if len(options) > 1 or (key != "level" and len(records) > 1 and options)
    ]  # fmt: skip
    return element(
        "details",
        element("summary", "Sort and filter ", element("span", id="count", role="status")),
        element("div", sort, filters, element("button", "Reset", type="button", id="reset")),
        class_="tools", open=True, hidden=True,
    )  # fmt: skip


def _legend() -> Html:
    share = 100 * FULL_SCALE / 255
    return element(
        "p",
        element("b", "What changed: "), scale(),
        f" grey levels (of 255), that is ±{share:.0f}% of the range. Green is brighter than in the scan, purple "
        "darker, no colour the same; the scale is the same in every map, and stronger changes look like its ends. The "
        "scan lies faintly beneath, to show where. "
        "Bars: upper = the scan, lower = after the edit.",
        class_="legend-line",
    )  # fmt: skip


def _pager() -> Html:
    return element(
        "nav",
        element("button", "← Previous", type="button", id="previous-page"),
        element("span", id="range"),
        element("button", "Next →", type="button", id="next-page"),
        class_="pager", aria_label="Pages", hidden=True,
    )  # fmt: skip


def _plain_links(page: int, num_pages: int) -> Html | None:
    if num_pages == 1:
        return None
    targets = (("First", 1), ("Previous", page - 1), ("Next", page + 1), ("Last", num_pages))
    links = [element("a", text, href=page_name(to)) for text, to in targets if 1 <= to <= num_pages and to != page]
    return element("nav", element("span", f"Page {page} of {num_pages}"), links, class_="plain", aria_label="All pages")


def _zoom() -> Html:
    """Return the empty window that a card is enlarged in."""
    return element(
        "dialog",
        element(
            "div",
            element("button", "←", type="button", id="zoom-previous", aria_label="Previous scan"),
            element("span", id="zoom-position", role="status"),
            element("button", "→", type="button", id="zoom-next", aria_label="Next scan"),
            element("button", "Close", type="button", id="zoom-close"),
            class_="bar",
        ),
        element("div", id="zoom-card"),
        element("p", "Arrow keys: other scans, or the slider while it has the focus. Esc closes.", class_="note hint"),
        id="zoom", aria_label="Enlarged scan", tabindex="-1",
    )  # fmt: skip


def _rows(gallery: Gallery) -> Html:
    """Return what sorting and filtering need, as JSON that may stand in a page: a row an item, in the cards' order."""
    rows = [
        [
            record.index, LEVELS.index(record.trust.within(gallery.trust).level), round(record.gain, 4),
            round(record.changed_share, 5), record.label, list(record.decided), record.target,
            None if record.error is None else int(record.error),
        ]
        for record in gallery.records
    ]  # fmt: skip
    names = ["index", "level", "gain", "changed", "label", "decided", "target", "error"]
    text = json.dumps({"page_size": PAGE_SIZE, "names": names, "rows": rows}, separators=(",", ":"), allow_nan=False)
    return Html(text.replace("<", "\\u003c"))


def _data(name: str, kind: str, content: Html) -> Html:
    """Return text for the script. A browser runs no script of another type than its own."""
    return element("script", content, type=kind, id=name)


@functools.cache
def _colours() -> str:
    """Return the colours of the scale as CSS, as the map itself paints its ends and its middle."""
    before = np.full((1, 3, 1), 128, np.uint8)
    after = (before.astype(np.int64) + np.array([-FULL_SCALE, 0, FULL_SCALE]).reshape(1, 3, 1)).astype(np.uint8)
    less, same, more = ("#" + bytes(colour).hex() for colour in painted(before, after)[0])
    return f":root {{ --less: {less}; --same: {same}; --more: {more}; }}"
