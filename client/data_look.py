"""A first look at a site's data, before any image is read: how many there are, and which classes were seen."""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointdiff.data import npz
from jointdiff.data.base import UNKNOWN, class_counts
from jointdiff.data.class_names import NONE, SEPARATOR
from jointdiff.data.medmnist import medmnist_info
from jointdiff.data.phantom import phantom_info
from jointdiff.data.site_files import list_files
from jointdiff.data.site_source import MEDMNIST, NPZ, PHANTOM, SiteSource

_ANY_SIZE = 28  # of a public set, where only its classes are asked for


@dataclass(frozen=True)
class Seen:
    """What was seen."""

    num_images: int
    classes: dict[str, int]  # the site's own name: number of images
    num_unlabelled: int
    knows_patients: bool = False

    @property
    def text(self) -> str:
        """The same in words."""
        told = ", ".join(f"{name} ({count})" for name, count in self.classes.items()) or "none"
        patients = "; patients are known" if self.knows_patients else ""
        return f"{self.num_images} images; classes: {told}; without a label: {self.num_unlabelled}{patients}."


def look(source: SiteSource) -> Seen | None:
    """Look at the data of a site; None where there is nothing before it is made or fetched (phantoms, MedMNIST).

    Raises:
        DataError: They are not there, or not of the form that the kind wants.
    """
    if source.kind in (PHANTOM, MEDMNIST):
        return None
    assert source.path is not None
    if source.kind == NPZ:
        return _of_arrays(source.path)
    listing = list_files(source)
    labels = Counter(part.strip() for entry in listing.entries for part in entry.label.split(SEPARATOR) if part.strip())
    unlabelled = sum(not entry.label for entry in listing.entries)
    return Seen(len(listing.entries), dict(sorted(labels.items())), unlabelled, listing.knows_patients)


def _of_arrays(path: Path) -> Seen:
    data = npz.load_npz(str(path), image_size=_size_of(path))
    labels = np.concatenate([data.train.labels, data.test.labels])
    counts = class_counts(labels, data.info.num_outputs)
    known = labels != UNKNOWN if labels.ndim == 1 else (labels != UNKNOWN).all(axis=1)
    return Seen(len(labels), dict(zip(data.info.class_names, counts, strict=True)), int((~known).sum()))


def _size_of(path: Path) -> int:
    """Return the pixels per side; 0 where they cannot be told: whoever loads the file says why."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return int(file["train_images"].shape[1])
    except (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, AttributeError, zipfile.BadZipFile):
        return 0


def class_names(source: SiteSource) -> tuple[str, ...]:
    """Return the classes that a site alone would name: its own, by the federation's names where site.yaml says them.

    Raises:
        DataError: As `look`.
    """
    if source.kind == PHANTOM:
        return phantom_info(source.variant, image_size=_ANY_SIZE).class_names
    if source.kind == MEDMNIST:
        return medmnist_info(source.name, image_size=_ANY_SIZE).class_names
    seen = look(source)
    assert seen is not None
    by_own = {text: name for name, own in source.classes for text in own}
    return tuple(dict.fromkeys(by_own.get(name, name) for name in seen.classes if by_own.get(name, name) != NONE))
