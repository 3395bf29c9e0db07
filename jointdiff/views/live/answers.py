"""Who answered in which round, and what went wrong: a matrix whose troubled cells lead to their reasons."""

from __future__ import annotations

from typing import Any

from jointdiff.views.live.document import clock
from jointdiff.views.live.matrix import OK
from jointdiff.views.markup import Child, Html, element

GLYPHS = {"ok": "✓", "mended": "↺", "failed": "✕", "refused": "⊘", "rejected": "!", "waiting": "…", "missed": "–",
          "none": ""}  # fmt: skip
LEGEND = {
    "ok": "answered", "mended": "answered, after a trouble or with a question", "failed": "failed",
    "refused": "refused", "rejected": "update rejected", "waiting": "no answer yet", "missed": "no answer",
}  # fmt: skip
NUM_LARGE = 16  # hospitals up to which the matrix has large cells
NUM_TROUBLES = 200  # rows of troubles


def matrix(found: dict[str, Any]) -> Child:
    """Return hospitals by rounds; a cell of a trouble leads to its reason.

    Args:
        found: `matrix` of a snapshot.
    """
    rounds, rows = found["rounds"], found["rows"]
    if not rows:
        return element("p", "No hospital is known yet.", class_="soft")
    every = 1 if len(rounds) <= 26 else 5
    head = [element("th", "Hospital", scope="col")]
    for index, n in enumerate(rounds):
        label = n if n % every == 0 or index == 0 or n == 1 else ""
        current = "now" if n == found["newest"] and n else None
        title = "introductions, before the first round" if n == 0 else None
        head.append(element("th", label, scope="col", class_=current, title=title))
    body = [_matrix_row(row, rounds) for row in rows]
    grid = element("table", element("thead", element("tr", head)), element("tbody", body),
                   class_="rounds" if len(rows) <= NUM_LARGE else "rounds dense")  # fmt: skip
    used = {cell for row in rows for cell in row["cells"]}
    legend = [
        element("li", element("span", GLYPHS[status], class_=f"cell {status}", aria_hidden="true"), words)
        for status, words in LEGEND.items() if status in used or status in ("ok", "waiting", "failed", "refused")
    ]  # fmt: skip
    region = element("div", grid, class_="scroll grid", tabindex="0", role="region", aria_label="Hospitals by rounds")
    return [region, element("ul", legend, class_="legend")]


def _matrix_row(row: dict[str, Any], rounds: list[int]) -> Html:
    cells = []
    for n, status in zip(rounds, row["cells"], strict=True):
        trouble = row["troubles"].get(str(n))
        if trouble is None or status == OK:
            cells.append(element("td", GLYPHS[status], class_=status))
            continue
        what = f"{row['hospital']}, round {n}: {LEGEND[status]}. Why?"
        cells.append(element("td", element("a", GLYPHS[status], href=f"#{trouble}", aria_label=what, title=what),
                             class_=status))  # fmt: skip
    return element("tr", element("th", row["hospital"], scope="row", title=row["hospital"]), cells)


def troubles(found: list[dict[str, Any]], *, running: bool) -> Child:
    """Return what failed, was refused or rejected, newest first, each with its reason; 'nothing' is said too."""
    if not found:
        still = " or is still at work" if running else ""
        return element("p", f"Nothing: every hospital that was asked has answered{still}.", class_="soft")
    newest = sorted(found, key=lambda one: str(one["time"]), reverse=True)
    items = [
        entry(one["hospital"], one["what"], one["status"], one["reason"],
              [f"Asked to {one['question']}, {_rounds(one['rounds'])}. Last at ", clock(one["time"]), " UTC."],
              anchor=one["id"])
        for one in newest[:NUM_TROUBLES]
    ]  # fmt: skip
    more = len(newest) - NUM_TROUBLES
    return [
        element("ul", items, class_="troubles", tabindex="0", aria_label="Failures and refusals, newest first"),
        element("p", f"{more} older ones are in events.jsonl.", class_="note") if more > 0 else None,
    ]


def _rounds(numbers: list[Any]) -> str:
    """Return rounds in words, runs of them shortened.

    >>> _rounds([1, 2, 3, 7])
    'rounds 1-3, 7'
    """
    whole = sorted(n for n in numbers if isinstance(n, int))
    parts: list[list[int]] = []
    for n in whole:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    if not parts or whole == [0]:
        return "before the first round"
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
    return f"round {text}" if len(whole) == 1 else f"rounds {text}"


def entry(who: str, what: str, status: str, reason: str, note: Child, *, anchor: str | None = None) -> Html:
    """Return one trouble: who, what happened, why, and when."""
    head = element("h3", element("span", who), " ", element("span", what, class_=f"mark {status}"))
    return element("li", head, element("p", reason), element("p", note, class_="note"), id=anchor, tabindex="-1")
