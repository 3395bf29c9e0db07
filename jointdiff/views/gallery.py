"""A site's gallery: scan, counterfactual, what changed, both probabilities, and how far to rely on it. It stays there.

What an item is: gallery_item.py. Its pictures, and how a gallery is carried on: gallery_store.py. The pages:
gallery_page.py, gallery_card.py, gallery.css, gallery.js.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jointdiff.storage import write_atomic, write_json
from jointdiff.trust import LEVELS, PageFacts, grade_of
from jointdiff.views.format import is_number
from jointdiff.views.gallery_item import GalleryItem, Task
from jointdiff.views.gallery_page import Gallery, first_page, page_name, plain_page
from jointdiff.views.gallery_store import INDEX, Kept, Resume, Store

__all__ = ["GalleryItem", "Kept", "Resume", "ranking", "write_gallery"]

SCHEMA_VERSION = 1


def write_gallery(
    folder: Path,
    *,
    items: Iterable[GalleryItem | Kept],
    metrics: Mapping[str, Any],
    class_names: list[str] | tuple[str, ...],
    title: str,
    real: bool,
    task: Task = "multi-class",
    controls: Mapping[str, Mapping[str, float]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write PNGs, metrics.json and the pages; they open offline and show the best first.

    Pictures are written as items come and are not held, so `items` may be a generator over thousands. A gallery that
    was cut short is carried on by calling this again: pictures that are there are not written again, and `Resume`
    spares the caller from making them.

    Args:
        folder: explanations/<run>/ of the site; made if needed. index.html is written last: where it is, all is.
        items: Explained scans; pictures are named by their position, never by the scan's file.
        metrics: Grades over all items, as graded at the site. Read after the last item, so that a generator of items
            may fill it on its way.
        real: Whether the scans are of people, or phantoms.
        controls: Grades of edits that explain nothing, by name (controls.py); they count in the page's grade.
        progress: Called after every item with the number of items so far.

    Returns:
        The absolute path of index.html.

    Raises:
        ValueError: An item does not fit itself; what was written before it stays, and is not written again.
    """
    store = Store(folder, task)
    for item in items:
        store.add(item)
        if progress is not None:
            progress(len(store.records))
    (folder / INDEX).unlink(missing_ok=True)
    store.close()
    records = store.records
    trust = grade_of(PageFacts.of(metrics, len(records), controls))
    best_first = [records[index] for index in ranking(records)]
    gallery = Gallery(best_first, dict(metrics), tuple(class_names), title, real, trust, task)
    entries = [record.public(trust) for record in records]
    levels = Counter(entry["trust"]["level"] for entry in entries)
    write_json(
        folder / "metrics.json",
        {
            "schema_version": SCHEMA_VERSION,
            "title": title,
            "real": real,
            "class_names": list(class_names),
            "metrics": dict(metrics),
            "controls": {name: dict(grades) for name, grades in (controls or {}).items()},
            "trust": {"level": trust.level, "reason": trust.reason},
            "num_by_trust": {level: levels[level] for level in LEVELS},
            "items": entries,
        },
    )
    for page in range(2, gallery.num_pages + 1):
        write_atomic(folder / page_name(page), plain_page(gallery, page))
    _remove_pages_after(folder, gallery.num_pages)
    return write_atomic(folder / page_name(1), first_page(gallery))


class Ranked(Protocol):
    """What can be ordered by how good it is: a GalleryItem, a Record."""

    @property
    def found(self) -> bool:
        """Whether the decision became the target."""

    @property
    def score(self) -> float:
        """Higher is better."""


def ranking(items: Sequence[Ranked]) -> list[int]:
    """Return positions from the best to the worst: found before not found, then by score; ties keep their order."""

    def key(index: int) -> tuple[bool, float]:
        item = items[index]
        return (not item.found, -item.score if is_number(item.score) else float("inf"))

    return sorted(range(len(items)), key=key)


def _remove_pages_after(folder: Path, last: int) -> None:
    """Remove the pages that a longer gallery left behind."""
    page = last + 1
    while page > 1 and (folder / page_name(page)).is_file():
        (folder / page_name(page)).unlink()
        page += 1
