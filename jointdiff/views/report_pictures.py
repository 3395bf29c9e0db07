"""Report sections with pictures: the generator's samples and the sites' galleries.

Pictures come from files that this run made on this machine: phantoms, or a simulation on public data. In deployment
the server has none of them, so it shows none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jointdiff.views.format import is_number, number, percent, words
from jointdiff.views.images import inline_image
from jointdiff.views.labels import class_name, grade_label, grade_order, grade_text
from jointdiff.views.markup import Html, element, table
from jointdiff.views.run_data import RunData, mapping

MAX_GALLERIES_WITH_PICTURES = 4
MAX_PICTURE_BYTES = 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


def samples(run: RunData) -> Html | None:
    """Return the panel of generated images, and how a referee and the KID grade them."""
    entry = mapping(run.metrics.get("samples")) or run.last("sampled")
    if not entry:
        return None
    metrics = mapping(entry.get("metrics"))
    png = _read_png(run.folder, entry.get("path"))
    panel = None
    if png is not None:
        names = ", ".join(run.class_names)
        caption = "Drawn by the model, not scans" + (f"; one row per class, from the top: {names}." if names else ".")
        panel = element(
            "figure", inline_image(png, "Panel of generated images"), element("figcaption", caption)
        )  # fmt: skip
    reason = element("p", str(entry["reason"]), class_="note") if entry.get("reason") else None
    return element("div", panel, reason, _agreement(metrics), kid_table(metrics, run.class_names))


def _agreement(metrics: Mapping[str, Any]) -> Html | None:
    share = metrics.get("referee_agreement")
    if not is_number(share):
        return None
    return element(
        "p",
        element("b", f"{percent(share)}"),
        " of the images guided to a class are given that class by a referee, a classifier trained apart on all labels.",
    )


def kid_table(metrics: Mapping[str, Any], class_names: list[str]) -> Html | None:
    """Return the KID of every class beside its yardsticks, from {"kid": {class: {"samples": [kid, error], ...}}}."""
    by_class = mapping(metrics.get("kid"))
    rows: list[list[Any]] = []
    columns = list(dict.fromkeys(key for value in by_class.values() for key in mapping(value)))
    for name, values in by_class.items():
        rows.append([str(name), *(_kid(mapping(values).get(column)) for column in columns)])
    if not rows or not columns:
        return None
    return table(
        ["Class", *map(words, columns)],
        rows,
        caption="Kernel inception distance (KID) to images of the class, with its standard error: lower is better, "
        f"'real' is the best to hope for. Feature net: {metrics.get('feature_net') or 'random-conv-1'}",
    )


def _kid(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 2:
        return f"{number(value[0], 4)} ± {number(value[1], 4)}"
    return number(value, 4)


def galleries(run: RunData) -> Html | None:
    """Return the grades of every hospital's gallery, links to those on this machine, and a few of their pictures."""
    entry = mapping(run.metrics.get("explanations")) or run.last("explained")
    found = {hospital: (folder, data) for hospital, folder, data in run.galleries()}
    graded = {str(name): mapping(value) for name, value in mapping(entry.get("hospitals")).items()}
    for hospital, (_, data) in found.items():
        graded.setdefault(hospital, mapping(data.get("metrics")))
    if not graded:
        return None
    pooled = mapping(entry.get("pooled"))
    shown = [(name, *found[name]) for name in graded if name in found][:MAX_GALLERIES_WITH_PICTURES]
    return element(
        "div",
        element("p", "Each scan is edited a little, until the model decides otherwise. Galleries stay at the sites; "
                     "grades are all that leaves them."),
        _grades_table(run, graded, pooled, found),
        [_gallery_pictures(run, name, folder, data) for name, folder, data in shown],
    )  # fmt: skip


def _grades_table(
    run: RunData, graded: dict[str, dict[str, Any]], pooled: dict[str, Any], found: Mapping[str, tuple[Path, Any]]
) -> Html:
    """Return a table with a grade a row and a hospital a column: names of grades are long, their values short."""
    columns = {"all": pooled, **graded} if pooled and len(graded) > 1 else graded
    heads: list[Any] = []
    for hospital in columns:
        link = _relative(run.folder, found[hospital][0] / "index.html") if hospital in found else None
        heads.append(element("a", hospital, href=link) if link else hospital)
    numbers = {key for values in columns.values() for key, value in values.items() if is_number(value)}
    rows = [
        [grade_label(key), *(grade_text(key, values.get(key)) for values in columns.values())]
        for key in grade_order(numbers)
    ]
    return table(["Grade", *heads], rows, caption="Grades of the edits; a hospital's name leads to its gallery")


def _gallery_pictures(run: RunData, hospital: str, folder: Path, data: dict[str, Any]) -> Html | None:
    items = [item for item in data.get("items") or [] if isinstance(item, dict)]
    names = [str(name) for name in data.get("class_names") or run.class_names]
    items.sort(key=lambda item: (not item.get("found"), -(item.get("score") or 0)))
    chosen = [("Best", items[0]), ("Worst", items[-1])] if len(items) > 1 else [("Only one", item) for item in items]
    cards = [_card(folder, title, item, names) for title, item in chosen]
    cards = [card for card in cards if card is not None]
    if not cards:
        return None
    link = element("a", "all of its gallery", href=_relative(run.folder, folder / "index.html"))
    heading = element("h3", hospital, element("span", " · ", class_="soft"), link)
    return element("div", heading, element("ul", cards, class_="cards"))


def _card(folder: Path, title: str, item: Mapping[str, Any], names: list[str]) -> Html | None:
    figures = []
    for kind, caption in (("scan", "Scan"), ("counterfactual", "Edited"), ("difference", "What changed")):
        png = _read_png(folder, item.get(kind))
        if png is None:
            return None
        figures.append(element("figure", inline_image(png, caption), element("figcaption", caption)))
    target = item.get("target")
    before, after = item.get("probs_before") or [], item.get("probs_after") or []
    text = ""
    if isinstance(target, int) and target < min(len(before), len(after)):
        text = f"{class_name(names, target)}: {before[target]:.2f} → {after[target]:.2f}"
    return element(
        "li", element("h4", title), element("div", figures, class_="triple"), element("p", text, class_="note"),
        class_="card",
    )  # fmt: skip


def _read_png(folder: Path, name: object) -> bytes | None:
    """Return a PNG below `folder`, None where it is missing, outside, too large, or no PNG."""
    if not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return None
    content = path.read_bytes()
    return content if content.startswith(_PNG) else None


def _relative(start: Path, target: Path) -> str:
    return quote(os.path.relpath(target, start).replace(os.sep, "/"))
