"""A gallery's folder: pictures written as they come, and a record of what is there, so that it can be carried on.

items.jsonl holds one line for each item; of two lines for one position the later stands. An item is there when its line
and its three pictures are. A process that dies in between leaves at most one item's pictures to be written again.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.storage import remove_temporaries, write_atomic
from jointdiff.views.gallery_item import DECODED, GalleryItem, Record, Task, digest, record_of
from jointdiff.views.images import difference_map, write_png

RECORDS = "items.jsonl"
INDEX = "index.html"
FULL_SCALE = 80.0  # change in grey levels that gets a difference map's full colour
_VERSION = 1


@dataclass(frozen=True)
class Kept:
    """An item whose pictures are there already: given to `write_gallery` in the item's place."""

    record: Record


class Resume:
    """What a gallery that was begun holds already, so that a caller need not explain those scans again.

    resume = Resume(folder)
    items = (resume.get(i, key_of(i)) or explain(i) for i in range(len(scans)))

    where `explain` gives a GalleryItem with key=key_of(i).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = _read(folder / RECORDS)

    def get(self, index: int, key: str) -> Kept | None:
        """Return the item of this position and key, None where it is not there whole."""
        record = self._records.get(index)
        if record is None or record.key != digest(key) or not _complete(self._folder, record):
            return None
        return Kept(record)


class Store:
    """Writes the pictures of one item after the other. Holds no picture."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder = folder
        self._task = task
        self._before = _read(folder / RECORDS)
        self.records: list[Record] = []
        folder.mkdir(parents=True, exist_ok=True)
        _end_line(folder / RECORDS)

    def add(self, item: GalleryItem | Kept) -> None:
        """Write the pictures of the next item, if they are not there.

        Raises:
            ValueError: The item does not fit itself, or was kept for another position.
        """
        index = len(self.records)
        if isinstance(item, Kept):
            if item.record.index != index or not _complete(self._folder, item.record):
                raise ValueError(
                    f"An item kept for position {item.record.index} came at position {index}, or its pictures are "
                    "gone: ask Resume.get for every position anew."
                )
            self.records.append(item.record)
            return
        record = record_of(item, index, self._task)
        old = self._before.get(index)
        if old is None or old.fingerprint != record.fingerprint or not _complete(self._folder, old):
            self._write(record, item)
        elif old != record:
            self._append(record)
        self.records.append(record)

    def _write(self, record: Record, item: GalleryItem) -> None:
        """Write an item's pictures; the one that is taken away first and written last tells whether all are there."""
        (self._folder / INDEX).unlink(missing_ok=True)  # where it is, all is
        (self._folder / record.picture("difference")).unlink(missing_ok=True)
        self._append(record)
        write_png(self._folder / record.picture("scan"), item.scan)
        write_png(self._folder / record.picture("counterfactual"), item.counterfactual)
        if item.decoded is not None:
            write_png(self._folder / record.picture(DECODED), item.decoded)
        write_png(self._folder / record.picture("difference"), painted(item.original, item.counterfactual))

    def close(self) -> None:
        """Leave the record of this gallery alone, no picture of an item that is gone, nothing half-written."""
        remove_temporaries(self._folder)
        lines = "".join(_line(record) for record in self.records)
        write_atomic(self._folder / RECORDS, lines)
        for index, record in self._before.items():
            if index >= len(self.records):
                for kind in record.kinds:
                    (self._folder / record.picture(kind)).unlink(missing_ok=True)

    def _append(self, record: Record) -> None:
        with open(self._folder / RECORDS, "a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())


def painted(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the difference map at the gallery's scale."""
    return difference_map(before, after, full_scale=FULL_SCALE)


def _line(record: Record) -> str:
    # ASCII: half a surrogate pair, which a name can carry, has no UTF-8 form.
    return json.dumps({"version": _VERSION, **record.to_json()}, allow_nan=False) + "\n"


def _read(path: Path) -> dict[int, Record]:
    """Return the records by position; lines that are damaged or of another version count as not there."""
    found: dict[int, Record] = {}
    if not path.is_file():
        return found
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                fields: dict[str, Any] = json.loads(line)
                if fields.pop("version") == _VERSION:
                    record = Record.from_json(fields)
                    found[int(record.index)] = record
    return found


def _complete(folder: Path, record: Record) -> bool:
    """Tell whether all pictures are there. Each was put there whole, in one step."""
    return all((folder / record.picture(kind)).is_file() for kind in record.kinds)


def _end_line(path: Path) -> None:
    """Close the last line where a process died within it."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
