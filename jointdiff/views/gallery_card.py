"""One card of a gallery: three pictures, the decision and its turn, the probabilities, the grade with its reason.

Without script the pictures stand beside each other; gallery.js lays the first two over one another.
"""

from __future__ import annotations

from collections.abc import Sequence

from jointdiff.trust import Level, Trust
from jointdiff.views.format import number
from jointdiff.views.gallery_item import DECODED, Record, Task
from jointdiff.views.gallery_store import FULL_SCALE
from jointdiff.views.labels import class_name
from jointdiff.views.markup import Html, element

GRADES: dict[Level, str] = {"trust": "Trust", "caution": "Caution", "none": "No trust"}
NUM_PROBS = 4  # rows of probabilities at most; the target's is always one of them
_CAPTIONS = {"scan": "Scan", DECODED: "Decoded scan", "counterfactual": "Edited", "difference": "What changed"}


def card(record: Record, class_names: Sequence[str], page: Trust, task: Task) -> Html:
    """Return the card of one item as a list item on a single line."""
    trust = record.trust.within(page)
    anchor = f"scan-{record.index}"
    name = None if record.name is None else element("span", record.name, class_="name")
    markup = element(
        "li",
        element("div", element("h3", element("a", f"Scan {record.index}", href=f"#{anchor}"), name), chip(trust.level),
                class_="head"),
        element("div", [_picture(record, kind) for kind in _CAPTIONS if kind in record.kinds], class_="views"),
        _decision(record, class_names, task),
        _probabilities(record, class_names),
        element("p", trust.reason, class_="why"),
        element("p", f"{_share(record.changed_share)} of the pixels changed · "
                     f"target {record.gain:+.2f} · score {number(record.score, 2)}", class_="note"),
        class_="card", id=anchor, tabindex="-1",
    )  # fmt: skip
    return Html(" ".join(markup.splitlines()))


def chip(level: Level) -> Html:
    """Return a grade as a word; its sign and colour are drawn by the style."""
    return element("span", GRADES[level], class_=f"grade {level}")


def scale() -> Html:
    """Return the difference map's scale: its ends in grey levels, and its colours between them."""
    return element("span", f"−{FULL_SCALE:.0f}", element("i"), f"+{FULL_SCALE:.0f}", class_="scale")


def _picture(record: Record, kind: str) -> Html:
    image = element(
        "img", src=record.picture(kind), alt=f"{_CAPTIONS[kind]} {record.index}", loading="lazy", width=record.width,
        height=record.height,
    )  # fmt: skip
    if kind == "difference":
        faint = element("img", src=record.picture("scan"), alt="", loading="lazy", class_="where")
        image = element("div", image, faint, class_="map")
    caption = element("figcaption", _CAPTIONS[kind], " " if kind == "difference" else None,
                      scale() if kind == "difference" else None)  # fmt: skip
    return element("figure", image, caption, class_=kind)


def _decision(record: Record, class_names: Sequence[str], task: Task) -> Html:
    """Say what the model decides before and after the edit, what it should decide, and what is true."""
    target = class_name(class_names, record.target)
    if task == "multi-label":
        finds = record.target in record.decided
        words = [element("b", target), ": found" if finds else ": not found"]
        before, after = (p[record.target] > 0.5 for p in (record.probs_before, record.probs_after))
        words.append(" → not found" if finds else " → found") if before != after else words.append(", also after")
    else:
        decided, after_probs = record.decided[0], record.probs_after
        shown = max(range(len(after_probs)), key=lambda k: (after_probs[k], -k))
        words = [element("b", class_name(class_names, decided)), " → ", element("b", class_name(class_names, shown))]
        if shown == decided:
            words = ["stays ", words[0]]
        if shown != record.target:
            words.append(f", wanted: {target}")
    truth = None
    if record.label is not None:
        truth = element("span", f"true class: {class_name(class_names, record.label)}")
    wrong = element("span", "the model errs", class_="wrong") if record.error else None
    return element("p", element("span", words), truth, wrong, class_="decision")


def _probabilities(record: Record, class_names: Sequence[str]) -> Html:
    before, after = record.probs_before, record.probs_after
    shown = sorted(range(len(before)), key=lambda k: (-max(before[k], after[k]), k))[:NUM_PROBS]
    if record.target not in shown:
        shown[-1] = record.target
    rows = []
    for k in sorted(shown):
        name = class_name(class_names, k)
        bars = [element("i", style=f"width:{100 * min(max(p, 0.0), 1.0):.0f}%") for p in (before[k], after[k])]
        rows.append(
            element(
                "tr",
                element("th", element("b", f"{name} (target)") if k == record.target else name, scope="row"),
                element("td", bars),
                element("td", f"{before[k]:.2f} → {after[k]:.2f}"),
            )
        )
    return element("table", rows, class_="probs")


def _share(share: float) -> str:
    """Return a share of the picture as per cent.

    >>> _share(0.0), _share(0.004), _share(0.25)
    ('0%', '0.4%', '25%')
    """
    return f"{100 * share:.1f}%" if 0 < share < 0.095 else f"{100 * share:.0f}%"
