"""A site's gallery: scan, counterfactual, what changed, both probabilities. It stays at the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.storage import write_atomic, write_json
from jointdiff.views.charts import probability_bars
from jointdiff.views.format import is_number, number
from jointdiff.views.images import difference_map, write_png
from jointdiff.views.labels import class_name, grades
from jointdiff.views.markup import Html, banner, element, facts, page

SCHEMA_VERSION = 1
NUM_FEATURED = 6  # this many of the best and of the worst open the page


@dataclass(frozen=True)
class GalleryItem:
    """One explained decision."""

    scan: np.ndarray  # uint8 [H,W,C]
    counterfactual: np.ndarray  # uint8 [H,W,C]
    probs_before: np.ndarray  # [K]
    probs_after: np.ndarray  # [K]
    label: int | None  # the true class where it is known
    target: int  # class that the edit aims at
    found: bool  # the model's decision became the target
    score: float  # grade of the edit, higher is better; orders best and worst


def write_gallery(
    folder: Path,
    *,
    items: Sequence[GalleryItem],
    metrics: Mapping[str, Any],
    class_names: list[str] | tuple[str, ...],
    title: str,
    real: bool,
) -> Path:
    """Write PNGs, metrics.json and index.html; the page opens offline and shows the best and the worst first.

    Args:
        folder: explanations/<run>/ of the site; made if needed. index.html is written last: where it is, all is.
        items: Explained scans; pictures are named by their position, never by the scan's file.
        metrics: Grades over all items, as graded at the site.
        real: Whether the scans are of people, or phantoms.

    Returns:
        The absolute path of index.html.
    """
    for index, item in enumerate(items):
        write_png(folder / _name(index, "scan"), item.scan)
        write_png(folder / _name(index, "counterfactual"), item.counterfactual)
        write_png(folder / _name(index, "difference"), difference_map(item.scan, item.counterfactual))
    records = [_record(index, item) for index, item in enumerate(items)]
    write_json(
        folder / "metrics.json",
        {
            "schema_version": SCHEMA_VERSION,
            "title": title,
            "real": real,
            "class_names": list(class_names),
            "metrics": dict(metrics),
            "items": records,
        },
    )
    return write_atomic(folder / "index.html", _page(items, metrics, class_names, title, real))


def ranking(items: Sequence[GalleryItem]) -> list[int]:
    """Return positions from the best to the worst: found before not found, then by score; ties keep their order."""

    def key(index: int) -> tuple[bool, float]:
        item = items[index]
        return (not item.found, -item.score if is_number(item.score) else float("inf"))

    return sorted(range(len(items)), key=key)


def _name(index: int, kind: str) -> str:
    return f"{index:04d}-{kind}.png"


def _record(index: int, item: GalleryItem) -> dict[str, Any]:
    return {
        "index": index,
        "label": item.label,
        "target": item.target,
        "found": item.found,
        "score": item.score,
        "probs_before": item.probs_before,
        "probs_after": item.probs_after,
        "scan": _name(index, "scan"),
        "counterfactual": _name(index, "counterfactual"),
        "difference": _name(index, "difference"),
    }


def _page(
    items: Sequence[GalleryItem],
    metrics: Mapping[str, Any],
    class_names: list[str] | tuple[str, ...],
    title: str,
    real: bool,
) -> Html:
    order = ranking(items)
    half = min(NUM_FEATURED, (len(order) + 1) // 2)
    best, worst = order[:half], order[half:][::-1][:half]
    rest = [index for index in order if index not in {*best, *worst}]

    def cards(indices: Sequence[int]) -> Html:
        return element("ul", [_card(index, items[index], class_names) for index in indices], class_="cards")

    num_found = sum(item.found for item in items)
    return page(
        title,
        banner(real=real),
        element("h1", title),
        element(
            "p",
            f"{len(items)} scans, each edited a little until the model decides otherwise; "
            f"it did so for {num_found} of them. "
            "An edit shows what this model looks at, and can be wrong about the patient.",
            class_="lead",
        ),
        element(
            "nav",
            element("a", "Best", href="#best"),
            element("a", "Worst", href="#worst") if worst else None,
            element("a", "All others", href="#others") if rest else None,
            aria_label="Sections",
        ),
        facts(grades(metrics)),
        element(
            "p",
            "What changed: ",
            element("b", "green"), " is brighter than in the scan, ", element("b", "purple"), " darker, white the same;"
            " the scale is the same in every map. Bars: upper = the scan, lower = after the edit.",
            class_="note",
        ),
        element("p", "No scan was explained.", class_="alert") if not items else None,
        [element("h2", "Best", id="best"), cards(best)] if best else None,
        [element("h2", "Worst", id="worst"), cards(worst)] if worst else None,
        [element("h2", "All others, best first", id="others"), cards(rest)] if rest else None,
    )  # fmt: skip


def _card(index: int, item: GalleryItem, class_names: list[str] | tuple[str, ...]) -> Html:
    def picture(kind: str, caption: str) -> Html:
        image = element(
            "img", class_="pixels", src=_name(index, kind), alt=f"{caption} of scan {index}", loading="lazy"
        )
        return element("figure", image, element("figcaption", caption))

    verdict = element("span", "decision changed", class_="ok") if item.found else element(
        "span", "decision not changed", class_="bad")  # fmt: skip
    label = "" if item.label is None or item.label < 0 else f"True class: {class_name(class_names, item.label)}. "
    anchor = f"scan-{index}"
    # tabindex: the tab key walks from card to card
    return element(
        "li",
        element("h3", element("a", f"Scan {index}", href=f"#{anchor}"), verdict),
        element("div", picture("scan", "Scan"), picture("counterfactual", "Edited"),
                picture("difference", "What changed"), class_="triple"),
        _probabilities(item, class_names),
        element("p", f"{label}Score {number(item.score, 2)}.", class_="note"),
        class_="card", id=anchor, tabindex="0",
    )  # fmt: skip


def _probabilities(item: GalleryItem, class_names: list[str] | tuple[str, ...]) -> Html:
    shown = np.argsort(-np.maximum(item.probs_before, item.probs_after), kind="stable")[:4].tolist()
    if item.target not in shown:
        shown[-1] = item.target
    rows = []
    for k in sorted(shown):
        before, after = float(item.probs_before[k]), float(item.probs_after[k])
        name = class_name(class_names, k)
        rows.append(
            element(
                "tr",
                element("th", element("b", name + " (target)") if k == item.target else name, scope="row"),
                element("td", probability_bars(before, after), class_="track"),
                element("td", f"{before:.2f} → {after:.2f}", class_="num"),
            )
        )
    return element("div", element("table", element("tbody", rows)), class_="bars")
