"""Which referee judges a hospital's explanations and samples: it depends on whose labels may be used.

In a simulation it knows all labels of the official training split; at a real site the site's own labels, where these
are enough. Nothing that trains ever sees it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jointdiff import storage
from jointdiff.config import Config
from jointdiff.data import HospitalData, ImageSet, load_dataset
from jointdiff.data.base import class_counts
from jointdiff.referee import BATCH_SIZE, STEPS, Referee, cached_referee

EPOCHS, MOST_STEPS = 8, 900  # a larger split is seen as often as steps allow; 900 take two minutes of one core at 28 px
MIN_PER_CLASS = 20  # labelled images of the site's rarest class (or finding, and without it) for a referee of its own


def simulation_referee(config: Config, device: torch.device) -> Referee:
    """Return a classifier of another architecture, trained on all labels of the official training split, and cached."""
    run = config.run
    train = load_dataset(run.dataset, data_root=run.data_root, image_size=run.image_size).train
    return _referee(train, config, storage.home(run.home), device)


def appointed_referee(data: HospitalData, config: Config, device: torch.device, *, site: Path) -> Referee | None:
    """Return who judges at a hospital; None at a real site with too few labels of its own.

    Args:
        site: The site's own folder, where a real site's referee is kept: it has learned from the site's scans.
    """
    if not config.run.over_sites:
        return simulation_referee(config, device)
    train = data.train
    known = train.labels[train.labelled]
    counts = class_counts(known, config.model.num_outputs)
    if known.ndim == 2:
        counts += [len(known) - count for count in counts]
    if min(counts) < MIN_PER_CLASS:
        return None
    return _referee(train.select(np.flatnonzero(train.labelled)), config, site / "state", device)


def _referee(train: ImageSet, config: Config, home: Path, device: torch.device) -> Referee:
    epochs = EPOCHS * len(train.images) // BATCH_SIZE
    steps = MOST_STEPS if config.model.task == "multi-label" else min(max(STEPS, epochs), MOST_STEPS)
    return cached_referee(home, train, config.model.num_outputs, config.model.task, steps=steps, device=device)
