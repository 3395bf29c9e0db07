"""Markdown from data: names that come from elsewhere stay text, and tables have as many cells as columns. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jointdiff.views.terminal import printable

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def text(value: object) -> str:
    r"""Return a value as text on one line that neither marks anything up nor ends a cell.

    >>> print(text("a|b <b>\n[x](y)"))
    a\|b \<b\> \[x\](y)
    """
    return _SPECIAL.sub(r"\\\1", printable(" ".join(str(value).split())))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric_from: int = 1) -> str:
    """Return a table of cells that are Markdown already; columns from `numeric_from` on are aligned to the right.

    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|---:|
    | x | 1 |
    """
    assert all(len(row) == len(head) for row in rows), "every row needs a cell for every column"
    rule = "|".join("---:" if place >= numeric_from else "---" for place in range(len(head)))
    return "\n".join([_row(head), f"|{rule}|", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
