"""Scans that somebody at the site names: DICOM files are read as the site's own data are, all others as they are.

What the search for an edit asks of other scans comes from the test scans of the site's own data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from client.site_config import SiteConfig
from jointdiff.config import ModelConfig
from jointdiff.data import DatasetInfo
from jointdiff.data.site_data import load_site
from jointdiff.data.site_source import SiteSource
from jointdiff.edit_task import References
from jointdiff.errors import JointDiffError
from jointdiff.explanation import MAX_REFERENCES, site_references
from jointdiff.scans import is_dicom, listed, read_scans
from jointdiff.trained import Trained


def read_own(
    paths: Sequence[str], model: ModelConfig, source: SiteSource | None
) -> tuple[list[str], np.ndarray, list[Path | None]]:
    """Return names, what the model sees (uint8 [N,H,W,C]), and the DICOM file of each scan, None where it is none.

    A DICOM file's window and aspect are those of site.yaml where it names DICOM data, else its own range, padded.

    Args:
        paths: Image files, DICOM files, folders of both, npz files.
        source: Of the site's data.

    Raises:
        DataError: Nothing there, not an image, no contrast, or another form than the model's where nothing is fitted.
    """
    names: list[str] = []
    images: list[np.ndarray] = []
    files: list[Path | None] = []
    window, aspect = ("auto", "pad") if source is None else (source.window, source.aspect)
    for path in listed(paths):
        own, pixels = read_scans([str(path)], model, exact=True, window=window, aspect=aspect)
        names += own
        images.append(pixels)
        files += [path if is_dicom(path) else None] * len(pixels)
    return names, np.concatenate(images), files


def references_of(trained: Trained, own: SiteConfig, *, say: Callable[[str], None]) -> References | None:
    """Return the references that a gallery of the site's test scans gets; where there are none, say why.

    The data are read as in the model's run, so what the run left in the site's cache is used again.

    Args:
        say: Takes one line, for the site's own eyes.
    """
    run, model = trained.config.run, trained.config.model
    wanted = DatasetInfo(
        name=run.dataset, task=model.task, class_names=trained.class_names, channels=model.channels,
        image_size=model.image_size, real=True, description="The site's own scans.", licence="the site's own",
    )  # fmt: skip
    without = "Explained without the typical margins and the guard of identity of the site's own scans"
    if own.data is None:
        say(f"{without}: {own.path} names no data.")
        return None
    try:
        test = load_site(own.data, wanted, cache=own.cache, audit_holdout=run.audit_holdout).test
    except (JointDiffError, OSError) as failure:
        say(f"{without}, which cannot be read: {failure}")
        return None
    if not len(test):
        say(f"{without}: none of them is a test scan.")
        return None
    say(f"References: {min(len(test), MAX_REFERENCES)} of the site's {len(test)} test scans.")
    return site_references(trained.model, test, device=trained.device, space=trained.space)
