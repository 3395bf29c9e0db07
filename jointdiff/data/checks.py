"""What is odd about a site's data: findings with a severity, and what to do about each. For the site's own eyes.

Texts hold counts, sizes and names of classes; names of files only where `show_names` asks for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jointdiff.data.base import UNKNOWN, class_counts
from jointdiff.data.labelled_split import MIN_HELDOUT
from jointdiff.data.scan_file import shortened
from jointdiff.data.site_data import LoadedSite
from jointdiff.data.site_source import MEDMNIST, PHANTOM

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
MAX_LOOKED_AT = 2000  # fitted images whose brightness is measured, evenly over the set
_TINY = 0.5  # of the model's size: smaller scans hold too little
_DARK = 64  # of 255: images that never get brighter, as 12 bits in a 16-bit file do
_Named = Callable[[Iterable[int]], str]  # names of some rows, where they may be shown
_PART_NAMES = {"train": "training", "heldout": "held out", "nonmembers": "kept for the audit", "test": "test"}


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed."""

    severity: str  # one of SEVERITIES
    text: str
    advice: str = ""  # what to do; '' = nothing

    def __str__(self) -> str:
        """Return it as one line."""
        return " ".join(filter(None, (f"{self.severity}: {self.text}", self.advice)))


def findings(site: LoadedSite, *, show_names: bool = False) -> list[Finding]:
    """Return what is odd about a site's data, the worst first.

    Args:
        show_names: Whether texts may name files.
    """

    def named(rows: Iterable[int]) -> str:
        return f" ({shortened([site.names[row] for row in rows])})" if show_names else ""

    found: list[Finding] = [
        *_classes(site),
        *_leaks(site, named),
        *_duplicates(site, named),
        *_pictures(site, named),
        *_files(site, show_names),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def class_rows(site: LoadedSite) -> tuple[list[str], list[list[str | int]]]:
    """Return the class table: its heading, and a row per class, for images without a label, and for all.

    In a multi-label task an image counts for each of its findings.
    """
    parts = [(name, images) for name, images, _ in site.parts()]
    info = site.data.info
    counts = [class_counts(images.labels, info.num_outputs) for _, images in parts]
    rows: list[list[str | int]] = [[name, *(c[k] for c in counts)] for k, name in enumerate(info.class_names)]
    rows.append(["without a label", *(len(images) - images.num_labelled for _, images in parts)])
    rows.append(["images", *(len(images) for _, images in parts)])
    return ["class", *(_PART_NAMES[name] for name, _ in parts)], rows


def _classes(site: LoadedSite) -> Iterable[Finding]:
    info, train, test = site.data.info, site.data.train, site.data.test
    kept = [train, *([site.data.heldout] if site.data.heldout is not None else [])]
    trained = np.sum([class_counts(images.labels, info.num_outputs) for images in kept], axis=0)
    tested = class_counts(test.labels, info.num_outputs)
    absent = [name for name, a, b in zip(info.class_names, trained, tested, strict=True) if a + b == 0]
    if not trained.sum() and not any(images.num_labelled for images in kept):
        yield Finding(WARNING, "No training image has a label: this site helps with unlabelled scans alone.")
    elif absent:
        yield Finding(
            WARNING, f"No image of {shortened(absent)} here: the model learns this class from other sites alone.",
            "Check the names of the classes if this is not what you expect.",
        )  # fmt: skip
    if not len(test):
        yield Finding(
            WARNING, "There is no labelled image to test on: this site cannot measure the model.",
            "Label some scans, at least two of each class.",
        )  # fmt: skip
    else:
        missing = [name for name, count in zip(info.class_names, tested, strict=True) if not count]
        if missing := [name for name in missing if name not in absent]:
            yield Finding(WARNING, f"No test image of {shortened(missing)}: the AUC here leaves this class out.")
    if site.data.heldout is None and trained.sum():
        yield Finding(
            NOTE, f"A fifth of the labels is fewer than {MIN_HELDOUT} of some class: none is held out, and this site "
            "has no say in which round is the best.",
        )  # fmt: skip


def _leaks(site: LoadedSite, named: _Named) -> Iterable[Finding]:
    parts = [(name, images, rows) for name, images, rows in site.parts() if len(images)]
    for (first, some, rows), (second, others, other_rows) in combinations(parts, 2):
        sides = f"the {_PART_NAMES[first]} part and the {_PART_NAMES[second]} part"
        shared = np.intersect1d(site.facts["digest"][rows], site.facts["digest"][other_rows])
        if len(shared):
            where = np.flatnonzero(np.isin(site.facts["digest"], shared))
            yield Finding(
                ERROR, f"{len(shared)} pictures are both in {sides}{named(where)}.",
                "What is measured here looks better than it is: remove the copies.",
            )  # fmt: skip
        if some.patients is not None and others.patients is not None:
            num = len(np.intersect1d(some.patients, others.patients))
            if num:
                yield Finding(
                    ERROR, f"{num} patients have images both in {sides}.",
                    "Move each patient to one side, or leave the parts out: then they are drawn by patient.",
                )  # fmt: skip
    if not site.knows_patients and site.source.kind not in (MEDMNIST, PHANTOM):
        yield Finding(
            NOTE, "Patients are not known: scans of one patient can lie in the training part and in the test part.",
            "Where a patient has several scans, name the patients (a column, a folder each, or the DICOM header).",
        )  # fmt: skip


def _duplicates(site: LoadedSite, named: _Named) -> Iterable[Finding]:
    labels = np.concatenate([images.labels for _, images, _ in site.parts()])
    _, group, sizes = np.unique(site.facts["digest"], return_inverse=True, return_counts=True)
    copies = sizes[group] > 1
    if not copies.any():
        return
    num = int((sizes - 1).sum())
    yield Finding(
        WARNING, f"{num} of {len(group)} images are exact copies of others{named(np.flatnonzero(copies))}.",
        "Copies count twice in training, and protect a patient less: keep one of each.",
    )  # fmt: skip
    known = copies & ((labels != UNKNOWN) if labels.ndim == 1 else (labels != UNKNOWN).all(axis=1))
    pairs = {(int(g), np.atleast_1d(label).tobytes()) for g, label in zip(group[known], labels[known], strict=True)}
    torn = [g for g, count in Counter(g for g, _ in pairs).items() if count > 1]
    if torn:
        rows = np.flatnonzero(np.isin(group, torn) & known)
        yield Finding(
            ERROR, f"{len(torn)} pictures carry different labels in their copies{named(rows)}.", "Correct the labels."
        )


def _pictures(site: LoadedSite, named: _Named) -> Iterable[Finding]:
    facts, size = site.facts, site.data.info.image_size
    constant = np.flatnonzero(facts["low"] == facts["high"])
    if len(constant):
        yield Finding(WARNING, f"{len(constant)} images are constant: every pixel is the same{named(constant)}.",
                      "Remove them: they show nothing.")  # fmt: skip
    sides = np.minimum(facts["height"], facts["width"])
    tiny = np.flatnonzero(sides < _TINY * size)
    if len(tiny):
        yield Finding(
            WARNING, f"{len(tiny)} images are tiny: the smallest has {sides.min()} pixels on its short side, the model "
            f"sees {size}{named(tiny)}.", "Use the scans themselves, not previews of them.",
        )  # fmt: skip
    yield from _sizes(site)
    yield Finding(NOTE, f"Values in the files reach from {facts['low'].min():g} to {facts['high'].max():g}.")
    brightest = _brightest(site)
    dark = brightest < _DARK
    if len(brightest) and dark.mean() > 0.5:
        yield Finding(
            WARNING, f"{100 * dark.mean():.0f}% of the images never get brighter than a quarter of the range.",
            "16-bit files are scaled by their full range: stretch those that hold 12 bits, or take the DICOM files.",
        )  # fmt: skip
    burned_in = np.flatnonzero(facts["burned_in"])
    if len(burned_in):
        yield Finding(
            WARNING, f"{len(burned_in)} DICOM files say that text is drawn into the picture{named(burned_in)}.",
            "It may name the patient, and a generator can learn it: remove the text or the scans.",
        )  # fmt: skip


def _sizes(site: LoadedSite) -> Iterable[Finding]:
    facts = site.facts
    forms = np.unique(np.stack([facts["height"], facts["width"]], axis=1), axis=0)
    if len(forms) > 1:
        (low_h, low_w), (high_h, high_w) = forms.min(axis=0), forms.max(axis=0)
        yield Finding(
            NOTE, f"{len(forms)} sizes, from {low_h} to {high_h} pixels in height and {low_w} to {high_w} in width; "
            f"all are brought to {site.data.info.image_size} x {site.data.info.image_size}.",
        )  # fmt: skip
    done = {"pad": "padded with black", "crop": "cut to their central square", "stretch": "squeezed into the square"}
    oblong = int((facts["height"] != facts["width"]).sum())
    if oblong:
        yield Finding(NOTE, f"{oblong} images are not square and are {done[site.source.aspect]} (`aspect`).")


def _brightest(site: LoadedSite) -> np.ndarray:
    """Return the brightest value of up to MAX_LOOKED_AT fitted images."""
    every = max(1, len(site.facts) // MAX_LOOKED_AT)
    some = [images.images[::every] for _, images, _ in site.parts() if len(images)]
    return np.concatenate([images.max(axis=(1, 2, 3)) for images in some])


def _files(site: LoadedSite, show_names: bool) -> Iterable[Finding]:
    if site.unreadable:
        reasons = Counter(reason for _, reason in site.unreadable)
        told = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
        names: Sequence[str] = [name for name, _ in site.unreadable]
        where = f" ({shortened(names)})" if show_names else ""
        yield Finding(WARNING, f"{len(site.unreadable)} images cannot be read and are left out: {told}{where}.")
    for reason, count in site.left_out.items():
        yield Finding(NOTE, f"{count} files are not used: {reason}.")
