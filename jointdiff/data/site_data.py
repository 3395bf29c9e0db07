"""A site's own scans, as the federation wants them: the one door through which real data come in.

Labels are kept as the site gives them, UNKNOWN where it gives none. How parts are drawn: site_split.py; how scans are
fitted: fitting.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jointdiff.data.base import DatasetInfo, ImageSet
from jointdiff.data.hospital import HospitalData
from jointdiff.data.site_source import CSV_TABLE, DICOM, FOLDER, SiteSource
from jointdiff.data.site_split import PARTS
from jointdiff.errors import DataError

Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class LoadedSite:
    """A site's data with what is known of every image: for the checks and the preview, at the site alone.

    The N images lie in the order of PARTS: first those of `train`, last those of `test`.
    """

    source: SiteSource
    data: HospitalData
    facts: np.ndarray  # streaming.FACTS [N]
    names: Sequence[str]  # [N] files below the data's root, or numbers in an array; they never leave the site
    read: Callable[[int], np.ndarray]  # the i-th image as the site's file shows it, uint8 [H, W, 1 or 3]
    knows_patients: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason: number of files
    unreadable: Sequence[tuple[str, str]] = ()  # (name, reason)

    def parts(self) -> list[tuple[str, ImageSet, slice]]:
        """Return name, images and rows of every part that is there."""
        found, start = [], 0
        for name in PARTS:
            images = getattr(self.data, name)
            if images is not None:
                found.append((name, images, slice(start, start + len(images))))
                start += len(images)
        return found


def load_site(
    source: SiteSource,
    wanted: DatasetInfo,
    *,
    cache: Path,
    audit_holdout: float = 0.0,
    progress: Progress | None = None,
) -> HospitalData:
    """Load a site's own data, fitted to the federation's model.

    Args:
        source: What site.yaml says, from `read_source`.
        wanted: What the federation says: class names, task, channels, image size.
        cache: Folder of fitted scans, the site's own; made if needed, and may be deleted at any time.
        audit_holdout: Share of the training images that nothing is to see, 0 to 1; 0 = none.
        progress: Told how many images are decoded; not called where they are in the cache.

    Returns:
        The data. Images of files are mapped from the cache: they are read when they are used.

    Raises:
        ConfigError: `classes` does not fit the federation.
        DataError: The data are missing, damaged, contradict themselves, or hold a class that the federation does not
            know. Every text that quotes the site's own words begins with a path, so that it is not sent to the server.
    """
    return open_site(source, wanted, cache=cache, audit_holdout=audit_holdout, progress=progress).data


def open_site(
    source: SiteSource,
    wanted: DatasetInfo,
    *,
    cache: Path,
    audit_holdout: float = 0.0,
    progress: Progress | None = None,
) -> LoadedSite:
    """Load the same as `load_site`, with what the checks and the preview need."""
    if source.kind in (FOLDER, CSV_TABLE, DICOM):
        from jointdiff.data.site_files import open_files

        site = open_files(source, wanted, cache=cache, audit_holdout=audit_holdout, progress=progress)
    else:
        from jointdiff.data.site_arrays import open_arrays

        site = open_arrays(source, wanted, audit_holdout=audit_holdout)
    if not len(site.data.train):
        raise DataError(f"{source.path or source.kind}: no image is left to train on.")
    return site


def hospital_of(wanted: DatasetInfo, sets: Mapping[str, ImageSet], *, real: bool = True) -> HospitalData:
    """Return the data of a site out of its parts; `train` and `test` are always there."""
    return HospitalData(
        info=replace(wanted, real=real),
        train=sets["train"],
        hidden_labels=sets["train"].labels,
        heldout=sets["heldout"] if len(sets["heldout"]) else None,
        test=sets["test"],
        nonmembers=sets["nonmembers"] if len(sets["nonmembers"]) else None,
    )
