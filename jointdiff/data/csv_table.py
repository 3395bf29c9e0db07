"""A table that names the image files: a CSV file in UTF-8 with a heading, separated by comma, semicolon or tabulator.

    path     the file, relative to `root` (default: the table's folder) or absolute
    label    the class; empty = not known. With several findings per scan: separated by ';', or `none`
    patient  optional: any text that is the same for scans of one patient; empty = not known
    split    optional: train, test, or unlabelled (to train on, without a label)

Other columns are not looked at. `columns` in site.yaml gives the names of the columns where they differ.
"""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jointdiff.data.listing import (
    NO_LABEL,
    SPLIT_WORDS,
    TEST,
    TRAIN,
    VALIDATION,
    Entry,
    Listing,
    check_there,
    listing_of,
    name_of,
    stamp_of,
)
from jointdiff.data.scan_file import MAX_NAMED, FilesError, shortened
from jointdiff.data.site_source import COLUMNS, NEEDED_COLUMNS, SiteSource
from jointdiff.errors import DataError, nearest


@dataclass(frozen=True)
class _Row:
    number: int  # as a spreadsheet counts, the heading is 1
    path: str
    label: str
    patient: str
    split: str


def list_table(source: SiteSource) -> Listing:
    """List the images that a site's table names.

    Raises:
        DataError: The table is missing, not UTF-8, lacks a column, contradicts itself, or names missing files.
    """
    table = source.path
    assert table is not None
    check_there(table, folder=False)
    rows, present = _rows(table, source)
    root = source.root or table.parent
    check_there(root, folder=True)
    entries = [_entry(row, root) for row in rows]
    missing = [row for row, entry in zip(rows, entries, strict=True) if entry is None]
    if missing:
        raise FilesError(
            f"{table}: {len(missing)} of {len(rows)} rows name a file that is not there, {_numbers(missing)}. Paths "
            f"start at {root}: correct them, or set `root` in site.yaml.",
            [row.path for row in missing],
        )
    found = [entry for entry in entries if entry is not None]
    _check_splits(table, rows)
    _check_once(table, rows, found)
    return listing_of(table, found, knows_patients="patient" in present)


def _rows(table: Path, source: SiteSource) -> tuple[list[_Row], set[str]]:
    """Return the rows, and which of COLUMNS are there."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table} is not UTF-8 (byte {error.start + 1}): save it as 'CSV UTF-8' in your spreadsheet, or convert it "
            "with iconv."
        ) from None
    named = {column: source.column(column) for column in COLUMNS}
    heading, separator = _heading(table, text, [named[column] for column in NEEDED_COLUMNS])
    expected = {named[column] for column in NEEDED_COLUMNS} | {name for _, name in source.columns}
    for name in sorted(expected - set(heading)):
        raise DataError(
            f"{table} has no column '{name}': {nearest(name, heading)}. It has: {shortened(heading)}. Correct the "
            "heading, or name your column under `columns` in site.yaml."
        )
    twice = [name for name in named.values() if heading.count(name) > 1]
    if twice:
        raise DataError(f"{table} has the column '{twice[0]}' more than once.")
    at = {column: heading.index(name) for column, name in named.items() if name in heading}
    rows = []
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1):
            if number == 1 or not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(heading):
                raise DataError(
                    f"{table}, row {number}: {len(cells)} cells, but the heading has {len(heading)}. A cell that holds "
                    f"the separator '{separator}' must stand in quotes."
                )
            values = {column: cells[index].strip() for column, index in at.items()}
            rows.append(_Row(number, *(values.get(column, "") for column in COLUMNS)))
    except csv.Error as error:
        raise DataError(f"{table} is no proper CSV ({error}): export it again.") from None
    if not rows:
        raise DataError(f"{table} has a heading and no rows: it names no image.")
    return rows, set(at)


def _heading(table: Path, text: str, needed: Sequence[str]) -> tuple[list[str], str]:
    """Return the names of the columns, and the separator by which the needed ones are found."""
    if not text.strip():
        raise DataError(f"{table} is empty: a heading with the columns path and label is expected.")
    lines = io.StringIO(text, newline="")
    headings = []
    for separator in ",;\t":
        lines.seek(0)
        headings.append(([cell.strip() for cell in next(csv.reader(lines, delimiter=separator))], separator))
    return max(headings, key=lambda found: (sum(name in found[0] for name in needed), len(found[0])))


def _entry(row: _Row, root: Path) -> Entry | None:
    """Return what a row names, or None where there is no such file."""
    if not row.path:
        return None
    path = root / Path(row.path.replace("\\", "/")).expanduser()
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    split = TRAIN if row.split.lower() in NO_LABEL else SPLIT_WORDS.get(row.split.lower(), "")
    return Entry(name_of(path, root), path, row.label, row.patient, split, stamp_of(status))


def _check_splits(table: Path, rows: Sequence[_Row]) -> None:
    strange = [row for row in rows if row.split and row.split.lower() not in (*SPLIT_WORDS, *NO_LABEL)]
    if strange:
        raise DataError(
            f"{table}: unknown words in the column of the split: {shortened(sorted({row.split for row in strange}))}, "
            f"{_numbers(strange)}. Known: {TRAIN}, {TEST}, {NO_LABEL[0]}, {VALIDATION} (not used), or empty in all."
        )
    labelled = [row for row in rows if row.split.lower() in NO_LABEL and row.label]
    if labelled:
        raise DataError(
            f"{table}: {len(labelled)} rows are '{NO_LABEL[0]}' and have a label, {_numbers(labelled)}. Empty the "
            f"label, or write '{TRAIN}' as the split."
        )
    blank = [row for row in rows if SPLIT_WORDS.get(row.split.lower()) == TEST and not row.label]
    if blank:
        raise DataError(
            f"{table}: {len(blank)} rows of the test part have no label, {_numbers(blank)}. What is evaluated needs "
            f"its label: give it, or write '{NO_LABEL[0]}' as the split."
        )


def _check_once(table: Path, rows: Sequence[_Row], entries: Sequence[Entry]) -> None:
    first: set[str] = set()
    again = []
    for row, entry in zip(rows, entries, strict=True):
        place = os.path.normpath(entry.path)
        if place in first:
            again.append(row)
        first.add(place)
    if again:
        raise FilesError(
            f"{table}: {len(again)} rows name a file that an earlier row names, {_numbers(again)}. Keep one row per "
            "file; several findings of one scan stand in one label, separated by ';'.",
            [row.path for row in again],
        )


def _numbers(rows: Sequence[_Row]) -> str:
    named = ", ".join(str(row.number) for row in rows[:MAX_NAMED])
    return ("row " if len(rows) == 1 else "rows ") + named + (" and others" if len(rows) > MAX_NAMED else "")
