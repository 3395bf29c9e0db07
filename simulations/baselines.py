"""What a federation is measured against, on the same code: all images in one place, and every hospital on its own.

Both see what the federation sees: the same shares, scanners, kept labels and evaluation images, batch size and
seeds.

- Centralised: the images and kept labels of all hospitals in one hospital. It takes either as many optimiser steps
  as all hospitals together (`total`: as many images pass through the network) or as many as one of them
  (`one-hospital`), in as many rounds, so warm-ups and schedules fall on the same share of the training.
- Local-only: one hospital's own share and its own kept labels, as many steps as in the federation, measured on the
  evaluation images of all hospitals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.config import RunConfig
from jointdiff.data import HospitalData, ImageSet
from jointdiff.data.server_set import everybody
from jointdiff.errors import ConfigError
from jointdiff.standalone import train_alone, train_on

TOTAL, ONE_HOSPITAL = "total", "one-hospital"
CENTRALISED_STEPS = (TOTAL, ONE_HOSPITAL)
_OF_THE_EXCHANGE = (
    "strategy", "secure_aggregation", "upload", "download", "share", "min_hospitals", "participation", "server_steps",
    "weighting", "head_weighting", "decoder_weighting", "personal",
)  # fmt: skip
Listener = Callable[[dict[str, Any]], None]


def alone(run: RunConfig) -> RunConfig:
    """Return a federation's run-config without what means nothing where one place trains: merging and what travels.

    Raises:
        ConfigError: The run is private; training in one place has no privacy here, so it would compare with nothing.
    """
    if run.target_epsilon or run.noise_multiplier:
        raise ConfigError("a private run has no centralised and no local-only baseline: they train without noise")
    default = RunConfig()
    return replace(run, **{key: getattr(default, key) for key in _OF_THE_EXCHANGE})


def centralised(run: RunConfig, steps: str) -> RunConfig:
    """Return the run-config of the centralised baseline of a federation.

    Args:
        steps: TOTAL | ONE_HOSPITAL.
    """
    factor = run.num_asked if steps == TOTAL else 1
    return replace(alone(run), local_steps=run.local_steps * factor)


def train_centralised(run: RunConfig, callback: Listener | None = None) -> Path:
    """Train on the data of all hospitals in one place and return the run's folder.

    Args:
        run: As `centralised` makes it; num-hospitals still says how the data are dealt and labels are kept.
    """
    return train_on(run, pooled_data(run), name="all-hospitals", callback=callback)


def train_hospital(run: RunConfig, hospital: int, callback: Listener | None = None) -> Path:
    """Train one hospital (0-based) by itself and return the run's folder."""
    return train_alone(run, hospital=hospital, callback=callback)


def pooled_data(run: RunConfig) -> HospitalData:
    """Return what all hospitals, and a server with labels, hold as one: same images, same kept and held-out labels."""
    parts = everybody(run)

    def together(sets: list[ImageSet | None]) -> ImageSet | None:
        present = [part for part in sets if part is not None]
        return ImageSet.together(present) if present else None

    return HospitalData(
        info=parts[0].info,
        train=ImageSet.together([part.train for part in parts]),
        hidden_labels=np.concatenate([part.hidden_labels for part in parts]),
        heldout=together([part.heldout for part in parts]),
        test=ImageSet.together([part.test for part in parts]),
        nonmembers=together([part.nonmembers for part in parts]),
    )
