"""A site's image files, DICOM or not, in class folders or named by a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.data import dicom, streaming
from jointdiff.data.base import MULTI_LABEL, DatasetInfo, ImageSet
from jointdiff.data.class_names import label_numbers, numbers_of_names
from jointdiff.data.csv_table import list_table
from jointdiff.data.fitting import fit, to_uint8
from jointdiff.data.folder import is_image, list_folder
from jointdiff.data.image_files import read_image
from jointdiff.data.listing import Listing
from jointdiff.data.scan_file import Scan, Unreadable, unreadable_error
from jointdiff.data.site_data import LoadedSite, Progress, hospital_of
from jointdiff.data.site_source import DICOM, FROM_FOLDER, FROM_HEADER, SiteSource
from jointdiff.data.site_split import NOT_USED, PARTS, UNUSED, assign, patient_numbers
from jointdiff.errors import DataError


def open_files(
    source: SiteSource, wanted: DatasetInfo, *, cache: Path, audit_holdout: float, progress: Progress | None
) -> LoadedSite:
    """Open a site's files; raises as `site_data.load_site`."""
    if source.kind == DICOM:
        dicom.check_installed()
    listing = _wanted_of(list_files(source), source, wanted)
    names = numbers_of_names(source, wanted)
    labels = label_numbers(
        [entry.label for entry in listing.entries], names, wanted, listing.path, has_multi_label=source.is_table
    )
    shape = (wanted.image_size, wanted.image_size, wanted.channels)
    key = _key(source, wanted, listing, audit_holdout)
    stored = streaming.find(cache, key, shape)
    if stored is None:
        decoding = _Decoding(source, wanted, listing, labels, audit_holdout, progress)
        num = len(listing.entries)
        stored = streaming.store(cache, key, shape, num, decoding.scans, lambda: {"failures": decoding.failures})
    return _site(source, wanted, listing, labels, stored)


def list_files(source: SiteSource) -> Listing:
    """List a site's files without reading any image.

    Raises:
        DataError: As list_table or list_folder.
    """
    assert source.path is not None
    if source.is_table:
        listing = list_table(source)
    else:
        accepts = dicom.is_candidate if source.kind == DICOM else is_image
        listing = list_folder(source.path, accepts=accepts, patients=source.patient == FROM_FOLDER)
    return replace(listing, knows_patients=True) if source.patient == FROM_HEADER else listing


def _wanted_of(listing: Listing, source: SiteSource, wanted: DatasetInfo) -> Listing:
    """Return a listing without the scans of classes that are left out; findings are left out of labels instead."""
    kept = [entry for entry in listing.entries if entry.label not in source.leave_out]
    if wanted.task == MULTI_LABEL or len(kept) == len(listing.entries):
        return listing
    apart = {"of a class that is left out": len(listing.entries) - len(kept)}
    return replace(listing, entries=kept, left_out={**listing.left_out, **apart})


def reader_of(source: SiteSource) -> Callable[[Path], Scan]:
    """Return what reads one file."""
    return partial(dicom.read_dicom, window=source.window) if source.kind == DICOM else read_image


@dataclass
class _Decoding:
    """Decodes a listing, part by part."""

    source: SiteSource
    wanted: DatasetInfo
    listing: Listing
    labels: np.ndarray
    audit_holdout: float
    progress: Progress | None

    def __post_init__(self) -> None:
        self.failures: list[tuple[int, str]] = []

    def scans(self) -> Iterator[tuple[np.ndarray, tuple[Any, ...]]]:
        """Yield the fitted images with their facts; raises a FilesError at the end where some cannot be read."""
        entries, wanted = self.listing.entries, self.wanted
        self.failures.clear()
        patients = _patients(self.source, self.listing)
        parts = assign(
            self.labels,
            names=[entry.name for entry in entries],
            patients=patients,
            splits=[entry.split for entry in entries],
            num_outputs=wanted.num_outputs,
            test_fraction=self.source.test_fraction,
            audit_holdout=self.audit_holdout,
            where=str(self.listing.path),
        )
        read = reader_of(self.source)
        order = np.argsort(parts, kind="stable")
        order = order[parts[order] != UNUSED]
        for done, index in enumerate(order.tolist(), 1):
            try:
                scan = read(entries[index].path)
            except Unreadable as failure:
                self.failures.append((index, str(failure)))
            else:
                image = fit(
                    scan.pixels, image_size=wanted.image_size, channels=wanted.channels, aspect=self.source.aspect
                )
                patient = -1 if patients is None else int(patients[index])
                height, width = scan.pixels.shape[:2]
                yield image, (index, parts[index], patient, height, width, scan.low, scan.high, scan.burned_in,
                              scan.digest)  # fmt: skip
            if self.progress is not None:
                self.progress(done, len(order))
        failed = [(entries[index].name, reason) for index, reason in self.failures]
        if failed and (not self.source.skip_unreadable or len(failed) == len(order)):
            raise unreadable_error(self.listing.path, len(order), failed)


def _patients(source: SiteSource, listing: Listing) -> np.ndarray | None:
    if not listing.knows_patients:
        return None
    if source.patient == FROM_HEADER:
        return patient_numbers([dicom.patient_digest(entry.path) for entry in listing.entries])
    return patient_numbers([entry.patient for entry in listing.entries])


def _key(source: SiteSource, wanted: DatasetInfo, listing: Listing, audit_holdout: float) -> str:
    """Return a digest of all that the stored images depend on."""
    settings = [
        streaming.FORMAT, source.kind, str(listing.path), source.aspect, source.window, source.patient,
        source.test_fraction, source.skip_unreadable, source.classes, source.leave_out, list(wanted.class_names),
        wanted.task, wanted.channels, wanted.image_size, audit_holdout,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings).encode())
    for entry in listing.entries:
        digest.update(json.dumps([str(entry.path), entry.name, entry.label, entry.patient, entry.split,
                                  entry.stamp]).encode())  # fmt: skip
    return digest.hexdigest()


def _site(
    source: SiteSource, wanted: DatasetInfo, listing: Listing, labels: np.ndarray, stored: streaming.Stored
) -> LoadedSite:
    """Put the parts together: each is a stretch of the mapped images, so that nothing is copied."""
    facts, entries = stored.facts, listing.entries
    bounds = np.searchsorted(facts["part"], np.arange(len(PARTS) + 1))
    sets = {}
    for part, name in enumerate(PARTS):
        rows = slice(bounds[part], bounds[part + 1])
        sets[name] = ImageSet(
            images=stored.images[rows],
            labels=labels[facts["entry"][rows]],
            patients=facts["patient"][rows].astype(np.int64) if listing.knows_patients else None,
        )
    failures: Sequence[tuple[int, str]] = stored.extra["failures"]
    left_out = dict(listing.left_out)
    num_unused = len(entries) - len(facts) - len(failures)
    if num_unused:
        left_out[NOT_USED] = num_unused
    read = reader_of(source)

    def read_row(row: int) -> np.ndarray:
        try:
            return to_uint8(read(entries[facts["entry"][row]].path).pixels)
        except Unreadable as failure:
            raise DataError(f"{listing.path} has changed while it was read: {failure}.") from None

    return LoadedSite(
        source=source,
        data=hospital_of(wanted, sets),
        facts=facts,
        names=[entries[i].name for i in facts["entry"]],
        read=read_row,
        knows_patients=listing.knows_patients,
        left_out=left_out,
        unreadable=[(entries[index].name, reason) for index, reason in failures],
    )
