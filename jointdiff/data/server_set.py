"""The labelled images of the server itself (label-split=server): in a simulation dealt to it, else from its own file.

They are the coordinator's, and no hospital's: the server learns from them, and nothing protects them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jointdiff.config import RunConfig
from jointdiff.data.base import Dataset, DatasetInfo, ImageSet
from jointdiff.data.fitting import fit
from jointdiff.data.hospital import HospitalData, dealt_to_server, hospital_data
from jointdiff.data.labelled_split import heldout_labels
from jointdiff.data.npz import load_whole
from jointdiff.data.partition import strata_of
from jointdiff.data.registry import info_of
from jointdiff.errors import DataError
from jointdiff.settings import AT_SERVER


def server_data(run: RunConfig) -> HospitalData:
    """Return the server's own labelled images, as a hospital would hold them; its test set is empty.

    A fifth of them is held out to choose the best round, where that is ten or more of every class.

    Args:
        run: With label-split=server. With dataset=sites `server-data` names the npz (arrays as npz.py says).

    Raises:
        ConfigError, DataError: There are none, or they do not fit the run.
    """
    if not run.over_sites:
        return dealt_to_server(run)
    wanted = info_of(run)
    images = _labelled(load_whole(run.server_data), wanted)
    rows = np.arange(len(images))
    (held,) = heldout_labels(strata_of(images.labels), [rows], num_classes=wanted.num_outputs, seed=run.split_seed)
    train = images.select(np.setdiff1d(rows, held))
    heldout = images.select(held) if len(held) else None
    return HospitalData(wanted, train, train.labels, heldout, test=images.select(held[:0]))


def everybody(run: RunConfig) -> list[HospitalData]:
    """Return what each hospital of a simulation holds, then what the server holds, where it has images of its own."""
    parts = [hospital_data(run, index) for index in range(run.num_hospitals)]
    return [*parts, server_data(run)] if run.label_split == AT_SERVER else parts


def _labelled(data: Dataset, wanted: DatasetInfo) -> ImageSet:
    """Return the labelled images, fitted to the model; the other splits of the file are left alone."""
    found, name = data.info, data.info.name
    numbered = found.class_names == tuple(str(k) for k in range(found.num_outputs))  # the file names none
    fits = found.num_outputs <= wanted.num_outputs if numbered else found.class_names == wanted.class_names
    if found.task != wanted.task or not fits:
        raise DataError(
            f"server-data {name} holds a {found.task} set of {', '.join(found.class_names)}, but the run is "
            f"{wanted.task} with {', '.join(wanted.class_names)}: give it the run's classes in the run's order "
            "(class_names)."
        )
    images = data.train.select(np.flatnonzero(data.train.labelled))
    if not len(images):
        raise DataError(f"server-data {name} holds no labelled image in train_labels: -1 means not known.")
    fitted = [fit(image, image_size=wanted.image_size, channels=wanted.channels) for image in images.images]
    return replace(images, images=np.stack(fitted), sources=None, patients=None)
